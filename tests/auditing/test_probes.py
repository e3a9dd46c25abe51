"""A probe finds what is there, and nothing where nothing is."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from koopman_interp.auditing.probes import HIDDEN, MOST_ROWS, probe_accuracy, probed_rows, prototype_recall

KERNELS = ["linear", "rbf", "mlp"]


def noise(rows, width=3, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_separate_is_found(kernel):
    forgotten = torch.arange(400) % 4 == 0
    states = noise(400) + 8 * forgotten[:, None]
    assert probe_accuracy(states, forgotten, kernel=kernel) >= 0.99


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_is_the_same_is_not_found_however_unlike_the_numbers(kernel):
    # A probe that always says "the rest" would be right nine times in ten if the sides were not balanced.
    forgotten = torch.arange(4000) % 10 == 0
    assert abs(probe_accuracy(noise(4000), forgotten, kernel=kernel) - 0.5) < 0.1


def test_what_is_no_linear_matter_is_found_by_the_other_kernel():
    states = noise(1200, width=2)
    exclusive = (states[:, 0] > 0) != (states[:, 1] > 0)
    assert abs(probe_accuracy(states, exclusive, kernel="linear") - 0.5) < 0.1
    assert probe_accuracy(states, exclusive, kernel="rbf") > 0.9


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_probe_is_judged_on_rows_it_was_not_trained_on(kernel):
    # With more coordinates than rows, training rows are always told apart.
    forgotten = torch.arange(80) % 2 == 0
    assert abs(probe_accuracy(noise(80, width=200), forgotten, kernel=kernel) - 0.5) < 0.25


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_probe_takes_coordinates_of_any_scale(kernel):
    forgotten = torch.arange(300) % 2 == 0
    states = noise(300) + 3 * forgotten[:, None]
    scales = torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64)
    assert probe_accuracy(states * scales + 5, forgotten, kernel=kernel) == pytest.approx(
        probe_accuracy(states, forgotten, kernel=kernel), abs=0.02
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_seed_fixes_the_figure(kernel):
    forgotten = torch.arange(500) % 3 == 0
    states = noise(500) + 0.7 * forgotten[:, None]
    found = [probe_accuracy(states, forgotten, kernel=kernel, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert found[0] == found[1]
    assert len(set(found)) > 1


def test_a_probe_takes_rows_of_a_narrow_dtype_and_leaves_randomness_alone():
    forgotten = torch.arange(100) % 2 == 0
    states = (noise(100) + 9 * forgotten[:, None]).bfloat16()
    torch.manual_seed(0)
    np.random.seed(0)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert probe_accuracy(states, forgotten, kernel="linear") == 1
    assert prototype_recall(states, forgotten.long(), [1]) == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpys).all()


def test_more_rows_than_needed_are_left_out():
    # Were all rows used, the halves would hold 2,500 rows a side and accuracy be a multiple of 1/5000.
    forgotten = torch.arange(10_000) % 2 == 0
    states = noise(10_000, width=1) + 0.5 * forgotten[:, None]
    found = probe_accuracy(states, forgotten, kernel="linear")
    assert (found * 2 * MOST_ROWS) == pytest.approx(round(found * 2 * MOST_ROWS))
    assert 0.55 < found < 0.65


# --- prototypes ---------------------------------------------------------------------------------------------


def clusters(classes=5, rows=60, apart=12.0, seed=0):
    draw = torch.Generator().manual_seed(seed)
    centres = torch.linalg.qr(torch.randn(8, 8, generator=draw, dtype=torch.float64))[0][:classes] * apart
    labels = torch.arange(classes).repeat(rows)
    return centres[labels] + torch.randn(len(labels), 8, generator=draw, dtype=torch.float64), labels


@pytest.mark.parametrize("label", range(5))
def test_prototypes_of_clusters_are_right(label):
    states, labels = clusters()
    assert prototype_recall(states, labels, [label]) == 1


def test_labels_need_not_count_from_nothing():
    states, labels = clusters()
    assert prototype_recall(states, 7 * labels + 3, [17]) == 1
    # The clusters of classes 1 and 2 in one place are a coin's throw.
    states[labels == 2] = states[labels == 1]
    assert prototype_recall(states, 7 * labels + 3, [17]) == pytest.approx(0.5, abs=0.15)


def test_prototypes_of_shuffled_labels_know_nothing():
    states, labels = clusters(rows=400)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    recalls = [prototype_recall(states, labels[order], [label]) for label in range(5)]
    assert sum(recalls) / 5 == pytest.approx(1 / 5, abs=0.05)


def test_a_class_on_top_of_the_others_is_not_recalled_more_than_by_chance():
    states, labels = clusters()
    states[labels == 3] = states[labels == 0]
    assert prototype_recall(states, labels, [3]) == pytest.approx(0.5, abs=0.15)
    assert prototype_recall(states, labels, [4]) == 1


def test_more_shots_recall_more():
    states, labels = clusters(apart=1.5, rows=200)
    few, many = (prototype_recall(states, labels, [0], shots=shots) for shots in (1, 100))
    assert few < many - 0.05


def test_examples_are_not_judged_themselves():
    # With many coordinates every row is nearest to itself, and else to a row of any class.
    labels = torch.arange(20) % 5
    recalls = [
        prototype_recall(noise(20, width=300, seed=seed), labels, [label], shots=1)
        for label in range(5)
        for seed in range(4)
    ]
    assert sum(recalls) / len(recalls) == pytest.approx(1 / 5, abs=0.06)


def test_a_seed_fixes_the_prototypes():
    states, labels = clusters(apart=1.0)
    found = [prototype_recall(states, labels, [0], seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


# --- the probe with a hidden layer -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_each_probe_is_scikit_learns_on_the_same_halves():
    forgotten = torch.arange(240) % 2 == 0
    states = noise(240) + 0.8 * forgotten[:, None]
    generator = torch.Generator().manual_seed(7)
    drawn = [side.nonzero().squeeze(1) for side in (forgotten, ~forgotten)]
    drawn = [side[torch.randperm(120, generator=generator)] for side in drawn]
    train, test = (torch.cat([side[part] for side in drawn]) for part in (slice(None, 60), slice(60, None)))
    x, y = states.numpy(), forgotten.numpy()
    scaler = StandardScaler().fit(x[train])
    for kernel, model in (
        ("linear", LogisticRegression(max_iter=1000)),
        ("rbf", SVC()),
        ("mlp", MLPClassifier((HIDDEN,), solver="lbfgs", alpha=1e-2, max_iter=500, random_state=7)),
    ):
        expected = model.fit(scaler.transform(x[train]), y[train]).score(scaler.transform(x[test]), y[test])
        assert probe_accuracy(states, forgotten, kernel=kernel, seed=7) == pytest.approx(expected), kernel
    assert probed_rows(forgotten) == len(test)


def test_the_count_of_judged_rows_is_that_of_the_smaller_side_twice():
    assert probed_rows(torch.arange(100) < 31) == 2 * (31 - 15)
    assert probed_rows(torch.arange(100_000) % 2 == 0) == 2 * MOST_ROWS

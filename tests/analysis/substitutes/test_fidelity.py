"""Each figure of fidelity is what a direct computation gives, at the sites and at the output."""

import json

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

import koopman_interp as ki
from koopman_interp.errors import HostMismatchError, InputError
from koopman_interp.hosts.fingerprint import weight_digest
from koopman_interp.testing import LinearHost, yin_yang

NAMES = ["surrogate", "identity", "mean", "endpoint linear", "affine chain"]


@pytest.fixture(scope="module")
def held_out():
    return yin_yang(200, seed=5)


@pytest.fixture
def found(model, surrogate, trajectories, held_out):
    return ki.fidelity(model, surrogate, trajectories, *held_out)


def by_name(found):
    return {row.name: row for row in found.outputs}


def observed(model, x):
    return [state.double().numpy() for state in ki.attach(model).observe(x, progress=False).states]


def unexplained(reached, state):
    return ((reached - state) ** 2).sum() / ((state - state.mean(0)) ** 2).sum()


def linear_map(x, y):
    """Affine least squares by numpy, with a column of ones."""
    columns = np.c_[x, np.ones(len(x))]
    return np.linalg.lstsq(columns, y, rcond=None)[0]


def test_the_host_agrees_with_itself(found, model, held_out):
    x, y = held_out
    host = found.outputs[0]
    assert (host.name, host.agreement, host.kl) == ("host", 1.0, 0.0)
    assert host.accuracy == pytest.approx(float((model(x).argmax(1) == y).double().mean()))
    assert [row.name for row in found.outputs] == ["host", *NAMES]
    assert found.rows == 200


def test_each_depth_has_its_figures(found, surrogate):
    assert [depth.site for depth in found.depths] == list(surrogate.sites)
    assert all(list(depth.unexplained) == NAMES for depth in found.depths)
    first, *others = found.depths
    assert first.linearity_residual is None
    assert [name for name in NAMES if first.unexplained[name] is None] == NAMES[1:]
    assert all(value is not None for depth in others for value in depth.unexplained.values())


def test_what_is_unexplained_is_counted_directly(found, model, surrogate, trajectories, held_out):
    states = observed(model, held_out[0])
    fitted = [state.double().numpy() for state in trajectories.states]
    for depth, figures in enumerate(found.depths):
        rows = torch.from_numpy(states[0]).float()
        if depth == 0:
            reached = surrogate.decode(surrogate.encode(rows, 0), 0)
            expected = unexplained(reached.double().numpy(), states[0])
            assert figures.unexplained["surrogate"] == pytest.approx(expected, rel=1e-4)
            continue
        reached = surrogate.predict(rows, 0, depth).double().numpy()
        assert figures.unexplained["surrogate"] == pytest.approx(unexplained(reached, states[depth]), rel=1e-4)
        assert figures.unexplained["identity"] == pytest.approx(unexplained(states[0], states[depth]), rel=1e-6)
        mean = fitted[depth].mean(0)
        assert figures.unexplained["mean"] == pytest.approx(unexplained(mean, states[depth]), rel=1e-5)
        weights = linear_map(fitted[0], fitted[depth])
        reached = np.c_[states[0], np.ones(len(states[0]))] @ weights
        assert figures.unexplained["endpoint linear"] == pytest.approx(unexplained(reached, states[depth]), rel=2e-2)


def test_linearity_and_isometry_are_counted_directly(found, model, surrogate, held_out):
    states = observed(model, held_out[0])
    z = [surrogate.encode(torch.from_numpy(s).float(), depth).double().numpy() for depth, s in enumerate(states)]
    K = surrogate.K.double().numpy()
    for depth, figures in enumerate(found.depths):
        if depth:
            expected = unexplained(z[depth - 1] @ K.T, z[depth])
            assert figures.linearity_residual == pytest.approx(expected, rel=1e-3)
        x = surrogate.normalization.normalize(torch.from_numpy(states[depth]), depth).double().numpy()
        ratios = [
            np.linalg.norm(z[depth][i] - z[depth][i - 1]) / np.linalg.norm(x[i] - x[i - 1]) for i in range(len(x))
        ]
        np.testing.assert_allclose(figures.isometry, np.quantile(ratios, [0.05, 0.5, 0.95]), rtol=1e-3)


def test_a_chain_of_affine_maps_is_the_composition_of_its_steps(found, model, trajectories, held_out):
    states = observed(model, held_out[0])
    fitted = [state.double().numpy() for state in trajectories.states]
    reached = states[0]
    for depth in range(1, 5):
        reached = np.c_[reached, np.ones(len(reached))] @ linear_map(fitted[depth - 1], fitted[depth])
        share = found.depths[depth].unexplained["affine chain"]
        assert share == pytest.approx(unexplained(reached, states[depth]), rel=2e-2)
    logp = log_softmax(
        reached @ model.head.weight.detach().double().numpy().T + model.head.bias.detach().numpy(), axis=1
    )
    host = log_softmax(model(held_out[0]).detach().double().numpy(), axis=1)
    assert by_name(found)["affine chain"].kl == pytest.approx((np.exp(host) * (host - logp)).sum(1).mean(), rel=2e-2)


def test_cross_entropy_and_the_share_recovered_are_counted_directly(trained, held_out):
    model, koopman, data = trained
    x, y = held_out
    found = by_name(ki.fidelity(model, koopman, data, x, y))
    rows = {
        "host": observed(model, x)[-1],
        "surrogate": koopman.predict(ki.attach(model).observe(x, progress=False).states[0]).double().numpy(),
        "mean": data.states[-1].double().numpy().mean(0, keepdims=True).repeat(len(x), 0),
    }
    W, b = (part.detach().double().numpy() for part in (model.head.weight, model.head.bias))
    loss = {name: -log_softmax(put @ W.T + b, axis=1)[range(len(y)), y].mean() for name, put in rows.items()}
    assert loss["host"] < loss["surrogate"] < loss["mean"]
    for name, expected in loss.items():
        assert found[name].cross_entropy == pytest.approx(expected, rel=1e-4)
    share = (loss["mean"] - loss["surrogate"]) / (loss["mean"] - loss["host"])
    assert found["surrogate"].recovered == pytest.approx(share, rel=1e-4)
    assert (found["host"].recovered, found["mean"].recovered) == (1, 0)


def test_the_mean_leaves_everything_unexplained(model, surrogate, trajectories, yin_yang_data):
    found = ki.fidelity(model, surrogate, trajectories, yin_yang_data[0])
    for depth in found.depths[1:]:
        assert depth.unexplained["mean"] == pytest.approx(1, abs=1e-5)


def test_each_predictor_stands_in_for_the_span(found, model, surrogate, trajectories, held_out):
    x, y = held_out
    states = observed(model, x)
    fitted = [trajectories.states[depth].double().numpy() for depth in (0, -1)]
    last = {
        "surrogate": surrogate.predict(torch.from_numpy(states[0]).float()).double().numpy(),
        "identity": states[0],
        "mean": np.repeat(fitted[1].mean(0, keepdims=True), len(x), 0),
        "endpoint linear": np.c_[states[0], np.ones(len(x))] @ linear_map(*fitted),
    }
    W, b = (part.detach().double().numpy() for part in (model.head.weight, model.head.bias))
    host = log_softmax(states[-1] @ W.T + b, axis=1)
    for name, rows in last.items():
        logp = log_softmax(rows @ W.T + b, axis=1)
        row = by_name(found)[name]
        assert row.kl == pytest.approx((np.exp(host) * (host - logp)).sum(1).mean(), rel=2e-2, abs=1e-5)
        assert row.agreement == pytest.approx((logp.argmax(1) == host.argmax(1)).mean(), abs=0.006)
        assert row.accuracy == pytest.approx((logp.argmax(1) == y.numpy()).mean(), abs=0.006)
    assert by_name(found)["mean"].kl > 0


def test_the_surrogate_in_place_is_what_patching_puts_there(found, model, surrogate, held_out):
    x, y = held_out
    with torch.no_grad():
        host = model(x)
        with ki.patched(model, surrogate, mode="replace"):
            logits = model(x)
    ours = by_name(found)["surrogate"]
    assert ours.accuracy == float((logits.argmax(1) == y).double().mean())
    assert ours.agreement == float((logits.argmax(1) == host.argmax(1)).double().mean())


@pytest.mark.parametrize(("source", "target"), [(1, 3), ("blocks.0", "blocks.2"), (-4, -2)])
def test_a_part_of_the_span(model, surrogate, trajectories, held_out, source, target):
    x, _ = held_out
    found = ki.fidelity(model, surrogate, trajectories, x, source=source, target=target)
    states = observed(model, x)
    assert [depth.site for depth in found.depths] == ["blocks.0", "blocks.1", "blocks.2"]
    assert found.depths[0].linearity_residual is None
    assert found.depths[2].unexplained["identity"] == pytest.approx(unexplained(states[1], states[3]), rel=1e-6)
    with torch.no_grad():
        host, logits = model(x), model.head(model.blocks[3](torch.from_numpy(states[1]).float()))
    agreement = float((logits.argmax(1) == host.argmax(1)).double().mean())
    assert by_name(found)["identity"].agreement == pytest.approx(agreement, abs=1e-12)


def test_on_a_linear_host_the_linear_map_leaves_nothing():
    K = torch.eye(6) * 0.9 + 0.2 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    model = LinearHost(K, 3).eval()
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    data = ki.attach(model).observe(x, progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=6, ridge=0.0), method="least_squares")
    fresh = torch.randn(100, 6, generator=torch.Generator().manual_seed(2))
    found = ki.fidelity(model, koopman, data, fresh)
    for depth in found.depths[1:]:
        assert depth.unexplained["endpoint linear"] < 1e-9
        assert depth.unexplained["identity"] > 0.01
    outputs = by_name(found)
    assert outputs["endpoint linear"].agreement > 0.99
    assert outputs["endpoint linear"].kl < 1e-6 < outputs["identity"].kl


def test_on_a_linear_host_every_span_is_nothing_lost():
    K = torch.eye(6) * 0.9 + 0.2 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    model = LinearHost(K, 3).eval()
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    data = ki.attach(model).observe(x, progress=False)
    # Without a scale and a rotation of its own for each depth, all steps of the normalised states are one matrix.
    config = ki.FitConfig(observables=6, ridge=0.0, normalization=ki.NormalizationConfig(scale=None, align=False))
    koopman = ki.fit(data, config, method="least_squares")
    found = ki.fidelity(model, koopman, data, x[:50], spans="all")
    assert len(found.spans) == 6
    for one in found.spans:
        rows = {row.name: row for row in one.outputs}
        for name in ("surrogate", "endpoint linear", "affine chain"):
            assert rows[name].kl < 1e-7 < rows["identity"].kl


@pytest.mark.parametrize(
    ("spans", "pairs"),
    [
        ("given", []),
        ("to_target", [(1, 4), (2, 4), (3, 4)]),
        ("all", [(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)]),
    ],
)
def test_each_span_is_judged_as_it_is_alone(model, surrogate, trajectories, held_out, spans, pairs):
    x, y = held_out
    found = ki.fidelity(model, surrogate, trajectories, x, y, source=1, spans=spans, batch_size=70)
    sites = surrogate.sites
    assert [(one.source, one.target) for one in found.spans] == [(sites[i], sites[j]) for i, j in pairs]
    for one in found.spans:
        alone = ki.fidelity(model, surrogate, trajectories, x, y, source=one.source, target=one.target)
        for ours, expected in zip(one.outputs, alone.outputs, strict=True):
            assert (ours.name, ours.accuracy, ours.agreement) == (expected.name, expected.accuracy, expected.agreement)
            assert ours.kl == pytest.approx(expected.kl, rel=1e-4, abs=1e-9)
            assert ours.cross_entropy == pytest.approx(expected.cross_entropy, rel=1e-6)


class Narrowing(nn.Module):
    """States `[batch, channel, height, width]`, whose widths as rows are 64, 48 and 16."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            [nn.Conv2d(4, 12, 3, stride=2, padding=1), nn.Conv2d(12, 16, 3, stride=2, padding=1)]
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x.flatten(1))


def test_there_is_no_identity_between_different_widths():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Narrowing().eval()
    x = torch.randn(150, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    data = ki.attach(model).observe(x, progress=False)
    assert data.widths == (64, 48, 16)
    config = ki.FitConfig(observables=9, normalization=ki.NormalizationConfig(dimension=6))
    koopman = ki.fit(data, config, method="least_squares")
    found = ki.fidelity(model, koopman, data, x)
    assert all(depth.unexplained["identity"] is None for depth in found.depths)
    assert list(by_name(found)) == ["host", "surrogate", "mean", "endpoint linear", "affine chain"]
    assert found.depths[1].unexplained["mean"] == pytest.approx(1, abs=1e-5)
    assert found.depths[2].unexplained["endpoint linear"] < 0.5
    assert "–" in str(found)
    json.dumps(found.as_dict(), allow_nan=False)


def test_there_is_no_identity_past_another_width():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)).eval()
    x = torch.randn(80, 4, generator=torch.Generator().manual_seed(1))
    data = ki.attach(model, ["0", "2", "4"]).observe(x, progress=False)
    config = ki.FitConfig(observables=7, normalization=ki.NormalizationConfig(dimension=5))
    found = ki.fidelity(model, ki.fit(data, config, method="least_squares"), data, x)
    assert data.widths == (6, 5, 6)
    assert found.depths[2].unexplained["identity"] is None
    assert "identity" not in by_name(found)


# --- inputs -------------------------------------------------------------------------------------------------


def test_batches_are_as_good_as_one_tensor(found, model, surrogate, trajectories, held_out):
    x, y = held_out
    pairs = list(zip(x.split(33), y.split(33), strict=True))
    for batches, labels in ((list(x.split(33)), y), (pairs, None)):
        batched = ki.fidelity(model, surrogate, trajectories, batches, labels)
        for ours, theirs in zip(batched.outputs, found.outputs, strict=True):
            assert (ours.name, ours.accuracy, ours.agreement) == (
                theirs.name,
                theirs.accuracy,
                theirs.agreement,
            )
            assert ours.kl == pytest.approx(theirs.kl, rel=1e-4, abs=1e-9)
        for ours, theirs in zip(batched.depths, found.depths, strict=True):
            assert ours.isometry == pytest.approx(theirs.isometry, rel=1e-4)
            for name, value in ours.unexplained.items():
                expected = theirs.unexplained[name]
                assert value == (None if expected is None else pytest.approx(expected, rel=1e-4))


def test_without_labels_there_is_no_accuracy(model, surrogate, trajectories, held_out):
    found = ki.fidelity(model, surrogate, trajectories, held_out[0])
    assert all(row.accuracy is None for row in found.outputs)
    assert "–" in str(found)


def test_an_iterator_is_refused(model, surrogate, trajectories, held_out):
    with pytest.raises(InputError, match="not an iterator"):
        ki.fidelity(model, surrogate, trajectories, iter(held_out[0].split(50)))


def test_another_host_is_refused(model, surrogate, trajectories, held_out):
    with torch.no_grad():
        model.head.bias += 1
    with pytest.raises(HostMismatchError, match="weights"):
        ki.fidelity(model, surrogate, trajectories, held_out[0])


def test_the_wrong_number_of_labels_is_refused(model, surrogate, trajectories, held_out):
    with pytest.raises(InputError, match="labels"):
        ki.fidelity(model, surrogate, trajectories, held_out[0], held_out[1][:7])


def test_spans_of_no_known_kind_are_refused(unchecked, model, surrogate, trajectories, held_out):
    with pytest.raises(InputError, match="'to_target'"):
        ki.fidelity(model, surrogate, trajectories, held_out[0], spans="some")


def test_trajectories_of_other_sites_are_refused(model, surrogate, held_out):
    other = ki.attach(model, ["embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3"])
    with pytest.raises(InputError, match=r"have the sites embed, .*; the surrogate has blocks\.0:input"):
        ki.fidelity(model, surrogate, other.observe(held_out[0], progress=False), held_out[0])


def test_what_cannot_be_judged_is_refused(model, surrogate, trajectories, held_out):
    x, _ = held_out
    with pytest.raises(InputError, match="2 held-out samples or more; got 1"):
        ki.fidelity(model, surrogate, trajectories, x[:1])
    with pytest.raises(InputError, match="no variance to explain"):
        ki.fidelity(model, surrogate, trajectories, x[:1].repeat(5, 1))


def test_rows_labelled_as_ignored_are_left_out_of_all_figures(model, surrogate, trajectories, held_out):
    x, y = held_out
    kept = torch.arange(len(y)) % 3 != 0
    alone = ki.fidelity(model, surrogate, trajectories, x[kept], y[kept])
    found = ki.fidelity(model, surrogate, trajectories, x, y.where(kept, -100))
    assert found.rows == alone.rows
    for ours, expected in zip(found.outputs, alone.outputs, strict=True):
        assert (ours.name, ours.accuracy, ours.agreement) == (expected.name, expected.accuracy, expected.agreement)
        assert ours.kl == pytest.approx(expected.kl, rel=1e-4, abs=1e-9)


def test_labels_are_found_by_the_name_of_their_column(found, model, surrogate, trajectories, held_out):
    x, y = held_out
    named = ki.fidelity(model, surrogate, trajectories, [{"x": x, "kind": y}], "kind")
    assert [row.accuracy for row in named.outputs] == [row.accuracy for row in found.outputs]


def test_labels_and_next_tokens_exclude_each_other(model, surrogate, trajectories, held_out):
    with pytest.raises(InputError, match="got both"):
        ki.fidelity(model, surrogate, trajectories, *held_out, next_token=True)


def test_inputs_without_tokens_have_no_next_one(model, surrogate, trajectories, held_out):
    with pytest.raises(InputError, match="Give labels"):
        ki.fidelity(model, surrogate, trajectories, held_out[0], next_token=True)


# --- outputs ------------------------------------------------------------------------------------------------


def test_plain_values_go_through_json(found):
    values = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert values["rows"] == 200
    assert [row["name"] for row in values["outputs"]] == ["host", *NAMES]
    assert values["outputs"][1]["kl"] == found.outputs[1].kl
    assert values["depths"][0]["unexplained"]["identity"] is None
    assert values["depths"][2]["isometry"] == list(found.depths[2].isometry)


def test_the_printed_tables_hold_the_figures(found):
    text = str(found)
    assert text.startswith(repr(found))
    ours = by_name(found)["surrogate"]
    assert f"agreement with the host {ours.agreement:.2%}, KL {ours.kl:.4f}" in repr(found)
    line = next(line for line in text.split("\n") if line.startswith("endpoint linear"))
    linear = by_name(found)["endpoint linear"]
    expected = [f"{100 * linear.accuracy:.2f}", f"{100 * linear.agreement:.2f}", f"{linear.kl:.4f}"]
    recovered = "–" if linear.recovered is None else f"{100 * linear.recovered:.2f}"
    expected += [f"{linear.cross_entropy:.4f}", recovered]
    assert line.removeprefix("endpoint linear").split() == expected
    site = next(line for line in text.split("\n") if line.startswith("blocks.3"))
    assert f"{found.depths[4].linearity_residual:.4f}" in site


def test_the_table_by_span_has_a_line_each(model, surrogate, trajectories, held_out):
    found = ki.fidelity(model, surrogate, trajectories, *held_out, spans="to_target")
    lines = found.by_span().split("\n")
    assert lines[0].split("  ")[0] == "KL / agreement %"
    assert [line.split("  ")[0] for line in lines[1:]] == [f"{site} → blocks.3" for site in surrogate.sites[:-1]]
    assert found.by_span() in str(found)
    last = next(row for row in found.spans[-1].outputs if row.name == "surrogate")
    assert f"{last.kl:.3f} / {100 * last.agreement:.1f}" in lines[-1]


def test_nothing_is_left_behind(model, surrogate, trajectories, held_out):
    before = weight_digest(model), [sorted(vars(module)) for module in model.modules()], surrogate.digest()
    ki.fidelity(model, surrogate, trajectories, *held_out)
    assert before == (
        weight_digest(model),
        [sorted(vars(module)) for module in model.modules()],
        surrogate.digest(),
    )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_times_of_the_surrogate_are_kept(model, held_out, yin_yang_data):
    x, _ = held_out
    tap = ki.attach(model, ["blocks.0:input", "blocks.1", "blocks.3"], times=[0.0, 2.0, 4.0])
    data = tap.observe(yin_yang_data[0], progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=14), method="least_squares")
    found = ki.fidelity(model, koopman, data, x)
    later = tap.observe(x, progress=False)
    z = [koopman.encode(state, depth).double() for depth, state in enumerate(later.states)]
    K2 = torch.linalg.matrix_power(koopman.K.double(), 2)
    for depth in (1, 2):
        expected = unexplained((z[depth - 1] @ K2.T).numpy(), z[depth].numpy())
        assert found.depths[depth].linearity_residual == pytest.approx(expected, rel=1e-3)

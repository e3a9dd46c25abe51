"""The token-wise floor is the mean of what the model says given the token, and nothing where there is none."""

import numpy as np
import pytest
import torch

import koopman_interp as ki
from koopman_interp.analysis.substitutes import token_floor
from koopman_interp.analysis.substitutes.token_floor import FLOOR, TokenFloor
from koopman_interp.hosts.finding import host_for
from koopman_interp.observing.own_pass import OwnPass
from tests.hosts.lens_models import gpt2_bridge, llama_bridge


def ids(rows, seed):
    """Zipf-like, so that some tokens are rare; 3 and 89 are never among those to fit on."""
    weights = 1 / torch.arange(1, 85).float()
    drawn = torch.multinomial(weights, rows * 8, replacement=True, generator=torch.Generator().manual_seed(seed))
    return (drawn + 4).reshape(rows, 8)


def telling(model):
    """Let a model's head say something of the token."""
    with torch.no_grad():
        model.original_model.lm_head.weight *= 20
    return model


@pytest.fixture(scope="module")
def llama():
    model = telling(llama_bridge())
    data = ki.attach(model, skip=1).observe(ids(60, 1), progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=16), method="least_squares")
    held_out = ids(20, 2)
    held_out[0, 3], held_out[5, 6] = 3, 89
    return model, koopman, data, held_out


@pytest.fixture(scope="module")
def bigram():
    """A model whose attention writes nothing, so that all it says is of the token."""
    model = telling(llama_bridge())
    with torch.no_grad():
        for layer in model.original_model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    x = ids(200, 1)
    return model, ki.attach(model, skip=1).observe(x, progress=False), x


def said(model, x):
    """Distributions and tokens past the first place, in float64."""
    logits = model(x).double()[:, 1:].flatten(0, 1)
    return logits.softmax(1).detach().numpy(), x[:, 1:].flatten().numpy()


def credible_means(p, tokens):
    """The means by token and over all, by the formula of Bühlmann's credibility, token by token."""
    groups = {int(token): p[tokens == token] for token in np.unique(tokens)}
    means = {token: rows.mean(0) for token, rows in groups.items()}
    overall, count = p.mean(0), len(p)
    within = sum(((rows - means[token]) ** 2).sum() for token, rows in groups.items()) / (count - len(groups))
    between = sum(len(rows) * ((means[token] - overall) ** 2).sum() for token, rows in groups.items())
    between = (between - (len(groups) - 1) * within) / (count - sum(len(rows) ** 2 for rows in groups.values()) / count)
    kappa = within / between
    q = {token: (len(rows) * means[token] + kappa * overall) / (len(rows) + kappa) for token, rows in groups.items()}
    return q, overall


def floor_of(model, koopman, data, held_out, **options):
    found = ki.fidelity(model, koopman, held_out=held_out, fitted=data, next_token=True, **options)
    return {row.name: row for row in found.outputs}, found


def test_it_is_that_of_a_slow_computation(llama):
    model, koopman, data, held_out = llama
    q, overall = credible_means(*said(model, ids(60, 1)))
    p, tokens = said(model, held_out)
    assert 3 in tokens and 3 not in q
    expected = np.mean(
        [np.sum(row * np.log(row / q.get(int(token), overall))) for row, token in zip(p, tokens, strict=True)]
    )
    rows, found = floor_of(model, koopman, data, held_out, batch_size=7, spans="to_target")
    assert rows[FLOOR].kl == pytest.approx(expected, rel=1e-4)
    assert rows[FLOOR].cross_entropy is not None
    assert f"{FLOOR} is the mean" in str(found)
    by_span = [[row.name for row in one.outputs] for one in found.spans]
    assert [FLOOR in names for names in by_span] == [True, False, False, False]
    lenses = ki.compare_lenses(model, koopman, held_out=held_out, fitted=data)
    assert lenses.kl(FLOOR) == (pytest.approx(expected, rel=1e-4), None, None, None)
    assert f"{FLOOR} is the mean" in str(lenses)


def test_no_other_distribution_given_the_token_leaves_less_on_the_same_rows(bigram, llama):
    model, _, data, _ = llama
    x = ids(60, 1)
    p, tokens = said(model, x)
    own = OwnPass.of(host_for(model), x, data.sites, 1)
    means = token_floor._Means(torch.arange(4, 89), p.shape[1])
    means.add(torch.from_numpy(tokens), torch.from_numpy(p))
    means._squares = float(sum((m**2).sum() for m in (p[tokens == t].mean(0) for t in tokens)))  # as if nothing varied
    q = means.credible()[torch.from_numpy(tokens) - 4].numpy()
    geometric = np.empty_like(q)
    for token in np.unique(tokens):
        root = np.exp(np.log(p[tokens == token]).mean(0))
        geometric[tokens == token] = root / root.sum()

    def left(other):
        return np.sum(p * np.log(p / other), 1).mean()

    shifted = np.exp(np.random.default_rng(0).normal(0, 0.1, q.shape[1])) * q
    assert left(q) < left(geometric)
    assert left(q) < left(shifted / shifted.sum(1, keepdims=True))
    assert own.output.logp.shape == p.shape


def test_of_a_model_that_sees_one_token_it_is_nothing_and_the_surrogate_reaches_it(bigram):
    model, data, x = bigram
    koopman = ki.fit(
        data, ki.FitConfig(observables=40, hidden=(128,), steps=400, inputs=20), model=model, batches=x, progress=False
    )
    rows, _ = floor_of(model, koopman, data, ids(30, 2).clamp_max(40))
    assert rows[FLOOR].kl < 1e-6
    assert rows["surrogate"].kl < 0.02
    assert rows["mean"].kl > 0.5


def test_a_state_that_knows_its_place_is_told():
    model = telling(gpt2_bridge())
    x = ids(40, 1)
    data = ki.attach(model).observe(x, progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=16), method="least_squares")
    _, found = floor_of(model, koopman, data, ids(10, 2))
    assert "hold more than the token" in found.floor


def test_rare_tokens_past_the_room_there_is_are_given_the_mean_over_all(llama, monkeypatch):
    model, koopman, data, held_out = llama
    p, tokens = said(model, ids(60, 1))
    monkeypatch.setattr(token_floor, "_KEPT", p.shape[1] * 3)
    floor = TokenFloor(data)
    own = OwnPass.of(host_for(model), held_out, koopman.sites, 1)
    logq = floor.logp(own)
    _, counts = np.unique(tokens, return_counts=True)
    frequent = set(np.unique(tokens)[np.argsort(-counts, kind="stable")[:3]].tolist())
    alike = [torch.allclose(row, torch.from_numpy(p.mean(0)).log(), atol=1e-5) for row in logq]
    of_held_out = held_out[:, 1:].flatten().tolist()
    assert [not one for one in alike] == [token in frequent for token in of_held_out]
    assert floor.parameters == 4 * p.shape[1]


def test_there_is_none_where_rows_mix_after_the_last_site_or_there_are_no_tokens(llama, trained, yin_yang_data):
    model, _, _, held_out = llama
    sites = [f"blocks.{index}.hook_resid_post" for index in range(3)]  # a block with attention follows
    data = ki.attach(model, sites, skip=1).observe(ids(60, 1), progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=16), method="least_squares")
    rows, found = floor_of(model, koopman, data, held_out)
    assert FLOOR not in rows
    assert not found.floor
    assert FLOOR not in ki.compare_lenses(model, koopman, held_out=held_out, fitted=data).parameters
    host, surrogate, points = trained
    lenses = ki.compare_lenses(host, surrogate, held_out=yin_yang_data[0][:50], fitted=points)
    assert FLOOR not in lenses.parameters
    assert not lenses.floor

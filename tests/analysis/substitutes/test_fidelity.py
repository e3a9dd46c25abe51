"""Each figure of fidelity is what a direct computation gives, at the sites and at the output."""

import json
import re
import weakref

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

import koopman_interp as ki
from koopman_interp.errors import HostMismatchError, InputError, NonFiniteError
from koopman_interp.hosts.fingerprint import weight_digest
from koopman_interp.observing.outputs import Output
from koopman_interp.testing import LinearHost, yin_yang
from tests.analysis.linear import exact_on_a_linear_host

NAMES = ["surrogate", "identity", "mean", "endpoint linear", "affine chain", "K per depth", "kernel ridge"]


@pytest.fixture(scope="module")
def held_out():
    return yin_yang(200, seed=5)


@pytest.fixture
def found(model, surrogate, trajectories, held_out):
    return ki.fidelity(model, surrogate, held_out=held_out, fitted=trajectories)


def by_name(found):
    return {row.name: row for row in found.outputs}


def observed(model, x):
    return [state.double().numpy() for state in ki.attach(model).observe(x, progress=False).states]


def fvu(reached, state):
    return ((reached - state) ** 2).sum() / ((state - state.mean(0)) ** 2).sum()


def linear_map(x, y):
    """Affine least squares by numpy, with a column of ones."""
    columns = np.c_[x, np.ones(len(x))]
    return np.linalg.lstsq(columns, y, rcond=None)[0]


def test_the_host_agrees_with_itself(found, model, held_out):
    x, y = held_out
    host = found.outputs[0]
    assert (host.name, host.agreement, host.kl) == ("base model", 1.0, 0.0)
    assert host.accuracy == pytest.approx(float((model(x).argmax(1) == y).double().mean()))
    assert [row.name for row in found.outputs] == ["base model", *NAMES]
    assert found.rows == 200


def test_each_depth_has_its_figures(found, surrogate):
    assert [depth.site for depth in found.depths] == list(surrogate.sites)
    assert all(list(depth.fvu) == NAMES for depth in found.depths)
    first, *others = found.depths
    assert first.linearity_residual is None
    assert [name for name in NAMES if first.fvu[name] is None] == NAMES[1:]
    assert all(value is not None for depth in others for value in depth.fvu.values())


def test_the_unexplained_fraction_is_counted_directly(found, model, surrogate, trajectories, held_out):
    states = observed(model, held_out[0])
    fitted = [state.double().numpy() for state in trajectories.states]
    for depth, figures in enumerate(found.depths):
        rows = torch.from_numpy(states[0]).float()
        if depth == 0:
            reached = surrogate.decode(surrogate.encode(rows, 0), 0)
            expected = fvu(reached.double().numpy(), states[0])
            assert figures.fvu["surrogate"] == pytest.approx(expected, rel=1e-4)
            continue
        reached = surrogate.predict(rows, 0, depth).double().numpy()
        assert figures.fvu["surrogate"] == pytest.approx(fvu(reached, states[depth]), rel=1e-4)
        assert figures.fvu["identity"] == pytest.approx(fvu(states[0], states[depth]), rel=1e-6)
        mean = surrogate.normalization.maps(depth)[0].double().numpy()
        assert figures.fvu["mean"] == pytest.approx(fvu(mean, states[depth]), rel=1e-5)
        weights = linear_map(fitted[0], fitted[depth])
        reached = np.c_[states[0], np.ones(len(states[0]))] @ weights
        assert figures.fvu["endpoint linear"] == pytest.approx(fvu(reached, states[depth]), rel=2e-2)


def test_linearity_and_isometry_are_counted_directly(found, model, surrogate, held_out):
    states = observed(model, held_out[0])
    z = [surrogate.encode(torch.from_numpy(s).float(), depth).double().numpy() for depth, s in enumerate(states)]
    K = surrogate.K.double().numpy()
    for depth, figures in enumerate(found.depths):
        if depth:
            expected = fvu(z[depth - 1] @ K.T, z[depth])
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
        share = found.depths[depth].fvu["affine chain"]
        assert share == pytest.approx(fvu(reached, states[depth]), rel=2e-2)
    logp = log_softmax(
        reached @ model.head.weight.detach().double().numpy().T + model.head.bias.detach().numpy(), axis=1
    )
    host = log_softmax(model(held_out[0]).detach().double().numpy(), axis=1)
    assert by_name(found)["affine chain"].kl == pytest.approx((np.exp(host) * (host - logp)).sum(1).mean(), rel=2e-2)


def test_cross_entropy_and_the_share_recovered_are_counted_directly(trained, held_out):
    model, koopman, data = trained
    x, y = held_out
    found = by_name(ki.fidelity(model, koopman, held_out=(x, y), fitted=data))
    rows = {
        "base model": observed(model, x)[-1],
        "surrogate": koopman.predict(ki.attach(model).observe(x, progress=False).states[0]).double().numpy(),
        "mean": koopman.normalization.maps(4)[0].double().numpy()[None].repeat(len(x), 0),
    }
    W, b = (part.detach().double().numpy() for part in (model.head.weight, model.head.bias))
    loss = {name: -log_softmax(put @ W.T + b, axis=1)[range(len(y)), y].mean() for name, put in rows.items()}
    assert loss["base model"] < loss["surrogate"] < loss["mean"]
    for name, expected in loss.items():
        assert found[name].cross_entropy == pytest.approx(expected, rel=1e-4)
    share = (loss["mean"] - loss["surrogate"]) / (loss["mean"] - loss["base model"])
    assert found["surrogate"].loss_recovered == pytest.approx(share, rel=1e-4)
    assert (found["base model"].loss_recovered, found["mean"].loss_recovered) == (1, 0)


def test_the_mean_leaves_everything_unexplained(model, surrogate, trajectories, yin_yang_data):
    found = ki.fidelity(model, surrogate, held_out=yin_yang_data[0], fitted=trajectories)
    for depth in found.depths[1:]:
        assert depth.fvu["mean"] == pytest.approx(1, abs=1e-2)


def test_each_predictor_stands_in_for_the_span(found, model, surrogate, trajectories, held_out):
    x, y = held_out
    states = observed(model, x)
    fitted = [trajectories.states[depth].double().numpy() for depth in (0, -1)]
    last = {
        "surrogate": surrogate.predict(torch.from_numpy(states[0]).float()).double().numpy(),
        "identity": states[0],
        "mean": surrogate.normalization.maps(4)[0].double().numpy()[None].repeat(len(x), 0),
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
    found = ki.fidelity(model, surrogate, held_out=x, fitted=trajectories, source=source, target=target)
    states = observed(model, x)
    assert [depth.site for depth in found.depths] == ["blocks.0", "blocks.1", "blocks.2"]
    assert found.depths[0].linearity_residual is None
    assert found.depths[2].fvu["identity"] == pytest.approx(fvu(states[1], states[3]), rel=1e-6)
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
    found = ki.fidelity(model, koopman, held_out=fresh, fitted=data)
    for depth in found.depths[1:]:
        assert depth.fvu["endpoint linear"] < 1e-9
        assert depth.fvu["identity"] > 0.01
    outputs = by_name(found)
    assert outputs["endpoint linear"].agreement > 0.99
    assert outputs["endpoint linear"].kl < 1e-6 < outputs["identity"].kl


def test_on_a_linear_host_every_span_is_nothing_lost():
    model, _, x, data, koopman = exact_on_a_linear_host()
    found = ki.fidelity(model, koopman, held_out=x[:50], fitted=data, spans="all")
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
    found = ki.fidelity(model, surrogate, held_out=(x, y), fitted=trajectories, source=1, spans=spans, batch_size=70)
    sites = surrogate.sites
    assert [(one.source, one.target) for one in found.spans] == [(sites[i], sites[j]) for i, j in pairs]
    for one in found.spans:
        alone = ki.fidelity(
            model, surrogate, held_out=(x, y), fitted=trajectories, source=one.source, target=one.target
        )
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
    found = ki.fidelity(model, koopman, held_out=x, fitted=data)
    assert all(depth.fvu["identity"] is None for depth in found.depths)
    assert list(by_name(found)) == ["base model", *(name for name in NAMES if name != "identity")]
    assert found.depths[1].fvu["mean"] == pytest.approx(1, abs=1e-2)
    assert found.depths[2].fvu["endpoint linear"] < 0.5
    assert "–" in str(found)
    json.dumps(found.as_dict(), allow_nan=False)


def test_there_is_no_identity_past_another_width():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)).eval()
    x = torch.randn(80, 4, generator=torch.Generator().manual_seed(1))
    data = ki.attach(model, ["0", "2", "4"]).observe(x, progress=False)
    config = ki.FitConfig(observables=7, normalization=ki.NormalizationConfig(dimension=5))
    found = ki.fidelity(model, ki.fit(data, config, method="least_squares"), held_out=x, fitted=data)
    assert data.widths == (6, 5, 6)
    assert found.depths[2].fvu["identity"] is None
    assert "identity" not in by_name(found)


# --- inputs -------------------------------------------------------------------------------------------------


def test_batches_are_as_good_as_one_tensor(found, model, surrogate, trajectories, held_out):
    x, y = held_out
    pairs = list(zip(x.split(33), y.split(33), strict=True))
    for batches, labels in ((list(x.split(33)), y), (pairs, None)):
        batched = ki.fidelity(model, surrogate, held_out=batches, labels=labels, fitted=trajectories)
        for ours, theirs in zip(batched.outputs, found.outputs, strict=True):
            assert (ours.name, ours.accuracy, ours.agreement) == (
                theirs.name,
                theirs.accuracy,
                theirs.agreement,
            )
            assert ours.kl == pytest.approx(theirs.kl, rel=1e-4, abs=1e-9)
        for ours, theirs in zip(batched.depths, found.depths, strict=True):
            assert ours.isometry == pytest.approx(theirs.isometry, rel=1e-4)
            for name, value in ours.fvu.items():
                expected = theirs.fvu[name]
                assert value == (None if expected is None else pytest.approx(expected, rel=1e-4))


def test_without_labels_there_is_no_accuracy(model, surrogate, trajectories, held_out):
    found = ki.fidelity(model, surrogate, held_out=held_out[0], fitted=trajectories)
    assert all(row.accuracy is None for row in found.outputs)
    assert "–" in str(found)


def test_an_iterator_is_read_once(found, model, surrogate, trajectories, held_out):
    x, y = held_out
    pairs = zip(x.split(64), y.split(64), strict=True)
    assert ki.fidelity(model, surrogate, held_out=pairs, fitted=trajectories) == found
    with pytest.raises(InputError, match=r"iterator can be read once.*batches of pairs \(x, y\)"):
        ki.fidelity(model, surrogate, held_out=iter(x.split(50)), labels=y)


def test_each_input_passes_once_and_once_more_for_labels_apart(model, surrogate, held_out):
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    x, y = held_out
    together = ki.fidelity(model, surrogate, held_out=(x, y))
    # Four batches: the model's own pass, and one for each of surrogate, identity and mean.
    assert len(passes) == 4 * (1 + 3)
    passes.clear()
    assert ki.fidelity(model, surrogate, held_out=x, labels=y) == together
    assert len(passes) == 4 * (1 + 3) + 4


def test_another_host_is_refused(model, surrogate, trajectories, held_out):
    with torch.no_grad():
        model.head.bias += 1
    with pytest.raises(HostMismatchError, match="weights"):
        ki.fidelity(model, surrogate, held_out=held_out[0], fitted=trajectories)


def test_the_wrong_number_of_labels_is_refused(model, surrogate, trajectories, held_out):
    with pytest.raises(InputError, match="labels"):
        ki.fidelity(model, surrogate, held_out=held_out[0], labels=held_out[1][:7])


def test_spans_of_no_known_kind_are_refused(unchecked, model, surrogate, trajectories, held_out):
    with pytest.raises(InputError, match="'to_target'"):
        ki.fidelity(model, surrogate, held_out=held_out[0], fitted=trajectories, spans="some")


def test_trajectories_of_other_sites_are_refused(model, surrogate, held_out):
    other = ki.attach(model, ["embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3"])
    with pytest.raises(InputError, match=r"have the sites embed, .*; the surrogate has blocks\.0:input"):
        ki.fidelity(model, surrogate, held_out=held_out, fitted=other.observe(held_out[0], progress=False))


def test_what_cannot_be_judged_is_refused(model, surrogate, trajectories, held_out):
    x, _ = held_out
    with pytest.raises(InputError, match="2 held-out samples or more; got 1"):
        ki.fidelity(model, surrogate, held_out=x[:1], fitted=trajectories)
    with pytest.raises(InputError, match="2 held-out samples or more; got 0"):
        ki.fidelity(model, surrogate, held_out=[])
    with pytest.raises(InputError, match="Label 7 is none of the 3 outputs of the model"):
        ki.fidelity(model, surrogate, held_out=(x, torch.full((200,), 7)))
    with pytest.raises(InputError, match="Some batches came with labels and others without"):
        ki.fidelity(model, surrogate, held_out=[(x, torch.zeros(200, dtype=torch.long)), x])
    with pytest.raises(NonFiniteError, match=r"'blocks\.0:input' gave NaN"):
        ki.fidelity(model, surrogate, held_out=torch.cat([x, torch.full((1, 4), torch.nan)]))
    with pytest.raises(InputError, match="no variance to explain"):
        ki.fidelity(model, surrogate, held_out=x[:1].repeat(5, 1), fitted=trajectories)


def test_rows_labelled_as_ignored_are_left_out_of_all_figures(model, surrogate, trajectories, held_out):
    x, y = held_out
    kept = torch.arange(len(y)) % 3 != 0
    alone = ki.fidelity(model, surrogate, held_out=(x[kept], y[kept]), fitted=trajectories)
    found = ki.fidelity(model, surrogate, held_out=(x, y.where(kept, -100)), fitted=trajectories)
    assert found.rows == alone.rows
    for ours, expected in zip(found.outputs, alone.outputs, strict=True):
        assert (ours.name, ours.accuracy, ours.agreement) == (expected.name, expected.accuracy, expected.agreement)
        assert ours.kl == pytest.approx(expected.kl, rel=1e-4, abs=1e-9)


def test_labels_are_found_by_the_name_of_their_column(found, model, surrogate, trajectories, held_out):
    x, y = held_out
    named = ki.fidelity(model, surrogate, held_out=[{"x": x, "kind": y}], labels="kind", fitted=trajectories)
    assert [row.accuracy for row in named.outputs] == [row.accuracy for row in found.outputs]


def test_labels_and_next_tokens_exclude_each_other(model, surrogate, trajectories, held_out):
    with pytest.raises(InputError, match="got both"):
        ki.fidelity(model, surrogate, held_out=held_out, fitted=trajectories, next_token=True)


def test_inputs_without_tokens_have_no_next_one(model, surrogate, trajectories, held_out):
    with pytest.raises(InputError, match="Give labels"):
        ki.fidelity(model, surrogate, held_out=held_out[0], fitted=trajectories, next_token=True)


# --- outputs ------------------------------------------------------------------------------------------------


def test_without_the_rows_fitted_the_linear_maps_are_left_out(found, model, surrogate, held_out):
    alone = ki.fidelity(model, surrogate, held_out=held_out)
    free = NAMES[:3]
    assert [row.name for row in alone.outputs] == ["base model", *free]
    assert alone.outputs == tuple(row for row in found.outputs if row.name in ("base model", *free))
    for ours, theirs in zip(alone.depths, found.depths, strict=True):
        assert ours.fvu == {name: theirs.fvu[name] for name in free}
    assert "fitted=" in str(alone).split("\n\n")[-1]
    assert found.notes() == (f"Kernel ridge regression was fitted on {found.kernel_rows:,} rows.",)


class Bare(nn.Module):
    """A trunk without a head, and the same one under a head that is a matrix of states."""

    def __init__(self, model):
        super().__init__()
        self.embed, self.blocks = model.embed, model.blocks

    def forward(self, x):
        x = torch.relu(self.embed(x))
        for block in self.blocks:
            x = block(x)
        return {"last_hidden_state": x}


@pytest.mark.parametrize("labelled", ["with", "beside", "without"])
def test_a_model_without_logits_is_judged_by_depth(model, quick_config, yin_yang_data, held_out, labelled):
    bare = Bare(model).eval()
    data = ki.attach(bare).observe(yin_yang_data[0], progress=False)
    koopman = ki.fit(data, quick_config, method="least_squares")
    x, y = held_out
    kept = torch.arange(200) % 3 != 0
    ignoring = torch.where(kept, y, -100)
    given = {"with": {"held_out": (x, ignoring)}, "beside": {"held_out": x, "labels": ignoring}}
    faith = ki.fidelity(bare, koopman, **given.get(labelled, {"held_out": x[kept]}), fitted=data, spans="all")
    assert (faith.outputs, faith.spans, faith.rows) == ((), (), int(kept.sum()))
    states = [state.double().numpy() for state in ki.attach(bare).observe(x[kept], progress=False).states]
    for depth in range(1, 5):
        reached = koopman.predict(torch.from_numpy(states[0]).float(), 0, depth).double().numpy()
        assert faith.depths[depth].fvu["surrogate"] == pytest.approx(fvu(reached, states[depth]), rel=1e-4)
    assert "FVU at the target" in repr(faith)
    assert faith.notes()[0].startswith(
        "There are no figures at the model's output. Expected the model to return logits"
    )
    assert ki.Fidelity.from_dict(json.loads(json.dumps(faith.as_dict()))) == faith
    assert list(faith.to_frame().columns[:2]) == ["site", "FVU: surrogate"]


class Regressor(nn.Module):
    """Says quantities: one as a vector or as a column, or several."""

    def __init__(self, outputs, squeeze=False):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.head, self.squeeze = nn.Linear(6, outputs), squeeze

    def forward(self, x):
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.head(x).squeeze(-1) if self.squeeze else self.head(x)


@pytest.mark.parametrize(
    ("outputs", "squeeze", "given", "why"),
    [
        (1, True, {}, r"Expected logits of two classes or more; got a shape of \(64,\), one number an input"),
        (1, False, {}, r"Expected logits of two classes or more; got a shape of \(64, 1\), one number an input"),
        (2, False, {"outputs": False}, r"They were not asked for: outputs=False\."),
    ],
)
def test_a_regressor_is_judged_by_depth_and_told_why(outputs, squeeze, given, why):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Regressor(outputs, squeeze).eval(), torch.randn(300, 6)
    data = ki.attach(model).observe(x, progress=False)
    koopman = ki.fit(data, method="least_squares")
    faith = ki.fidelity(model, koopman, held_out=x, fitted=data, spans="all", **given)
    assert (faith.outputs, faith.spans, faith.rows) == ((), (), 300)
    states = [state.double().numpy() for state in data.states]
    for depth in range(1, 4):
        reached = koopman.predict(data.states[0], 0, depth).double().numpy()
        assert faith.depths[depth].fvu["surrogate"] == pytest.approx(fvu(reached, states[depth]), rel=1e-4)
    assert re.match(r"There are no figures at the model's output\. " + why, faith.notes()[0])
    assert faith.notes()[0] in str(faith)


def test_a_base_model_of_hugging_face_is_judged_by_depth_and_told_why():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=32, n_embd=12, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, ids = transformers.GPT2Model(config).eval(), torch.randint(0, 40, (40, 8))
    koopman = ki.fit(ki.attach(model, skip=1).observe(ids, progress=False), method="least_squares")
    faith = ki.fidelity(model, koopman, held_out=ids[:10], next_token=True)
    assert (faith.outputs, faith.rows) == ((), 70)
    assert [depth.site for depth in faith.depths] == list(koopman.sites)
    assert "got BaseModelOutput" in faith.notes()[0]
    assert "AutoModelForCausalLM in place of AutoModel" in faith.notes()[0]


def test_two_outputs_are_held_at_a_time(monkeypatch, model, surrogate, trajectories, held_out):
    """Since they can be wide: the model's own, and one stand-in's."""
    made, most, of = [], [], Output.of.__func__

    def counted(cls, *args, **kwargs):
        output = of(cls, *args, **kwargs)
        made.append(weakref.ref(output.logp))
        most.append(sum(logp() is not None for logp in made))
        return output

    monkeypatch.setattr(Output, "of", classmethod(counted))
    ki.fidelity(model, surrogate, held_out=held_out, fitted=trajectories, spans="all")
    ki.compare_lenses(model, surrogate, held_out=held_out[0], fitted=trajectories)
    ki.koopman_lens(model, surrogate, held_out[0])
    assert (max(most), len(most)) == (2, 4 * (1 + 10 * 6 + 4) + 4 * (1 + 4 * 3 + 1) + 4 * 5)


def test_plain_values_go_through_json(found):
    values = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert values["rows"] == 200
    assert [row["name"] for row in values["outputs"]] == ["base model", *NAMES]
    assert values["outputs"][1]["kl"] == found.outputs[1].kl
    assert values["depths"][0]["fvu"]["identity"] is None
    assert values["depths"][2]["isometry"] == list(found.depths[2].isometry)
    assert ki.Fidelity.from_dict(values) == found


def test_spans_are_rebuilt_from_plain_values(model, surrogate, held_out):
    judged = ki.fidelity(model, surrogate, held_out=held_out, spans="to_target")
    rebuilt = ki.Fidelity.from_dict(json.loads(json.dumps(judged.as_dict())))
    assert rebuilt == judged
    assert str(rebuilt) == str(judged)
    assert rebuilt.spans[1].table().caption == "At the model's output, substituted for blocks.0 → blocks.3"


def test_the_printed_tables_hold_the_figures(found):
    text = str(found)
    assert text.startswith(repr(found))
    ours = by_name(found)["surrogate"]
    assert f"agreement with the model {ours.agreement:.2%}, KL {ours.kl:.4f}" in repr(found)
    line = next(line for line in text.split("\n") if line.startswith("endpoint linear"))
    linear = by_name(found)["endpoint linear"]
    expected = [f"{100 * linear.accuracy:.2f}", f"{100 * linear.agreement:.2f}", f"{linear.kl:.4f}"]
    expected += [f"{linear.cross_entropy:.4f}"]
    if any(row.loss_recovered is not None for row in found.outputs):
        expected += [f"{100 * linear.loss_recovered:.2f}"]
    assert line.removeprefix("endpoint linear").split() == expected
    site = next(line for line in text.split("\n") if line.startswith("blocks.3"))
    assert f"{found.depths[4].linearity_residual:.4f}" in site


def test_the_table_by_span_has_a_line_each(model, surrogate, trajectories, held_out):
    found = ki.fidelity(model, surrogate, held_out=held_out, fitted=trajectories, spans="to_target")
    divergence, agreement = found.by_span()[:2]
    spans = tuple(f"{site} → blocks.3" for site in surrogate.sites[:-1])
    for table, figure in ((divergence, "kl"), (agreement, "agreement")):
        assert [column.name for column in table.columns] == ["substituted for", *NAMES]
        assert table.columns[0].values == spans
        for column in table.columns[1:]:
            rows = [next(row for row in one.outputs if row.name == column.name) for one in found.spans]
            assert column.values == tuple(getattr(row, figure) for row in rows)
        assert table.text() in str(found)


def test_nothing_is_left_behind(model, surrogate, trajectories, held_out):
    before = weight_digest(model), [sorted(vars(module)) for module in model.modules()], surrogate.digest()
    ki.fidelity(model, surrogate, held_out=held_out, fitted=trajectories)
    assert before == (
        weight_digest(model),
        [sorted(vars(module)) for module in model.modules()],
        surrogate.digest(),
    )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_one_operator_per_depth_is_solved_for_in_observables(found, model, surrogate, trajectories, held_out):
    """Least squares from depth to depth in the encoder's coordinates, decoded at the end."""
    states = observed(model, held_out[0])
    fitted = [surrogate.encode(state, depth).double().numpy() for depth, state in enumerate(trajectories.states)]
    z = surrogate.encode(torch.from_numpy(states[0]).float(), 0).double().numpy()
    for depth in range(1, len(states)):
        z = np.c_[z, np.ones(len(z))] @ linear_map(fitted[depth - 1], fitted[depth])
        reached = surrogate.decode(torch.from_numpy(z).float(), depth).double().numpy()
        assert found.depths[depth].fvu["K per depth"] == pytest.approx(fvu(reached, states[depth]), rel=5e-2)


def test_a_kernel_regression_bends_where_linear_maps_cannot():
    from koopman_interp.analysis.substitutes.kernel_ridge import ROWS, fit_kernel_maps

    draw = torch.Generator().manual_seed(0)
    x, fresh = (2 * torch.rand(rows, 2, generator=draw) - 1 for rows in (3000, 300))

    def bent(rows):
        return [torch.sin(3 * rows), 1e3 * rows[:, :1] * rows[:, 1:]]

    maps = fit_kernel_maps(x, bent(x))
    assert [each.rows for each in maps] == [1500, 1500]
    assert max(each.rows for each in maps) <= ROWS
    for each, target in zip(maps, bent(fresh), strict=True):
        assert fvu(each(fresh).double().numpy(), target.double().numpy()) < 1e-3


def test_times_of_the_surrogate_are_kept(model, held_out, yin_yang_data):
    x, _ = held_out
    tap = ki.attach(model, ["blocks.0:input", "blocks.1", "blocks.3"], times=[0.0, 2.0, 4.0])
    data = tap.observe(yin_yang_data[0], progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=14), method="least_squares")
    found = ki.fidelity(model, koopman, held_out=x, fitted=data)
    later = tap.observe(x, progress=False)
    z = [koopman.encode(state, depth).double() for depth, state in enumerate(later.states)]
    K2 = torch.linalg.matrix_power(koopman.K.double(), 2)
    for depth in (1, 2):
        expected = fvu((z[depth - 1] @ K2.T).numpy(), z[depth].numpy())
        assert found.depths[depth].linearity_residual == pytest.approx(expected, rel=1e-3)

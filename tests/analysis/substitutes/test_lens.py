"""A lens reads what the host's own head says of the state that it predicts for the last depth."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

import koopman_interp as ki
from koopman_interp.errors import FileFormatError, HostMismatchError, InputError, UnsupportedHostError
from koopman_interp.files import write_tensors
from koopman_interp.hosts.finding import host_for
from koopman_interp.surrogates.coordinates import Coordinates
from koopman_interp.testing import LinearHost, yin_yang
from tests.analysis.linear import exact_on_a_linear_host
from tests.hosts.lens_models import gpt2_bridge


@pytest.fixture(scope="module")
def held_out():
    return yin_yang(50, seed=5)[0]


@pytest.fixture
def reading(model, surrogate, held_out):
    return ki.koopman_lens(model, surrogate, held_out, names=["yin", "yang", "dot"], top=3)


@pytest.fixture(scope="module")
def words():
    """A language model, its surrogate, its trajectories, and texts."""
    model = gpt2_bridge()
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 20, (60, 9), generator=generator)
    data = ki.attach(model, skip=1).observe(ids, progress=False)
    return model, ki.fit(data, ki.FitConfig(observables=40), method="least_squares"), data


def heads_logp(model, rows):
    W, b = (part.detach().double().numpy() for part in (model.head.weight, model.head.bias))
    return log_softmax(np.asarray(rows, dtype=np.float64) @ W.T + b, axis=1)


def test_at_the_last_depth_a_lens_says_what_the_host_says_bit_for_bit(reading, model, held_out):
    with torch.no_grad():
        logp = model(held_out).double().log_softmax(1)
    top = logp.topk(3, dim=1)
    assert torch.equal(reading.top[-1], top.indices)
    assert torch.equal(reading.probability[-1], top.values.exp().float())
    assert not reading.kl[-1].any()
    assert torch.equal(reading.own[-1], top.values[:, 0].exp().float())


def test_every_figure_is_counted_directly(reading, model, surrogate, held_out):
    states = ki.attach(model).observe(held_out, progress=False).states
    host = heads_logp(model, states[-1])
    for depth in range(4):
        logp = heads_logp(model, surrogate.predict(states[depth], depth))
        order = np.argsort(-logp, axis=1)
        assert (reading.top[depth].numpy() == order).mean() > 0.99
        np.testing.assert_allclose(reading.probability[depth], -np.sort(-np.exp(logp), axis=1), atol=1e-5)
        np.testing.assert_allclose(reading.kl[depth], (np.exp(host) * (host - logp)).sum(1), atol=1e-5)
        own = np.exp(logp)[range(50), host.argmax(1)]
        np.testing.assert_allclose(reading.own[depth], own, atol=1e-5)


def test_on_a_linear_host_it_is_exact_from_every_depth():
    model, _, x, _, koopman = exact_on_a_linear_host()
    reading = ki.koopman_lens(model, koopman, x[:40])
    assert float(reading.kl.abs().max()) < 1e-5
    assert (reading.top[:, :, 0] == reading.top[-1, :, 0]).double().mean() > 0.99
    logit = ki.koopman_lens(model, koopman, x[:40], lens=ki.LogitLens(koopman.config.widths))
    assert logit.kl[0].mean() > 1e-3


def test_other_lenses_can_be_looked_through(model, surrogate, trajectories, held_out):
    states = ki.attach(model).observe(held_out, progress=False).states
    affine = ki.AffineLens.fit(trajectories)
    columns = np.c_[trajectories.states[2].double(), np.ones(len(trajectories))]
    weights = np.linalg.lstsq(columns, trajectories.states[-1].double().numpy(), rcond=None)[0]
    expected = {
        "logit lens": (ki.LogitLens(surrogate.config.widths), states[2]),
        affine.name: (affine, np.c_[states[2].double(), np.ones(50)] @ weights),
    }
    host = heads_logp(model, states[-1])
    for name, (lens, rows) in expected.items():
        found = ki.koopman_lens(model, surrogate, held_out, lens=lens)
        logp = heads_logp(model, rows)
        assert found.lens == name
        np.testing.assert_allclose(found.kl[2], (np.exp(host) * (host - logp)).sum(1), rtol=2e-2, atol=1e-5)
        assert not found.kl[-1].any()


def test_tokens_are_named_and_numbered_over_batches(words):
    model, koopman, _ = words
    texts = ["once upon a time there was", "girl who had red ball and she liked to play", "in the park"]
    together = ki.koopman_lens(model, koopman, texts)
    apart = ki.koopman_lens(model, koopman, [[one] for one in texts])
    torch.testing.assert_close(apart.kl, together.kl, atol=1e-4, rtol=1e-3)
    assert torch.equal(apart.sequence, together.sequence)
    assert (apart.inputs, apart.position.tolist()) == (together.inputs, together.position.tolist())
    second = together.of_input(1)
    tokens = model.to_tokens(texts[1])[0].tolist()[1:]
    assert list(second.inputs) == model.tokenizer.convert_ids_to_tokens(tokens)
    with torch.no_grad():
        said = model(model.to_tokens(texts[1]))[0, 1:].argmax(1).tolist()
    names = [model.tokenizer.convert_ids_to_tokens(one) or str(one) for one in said]  # the model has more outputs
    assert [second.said(-1, row) for row in range(len(second))] == names


class Pieces:
    """A tokenizer of byte-level pieces."""

    def convert_ids_to_tokens(self, number):
        return f"Ġ{number}"


class Decoder:
    """A tokenizer that only decodes."""

    def decode(self, ids):
        return "".join(f"<{number}>" for number in ids)


def test_outputs_are_named_by_what_was_given(model, surrogate, held_out):
    def names(given):
        return ki.koopman_lens(model, surrogate, held_out[:4], names=given, top=9).names

    assert names(Pieces()) == {0: "▁0", 1: "▁1", 2: "▁2"}
    assert names(Decoder()) == {0: "<0>", 1: "<1>", 2: "<2>"}
    assert names(None) == {0: "0", 1: "1", 2: "2"}
    assert names(["yin", "yang"]) == {0: "yin", 1: "yang", 2: "2"}
    model.tokenizer = Pieces()
    assert names(None) == names(Pieces())
    assert names(["yin", "yang", "dot"]) == {0: "yin", 1: "yang", 2: "dot"}
    for given in ("gpt2", {0: "yin"}):
        with pytest.raises(InputError, match=f"one name a class; got {type(given).__name__}"):
            names(given)


def test_it_is_printed_saved_and_loaded(reading, tmp_path):
    text = str(reading)
    assert text.startswith(repr(reading))
    assert "Koopman lens, 50 samples" in repr(reading)
    line = next(line for line in text.split("\n") if line.startswith("7  "))
    expected = [f"{reading.said(d, 7)} {float(reading.probability[d, 7, 0]):.2f}" for d in range(5)]
    assert line.split()[1:] == " ".join(expected).split()
    assert "first 40 of 50 samples" in text
    by_depth = reading.tables()[0]
    same = (reading.top[:, :, 0] == reading.top[-1, :, 0]).sum(1)
    assert by_depth.columns[2].values == pytest.approx([int(count) / 50 for count in same])
    assert by_depth.columns[1].values == pytest.approx(reading.kl.mean(1).tolist())
    values = json.loads(json.dumps(reading.as_dict(), allow_nan=False))
    assert values["kl"][1] == reading.kl[1].tolist()
    rebuilt = ki.LensReading.from_dict(values)
    assert rebuilt.as_dict() == reading.as_dict()
    assert str(rebuilt) == text
    reading.save(tmp_path / "lens.safetensors")
    loaded = ki.LensReading.load(tmp_path / "lens.safetensors")
    assert str(loaded) == text
    assert loaded.names == reading.names
    reading.of_input(3).save(tmp_path / "one.safetensors")
    assert len(ki.LensReading.load(tmp_path / "one.safetensors")) == 1


def test_another_kind_of_file_is_no_lens(trajectories, tmp_path):
    trajectories.save(tmp_path / "t.safetensors")
    with pytest.raises(FileFormatError):
        ki.LensReading.load(tmp_path / "t.safetensors")
    write_tensors(tmp_path / "part.safetensors", {"top": torch.zeros(1, 1, 1)}, kind="lens", header={"lens": "half"})
    with pytest.raises(FileFormatError, match="lacks parts of a lens"):
        ki.LensReading.load(tmp_path / "part.safetensors")


# --- side by side ---------------------------------------------------------------------------------------------


def test_the_comparison_is_the_mean_of_each_reading(model, surrogate, trajectories, held_out):
    affine = ki.AffineLens.fit(trajectories)
    found = ki.compare_lenses(model, surrogate, held_out=held_out, fitted=trajectories, batch_size=20)
    assert found.sites == surrogate.sites[:-1]
    lenses = {"Koopman lens": None, "logit lens": ki.LogitLens(surrogate.config.widths), affine.name: affine}
    assert list(found.parameters) == list(lenses)
    for name, lens in lenses.items():
        reading = ki.koopman_lens(model, surrogate, held_out, lens=lens)
        assert found.kl(name) == pytest.approx(reading.kl[:-1].mean(1).tolist(), rel=1e-4, abs=1e-7)
    text = str(found)
    assert f"logit lens {np.mean(found.kl('logit lens')):.3f}" in repr(found)
    assert all(f"{count:,}" in text for count in found.parameters.values())
    json.dumps(found.as_dict(), allow_nan=False)


def test_parameters_are_all_that_was_fitted(surrogate, trajectories):
    parts = (surrogate.encoder, surrogate.operator, surrogate.decoder)
    trained = sum(one.numel() for part in parts for one in part.parameters())
    # A mean and a size for each depth, and one basis for all of them, or for each its own.
    assert surrogate.config.coordinates.basis == "shared"
    assert ki.KoopmanLens(surrogate).parameters == trained + 5 * (10 + 1) + 10 * 10
    surrogate = copy.deepcopy(surrogate)
    surrogate.config = replace(surrogate.config, coordinates=Coordinates())
    assert ki.KoopmanLens(surrogate).parameters == trained + 5 * (10 + 10 * 10)
    assert ki.AffineLens.fit(trajectories).parameters == 4 * (10 * 10 + 10)
    assert ki.LogitLens((10, 10)).parameters == 0


def test_a_language_models_lenses_are_judged_by_the_next_token_too(words):
    model, koopman, data = words
    ids = torch.randint(1, 20, (6, 9), generator=torch.Generator().manual_seed(4))
    found = ki.compare_lenses(model, koopman, held_out=ids, fitted=data, next_token=True)
    host = {row.name: row for row in found.outputs[0]}["base model"]
    with torch.no_grad():
        logp = model(ids).double().log_softmax(-1)[:, 1:-1].flatten(0, 1)
    expected = -logp[range(len(logp)), ids[:, 2:].flatten()].mean()
    assert host.cross_entropy == pytest.approx(float(expected), rel=1e-6)
    assert host.accuracy == float((logp.argmax(1) == ids[:, 2:].flatten()).double().mean())
    # The state that the mean stands in place of is the last one's, at each token kept.
    mean = {row.name: row for row in found.outputs[0]}["mean"]
    last = koopman.sites[-1]
    put = koopman.normalization.maps(len(koopman.sites) - 1)[0]
    with torch.no_grad(), host_for(model).hooked({last: lambda state: _put(state, put)}):
        ablated = model(ids).double().log_softmax(-1)[:, 1:]
    with torch.no_grad():
        said = model(ids).double().log_softmax(-1)[:, 1:]
    assert mean.kl == pytest.approx(float((said.exp() * (said - ablated)).sum(-1).mean()), rel=1e-4)


def _put(state, row):
    """Put a row at every position but the first."""
    return torch.cat([state[:, :1], row.expand(len(state), state.shape[1] - 1, -1)], 1)


def test_batches_that_skipping_leaves_nothing_of_count_for_nothing(words):
    model, koopman, data = words
    ids = torch.randint(1, 20, (6, 9), generator=torch.Generator().manual_seed(4))
    whole = ki.compare_lenses(model, koopman, held_out=[ids], fitted=data, next_token=True)
    more = ki.compare_lenses(model, koopman, held_out=[ids, ids[:, :1]], fitted=data, next_token=True)
    assert more == whole
    with pytest.raises(InputError, match="no samples"):
        ki.koopman_lens(model, koopman, [ids[:, :1]])


class Forbidding(LinearHost):
    """A host whose last class is never said."""

    def forward(self, x):
        return super().forward(x).index_fill(-1, torch.tensor([5]), -torch.inf)


def test_a_class_that_the_host_forbids_adds_nothing():
    model = Forbidding(torch.eye(6) * 0.9, 3).eval()
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(1))
    data = ki.attach(model).observe(x, progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=6), method="least_squares")
    found = ki.compare_lenses(model, koopman, held_out=x, fitted=data)
    states = data.states[0].double()[:, :5]
    host, logp = (states * 0.729).log_softmax(1), states.log_softmax(1)
    assert found.kl("logit lens")[0] == pytest.approx(float((host.exp() * (host - logp)).sum(1).mean()), rel=1e-4)


# --- bad input --------------------------------------------------------------------------------------------------


class Headless(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        return {"last_hidden_state": x}


def test_a_host_without_a_head_is_told_so():
    model = Headless().eval()
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    koopman = ki.fit(ki.attach(model).observe(x, progress=False), method="least_squares")
    with pytest.raises(UnsupportedHostError, match=r"return logits.*got dict\. Load it with its head"):
        ki.koopman_lens(model, koopman, x)


def test_what_cannot_be_read_is_refused(unchecked, model, surrogate, trajectories, held_out):
    with pytest.raises(InputError, match="top=0"):
        ki.koopman_lens(model, surrogate, held_out, top=0)
    with pytest.raises(InputError, match=r"no logit lens at 'blocks\.0:input'"):
        ki.koopman_lens(model, surrogate, held_out, lens=ki.LogitLens((8, 10, 10, 10, 10)))
    with pytest.raises(InputError, match="no samples"):
        ki.koopman_lens(model, surrogate, [])
    with pytest.raises(InputError, match="no samples"):
        ki.compare_lenses(model, surrogate, held_out=[], fitted=trajectories)
    with pytest.raises(InputError, match="a name of its own"):
        ki.compare_lenses(model, surrogate, held_out=held_out, fitted=trajectories, others=[ki.KoopmanLens(surrogate)])
    with pytest.raises(InputError, match=r"others=\[lens\]"):
        ki.compare_lenses(model, surrogate, held_out=held_out, fitted=trajectories, others=ki.KoopmanLens(surrogate))
    with pytest.raises(InputError, match="batch_size must be 1 or more; got 0"):
        ki.koopman_lens(model, surrogate, held_out, batch_size=0)
    few = ki.attach(model, ["blocks.0:input", "blocks.3"]).observe(held_out, progress=False)
    with pytest.raises(InputError, match=r"have the sites blocks\.0:input, blocks\.3; the surrogate has"):
        ki.compare_lenses(model, surrogate, held_out=held_out, fitted=few)
    with pytest.raises(InputError, match="0 to 49"):
        ki.koopman_lens(model, surrogate, held_out).of_input(50)
    with pytest.raises(InputError, match="There is no lens 'tuned'"):
        ki.compare_lenses(model, surrogate, held_out=held_out, fitted=trajectories).kl("tuned")
    with pytest.raises(InputError, match="depths 0 to 4"):
        ki.AffineLens.fit(trajectories).at(5)


def test_another_host_is_refused(model, surrogate, trajectories, held_out):
    with torch.no_grad():
        model.head.bias += 1
    with pytest.raises(HostMismatchError):
        ki.koopman_lens(model, surrogate, held_out)
    with pytest.raises(HostMismatchError):
        ki.compare_lenses(model, surrogate, held_out=held_out, fitted=trajectories)

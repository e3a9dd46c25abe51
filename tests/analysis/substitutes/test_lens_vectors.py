"""Lens vectors are the gradients of what a lens reads, by finite differences through a head written by hand."""

import json

import pytest
import torch
from torch import nn

import koopman_interp as ki
from koopman_interp.errors import FileFormatError, HostMismatchError, InputError, UnsupportedHostError
from koopman_interp.testing import ResidualMLP
from tests.analysis.linear import exact_on_a_linear_host
from tests.hosts.lens_models import gpt2_bridge, native_bridge

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TOKENS = [3, 17]


def gpt2(seed=0):
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=32, n_embd=12, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.GPT2LMHeadModel(config).eval().double()


def fitted(model, ids, skip=0, sites=None):
    """A surrogate with some bend in it, in float64."""
    data = ki.attach(model, sites, skip=skip).observe(ids, progress=False)
    config = ki.FitConfig(observables=data.widths[0] + 8, hidden=(32,), steps=20, evaluate_every=10, batch_size=64)
    return ki.fit(data, config, progress=False).double(), data


def hf_case():
    model = gpt2()
    ids = torch.randint(1, 40, (24, 8), generator=torch.Generator().manual_seed(1))
    return model, ids, lambda rows: model.lm_head(model.transformer.ln_f(rows))


def native_case():
    model = native_bridge().double()
    ids = torch.randint(1, 90, (40, 8), generator=torch.Generator().manual_seed(1))
    return model, ids, lambda rows: model.unembed(model.ln_final(rows[None]))[0]


def differences(read, rows, tokens, step=1e-5):
    """Central differences of logits in each coordinate of each row: `[token, sample, width]`."""
    found = torch.empty(len(tokens), *rows.shape, dtype=torch.float64)
    for coordinate in range(rows.shape[1]):
        shift = torch.zeros(rows.shape[1], dtype=rows.dtype)
        shift[coordinate] = step
        found[:, :, coordinate] = ((read(rows + shift) - read(rows - shift)) / (2 * step))[:, tokens].T
    return found


@pytest.mark.parametrize("case", [hf_case, native_case])
def test_they_are_the_finite_differences_of_the_reading(case):
    model, ids, head = case()
    koopman, _ = fitted(model, ids, skip=1)
    some = ids[:3]
    states = ki.attach(model, skip=1).observe(some, progress=False).states
    found = ki.lens_vectors(model, koopman, TOKENS, some)
    assert found.samples == 21
    assert found.sites == koopman.sites
    with torch.no_grad():
        for depth in (0, 1, len(states) - 1):
            last = depth == len(states) - 1

            def read(rows, depth=depth, last=last):
                return head(rows if last else koopman.predict(rows, depth))

            own = differences(read, states[depth].double(), TOKENS)
            torch.testing.assert_close(found.vectors[depth], own.mean(1), rtol=1e-6, atol=1e-8)
            cosine = nn.functional.cosine_similarity(own, own.mean(1, keepdim=True), dim=2).mean(1)
            torch.testing.assert_close(found.agreement[depth], cosine, rtol=1e-6, atol=1e-8)
            assert float(found.size[depth]) == pytest.approx(float(states[depth].norm(dim=1).median()))


def test_at_positions_and_layers_they_are_those_of_these_states_alone():
    model, ids, head = hf_case()
    koopman, _ = fitted(model, ids, skip=1)
    lengths = [8, 5, 6]
    texts = [row[:length].tolist() for row, length in zip(ids, lengths, strict=False)]
    states = ki.attach(model, skip=1).observe(texts, progress=False)
    from_end = states.position - torch.tensor(lengths)[states.sequence]
    for positions, chosen in (
        ([2, 4], torch.isin(states.position, torch.tensor([2, 4]))),
        ([-1], from_end == -1),
        (slice(-2, None), from_end >= -2),
        (lambda places: places % 3 == 1, states.position % 3 == 1),
    ):
        found = ki.lens_vectors(model, koopman, TOKENS, texts, layers=[0], positions=positions)
        assert found.samples == int(chosen.sum())
        assert found.sites == (koopman.sites[1],)
        with torch.no_grad():
            rows = states.states[1][chosen].double()
            own = differences(lambda rows: head(koopman.predict(rows, 1)), rows, TOKENS)
        torch.testing.assert_close(found.at(0), own.mean(1), rtol=1e-6, atol=1e-8)


def test_where_attention_comes_after_the_last_site_a_place_counts_with_its_own_reading():
    model, ids, _ = hf_case()
    sites = ["transformer.h.0:input", "transformer.h.0", "transformer.h.1"]
    koopman, _ = fitted(model, ids, sites=sites)
    some = ids[:2, :5]
    found = ki.lens_vectors(model, koopman, [3], some, layers=[0])
    states = ki.attach(model, sites).observe(some, progress=False).states
    own = torch.zeros(12, dtype=torch.float64)

    def read(rows):
        """The model's last block, and its head, on rows at the last site."""
        hidden = model.transformer.h[2](rows.view(2, 5, 12))
        hidden = hidden if isinstance(hidden, torch.Tensor) else hidden[0]
        return model.lm_head(model.transformer.ln_f(hidden)).flatten(0, 1)

    for sample in range(10):
        rows = states[1].double().clone().requires_grad_()
        logit = read(koopman.predict(rows, 1))[sample, 3]
        own += torch.autograd.grad(logit, rows)[0][sample] / 10
    torch.testing.assert_close(found.at(0)[0], own, rtol=1e-8, atol=1e-10)


def test_through_another_lens_they_are_that_ones():
    model, ids, head = hf_case()
    koopman, data = fitted(model, ids)
    affine = ki.AffineLens.fit(data)
    found = ki.lens_vectors(model, koopman, TOKENS, ids[:2], lens=affine, layers=[0])
    rows = ki.attach(model).observe(ids[:2], progress=False).states[1].double()
    with torch.no_grad():
        own = differences(lambda rows: head(affine.at(1)(rows)), rows, TOKENS)
    torch.testing.assert_close(found.at(0), own.mean(1), rtol=1e-6, atol=1e-8)
    assert found.lens == affine.name


def test_on_a_linear_host_they_are_the_rows_of_its_remaining_matrix():
    model, K, x, _, koopman = exact_on_a_linear_host()
    found = ki.lens_vectors(model, koopman, [0, 4], x[:20])
    for depth, vectors in enumerate(found.vectors):
        expected = torch.linalg.matrix_power(K.double(), 3 - depth)[[0, 4]]
        torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.agreement, torch.ones(4, 2, dtype=torch.float64), rtol=0, atol=1e-6)


def test_nothing_is_left_on_the_model_and_no_gradient_in_it(traces):
    model = ResidualMLP(inputs=4, width=8, blocks=3, outputs=2).eval()
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    koopman = ki.fit(ki.attach(model).observe(x, progress=False), method="least_squares")
    before = traces(model)
    with torch.inference_mode():
        inside = ki.lens_vectors(model, koopman, 1, x)
    outside = ki.lens_vectors(model, koopman, 1, x, batch_size=7)
    assert traces(model) == before
    assert all(parameter.grad is None for parameter in [*model.parameters(), *koopman.parameters()])
    for one, other in zip(inside.vectors, outside.vectors, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_tokens_go_by_their_names_and_values_are_printed_saved_and_loaded(tmp_path):
    model = gpt2_bridge()
    ids = torch.randint(1, 20, (60, 9), generator=torch.Generator().manual_seed(3))
    data = ki.attach(model, skip=1).observe(ids, progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=40), method="least_squares")
    girl = model.tokenizer.get_vocab()["girl"]
    found = ki.lens_vectors(model, koopman, ["girl", "ball"], ["once upon a time there was"], layers=[1, 2])
    assert found.tokens[0] == girl
    assert found.index("girl") == found.index(girl) == 0
    assert "LensVectors(Koopman lens, girl, ball, at 2 sites, mean of 6 samples)" in str(found)
    assert f"{float(found.vectors[1][0].norm()):.4f}" in str(found)
    found.save(tmp_path / "vectors.safetensors")
    loaded = ki.LensVectors.load(tmp_path / "vectors.safetensors")
    rebuilt = ki.LensVectors.from_dict(json.loads(json.dumps(found.as_dict(), allow_nan=False)))
    for one in (loaded, rebuilt):
        assert str(one) == str(found)
        assert all(torch.equal(a, b) for a, b in zip(one.vectors, found.vectors, strict=True))
        assert (one.host, one.skip, one.written) == (found.host, 1, ("girl", "ball"))
    data.save(tmp_path / "data.safetensors")
    with pytest.raises(FileFormatError):
        ki.LensVectors.load(tmp_path / "data.safetensors")
    with pytest.raises(InputError, match=r"no direction for 'time'.*lens_vectors\(model, koopman, \['time'\]"):
        found.index("time")
    with pytest.raises(InputError, match="'onceuponatime' is not in the vocabulary"):
        ki.lens_vectors(model, koopman, "onceuponatime", ids[:1])
    with pytest.raises(InputError, match=r"There is no layer 7 among the sites.*blocks 0, 1, 2, 3"):
        ki.lens_vectors(model, koopman, "girl", ids[:1], layers=[7])
    with pytest.raises(InputError, match="no samples to take gradients at"):
        ki.lens_vectors(model, koopman, "girl", ids[:1], positions=[0])
    with pytest.raises(InputError, match="expected an id from 0 to 89"):
        ki.lens_vectors(model, koopman, 90, ids[:1])


class Pooled(nn.Module):
    """Says one thing of a sequence."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x.mean(1))


def test_a_model_that_says_one_thing_of_many_states_is_told_so(model, surrogate):
    pooled = Pooled().eval()
    ids = torch.randint(0, 20, (40, 5), generator=torch.Generator().manual_seed(0))
    koopman = ki.fit(ki.attach(pooled).observe(ids, progress=False), method="least_squares")
    with pytest.raises(UnsupportedHostError, match=r"8 rows of logits for 40 states"):
        ki.lens_vectors(pooled, koopman, 1, ids[:8])
    with pytest.raises(InputError, match="no row for each token"):
        ki.koopman_lens(pooled, koopman, ids[:8], positions=[0])
    with pytest.raises(InputError, match=r"no tokenizer to read ' she'"):
        ki.lens_vectors(model, surrogate, " she", torch.randn(4, 4))
    with pytest.raises(HostMismatchError):
        ki.lens_vectors(ResidualMLP(inputs=4, width=10, blocks=4, outputs=3).eval(), surrogate, 1, torch.randn(4, 4))

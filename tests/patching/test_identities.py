"""The laws of patching, against the formula written out: nothing in, nothing out; the edit and no more."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import koopman_interp as ki
from koopman_interp.surrogates.operators import OPERATORS
from koopman_interp.testing import LinearHost, ResidualMLP, yin_yang
from tests.naming import named


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class ConvBlock(nn.Module):
    def __init__(self, channels, out):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, stride=2, padding=1)

    def forward(self, x):
        return torch.relu(self.conv(x))


class Conv(nn.Module):
    """States `[batch, channel, height, width]` whose widths, as rows, are 256, 96 and 32."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.ModuleList([ConvBlock(4, 6), ConvBlock(6, 8)])
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class TokenBlock(nn.Module):
    """Mixes positions causally, as attention does."""

    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        mixed = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return x + torch.tanh(self.fc(mixed))


class Tokens(nn.Module):
    """States `[batch, position, width]`."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(TokenBlock(8) for _ in range(3))
        self.head = nn.Linear(8, 11)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make(kind):
    """A host, inputs with labels, and what a fit of it is told."""
    torch.manual_seed(0)
    if kind == "mlp":
        inputs, labels = yin_yang(300, seed=3)
        return ResidualMLP(4, 10, 4, 3).eval(), inputs, labels, ki.FitConfig(observables=14)
    if kind == "conv":
        labels = torch.arange(200) % 3
        inputs = drawn(200, 1, 8, 8) + labels[:, None, None, None]
        normalization = ki.NormalizationConfig(dimension=6)
        return Conv().eval(), inputs, labels, ki.FitConfig(observables=12, normalization=normalization)
    inputs = torch.randint(0, 11, (60, 5), generator=torch.Generator().manual_seed(0))
    return Tokens().eval(), inputs, torch.arange(60) % 3, ki.FitConfig(observables=12)


@pytest.fixture(scope="module", params=["mlp", "conv", "tokens"])
def case(request):
    with torch.random.fork_rng():
        model, x, labels, config = make(request.param)
    trajectories = ki.attach(model).observe(x, labels, progress=False)
    return model, x, ki.fit(trajectories, config, method="least_squares"), trajectories


def after_the_blocks(model, state):
    """What the host does with the state at the last site."""
    return model.head(state.mean((2, 3)) if state.ndim == 4 else state)


def moved(koopman, z, edits, first, last):
    """Step by step, with each edit where its depth is passed."""
    K = koopman.K
    for depth in range(first, last + 1):
        if depth > first:
            z = z @ K.T
        for edit in edits:
            if edit.depth == depth:
                displacement = (z.double() @ edit.readers - edit.offset) @ edit.directions.T
                z = (z.double() - displacement).to(z)
    return z


def delta_by_hand(koopman, rows, target_rows, edits, first, last):
    """`x + D(edited motion) − D(unedited motion)`, on rows, in the host's coordinates."""
    z = koopman.encode(rows, first)
    return (
        target_rows
        + koopman.decode(moved(koopman, z, edits, first, last), last)
        - koopman.decode(moved(koopman, z, [], first, last), last)
    )


# --- nothing in, nothing out --------------------------------------------------------------------------------


@pytest.mark.parametrize("edits", [None, (), []], ids=named)
def test_without_an_edit_no_bit_changes(case, edits):
    model, x, koopman, _ = case
    with torch.no_grad():
        before = model(x)
        with ki.patched(model, koopman, edits):
            assert torch.equal(model(x), before)
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("strength", ["erased with", "scaled by"])
@pytest.mark.parametrize("site", [0, 1, -1])
def test_an_edit_of_strength_nothing_changes_no_bit(case, site, strength):
    model, x, koopman, _ = case
    edit = ki.erase_class(koopman, label=1, site=site)
    none = edit.scaled(0.0) if strength == "scaled by" else ki.erase_class(koopman, label=1, site=site, strength=0.0)
    with torch.no_grad():
        before = model(x)
        with ki.patched(model, koopman, edit):
            assert not torch.equal(model(x), before)
        with ki.patched(model, koopman, none):
            assert torch.equal(model(x), before)


@pytest.mark.parametrize("site", [0, 1, 3, 4])
@pytest.mark.parametrize("kind", OPERATORS)
def test_an_edit_of_strength_nothing_changes_no_bit_with_any_operator(model, trajectories, kind, site):
    config = ki.FitConfig(operator=kind, observables=14, rank=5)
    koopman = ki.fit(trajectories, config, method="least_squares")
    none = ki.erase_class(koopman, label=1, site=site).scaled(0.0)
    x = drawn(200, 4)
    with torch.no_grad():
        before = model(x)
        with ki.patched(model, koopman, none):
            assert torch.equal(model(x), before)


def test_in_replace_mode_an_edit_of_strength_nothing_is_no_edit(case):
    model, x, koopman, _ = case
    none = ki.erase_class(koopman, label=1, site=1).scaled(0.0)
    with torch.no_grad():
        with ki.patched(model, koopman, mode="replace"):
            plain = model(x)
        with ki.patched(model, koopman, none, mode="replace"):
            assert torch.equal(model(x), plain)


# --- the edit and no more -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "last"), [(0, -1), (0, 1), (1, 2)])
@pytest.mark.parametrize("where", ["source", "target"])
def test_delta_is_the_formula(case, first, last, where):
    model, x, koopman, _ = case
    last = last % len(koopman.sites)
    edit = ki.erase_class(koopman, label=2, site=first if where == "source" else last)
    data = ki.attach(model).observe(x, progress=False)
    expected = delta_by_hand(koopman, data.states[first], data.states[last], [edit], first, last)
    with torch.no_grad(), ki.patched(model, koopman, edit, source=first, target=last):
        found = ki.attach(model).observe(x, progress=False)
    torch.testing.assert_close(found.states[last], expected, rtol=1e-4, atol=1e-5)
    assert float((found.states[last] - data.states[last]).norm()) > 1e-3
    for depth in range(last):
        assert torch.equal(found.states[depth], data.states[depth])


def test_delta_reaches_the_logits(case):
    model, x, koopman, trajectories = case
    edit = ki.erase_class(koopman, label=2, site=1)
    last = len(koopman.sites) - 1
    rows = delta_by_hand(koopman, trajectories.states[0], trajectories.states[-1], [edit], 0, last)
    with torch.no_grad():
        state = rows.reshape(
            len(x), *((-1,) if x.ndim == 2 and x.dtype == torch.long else ()), *koopman.config.shapes[-1]
        )
        expected = after_the_blocks(model, state)
        with ki.patched(model, koopman, edit, source=0):
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_the_span_of_a_delta_begins_where_its_first_edit_acts(case):
    model, x, koopman, _ = case
    last = len(koopman.sites) - 1
    with torch.no_grad():
        for depths, first in (((1,), 1), ((2, 1), 1), ((0, last), 0), ((last,), last - 1)):
            edits = [ki.erase_class(koopman, label=1, site=depth) for depth in depths]
            with ki.patched(model, koopman, edits):
                found = model(x)
            with ki.patched(model, koopman, edits, source=first):
                assert torch.equal(model(x), found)


@pytest.mark.parametrize("edited", [False, True])
def test_replace_is_decoded_at_the_head(case, edited):
    model, x, koopman, trajectories = case
    edits = [ki.erase_class(koopman, label=2, site=1)] if edited else []
    last = len(koopman.sites) - 1
    z = moved(koopman, koopman.encode(trajectories.states[0], 0), edits, 0, last)
    rows = koopman.decode(z, last)
    with torch.no_grad():
        plain = model(x)
        state = rows.reshape(len(x), *((-1,) if x.dtype == torch.long else ()), *koopman.config.shapes[-1])
        expected = after_the_blocks(model, state)
        with ki.patched(model, koopman, edits, mode="replace"):
            for _ in range(2):  # the first pass computes the blocks, the next ones skip them
                torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
            few = model(x[:3])
    torch.testing.assert_close(few, expected[:3], rtol=1e-4, atol=1e-5)
    assert few.shape == plain[:3].shape
    assert not torch.allclose(expected, plain, rtol=1e-2)


def in_float64(model, x, labels):
    """The host, its surrogate and edits all in float64."""
    model = model.double()
    trajectories = ki.attach(model).observe(x.double(), labels, progress=False)
    koopman = ki.fit(trajectories, ki.FitConfig(observables=14), method="least_squares").double()
    return koopman, trajectories


def test_delta_is_the_formula_to_the_last_digits(model, yin_yang_data):
    x, labels = yin_yang_data
    koopman, data = in_float64(model, x, labels)
    edits = [ki.erase_class(koopman, label=2, site=3), ki.erase_class(koopman, label=0, site=1)]
    rows = delta_by_hand(koopman, data.states[0], data.states[-1], edits, 0, 4)
    with torch.no_grad(), ki.patched(model, koopman, edits, source=0):
        torch.testing.assert_close(model(x.double()), model.head(rows), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_gradients_flow_to_the_input(model, yin_yang_data, mode):
    x, labels = yin_yang_data
    koopman, _ = in_float64(model, x, labels)
    edit = ki.erase_class(koopman, label=1, site=2)
    point = x[:3].double().requires_grad_(True)
    with ki.patched(model, koopman, edit, mode=mode):
        model(x[:3].double())  # the span is learnt
        assert torch.autograd.gradcheck(model, (point,))
        (patched,) = torch.autograd.grad(model(point)[:, 0].sum(), point)
    (plain,) = torch.autograd.grad(model(point)[:, 0].sum(), point)
    assert float(patched.norm()) > 0
    assert not torch.allclose(patched, plain, rtol=1e-3)


# --- where the truth is known -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def linear():
    """A host whose depth is one matrix, three classes in its inputs, and a surrogate that found it."""
    draw = torch.Generator().manual_seed(0)
    basis = torch.eye(6) + 0.2 * torch.randn(6, 6, generator=draw)
    K = basis @ torch.diag(torch.tensor([0.95, 0.9, 0.8, 0.7, 0.6, 0.5])) @ torch.linalg.inv(basis)
    labels = torch.arange(600) % 3
    x = torch.randn(600, 6, generator=draw) + 2 * torch.randn(3, 6, generator=draw)[labels]
    model = LinearHost(K, 3).eval()
    trajectories = ki.attach(model).observe(x, labels, progress=False)
    plain = ki.NormalizationConfig(scale="common")
    config = ki.FitConfig(observables=6, normalization=plain, ridge=0.0)
    koopman = ki.fit(trajectories, config, method="least_squares")
    return model, K, koopman, trajectories.split(config.validation, seed=config.seed)[0]


def test_a_linear_host_is_reproduced(linear):
    model, K, koopman, _ = linear
    x = drawn(100, 6, seed=9)
    expected = x @ torch.linalg.matrix_power(K, 3).T
    torch.testing.assert_close(model(x), expected)
    with torch.no_grad(), ki.patched(model, koopman, mode="replace"):
        error = (model(x) - expected).norm() / expected.norm()
    assert float(error) < 1e-3


@pytest.mark.parametrize("mode", ["delta", "replace"])
@pytest.mark.parametrize("site", range(4))
@pytest.mark.parametrize("label", [0, 2])
def test_at_the_output_of_a_linear_host_the_class_is_where_the_others_are(linear, label, site, mode):
    model, _, koopman, fitted = linear
    edit = ki.erase_class(koopman, label=label, site=site)
    x, labels = fitted.states[0], fitted.labels
    with torch.no_grad():
        before = model(x)
        with ki.patched(model, koopman, edit, mode=mode):
            after = model(x)
    scale = float(before.std(0).norm())
    retained = before[labels != label].mean(0)
    assert float((before[labels == label].mean(0) - retained).norm()) > 0.1 * scale
    assert float((after[labels == label].mean(0) - retained).norm()) < 2e-3 * scale
    for c in {0, 1, 2} - {label}:
        assert float((after[labels == c].mean(0) - before[labels == c].mean(0)).norm()) < 2e-3 * scale


def test_an_edited_operator_is_the_edited_motion(linear):
    _, _, koopman, _ = linear
    edit = ki.erase_class(koopman, label=1, site=0)
    z = drawn(20, 6, seed=3).double()
    offset = (edit.moved @ edit.offset).expand(20, -1)
    torch.testing.assert_close(z @ edit.apply(koopman.K).T + offset, edit(z) @ koopman.K.double().T)


def test_an_edit_and_a_surrogate_from_files_patch_as_before(case, tmp_path):
    model, x, koopman, trajectories = case
    edit = ki.erase_class(koopman, label=0, site=1, held_out=trajectories)
    koopman.save_pretrained(tmp_path)
    edit.save(tmp_path / "edit.safetensors")
    loaded = ki.KoopmanAutoencoder.from_pretrained(tmp_path)
    stored = ki.OperatorEdit.load(tmp_path / "edit.safetensors")
    assert stored.certificate == edit.certificate
    with torch.no_grad():
        for mode in ("delta", "replace"):
            with ki.patched(model, koopman, edit, mode=mode):
                expected = model(x)
            with ki.patched(model, loaded, stored, mode=mode):
                assert torch.equal(model(x), expected)


def test_endpoints_several_steps_apart(model, yin_yang_data):
    """One jump of four steps; an edit at its end acts after all of them."""
    x, labels = yin_yang_data
    data = ki.attach(model, ["blocks.0:input", "blocks.3"], times=[0.0, 4.0]).observe(x, labels, progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=14), method="least_squares")
    edit = ki.erase_class(koopman, label=1, site=-1)
    z = koopman.encode(data.states[0], 0) @ torch.linalg.matrix_power(koopman.K, 4).T
    rows = koopman.decode(edit(z), 1)
    with torch.no_grad(), ki.patched(model, koopman, edit, mode="replace"):
        torch.testing.assert_close(model(x), model.head(rows), rtol=1e-4, atol=1e-4)
    shifted = replace(koopman.config, times=(3.0, 7.0))
    koopman.config = shifted
    with torch.no_grad(), ki.patched(model, koopman, mode="replace"):
        torch.testing.assert_close(model(x), model.head(koopman.decode(z, 1)), rtol=1e-4, atol=1e-4)

"""However a patch is deployed, it is the same patch: the logits are those that the audit judges, bit for bit."""

import gc

import pytest
import torch

import koopman_interp as ki
from koopman_interp.hosts.finding import host_for
from koopman_interp.observing.outputs import Output
from tests.hosts.lens_models import gpt2_bridge, tokenizer
from tests.naming import named

OPTIONS = [
    {},
    {"mode": "replace", "source": 1},
    {"source": 1, "target": 3},
    {"target": "blocks.2.hook_resid_post"},
    {"at": "each site"},
    {"positions": slice(2, None)},
    {"positions": [1, 3]},
    {"positions": lambda place: place == 2},
    {"positions": slice(0, None)},
    {"mode": "replace", "source": 1, "positions": slice(2, None)},
    {"at": "each site", "positions": slice(3, None)},
    {"check_weights": False},
]


@pytest.fixture(scope="module")
def deployed():
    """A bridge, a surrogate that was fitted without the first place, an edit at two sites, and padded tokens."""
    model = gpt2_bridge()
    words = tokenizer().get_vocab()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, len(words), (40, 7), generator=generator)
    koopman = ki.fit(
        ki.attach(model, skip=1).observe(ids, torch.arange(40) % 2, progress=False),
        ki.FitConfig(observables=40),
        method="least_squares",
    )
    edits = ki.each_site(koopman, lambda depth: ki.erase_class(koopman, label=1, site=depth, strength=3.0), (1, 2))
    batch = {"input_ids": ids[:4], "attention_mask": torch.ones(4, 7, dtype=torch.long)}
    batch["attention_mask"][1, :2] = batch["attention_mask"][2, 5:] = 0
    return model, koopman, edits, batch


def audited(patch, batch):
    """Log-probabilities as an audit reads them, all places put back where they stand."""
    output = Output.of(patch.host, batch)
    return output.samples.kept, output.logp


@pytest.mark.parametrize("options", OPTIONS, ids=named)
@torch.no_grad()
def test_it_gives_the_same_logits_in_each_way(deployed, options):
    model, koopman, edits, batch = deployed
    host, patch = host_for(model), ki.patched(model, koopman, edits, **options)
    plain = host.call(batch)
    with patch:
        expected = host.call(batch)
        kept, logp = audited(patch, batch)
    assert not torch.allclose(expected, plain)
    assert torch.equal(logp, expected.flatten(0, 1)[kept].double().log_softmax(1))
    patch.install()
    installed = host.call(batch)
    patch.remove()
    tokens = batch["input_ids"]
    hooked = model.run_with_hooks(tokens, attention_mask=batch["attention_mask"], fwd_hooks=patch.fwd_hooks())
    other = host.copy()
    with patch.on(other):
        copied = other.call(batch)
    assert torch.equal(installed, expected)
    assert torch.equal(copied, expected)
    # Where `replace` skips blocks, hooks compute them and write over them: the same numbers.
    assert torch.equal(hooked, expected)
    assert torch.equal(host.call(batch), plain)


@pytest.mark.parametrize("options", [case for case in OPTIONS if "target" not in case], ids=named)
@torch.no_grad()
def test_a_baked_copy_gives_them_too(model, trajectories, yin_yang_data, options):
    if "positions" in options:
        pytest.skip("positions are of tokens; baked language models are held to them in test_generation")
    koopman = ki.fit(trajectories, ki.FitConfig(observables=14), method="least_squares")
    edits = ki.each_site(koopman, lambda depth: ki.erase_class(koopman, label=2, site=depth), (1, 2))
    x = yin_yang_data[0]
    patch = ki.patched(model, koopman, edits, **options)
    with patch:
        expected = model(x)
    assert not torch.allclose(expected, model(x))
    assert torch.equal(patch.bake()(x), expected)


@torch.no_grad()
def test_what_was_not_fitted_is_left_alone(deployed):
    """The first place was skipped when the surrogate was fitted, so a patch leaves it as it is."""
    model, koopman, edits, batch = deployed
    batch = {"input_ids": batch["input_ids"]}
    host = host_for(model)
    plain = host.call(batch)
    with ki.patched(model, koopman, edits):
        change = (host.call(batch) - plain).abs().amax((0, 2))
    assert change[0] == 0 and (change[1:] > 0).all()
    with ki.patched(model, koopman, edits, positions=slice(0, None)):
        assert bool(((host.call(batch) - plain).abs().amax((0, 2)) > 0).all())


@torch.no_grad()
def test_hooks_hold_while_other_hooks_and_the_installed_patch_go(deployed):
    """Each list of hooks is a patch by itself: none reads the passes of one that has been taken off since."""
    model, koopman, edits, batch = deployed
    patch = ki.patched(model, koopman, edits)
    with patch:
        expected = host_for(model).call(batch)
        kept = patch.fwd_hooks()
    gone = patch.fwd_hooks()
    del gone
    gc.collect()
    for _ in range(2):
        hooked = model.run_with_hooks(batch["input_ids"], attention_mask=batch["attention_mask"], fwd_hooks=kept)
        assert torch.equal(hooked, expected)
    with patch:
        kept = patch.fwd_hooks()
        del kept
        gc.collect()
        assert torch.equal(host_for(model).call(batch), expected)

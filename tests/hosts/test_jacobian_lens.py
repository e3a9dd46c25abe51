"""TransformerLens's JacobianLens is looked through as its own readout is, or refused with a reason."""

import copy

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import HostMismatchError, InputError
from tests.hosts.lens_models import gpt2_bridge

analysis = pytest.importorskip("transformer_lens.tools.analysis", reason="transformer-lens is missing")
if not hasattr(analysis, "JacobianLens"):
    pytest.skip("JacobianLens came with TransformerLens 4", allow_module_level=True)

TEXT = "once upon a time there was girl who had red ball"


@pytest.fixture(scope="module")
def case():
    """A bridge, a surrogate that leaves the first position out, and a lens that does so too."""
    model = gpt2_bridge()
    ids = torch.randint(1, 20, (60, 9), generator=torch.Generator().manual_seed(3))
    data = ki.attach(model, skip=1).observe(ids, progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=40), method="least_squares")
    lens = analysis.JacobianLens.fit(
        model, [TEXT, "she liked to play with it"], corpus="sentences", skip_first_positions=1, show_progress=False
    )
    return model, koopman, data, lens


def test_its_reading_is_its_own_readout(case):
    model, koopman, _, lens = case
    tokens = model.to_tokens(TEXT)
    found = ki.koopman_lens(model, koopman, tokens, lens=lens, layers=[0, 1, 2, 3], top=90)
    assert found.sites == koopman.sites[1:]
    assert found.lens == "Jacobian lens"
    readout = lens.readout(model, tokens, return_full_logits=True)
    host = readout.model_logits[1:].double().log_softmax(1)
    for depth, layer in enumerate((0, 1, 2, 3)):
        logp = readout.lens_logits[layer][1:].double().log_softmax(1)
        by_id = torch.zeros_like(logp).scatter(1, found.top[depth], found.probability[depth].double())
        torch.testing.assert_close(by_id, logp.exp(), rtol=1e-4, atol=1e-6)
        kl = (host.exp() * (host - logp)).sum(1)
        torch.testing.assert_close(found.kl[depth].double(), kl, rtol=1e-3, atol=1e-6)


def test_it_stands_in_the_comparison_where_it_was_fitted(case):
    model, koopman, data, lens = case
    ids = torch.randint(1, 20, (6, 9), generator=torch.Generator().manual_seed(4))
    found = ki.compare_lenses(model, koopman, held_out=ids, fitted=data, others=[lens])
    kl = found.kl("Jacobian lens")
    assert kl[0] is None, "before the first block it has no matrix"
    assert found.parameters["Jacobian lens"] == 3 * 32 * 32
    reading = ki.koopman_lens(model, koopman, ids, lens=lens, layers=[0, 1, 2])
    assert kl[1:] == pytest.approx(reading.kl[:-1].double().mean(1).tolist(), rel=1e-5)
    identity = analysis.JacobianLens(
        {layer: torch.eye(32) for layer in (1, 2)}, n_prompts=1, d_model=32, metadata={"skip_first_positions": 1}
    )
    same = ki.compare_lenses(model, koopman, held_out=ids, fitted=data, others=[identity])
    assert same.kl("Jacobian lens")[:2] == (None, None)
    assert same.kl("Jacobian lens")[2:] == pytest.approx(same.kl("logit lens")[2:], rel=1e-5)
    with pytest.raises(InputError, match=r"no Jacobian lens at 'blocks\.0\.hook_resid_pre'.*layers="):
        ki.koopman_lens(model, koopman, ids, lens=lens)


def test_its_vectors_are_ours_where_there_is_no_norm_between(case):
    """W_U J, but for the final norm, through which ours go as well."""
    model, koopman, _, lens = case
    ids = model.to_tokens(TEXT)
    found = ki.lens_vectors(model, koopman, "girl", ids, lens=lens, layers=[1], positions=[3])
    _, cache = model.run_with_cache(ids)
    rows = cache["blocks.1.hook_out"][0, 3:4].detach().requires_grad_()
    logit = model.unembed(model.ln_final(lens.transport(rows, 1)[None]))[0, 0, found.tokens[0]]
    torch.testing.assert_close(found.at(1), torch.autograd.grad(logit, rows)[0].double(), rtol=1e-4, atol=1e-5)


def test_sites_are_matched_by_block_whatever_they_are_called(case):
    model, _, _, lens = case
    ids = torch.randint(1, 20, (60, 9), generator=torch.Generator().manual_seed(3))
    sites = ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.3.hook_resid_post"]
    koopman = ki.fit(
        ki.attach(model, sites, skip=1).observe(ids, progress=False),
        ki.FitConfig(observables=40),
        method="least_squares",
    )
    few = ki.koopman_lens(model, koopman, ids[:2], lens=lens)
    whole = ki.koopman_lens(model, case[1], ids[:2], lens=lens, layers=[0, 1])
    torch.testing.assert_close(few.kl, whole.kl, rtol=1e-4, atol=1e-6)


def test_what_does_not_match_is_refused(unchecked, case):
    model, koopman, data, lens = case
    ids = torch.randint(1, 20, (6, 9), generator=torch.Generator().manual_seed(4))

    def compared(other, koopman=koopman, data=data):
        return ki.compare_lenses(model, koopman, held_out=ids, fitted=data, others=[other])

    other = copy.deepcopy(lens)
    other.metadata["model_name"] = "another"
    with pytest.raises(HostMismatchError, match="does not fit the model: lens was fitted for model 'another'"):
        compared(other)
    other = copy.deepcopy(lens)
    other.metadata["skip_first_positions"] = 16
    with pytest.raises(InputError, match=r"left out the first 16 positions.*skip_first_positions=1, or.*skip=16"):
        compared(other)
    bare = analysis.JacobianLens(lens.jacobians, n_prompts=2, d_model=32)
    with pytest.raises(InputError, match=r"does not say.*lens\.metadata\['skip_first_positions'\] = 1"):
        compared(bare)
    sites = ["blocks.0.hook_resid_pre", "blocks.2.hook_resid_post"]
    more = torch.randint(1, 20, (60, 9), generator=torch.Generator().manual_seed(3))
    short = ki.attach(model, sites, skip=1).observe(more, progress=False)
    early = ki.fit(short, ki.FitConfig(observables=40), method="least_squares")
    with pytest.raises(InputError, match=r"to the output of the last block, blocks\.3.*ends? there"):
        compared(lens, early, short)
    ends = ki.attach(model, ["blocks.0.hook_resid_pre", "blocks.3.hook_resid_post"], skip=1)
    outer = ends.observe(more, progress=False)
    whole = ki.fit(outer, ki.FitConfig(observables=40), method="least_squares")
    with pytest.raises(InputError, match="none of the sites is one"):
        compared(lens, whole, outer)
    with pytest.raises(InputError, match=r"Expected a lens: .*JacobianLens; got dict"):
        compared({})
    with pytest.raises(InputError, match="others=\\[lens\\]"):
        ki.compare_lenses(model, koopman, held_out=ids, fitted=data, others=lens)

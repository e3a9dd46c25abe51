"""Steering, ablation and swaps along lens vectors do what their formulas say, where they are told to, and no more."""

import copy

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import HostMismatchError, InputError, UnsupportedHostError
from koopman_interp.hosts.finding import host_for
from koopman_interp.testing import ResidualMLP
from tests.causal import VOCABULARY, WIDTH, gpt2
from tests.hosts.lens_models import gpt2_bridge


def prepared(model, skip=0):
    ids = torch.randint(2, VOCABULARY, (60, 8), generator=torch.Generator().manual_seed(2))
    koopman = ki.fit(
        ki.attach(model, skip=skip).observe(ids, progress=False), ki.FitConfig(observables=24), method="least_squares"
    )
    return model, ids, koopman, ki.lens_vectors(model, koopman, [5, 9, 11], ids[:20])


@pytest.fixture(scope="module")
def case():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = gpt2().eval()
    return prepared(model)


@pytest.fixture(scope="module")
def precise(case):
    model, ids, koopman, _ = case
    model = copy.deepcopy(model).double()
    data = ki.attach(model).observe(ids, progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=24), method="least_squares").double()
    return model, ids, koopman, ki.lens_vectors(model, koopman, [5, 9, 11], ids[:20])


def states_at(model, site, ids, **settings):
    """The states at a site, as any other reader of it sees them, and the logits."""
    seen = []
    with torch.no_grad(), host_for(model).hooked({site: lambda state: seen.append(state.clone())}):
        logits = model(ids, **settings).logits
    return seen[0], logits


def made(kind, model, vectors, **settings):
    match kind:
        case "steer":
            return ki.steering_hooks(model, vectors, 5, **settings)
        case "ablate":
            return ki.ablation_hooks(model, vectors, [5, 9], **settings)
    return ki.swap_hooks(model, vectors, 5, 9, **settings)


KINDS = ["steer", "ablate", "swap"]


# --- what is written ----------------------------------------------------------------------------------------------


def test_a_step_raises_what_the_lens_reads_by_the_square_of_its_length(precise):
    model, ids, koopman, _ = precise
    for layer in (0, 2):
        # One state, so that the mean gradient is its own.
        vectors = ki.lens_vectors(model, koopman, 5, ids[:1], layers=[layer], positions=[4])
        (site,) = vectors.sites
        length, depth = float(vectors.at(layer)[0].norm()), koopman.sites.index(site)

        def read(state, depth=depth):
            with torch.no_grad():
                return model.lm_head(model.transformer.ln_f(koopman.predict(state[0, 4:5], depth)))[0, 5]

        plain, _ = states_at(model, site, ids[:1])
        for epsilon in (1e-4, -1e-4):
            # A step of ε v, in the hooks' own unit.
            strength = epsilon * length / float(vectors.size[0])
            with ki.steering_hooks(model, vectors, 5, strength=strength):
                moved, _ = states_at(model, site, ids[:1])
            torch.testing.assert_close(moved - plain, epsilon * vectors.at(layer)[0].expand_as(plain))
            rise = float(read(moved) - read(plain))
            assert rise / epsilon == pytest.approx(length**2, rel=1e-3)


def test_at_the_last_site_it_is_the_models_own_logit_that_rises(precise):
    model, ids, koopman, _ = precise
    vectors = ki.lens_vectors(model, koopman, 9, ids[:1], layers=[3], positions=[-1])
    length, epsilon = float(vectors.at(3)[0].norm()), 1e-5
    with torch.no_grad():
        plain = model(ids[:1]).logits[0, -1, 9]
        with ki.steering_hooks(model, vectors, 9, strength=epsilon * length / float(vectors.size[0])):
            moved = model(ids[:1]).logits[0, -1, 9]
    assert float(moved - plain) / epsilon == pytest.approx(length**2, rel=1e-3)


def test_ablation_leaves_nothing_along_the_directions_and_all_else(precise):
    model, ids, _, vectors = precise
    (site,) = vectors.sites[2:3]
    plain, _ = states_at(model, site, ids)
    with ki.ablation_hooks(model, vectors, [5, 9], layers=[1]):
        once, _ = states_at(model, site, ids)
    directions = vectors.at(1)[:2]
    assert float((once @ directions.T).abs().max()) < 1e-10
    basis, _ = torch.linalg.qr(directions.T)
    beside = torch.eye(WIDTH, dtype=torch.float64) - basis @ basis.T
    torch.testing.assert_close(once, plain @ beside, rtol=0, atol=1e-12)
    with ki.ablation_hooks(model, vectors, [5, 9], layers=[1]), ki.ablation_hooks(model, vectors, [9, 5], layers=[1]):
        twice, _ = states_at(model, site, ids)
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-12)
    with ki.ablation_hooks(model, vectors, [5, 5, 9], layers=[1]):
        repeated, _ = states_at(model, site, ids)
    torch.testing.assert_close(repeated, once, rtol=0, atol=1e-12)


def test_a_swap_exchanges_coordinates_and_swapping_twice_restores(precise):
    model, ids, _, vectors = precise
    site = vectors.sites[2]
    plain, logits = states_at(model, site, ids)
    with ki.swap_hooks(model, vectors, 5, 9, layers=[1]):
        swapped, _ = states_at(model, site, ids)
    V = vectors.at(1)[:2].T
    before, after = (torch.linalg.lstsq(V, state.flatten(0, 1).T).solution for state in (plain, swapped))
    torch.testing.assert_close(after, before.flip(0), rtol=1e-9, atol=1e-9)
    rest = [state.flatten(0, 1).T - V @ c for state, c in ((plain, before), (swapped, after))]
    torch.testing.assert_close(*rest, rtol=0, atol=1e-10)
    with ki.swap_hooks(model, vectors, 5, 9, layers=[1]), ki.swap_hooks(model, vectors, 9, 5, layers=[1]):
        restored, again = states_at(model, site, ids)
    torch.testing.assert_close(restored, plain, rtol=0, atol=1e-10)
    torch.testing.assert_close(again, logits, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "null",
    [
        lambda model, vectors: ki.steering_hooks(model, vectors, 5, strength=0.0),
        lambda model, vectors: ki.swap_hooks(model, vectors, 5, 9, strength=0.0),
        lambda model, vectors: ki.swap_hooks(model, vectors, 5, 5),
        lambda model, vectors: ki.ablation_hooks(model, vectors, []),
    ],
    ids=["steer by 0", "swap by 0", "swap with itself", "ablate nothing"],
)
def test_what_changes_nothing_changes_no_bit(case, traces, null):
    model, ids, _, vectors = case
    with torch.no_grad():
        plain = model(ids).logits
        before = traces(model)
        with null(model, vectors):
            assert traces(model) == before
            assert torch.equal(model(ids).logits, plain)


# --- where it is written, and that nothing is left ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_leave_no_trace_on_any_exit(case, traces, kind):
    model, ids, _, vectors = case
    before = traces(model)
    with torch.no_grad():
        plain = model(ids).logits
        with made(kind, model, vectors, layers=[0, 3]):
            assert not torch.equal(model(ids).logits, plain)
        assert traces(model) == before
        with pytest.raises(RuntimeError, match="on purpose"), made(kind, model, vectors, layers=[1]):
            raise RuntimeError("on purpose")
        handle = made(kind, model, vectors, layers=[1]).install()
        with pytest.raises(InputError, match="installed already"):
            handle.install()
        handle.remove()
        handle.remove()
        assert torch.equal(model(ids).logits, plain)
    assert traces(model) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", [None, slice(2, 10), [3, 9], lambda places: places % 2 == 1])
def test_with_a_cache_is_step_by_step_without(case, kind, positions):
    model, ids, _, vectors = case
    prompt = ids[:3]
    plain = model.generate(prompt, max_new_tokens=6, do_sample=False)
    with made(kind, model, vectors, layers=[1], positions=positions), torch.no_grad():
        cached = model.generate(
            prompt, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        grown, logits = prompt, []
        for _ in range(6):
            logits.append(model(input_ids=grown, use_cache=False).logits[:, -1])
            grown = torch.cat([grown, logits[-1].argmax(1, keepdim=True)], 1)
    assert torch.equal(cached.sequences, grown)
    torch.testing.assert_close(torch.stack(cached.logits, 1), torch.stack(logits, 1), rtol=0, atol=5e-5)
    assert torch.equal(model.generate(prompt, max_new_tokens=6, do_sample=False), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_places_count_from_each_sequences_first_real_token(case, kind):
    model, ids, _, vectors = case
    short, long = ids[:1, :5], ids[1:2]
    left = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1), long])
    mask = (left != 0).long()
    padded = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}  # as `generate` gives them
    site = vectors.sites[3]
    settings = {"layers": [2], "positions": [1, 3]}
    with made(kind, model, vectors, **settings):
        together, _ = states_at(model, site, left, **padded)
        alone = [states_at(model, site, one)[0] for one in (short, long)]
    torch.testing.assert_close(together[0, 3:], alone[0][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[1], alone[1][0], rtol=1e-4, atol=1e-4)
    plain, _ = states_at(model, site, left, **padded)
    changed = (together != plain).any(2)
    assert changed.tolist() == [
        [place in (4, 6) for place in range(8)],
        [place in (1, 3) for place in range(8)],
    ]
    with made(kind, model, vectors, **settings):
        whole = model.generate(left, attention_mask=mask, max_new_tokens=4, do_sample=False)
        apart = [model.generate(one, max_new_tokens=4, do_sample=False) for one in (short, long)]
    assert torch.equal(whole[0, 3:], apart[0][0])
    assert torch.equal(whole[1], apart[1][0])


def test_the_places_that_a_fit_left_out_are_left_alone_unless_asked_for(case):
    model, ids, _, vectors = prepared(case[0], skip=1)
    site = vectors.sites[2]
    plain, _ = states_at(model, site, ids)
    with made("steer", model, vectors, layers=[1]):
        moved, _ = states_at(model, site, ids)
    assert torch.equal(moved[:, 0], plain[:, 0])
    assert (moved[:, 1:] != plain[:, 1:]).any(2).all()
    with made("steer", model, vectors, layers=[1], positions=slice(0, None)):
        moved, _ = states_at(model, site, ids)
    assert (moved != plain).any(2).all()


# --- the frameworks' idioms -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bridge():
    model = gpt2_bridge()
    ids = torch.randint(1, 20, (60, 9), generator=torch.Generator().manual_seed(3))
    koopman = ki.fit(
        ki.attach(model, skip=1).observe(ids, progress=False), ki.FitConfig(observables=40), method="least_squares"
    )
    return model, ids, ki.lens_vectors(model, koopman, ["girl", "ball"], ids)


def of_words(kind, model, vectors, **settings):
    match kind:
        case "steer":
            return ki.steering_hooks(model, vectors, "girl", **settings)
        case "ablate":
            return ki.ablation_hooks(model, vectors, ["girl", "ball"], **settings)
    return ki.swap_hooks(model, vectors, "girl", "ball", **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_for_transformer_lens_they_are_its_list_of_hooks(bridge, traces, kind):
    model, ids, vectors = bridge
    before = traces(model)
    hooks = of_words(kind, model, vectors, layers=[1, -2], positions=[2, 5])
    assert len(hooks) == 2
    with torch.no_grad():
        with hooks:
            expected = model(ids)
        assert torch.equal(model.run_with_hooks(ids, fwd_hooks=hooks), expected)
        with model.hooks(fwd_hooks=[*hooks]):
            assert torch.equal(model(ids), expected)
        assert [name for name, _ in hooks.fwd_hooks()] == ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
        assert not torch.equal(model(ids), expected)
    assert traces(model) == before


def test_they_equal_those_of_the_formula_by_hand_in_transformer_lens(bridge):
    model, ids, vectors = bridge
    direction = (vectors.at(1)[0] / vectors.at(1)[0].norm()).float()
    size = float(vectors.size[vectors.sites.index("blocks.1.hook_resid_post")])

    def by_hand(state, hook):
        state = state.clone()
        state[:, 1:] += 0.5 * size * direction
        return state

    with torch.no_grad():
        expected = model.run_with_hooks(ids, fwd_hooks=[("blocks.1.hook_resid_post", by_hand)])
        hooks = ki.steering_hooks(model, vectors, "girl", strength=0.5, layers=[1])
        torch.testing.assert_close(model.run_with_hooks(ids, fwd_hooks=hooks), expected, rtol=1e-5, atol=1e-5)


def test_plain_models_have_contexts_and_no_lists(case):
    model, _, _, vectors = case
    with pytest.raises(UnsupportedHostError, match="no run_with_hooks"):
        list(made("steer", model, vectors))


# --- bad input --------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(case):
    model, ids, koopman, vectors = case
    with pytest.raises(InputError, match="no direction for 6; there are those of '5', '9', '11'"):
        ki.steering_hooks(model, vectors, 6)
    with pytest.raises(InputError, match="no layer 4 among the sites"):
        ki.swap_hooks(model, vectors, 5, 9, layers=[4])
    with pytest.raises(InputError, match=r"one of 5 sites can undo.*layers=\['transformer\.h\.3'\]"):
        ki.swap_hooks(model, vectors, 5, 9)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight[0] += 1
    with pytest.raises(HostMismatchError, match="set of lens vectors belongs to another host"):
        ki.ablation_hooks(other, vectors, 5)
    ki.ablation_hooks(other, vectors, 5, check_weights=False)
    twin = ki.lens_vectors(model, koopman, [5, 9], ids[:4])
    twin.vectors[1][1] = 2 * twin.vectors[1][0]
    with pytest.raises(InputError, match="nearly one"):
        ki.swap_hooks(model, twin, 5, 9, layers=[0])
    twin.vectors[1][1] = 0
    with pytest.raises(InputError, match="no direction of a token"):
        ki.steering_hooks(model, twin, 9, layers=[0])
    with ki.steering_hooks(model, vectors, 5, positions=[-1]), pytest.raises(InputError, match="from the first token"):
        model(ids)


def test_classifiers_are_steered_towards_a_class(model, surrogate):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    vectors = ki.lens_vectors(model, surrogate, [0, 2], x)
    with torch.no_grad():
        plain = model(x)
        with ki.steering_hooks(model, vectors, 2, strength=0.05, layers=["blocks.3"]):
            assert bool((model(x)[:, 2] > plain[:, 2]).all())
    with ki.steering_hooks(model, vectors, 2, positions=[0]), pytest.raises(InputError, match="Positions choose among"):
        model(x)


def test_gradients_flow_through_them(case):
    model, ids, _, vectors = case
    embedded = model.get_input_embeddings()(ids[:2]).detach().requires_grad_(True)
    with made("ablate", model, vectors, layers=[1]):
        (found,) = torch.autograd.grad(model(inputs_embeds=embedded).logits[:, -1].sum(), embedded)
    assert torch.isfinite(found).all()
    assert float(found.norm()) > 0


def test_half_precision_stays_what_it_is():
    model = ResidualMLP(inputs=4, width=8, blocks=3, outputs=2).eval().to(torch.bfloat16)
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    koopman = ki.fit(ki.attach(model).observe(x, progress=False), method="least_squares")
    vectors = ki.lens_vectors(model, koopman, [0, 1], x)
    with torch.no_grad(), ki.ablation_hooks(model, vectors, 0):
        assert model(x).dtype == torch.bfloat16

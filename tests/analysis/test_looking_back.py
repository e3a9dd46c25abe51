"""What reads a surrogate whose encoder looks back: each reading is that of whole sequences, or is refused."""

import copy
from dataclasses import replace

import pytest
import torch

import koopman_interp as ki
from koopman_interp.analysis import encoding
from koopman_interp.analysis.encoding import encoded
from koopman_interp.analysis.spectra.modes import eigenfunctions, host_modes
from koopman_interp.analysis.substitutes.stand_ins import PER_DEPTH, SURROGATE
from koopman_interp.errors import InputError
from koopman_interp.observing.own_pass import OwnPass
from tests.causal import fitted, llama, prompts


@pytest.fixture(scope="module")
def case():
    """A model, prompts of two lengths, their trajectories, and a surrogate that looks back."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = llama().eval()
    ids, labels = prompts()
    batches = [ids[:30].tolist(), [one[:6] for one in ids[30:].tolist()]]
    trajectories = ki.attach(model, skip=1).observe([*batches[0], *batches[1]], labels.tolist(), progress=False)
    return model, batches, trajectories, fitted(trajectories)


def alone(koopman, trajectories, depth):
    """Observables of each sequence by itself."""
    found = torch.empty(len(trajectories), koopman.config.observables)
    for number in trajectories.sequence.unique():
        own = trajectories.sequence == number
        place = trajectories.position[own]
        sequences = ki.Sequences.of(torch.zeros_like(place), place)
        found[own] = koopman.encode(trajectories.states[depth][own], depth, sequences)
    return found


def test_chunks_of_observables_are_those_of_whole_sequences(case, monkeypatch):
    _, _, trajectories, koopman = case
    expected = torch.stack([alone(koopman, trajectories, depth) for depth in range(trajectories.depths)])
    monkeypatch.setattr(encoding, "_CHUNK_NUMBERS", 1)  # 64 rows at a time
    chunks = list(encoded(koopman, trajectories))
    assert len(chunks) > 3
    found = torch.cat([chunk.z for chunk in chunks], 1)
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.cat([chunk.digests for chunk in chunks]), trajectories.digests)


def test_growth_is_that_of_all_that_is_seen(case):
    _, _, trajectories, koopman = case
    exact = copy.deepcopy(koopman).double()
    some = trajectories[trajectories.sequence < 4]
    some = replace(some, states=tuple(state.double() for state in some.states))
    (chunk,) = encoded(exact, some, growing=10)
    y = exact.normalization.normalize(some.states[1], 1)
    step, sequences = 1e-5, some.in_sequence()
    slope = (exact.lift(y * (1 + step), sequences) - exact.lift(y * (1 - step), sequences)) / (2 * step)
    torch.testing.assert_close(chunk.growing[1], slope[:10], rtol=1e-5, atol=1e-6)


def test_spectrum_eigenfunctions_and_modes_are_read(case):
    _, _, trajectories, koopman = case
    spectrum = ki.spectrum(koopman, trajectories)
    phi = eigenfunctions(koopman, spectrum, trajectories, site=2, modes=[0, 1])
    expected = alone(koopman, trajectories, 2).double().numpy() @ spectrum.readers[:, :2]
    assert abs(phi - expected).max() < 1e-3 * abs(expected).max()
    states, sequences = trajectories.states[2][:7], trajectories[:7].in_sequence()
    host_modes(koopman, spectrum, site=2, modes=[0], states=states, sequences=sequences)
    with pytest.raises(InputError, match="rows alone are not enough"):
        host_modes(koopman, spectrum, site=2, modes=[0], states=states)


@pytest.mark.parametrize("of", ["encoded", "iterates", "predicted"])
def test_clouds_are_of_whole_sequences(case, of):
    from koopman_interp.analysis.shapes.clouds import clouds

    _, _, trajectories, koopman = case
    rows = torch.tensor([50, 7, 200])
    made = list(clouds(trajectories, koopman, of=of).values())
    z = alone(koopman, trajectories, 1 if of == "encoded" else 0)[rows]
    expected = z if of == "encoded" else koopman.operator.advance(z, 1.0)
    expected = koopman.decode(expected, 1) if of == "predicted" else expected
    torch.testing.assert_close(made[1](rows), expected, rtol=1e-4, atol=1e-4)


def test_lens_and_fidelity_are_what_a_replacing_patch_says(case):
    """The divergence at the output, read by three ways that share no code past the encoder."""
    model, batches, trajectories, koopman = case
    ids = torch.tensor(batches[0])
    read = ki.koopman_lens(model, koopman, ids)
    judged = ki.fidelity(model, koopman, held_out=ids, fitted=trajectories, spans="to_target")
    for depth in range(1, len(koopman.sites) - 1):
        with torch.no_grad():
            own = model(ids, use_cache=False).logits[:, 1:].log_softmax(-1)
            with ki.patched(model, koopman, mode="replace", source=depth):
                replaced = model(ids, use_cache=False).logits[:, 1:].log_softmax(-1)
        kl = float((own.exp() * (own - replaced)).sum(-1).mean())
        assert float(read.kl[depth].mean()) == pytest.approx(kl, rel=1e-3)
        rows = {row.name: row for row in judged.spans[depth].outputs}
        assert rows[SURROGATE].kl == pytest.approx(kl, rel=1e-3)
        assert PER_DEPTH in rows
    assert ki.compare_lenses(model, koopman, held_out=ids, fitted=trajectories).kl("Koopman lens")[1] is not None


def test_figures_at_the_depths_leave_out_rows_without_a_label_and_still_look_back_on_them(case):
    model, batches, _, koopman = case
    ids = torch.tensor(batches[0])
    labels = torch.zeros_like(ids)
    labels[:, 3] = -100
    found = ki.fidelity(model, koopman, held_out=(ids, labels))
    observed = ki.attach(model, skip=1).observe(ids, progress=False)
    judged = observed.position != 3
    predicted = koopman.predict(observed.states[0], sequences=observed.in_sequence())[judged]
    last = observed.states[-1][judged]
    expected = float((predicted - last).square().sum() / (last - last.mean(0)).square().sum())
    assert found.rows == int(judged.sum())
    assert found.depths[-1].fvu[SURROGATE] == pytest.approx(expected, rel=1e-4)


def test_it_is_distilled_through_what_it_looks_back_on(case):
    model, batches, trajectories, koopman = case
    ids = [torch.tensor(batch) for batch in batches]
    config = ki.DistilConfig(steps=30, learning_rate=5e-3, evaluate_every=10, states=0.1)
    distilled = ki.distil(model, koopman, ids, config, fitted=trajectories, progress=False)
    looks = [look["kl"] for look in distilled.record.distilled]
    assert min(looks[1:]) < looks[0]
    moved = distilled.encoder.context.blocks[0].query_key_value.weight
    assert not torch.equal(moved, koopman.encoder.context.blocks[0].query_key_value.weight)


def test_edits_are_made_of_whole_sequences(case):
    model, _, trajectories, koopman = case
    concept = ki.erase_concept(koopman, trajectories, attribute=trajectories.tokens % 2, site=2)
    moved = ki.redirect(koopman, fitted=trajectories, label=1, site=2)
    z = alone(koopman, trajectories, 2).double()
    about = (trajectories.tokens % 2).double()
    after = concept(z)
    covariance = ((after - after.mean(0)) * (about - about.mean())[:, None]).mean(0)
    before = ((z - z.mean(0)) * (about - about.mean())[:, None]).mean(0)
    assert float(covariance.norm()) < 1e-3 * float(before.norm())
    assert moved.certificate is not None
    held_out = trajectories[koopman.is_held_out(trajectories)]
    erased = ki.erase_class(koopman, label=1, held_out=held_out)
    assert erased.certificate.drift_rows == int((held_out.labels == 0).sum())
    for edit in (concept, moved, erased):
        with torch.no_grad(), ki.patched(model, koopman, edit):
            model(torch.tensor([[5, 6, 7]]))


def test_rows_torn_from_their_sequences_are_refused(case):
    model, batches, trajectories, koopman = case
    spectrum = ki.spectrum(koopman, trajectories)
    torn = trajectories[trajectories.position == 3]
    for reading in (
        lambda: ki.spectrum(koopman, torn),
        lambda: ki.erase_concept(koopman, torn),
        lambda: ki.redirect(koopman, fitted=torn, label=1),
        lambda: eigenfunctions(koopman, spectrum, torn),
        lambda: ki.topology(torn, koopman),
        lambda: koopman.gather_moments(torn),
    ):
        with pytest.raises(InputError, match=r"looks back on all earlier rows .*where place 1 was expected"):
            reading()
    for reading in (lambda: koopman(torn.states[0]), lambda: koopman.encode(torn.states[0], 0)):
        with pytest.raises(InputError, match=r"rows alone are not enough.*sequences=trajectories.in_sequence\(\)"):
            reading()
    with torch.no_grad():
        ids = torch.tensor(batches[0])[:2]
        cache = model(ids[:, :4], use_cache=True).past_key_values
    batch = {"input_ids": ids[:, 4:], "past_key_values": cache}
    with pytest.raises(InputError, match="looks back on all earlier rows"):
        _ = OwnPass.of(ki.attach(model).host, batch, koopman.sites, 1).sequences

"""A fit from a store is that of the same rows in memory; one that does not fit there comes as far, window by window."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import FitInterrupted, InputError
from koopman_interp.files import read_tensors
from koopman_interp.fitting import data as fit_data
from koopman_interp.fitting import windows
from koopman_interp.fitting.normalizing import Normalizer
from koopman_interp.processes import Processes
from koopman_interp.sources import shards, writing
from koopman_interp.sources.memory import Memory
from koopman_interp.testing import ResidualMLP
from tests.causal import gpt2
from tests.interrupting import interrupted_at

QUICK = ki.FitConfig(observables=14, hidden=(16,), steps=60, evaluate_every=20, batch_size=64)


@pytest.fixture(autouse=True, scope="module")
def small():
    """Blocks of 32 rows, shards of 128, windows of some batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BLOCK_ROWS", 32)
        patch.setattr(shards, "BLOCK_BYTES", 1)
        patch.setattr(writing, "SHARD_ROWS", 128)
        patch.setattr(windows, "WINDOW_BYTES", 1)
        yield


@pytest.fixture
def not_held(monkeypatch):
    monkeypatch.setattr(fit_data, "HELD_BYTES", 1000)


@pytest.fixture(scope="module")
def tap():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ki.attach(ResidualMLP(4, 10, 4, 3).eval())


def points(count=2000):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(3))
    return x, torch.arange(count) % 3


@pytest.fixture(scope="module")
def store(tap, small, tmp_path_factory):
    return tap.observe(points(), store=tmp_path_factory.mktemp("observed") / "states", progress=False)


def fitted(rows, config=QUICK, **how):
    return ki.fit(rows, config, progress=False, **how)


@pytest.mark.parametrize("how", [{}, {"method": "least_squares"}], ids=["gradient", "least squares"])
def test_what_fits_into_memory_is_fitted_as_trajectories_are(store, tap, how):
    config = replace(QUICK, steps=20)
    expected = fitted(store.trajectories(), config, **how).digest()
    ways = (store, str(store.folder), lambda: tap.stream(points(), progress=False))
    assert all(fitted(way, config, **how).digest() == expected for way in ways)


CASES = {
    "gradient": (QUICK, {}),
    "spectrum": (replace(QUICK, aim="spectrum"), {}),
    "endpoints": (replace(QUICK, pairs="endpoints"), {}),
    "least squares": (QUICK, {"method": "least_squares"}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_comes_as_far(store, monkeypatch, case):
    config, how = CASES[case]
    held = fitted(store.trajectories(), config, **how)
    monkeypatch.setattr(fit_data, "HELD_BYTES", 1000)
    streamed = fitted(store, config, **how)
    assert torch.equal(held.record.held_out, streamed.record.held_out)
    figures = [koopman.record.history[-1]["fvu"] for koopman in (held, streamed)]
    assert figures[1] <= 1.25 * figures[0] + 1e-3
    assert figures[0] <= 1.25 * figures[1] + 1e-3
    assert streamed.config.classes == held.config.classes == (0, 1, 2)
    torch.testing.assert_close(streamed.normalization.maps(2)[0], held.normalization.maps(2)[0], rtol=1e-3, atol=1e-3)


def test_a_streamed_fit_is_of_all_rows_and_takes_each_once_an_epoch(store, not_held, monkeypatch):
    rows = fit_data.fit_data(store, QUICK)
    assert isinstance(rows, fit_data.FromSource)
    assert (rows.fitted, rows.held_out) == (1800, 200)
    identity = fitted(store).normalization
    train, judged = rows.rows(identity, torch.device("cpu"))
    batches, states = train.batches(64, 0), store.trajectories()
    fit_on = states[~rows.is_held_out(states.digests)]
    taken = torch.cat([batches(step)[0][0] for step in range(20)])
    assert len(judged) == 200
    every = identity.normalize(fit_on.states[0].double(), 0) if max(store.widths) < 256 else None
    distances = torch.cdist(taken.double(), every.double())
    nearest = distances.argmin(1)
    assert float(distances.amin(1).max()) < 1e-4
    assert len(torch.unique(nearest)) == len(nearest), "a row was taken twice in one epoch"


def test_a_streamed_fit_goes_on_from_its_checkpoint(store, not_held, tmp_path, monkeypatch):
    config = replace(QUICK, steps=30, evaluate_every=10)
    expected = fitted(store, config).digest()
    for stopped in (5, 15, 29):
        path, mend = tmp_path / f"{stopped}.safetensors", interrupted_at(monkeypatch, stopped)
        with pytest.raises(FitInterrupted):
            fitted(store, config, checkpoint=path)
        mend()
        assert fitted(store, config, checkpoint=path, resume="auto").digest() == expected


def test_a_stream_is_fitted_as_a_store_is(tap, store, not_held):
    streamed = fitted(lambda: tap.stream(points(), batch_size=250, progress=False))
    kept = fitted(store)
    assert torch.equal(streamed.record.held_out, kept.record.held_out)
    assert streamed.record.history[-1]["fvu"] == pytest.approx(kept.record.history[-1]["fvu"], rel=0.25)


def test_a_window_of_many_depths_reads_some_of_them(tmp_path, not_held, monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        deep = ki.attach(ResidualMLP(4, 6, 14, 3).eval())
    store = deep.observe(points(1200), store=tmp_path / "states", progress=False)
    seen, read = set(), type(store).read

    def noted(self, block, depths=None):
        seen.add(None if depths is None else tuple(depths))
        return read(self, block, depths)

    monkeypatch.setattr(type(store), "read", noted)
    streamed = fitted(store, replace(QUICK, steps=80))
    some = {depths for depths in seen if depths is not None and len(depths) < 15}
    assert len(some) > 2
    assert all(len(depths) == 10 and (depths[0], depths[-1]) == (0, 14) for depths in some)
    assert {depth for depths in some for depth in depths} == set(range(15))
    monkeypatch.setattr(fit_data, "HELD_BYTES", 2**26)
    held = fitted(store, replace(QUICK, steps=80))
    assert streamed.record.history[-1]["fvu"] <= 1.3 * held.record.history[-1]["fvu"] + 1e-3


def streamed_rows(store, part):
    identity = fitted(store, replace(QUICK, steps=1)).normalization
    return windows.StreamedRows(store, part, Normalizer(identity, torch.device("cpu")), statistics=10**6)


def test_a_window_holds_as_many_bytes_as_it_may_and_a_block_more(store, monkeypatch):
    monkeypatch.setattr(windows, "WINDOW_BYTES", 300 * store.row_bytes)
    batches = streamed_rows(store, lambda digests: digests > 0).batches(4, 0)
    seen = [len(batches._window(step).rows) for step in range(400)]
    assert 300 <= max(seen) < 300 + 2 * max(store.counts)
    assert sorted(seen)[len(seen) // 2] >= 300  # the last of an epoch alone has fewer


def test_a_process_whose_inputs_are_all_held_out_is_told(store):
    rows = streamed_rows(store, lambda digests: torch.zeros_like(digests, dtype=torch.bool))
    with pytest.raises(InputError, match="A process has no rows to fit on"):
        rows.batches(4, 0)(0)


@pytest.mark.parametrize("pairs", ["all", "endpoints"])
def test_rows_that_outlie_are_left_out_of_a_source_too(tap, tmp_path, monkeypatch, pairs):
    x, y = points(1000)
    x[::50] *= 1e4
    config = replace(QUICK, pairs=pairs)
    store = tap.observe((x, y), store=tmp_path / "states", progress=False)
    clean = tap.observe((torch.cat([x[1 + at : 50 + at] for at in range(0, 1000, 50)]),), progress=False)
    monkeypatch.setattr(fit_data, "HELD_BYTES", 1000)
    with pytest.warns(UserWarning, match="20 of 1,000 lie more than 30 times as far out"):
        streamed = fitted(store, config)
    assert any("20 of 1,000" in choice for choice in streamed.record.choices)
    monkeypatch.setattr(fit_data, "HELD_BYTES", 2**26)
    figures = [koopman.record.history[-1]["fvu"] for koopman in (streamed, fitted(clean, config))]
    assert figures[0] <= 1.5 * figures[1] + 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(store, replace(config, outlying=None, steps=1))


def test_a_large_part_of_the_rows_is_no_outlier_in_a_source_either(tap, tmp_path, not_held):
    x, y = points(1000)
    x[::10] *= 1e4
    store = tap.observe((x, y), store=tmp_path / "states", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = fit_data.fit_data(store, QUICK)
    assert (rows.fitted, rows.held_out, rows.notes) == (900, 100, [])


@pytest.mark.parametrize("held", [True, False], ids=["held out", "fitted"])
def test_rows_that_outlie_on_one_side_alone_are_left_out_too(tap, not_held, held):
    observed = tap.observe(points(1000), batch_size=500, progress=False)
    side = fit_data.fit_data(lambda: observed, QUICK).is_held_out(observed.digests) == held
    outlying = side.nonzero()[:5, 0]
    states = [state.index_fill(0, outlying, 1e4) for state in observed.states]
    changed = replace(observed, states=tuple(states))
    with pytest.warns(UserWarning, match="5 of 1,000 lie more than 30 times as far out"):
        rows = fit_data.fit_data(lambda: changed, QUICK)
    assert (rows.fitted, rows.held_out) == ((900, 95) if held else (895, 100))


def test_rows_that_lie_far_out_where_it_does_not_matter_stay(tap, tmp_path, not_held):
    observed = tap.observe(points(40_000), batch_size=4000, progress=False)
    states = [state.clone() for state in observed.states]
    states[1][::40] *= 1e4  # which is most of what there is at this depth
    middle = states[2].median(0).values
    distances = (states[2] - middle).norm(dim=1)
    one = int((distances - distances.median()).abs()[1::40].argmin()) * 40 + 1
    states[2][one] = middle + 35 * (states[2][one] - middle)  # and this is not
    changed = replace(observed, states=tuple(states))
    with pytest.warns(UserWarning, match=r"1,000 of 40,000 lie more than"):
        rows = fit_data.fit_data(lambda: changed, QUICK)
    with pytest.warns(UserWarning, match=r"1,000 of 40,000 lie more than"):
        held = fit_data.InMemory(changed, QUICK)
    assert (rows.fitted, rows.held_out) == (held.fitted, held.held_out)


def test_an_encoder_that_looks_back_is_fitted_from_whole_sequences(tmp_path, not_held):
    torch.manual_seed(0)
    ids = torch.randint(2, 40, (120, 8), generator=torch.Generator().manual_seed(0))
    tap = ki.attach(gpt2().eval())
    config = ki.FitConfig(
        context="causal", observables=24, hidden=(32,), context_width=16, context_heads=2, steps=10, evaluate_every=5
    )
    store = tap.observe(ids, batch_size=10, store=tmp_path / "states", progress=False)
    held_bytes = fit_data.HELD_BYTES
    streamed = fitted(store, config)
    fit_data.HELD_BYTES = 2**26
    held = fitted(store, config)
    fit_data.HELD_BYTES = held_bytes
    figures = [koopman.record.history[-1]["fvu"] for koopman in (held, streamed)]
    assert figures[1] <= 1.3 * figures[0] + 1e-3
    thin = tap.observe(ids, batch_size=10, store=tmp_path / "thin", keep=0.5, progress=False)
    with pytest.raises(InputError, match="looks back on all earlier rows of a sequence, and some are not here"):
        fitted(thin, config)


# --- what else takes a source ------------------------------------------------------------------------------------


@pytest.fixture(params=["folder", "stream"])
def way(request, store, tap):
    return store.folder if request.param == "folder" else lambda: tap.stream(points(), batch_size=250, progress=False)


def test_what_reads_trajectories_reads_a_source(store, tap, way, tmp_path):
    rows, koopman = store.trajectories(), fitted(store, method="least_squares")
    x, y = points(200)
    model = tap.host.model
    one, other = ki.spectrum(koopman, way), ki.spectrum(koopman, rows)
    np.testing.assert_allclose(one.eigenvalues, other.eigenvalues, rtol=1e-12)
    np.testing.assert_allclose(one.residuals, other.residuals, rtol=1e-6)
    assert str(ki.topology(way, points=30)) == str(ki.topology(rows, points=30))
    for make in (
        lambda given: ki.redirect(koopman, fitted=given, label=0, site=1),
        lambda given: ki.erase_concept(koopman, given, site=1),
    ):
        for name, given in (("of source", way), ("of rows", rows)):
            make(given).save(tmp_path / name)
        (tensors, said), (expected, header) = (
            read_tensors(tmp_path / name, kind="edit") for name in ("of source", "of rows")
        )
        assert said == header
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    config = ki.DistilConfig(steps=2, batch_size=16)
    digests = [ki.distil(model, koopman, x, config, fitted=given, progress=False).digest() for given in (way, rows)]
    assert digests[0] == digests[1]
    figures = [str(ki.fidelity(model, koopman, held_out=(x, y), fitted=given)) for given in (way, rows)]
    assert figures[0] == figures[1]


def test_pieces_of_memory_are_a_source_of_blocks(store):
    rows = store.trajectories()
    memory = Memory(rows, 100)
    assert sum(memory.counts) == len(memory) == 2000
    assert max(memory.counts) <= 100


def test_no_input_held_out_is_forgotten_though_sums_go_through_few_rows(store, not_held, tmp_path):
    """Blocks that no sum goes through hold inputs that are held out too."""
    rows = store.trajectories()
    koopman = fitted(store, replace(QUICK, steps=1, statistics=400))
    held_out = koopman.is_held_out(rows)
    assert torch.equal(held_out, torch.isin(rows.digests, rows.split(0.1, seed=0)[1].digests))
    assert len(koopman.record.held_out) < 200 == int(held_out.sum())  # the digests alone would not have known
    koopman.save_pretrained(tmp_path / "koopman")
    assert torch.equal(ki.KoopmanAutoencoder.from_pretrained(tmp_path / "koopman").is_held_out(rows), held_out)


def in_another_order(tap, folder):
    """The same rows, as two observed them, every other batch each, and as they were joined, the second first."""
    x, y = points()
    parts = [(x[at : at + 50], y[at : at + 50]) for at in range(0, len(x), 50)]
    for rank in range(2):
        tap.observe(parts[rank::2], store=folder / str(rank), progress=False)
    return ki.merge_stores([folder / "1", folder / "0"], folder / "joined")


def sums_of(rows, config):
    """What a fit sums over rows: its normalisation, moments and what its solves go through."""
    koopman = fitted(rows, config, method="least_squares")
    data = fit_data.fit_data(rows, config)
    train, _ = data.rows(koopman.normalization, torch.device("cpu"))
    found = {name: tensor.double() for name, tensor in koopman.normalization.named_buffers()}
    seen = [states.double() for states, _ in train.chunks(4)]
    found["second moment"] = torch.stack([(states.mT @ states) for states in seen]).sum(0)
    found["step"] = torch.stack([states[:-1].mT @ states[1:] for states in seen]).sum(0)
    data.gather_moments(koopman)
    moments = koopman.moments
    return found | {"mean": moments.mean, "covariance": moments.covariance}, moments.rows, sum(map(_rows_of, seen))


def _rows_of(states):
    return states.shape[1]


@pytest.mark.parametrize("held", [True, False], ids=["in memory", "from the disk"])
def test_sums_over_few_rows_are_the_same_in_whatever_order_these_were_written(store, tap, tmp_path, monkeypatch, held):
    if not held:
        monkeypatch.setattr(fit_data, "HELD_BYTES", 1000)
    config = replace(QUICK, statistics=600)
    (one, rows, solved), (other, rows_of_other, solved_of_other) = (
        sums_of(each, config) for each in (store, in_another_order(tap, tmp_path / "apart"))
    )
    assert (rows, solved) == (rows_of_other, solved_of_other)
    assert 0 < rows <= solved + 0.1 * 600
    assert 0.8 * 600 < solved <= 600
    for name, tensor in one.items():
        difference = float((tensor - other[name]).norm() / tensor.norm())
        assert difference < 1e-6, name


def test_processes_that_were_given_different_rows_are_refused(tap, monkeypatch):
    class Apart(Processes):
        def all_of(self, value):
            return [value, (*value[:-1], "other")]

    monkeypatch.setattr(Processes, "here", classmethod(lambda cls: Apart(0, 2)))
    with pytest.raises(InputError, match="all processes fit one source, and these were given different rows"):
        fitted(tap.observe(points(), progress=False))

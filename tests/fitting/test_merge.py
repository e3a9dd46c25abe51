"""Shards that are gathered apart are worth all rows at once: moments, Gram matrices and K, to rounding."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import FileFormatError, HostMismatchError, InputError
from koopman_interp.testing import LinearHost, ResidualMLP

SIZES = [300, 40, 260]


def parts_of(trajectories):
    """Shards of very different sizes."""
    starts = [sum(SIZES[:place]) for place in range(len(SIZES))]
    return [trajectories[start : start + size] for start, size in zip(starts, SIZES, strict=True)]


@pytest.fixture(scope="module")
def base(trajectories, quick_config):
    """Fitted on the first shard alone, in float64."""
    return ki.fit(parts_of(trajectories)[0], quick_config, progress=False).double()


@pytest.fixture(scope="module")
def shards(base, trajectories):
    return [ki.gather_shard(base, part) for part in parts_of(trajectories)]


def rows_of(base, trajectories, shards, *, held_out):
    """Observables of all rows of one side, `[depth, row, observable]`, and their labels, in order."""
    apart = torch.isin(trajectories.digests, torch.cat([shard.held_out_inputs for shard in shards]))
    chosen = trajectories[apart if held_out else ~apart]
    return torch.stack([base.encode(state, depth) for depth, state in enumerate(chosen.states)]), chosen.labels


def ridged(z, strength):
    """K by numpy: ridge regression of all steps, relative to each observable's own mean square."""
    now, after = (part.flatten(0, 1).numpy() for part in (z[:-1], z[1:]))
    G = now.T @ now
    return np.linalg.solve(G + strength * np.diag(np.diag(G)), now.T @ after).T


@pytest.mark.parametrize("held_out", [False, True])
def test_merged_moments_are_those_of_all_rows(base, trajectories, shards, held_out):
    merged = ki.merge(base, shards)
    z, labels = rows_of(base, trajectories, shards, held_out=held_out)
    found = merged.heldout_moments if held_out else merged.moments
    assert found.rows == z.shape[1]
    for depth in range(z.shape[0]):
        torch.testing.assert_close(found.covariance[depth], torch.cov(z[depth].T, correction=0), rtol=1e-9, atol=1e-12)
        for place, label in enumerate(found.classes):
            mean = z[depth][labels == label].mean(0)
            torch.testing.assert_close(found.mean[depth, place], mean, rtol=1e-9, atol=1e-12)
    assert found.count.tolist() == [int((labels == label).sum()) for label in found.classes]
    # And those that the package gathers in one go.
    merged.gather_moments(trajectories)
    again = merged.heldout_moments if held_out else merged.moments
    for name, buffer in again.named_buffers():
        torch.testing.assert_close(buffer, dict(found.named_buffers())[name], rtol=1e-9, atol=1e-12)


def test_the_operator_is_the_ridge_regression_on_all_rows(base, trajectories, shards):
    merged = ki.merge(base, shards)
    z, _ = rows_of(base, trajectories, shards, held_out=False)
    np.testing.assert_allclose(merged.K, ridged(z, base.record.settings["ridge"]), rtol=1e-6, atol=1e-8)
    assert float((merged.K - base.K).abs().max()) > 1e-3
    held, _ = rows_of(base, trajectories, shards, held_out=True)

    def residual(K):
        return float(
            (held[1:] - held[:-1] @ K.T).square().sum() / (held[1:] - held[1:].mean(1, keepdim=True)).square().sum()
        )

    said = merged.record.choices[-1]
    assert f"{residual(merged.K):.3g} for {residual(base.K):.3g}" in said
    assert f"merged from 3 shards, {z.shape[1]} rows" in said
    # All else is what it was.
    x = trajectories.states[1][:5]
    assert torch.equal(merged.encode(x, 1), base.encode(x, 1))
    assert torch.equal(merged.decode(z[2][:5], 2), base.decode(z[2][:5], 2))
    assert base.record.choices == merged.record.choices[:-1]


def test_the_order_of_shards_makes_no_difference_and_each_row_counts_the_same(base, trajectories, shards):
    one = ki.merge(base, shards)
    other = ki.merge(base, shards[::-1])
    torch.testing.assert_close(one.K, other.K, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(one.moments.covariance, other.moments.covariance, rtol=1e-9, atol=1e-12)
    mean = torch.stack([ki.merge(base, [shard]).K for shard in shards]).mean(0)
    assert float((one.K - mean).abs().max()) > 1e-3, "a mean of the shards' own operators is another one"


def test_a_linear_host_is_found_from_shards_that_see_parts_of_it():
    K = torch.eye(6) * 0.9 + 0.2 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    model = LinearHost(K, 3).eval()
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    whole = ki.attach(model).observe(x, progress=False)
    config = ki.FitConfig(
        observables=6, ridge=0.0, normalization=ki.NormalizationConfig(scale="common", centre="common")
    )
    base = ki.fit(whole, config, method="least_squares")
    with torch.no_grad():
        base.operator.K.zero_()
        for depth in range(4):
            base.normalization.maps(depth)[0].zero_()  # about zero a linear motion stays linear
    # Each shard spans half of the space.
    parts = [torch.randn(100, 6, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3)]
    for part, hidden in zip(parts, (slice(0, 3), slice(3, 6)), strict=True):
        part[:, hidden] = 0
    shards = [ki.gather_shard(base, ki.attach(model).observe(part, progress=False)) for part in parts]
    merged = ki.merge(base, shards)
    rows = torch.randn(20, 6, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(merged.predict(rows, 0, 1), rows @ K.T, rtol=1e-3, atol=1e-3)


def test_held_out_inputs_stay_so_and_each_new_shard_holds_out_its_own(base, trajectories, shards):
    first, *others = shards
    assert torch.equal(first.held_out_inputs, base.record.held_out)
    for shard, part in zip(others, parts_of(trajectories)[1:], strict=True):
        assert len(shard.held_out_inputs) == round(base.record.validation * len(torch.unique(part.digests)))
        assert shard.fitted.moments.rows + shard.held_out.moments.rows == len(part)
    merged = ki.merge(base, shards)
    assert int(merged.is_held_out(trajectories).sum()) == sum(shard.held_out.moments.rows for shard in shards)


@pytest.mark.parametrize("operator", ["blocks", "generator", "low_rank", "identity_plus_low_rank"])
def test_every_kind_of_operator_keeps_its_kind_and_its_moments_fit_its_observables(trajectories, operator):
    config = ki.FitConfig(observables=12, hidden=(16,), operator=operator, rank=8 if "rank" in operator else None)
    first, *_ = parts = parts_of(trajectories)
    base = ki.fit(first, replace(config, steps=20, evaluate_every=10, batch_size=64), progress=False)
    shards = [ki.gather_shard(base, part) for part in parts]
    merged = ki.merge(base, shards)
    assert merged.operator.kind == operator
    fresh = ki.merge(base, shards)
    fresh.gather_moments(trajectories)
    torch.testing.assert_close(merged.moments.covariance, fresh.moments.covariance, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(merged.moments.mean, fresh.moments.mean, rtol=1e-3, atol=1e-4)


def test_the_operator_can_be_kept(base, trajectories, shards):
    edit = ki.erase_class(base, label=1)
    merged = ki.merge(base, shards, operator="kept")
    assert torch.equal(merged.K, base.K)
    assert merged.digest() == base.digest() == edit.operator
    assert merged.moments.rows == sum(shard.fitted.moments.rows for shard in shards)
    assert "K kept" in merged.record.choices[-1]


def test_shards_are_saved_and_loaded(base, shards, trajectories, tmp_path):
    for place, shard in enumerate(shards):
        shard.save(tmp_path / f"{place}.safetensors")
    loaded = [ki.ShardStatistics.load(tmp_path / f"{place}.safetensors") for place in range(3)]
    assert list(map(repr, loaded)) == list(map(repr, shards))
    one, other = ki.merge(base, shards), ki.merge(base, loaded)
    assert torch.equal(one.K, other.K)
    assert torch.equal(one.moments.covariance, other.moments.covariance)
    one.save_pretrained(tmp_path / "merged")
    again = ki.KoopmanAutoencoder.from_pretrained(tmp_path / "merged")
    assert again.record.choices == one.record.choices
    trajectories.save(tmp_path / "t.safetensors")
    with pytest.raises(FileFormatError):
        ki.ShardStatistics.load(tmp_path / "t.safetensors")


def test_what_cannot_be_merged_is_refused_with_the_line_to_write(unchecked, base, shards, trajectories, quick_config):
    first, second, _ = parts_of(trajectories)
    other = ki.fit(second, replace(quick_config, observables=12, steps=20), progress=False)
    with pytest.raises(
        InputError, match=r"no mean of them.*parts = \[gather_shard\(koopman, tap.*merge\(koopman, parts\)"
    ):
        ki.merge(base, [base, other])
    with pytest.raises(InputError, match=r"Shard 1 was gathered with another surrogate.*gather_shard\(koopman"):
        ki.merge(base, [shards[0], ki.gather_shard(other, second)])
    with pytest.raises(InputError, match="Shards 0 and 1 share 40 inputs, whose rows would count twice"):
        ki.merge(base, [shards[1], ki.gather_shard(base, second)])
    for nothing in ([], None):
        with pytest.raises(InputError, match="Expected shards in a list"):
            ki.merge(base, nothing)
    with pytest.raises(InputError, match="Expected shards; got Trajectories"):
        ki.merge(base, [first])
    with pytest.raises(InputError, match="neither 'solved' nor 'kept'"):
        ki.merge(base, shards, operator="mean")
    base_distilled = ki.merge(base, shards)
    base_distilled.record = replace(base_distilled.record, distilled=({"step": 1, "kl": 0.5},))
    again = [ki.gather_shard(base_distilled, part) for part in (first, second)]
    with pytest.raises(InputError, match=r"was distilled.*operator='kept'"):
        ki.merge(base_distilled, again)
    assert torch.equal(ki.merge(base_distilled, again, operator="kept").K, base_distilled.K)


def test_shards_of_something_else_are_refused(base, trajectories):
    part = parts_of(trajectories)[1]
    with pytest.raises(InputError, match="was fitted with labels, whose means it keeps"):
        ki.gather_shard(base, replace(part, labels=None))
    with pytest.raises(InputError, match=r"has the label 7, and the surrogate was fitted with \[0, 1, 2\]"):
        ki.gather_shard(base, replace(part, labels=torch.full((40,), 7)))
    with pytest.raises(InputError, match=r"has the sites blocks\.0, blocks\.1"):
        ki.gather_shard(base, part.between("blocks.0", "blocks.1"))
    with pytest.raises(InputError, match="Observe with skip=0"):
        ki.gather_shard(base, replace(part, skip=1))
    stranger = ResidualMLP(inputs=4, width=10, blocks=4, outputs=3).eval()
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(HostMismatchError):
        ki.gather_shard(base, ki.attach(stranger).observe(x, progress=False))


def test_an_affine_lens_over_shards_is_that_of_all_rows(trajectories):
    whole, parts = ki.AffineLens.fit(trajectories), ki.AffineLens.fit(iter(parts_of(trajectories)))
    for one, other, state in zip(whole.maps, parts.maps, trajectories.states, strict=False):
        columns = np.c_[state.double(), np.ones(len(state))]
        expected = columns @ np.linalg.lstsq(columns, trajectories.states[-1].double().numpy(), rcond=None)[0]
        for found in (one, other):
            np.testing.assert_allclose(found(state.double()), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-6, atol=1e-9)
    assert (whole.sites, whole.host, whole.name) == (parts.sites, parts.host, parts.name)
    with pytest.raises(InputError, match="Shards of one lens have the same sites"):
        ki.AffineLens.fit([trajectories, trajectories.between("blocks.0")])
    with pytest.raises(InputError, match="no rows to fit a lens on"):
        ki.AffineLens.fit([])

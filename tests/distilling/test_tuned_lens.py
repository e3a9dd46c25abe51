"""A tuned lens says what the host says more nearly than least squares does, and is kept in a file."""

import copy
from dataclasses import replace

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import FitInterrupted, HostMismatchError, InputError
from koopman_interp.hosts.fingerprint import weight_digest
from koopman_interp.testing import yin_yang
from tests.interrupting import interrupted_at

QUICK = ki.DistilConfig(steps=20, evaluate_every=10, batch_size=60)


def test_a_tuned_lens_is_nearer_to_the_host_than_least_squares(known, points):
    model, surrogate, trajectories = known
    lens = ki.AffineLens.fit(trajectories)
    model.zero_grad(set_to_none=True)
    before = copy.deepcopy(lens.maps[0].weight), weight_digest(model)
    tuned = ki.tune_lens(model, lens, points, ki.DistilConfig(steps=60, learning_rate=1e-2), progress=False)
    fresh = yin_yang(300, seed=9)[0]
    found = ki.compare_lenses(model, surrogate, fitted=trajectories, held_out=fresh, others=[tuned])
    assert sum(found.kl(tuned.name)) < 0.9 * sum(found.kl(lens.name))
    assert found.parameters[tuned.name] == lens.parameters
    assert torch.equal(lens.maps[0].weight, before[0])
    assert weight_digest(model) == before[1]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part.requires_grad for each in tuned.maps for part in (each.centre, each.weight, each.bias))
    assert (tuned.sites, tuned.skip, tuned.host) == (lens.sites, lens.skip, lens.host)


def test_a_resumed_tuning_is_bit_identical_to_one_never_interrupted(known, yin_yang_data, tmp_path, monkeypatch):
    model, _, trajectories = known
    lens = ki.AffineLens.fit(trajectories)

    def tuned(**options):
        return ki.tune_lens(model, lens, yin_yang_data[0], QUICK, progress=False, **options)

    whole, path = tuned(), tmp_path / "kept.safetensors"
    mend = interrupted_at(monkeypatch, 13)
    with pytest.raises(FitInterrupted, match="holds step 10"):
        tuned(checkpoint=path)
    mend()
    assert tuned(checkpoint=path, resume=True).digest() == whole.digest()
    lens = replace(lens, maps=tuple(reversed(lens.maps)))
    with pytest.raises(InputError, match="another call of tune_lens: lens differ"):
        tuned(checkpoint=path, resume=True)


def test_a_lens_of_another_host_is_refused(known, points):
    model, _, trajectories = known
    lens, other = ki.AffineLens.fit(trajectories), copy.deepcopy(model)
    with torch.no_grad():
        other.head.bias += 1
    with pytest.raises(HostMismatchError, match="This lens"):
        ki.tune_lens(other, lens, points)


def test_sites_out_of_order_are_refused(known, points):
    model, _, trajectories = known
    lens = ki.AffineLens.fit(trajectories)
    with pytest.raises(InputError, match="in order of depth"):
        ki.tune_lens(model, replace(lens, sites=lens.sites[::-1]), points)

"""An orbit is trajectories along paths of inputs at one site: what turns is found, and held out is held out."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import koopman_interp as ki
from koopman_interp.errors import HostMismatchError, InputError
from koopman_interp.observing.orbits import linked
from koopman_interp.testing import ResidualMLP

PERIOD = 23
TURNS = (3, 7)


class Mix(nn.Module):
    """A linear layer that mixes its inputs, so that no neuron shows a frequency alone."""

    def __init__(self, width=6, seed=0):
        super().__init__()
        self.mix = nn.Linear(width, width)
        with torch.no_grad():
            draw = torch.Generator().manual_seed(seed)
            self.mix.weight.copy_(torch.eye(width) + 0.3 * torch.randn(width, width, generator=draw))
            self.mix.bias.copy_(torch.randn(width, generator=draw))

    def forward(self, x):
        return self.mix(x)


def rotation(turns):
    angle = 2 * math.pi * turns / PERIOD
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


STEP = torch.block_diag(*map(rotation, TURNS), torch.tensor([[0.9]]), torch.tensor([[-0.5]]))


def rotated(paths, ticks=10, seed=1):
    """Paths of a known linear rotation."""
    x = [torch.randn(paths, 6, generator=torch.Generator().manual_seed(seed))]
    for _ in range(ticks - 1):
        x.append(x[-1] @ STEP.T)
    return x


def observed(ticks, model=None, **more):
    return ki.orbit(model or Mix().eval(), ticks, site="mix", period=PERIOD, progress=False, **more)


@pytest.fixture(scope="module")
def turning():
    orbit = observed(rotated(400))
    return ki.fit(orbit, ki.FitConfig(observables=6), method="least_squares", progress=False), orbit


def test_the_frequencies_of_a_known_rotation_are_found_and_trusted(turning):
    koopman, _ = turning
    found = ki.spectrum(koopman, observed(rotated(200, seed=2)))
    assert found.trusted.all()
    turns = sorted(found.turns_a_period[found.operator_eigenvalues.imag > 0])
    np.testing.assert_allclose(turns, TURNS, atol=1e-3)
    np.testing.assert_allclose(np.sort(found.decay), [0.5, 0.9, 1, 1, 1, 1], atol=1e-3)
    assert "turns a period" in str(found) and "turns a tick" in str(found) and "per tick at 'mix'" in str(found)
    assert "turn, °" not in str(found)
    kept = json.loads(json.dumps(found.as_dict()))
    assert kept["clock"] == {"site": "mix", "period": PERIOD}
    np.testing.assert_allclose(kept["turns_a_period"], found.turns_a_period)
    np.testing.assert_allclose(np.array(kept["turns"]) * PERIOD, kept["turns_a_period"])


def test_of_noise_no_mode_is_trusted():
    draw = torch.Generator().manual_seed(3)
    noise = [[torch.randn(300, 6, generator=draw) for _ in range(8)] for _ in range(2)]
    koopman = ki.fit(observed(noise[0]), ki.FitConfig(observables=6), method="least_squares", progress=False)
    assert not ki.spectrum(koopman, observed(noise[1])).trusted.any()


def test_without_a_period_there_are_turns_a_tick_alone():
    orbit = ki.orbit(Mix().eval(), rotated(100), site="mix", progress=False)
    koopman = ki.fit(orbit, ki.FitConfig(observables=6), method="least_squares", progress=False)
    found = ki.spectrum(koopman, orbit)
    assert found.turns_a_period is None and "turns a period" not in str(found)
    assert found.as_dict()["turns_a_period"] is None


def test_all_ticks_have_one_normalisation(turning):
    koopman, _ = turning
    maps = [koopman.normalization.maps(depth) for depth in range(10)]
    for other in maps[1:]:
        for ours, theirs in zip(maps[0], other, strict=True):
            assert torch.equal(ours, theirs)
    assert koopman.config.coordinates.growth == 1.0
    assert "turning" in koopman.config.coordinates.reason


@pytest.mark.parametrize(
    "asked", [{"align": True}, {"basis": "per depth"}, {"centre": "per depth"}, {"scale": "geometric"}]
)
def test_what_would_hide_a_rotation_is_refused(turning, asked):
    config = ki.FitConfig(normalization=ki.NormalizationConfig(**asked))
    with pytest.raises(InputError, match="would hide how an orbit turns"):
        ki.fit(turning[1], config, method="least_squares", progress=False)


def around(starts, ticks, circle=12):
    """Paths that walk one circle from different starts; each circle has inputs of its own."""
    centres = torch.arange(starts).repeat_interleave(circle).float()[:, None] * torch.tensor([[10.0, 0, 0, 0, 0, 0]])
    phase = torch.arange(circle).repeat(starts)
    walk = []
    for tick in range(ticks):
        angle = 2 * math.pi * ((phase + tick) % circle).float() / circle
        zeros = torch.zeros(len(angle), 4)
        walk.append(centres + torch.cat([angle.cos()[:, None], angle.sin()[:, None], zeros], 1))
    return walk


def test_paths_that_share_an_input_are_held_out_together_and_never_fitted():
    ticks = around(30, 3)
    orbit = observed(ticks)
    assert len(torch.unique(orbit.digests)) == 30
    train, held_out = orbit.split(0.3, seed=1)
    rows = lambda part: {tuple(row) for state in part.states for row in state.tolist()}  # noqa: E731
    assert len(held_out) == 9 * 12 and not rows(train) & rows(held_out)
    # The same orbits, from other starts and for a whole turn, are known again.
    whole = observed([tick[::12] for tick in around(30, 12)])
    assert set(whole.digests.tolist()) == set(orbit.digests.tolist())
    koopman = ki.fit(orbit, ki.FitConfig(observables=3, validation=0.3), method="least_squares", progress=False)
    again = koopman.is_held_out(whole)
    assert int(again.sum()) == 9
    assert torch.equal(torch.unique(whole.digests[again]), torch.unique(koopman.record.held_out))


def test_links_are_those_of_a_search_by_hand():
    draw = np.random.default_rng(0)
    digests = draw.integers(-40, 40, size=(3, 25))
    found = linked(torch.from_numpy(digests)).numpy()
    group = list(range(25))
    for _ in range(25):
        for i in range(25):
            for j in range(25):
                if set(digests[:, i]) & set(digests[:, j]):
                    group[i] = group[j] = min(group[i], group[j])
    for i in range(25):
        same = [j for j in range(25) if group[j] == group[i]]
        assert found[i] == digests[:, same].min()


def test_one_circle_alone_cannot_be_held_out():
    with pytest.raises(InputError, match="share inputs with one another"):
        ki.fit(observed(around(1, 4)), method="least_squares", progress=False)


def test_it_has_no_place_in_a_forward_pass(turning):
    koopman, orbit = turning
    model, x = Mix().eval(), rotated(20)[0]
    edit = ki.erase_concept(koopman, orbit, attribute=orbit.states[0][:, 0].double(), site=0)
    sentence = "no forward pass holds two ticks"
    with pytest.raises(InputError, match=sentence):
        ki.patched(model, koopman)
    with pytest.raises(InputError, match=sentence):
        ki.patched(model, koopman, edit, at="each site")
    with pytest.raises(InputError, match=r"ki\.attach\(model, \[source, target\]\)"):
        ki.fidelity(model, koopman, held_out=x)
    with pytest.raises(InputError, match=sentence):
        ki.koopman_lens(model, koopman, x)
    with pytest.raises(InputError, match=sentence):
        ki.compare_lenses(model, koopman, held_out=x, fitted=orbit)
    with pytest.raises(InputError, match=sentence):
        ki.distil(model, koopman, x, fitted=orbit)


def test_what_reads_trajectories_reads_orbits(turning):
    koopman, orbit = turning
    spectrum = ki.spectrum(koopman, orbit)
    model = Mix().eval()
    meanings = ki.describe_modes(koopman, spectrum, orbit, model=model, batches=rotated(20)[0], modes=2)
    assert len(meanings) == 2 and meanings[0].up
    assert ki.topology(orbit, points=30).points == 30
    edit = ki.erase_concept(koopman, orbit, attribute=orbit.states[4][:, 0].double(), site=4, cost="rows")
    assert edit.site == "mix@t=4"
    assert "turns a period" in spectrum.head(3)
    assert spectrum.plot() is not None and orbit.plot() is not None


def test_it_comes_back_from_files(turning, tmp_path):
    koopman, orbit = turning
    orbit.save(tmp_path / "orbit.safetensors")
    back = ki.Trajectories.load(tmp_path / "orbit.safetensors")
    assert back.clock == orbit.clock == ki.Clock("mix", PERIOD)
    assert torch.equal(back.digests, orbit.digests) and back.sites == orbit.sites
    koopman.save_pretrained(tmp_path / "koopman")
    loaded = ki.KoopmanAutoencoder.from_pretrained(tmp_path / "koopman")
    assert loaded.config == koopman.config and "10 ticks of 'mix', period 23" in repr(loaded)
    spectrum = ki.spectrum(loaded, orbit)
    spectrum.save(tmp_path / "spectrum.safetensors")
    read = ki.Spectrum.load(tmp_path / "spectrum.safetensors")
    assert read.clock == orbit.clock
    np.testing.assert_array_equal(read.turns_a_period, spectrum.turns_a_period)


def test_rows_are_the_states_of_the_site_tick_by_tick():
    model = ResidualMLP(inputs=6, width=10, blocks=2, outputs=3).eval()
    ticks = rotated(70, ticks=4)
    orbit = ki.orbit(model, ticks, site="blocks.0", batch_size=32, labels=torch.arange(70) % 2, progress=False)
    assert orbit.sites == tuple(f"blocks.0@t={tick}" for tick in range(4)) and orbit.classes == (0, 1)
    assert len(orbit) == 70 and orbit.widths == (10,) * 4 and orbit.shapes == ((10,),) * 4
    for state, x in zip(orbit.states, ticks, strict=True):
        # In batches of the same size, since the last bits depend on it.
        alone = torch.cat([model.blocks[0](torch.relu(model.embed(part))) for part in x.split(32)])
        assert torch.equal(state, alone)
    stacked = ki.orbit(model, torch.stack(ticks), site="blocks.0", batch_size=32, progress=False)
    assert all(map(torch.equal, orbit.states, stacked.states))
    assert torch.equal(orbit.digests, stacked.digests)
    timed = ki.orbit(model, ticks, site="blocks.0", times=[0, 1, 3, 4.5], progress=False)
    assert timed.times == (0.0, 1.0, 3.0, 4.5) and timed.sites[-1] == "blocks.0@t=4.5"
    late = ki.orbit(model, ticks[:2], site="blocks.0", times=[1234567, 1234568], progress=False)
    assert late.sites == ("blocks.0@t=1234567", "blocks.0@t=1234568")


def test_a_clock_can_be_a_training_run():
    checkpoints = [Mix(seed=seed).eval() for seed in range(3)]
    x = rotated(40)[0]
    orbit = observed([x] * 3, iter(checkpoints))
    for state, one in zip(orbit.states, checkpoints, strict=True):
        assert torch.equal(state, one(x))
    assert len(torch.unique(orbit.digests)) == 40
    alone = observed([x] * 3, checkpoints[0])
    with pytest.raises(HostMismatchError):
        orbit.host.require(alone.host, "orbit")
    with pytest.raises(InputError, match="one for each of the 3 ticks; got 2"):
        observed([x] * 3, checkpoints[:2])
    with pytest.raises(InputError, match="one for each of the 2 ticks; got more"):
        observed([x] * 2, checkpoints)


class Reader(nn.Module):
    """States of tokens that know what stood before them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList([nn.GRU(8, 8, batch_first=True)])
        self.head = nn.Linear(8, 20)

    def forward(self, input_ids):
        return self.head(self.blocks[0](self.embed(input_ids))[0])


def test_of_tokens_a_place_is_read_or_each_is_a_path():
    torch.manual_seed(0)
    model = Reader().eval()
    ids = torch.randint(0, 20, (9, 12))
    growing = ki.orbit(model, [ids[:, : 5 + tick] for tick in range(4)], site="blocks.0", place=-1, progress=False)
    states = model.blocks[0](model.embed(ids))[0]
    assert len(growing) == 9
    for tick, state in enumerate(growing.states):
        torch.testing.assert_close(state, states[:, 4 + tick])
    with pytest.raises(InputError, match="place=-1"):
        ki.orbit(model, [ids[:, :5], ids[:, :6]], site="blocks.0", progress=False)
    with pytest.raises(InputError, match="Choose a place that all sequences reach"):
        ki.orbit(model, [ids[:, :5], ids[:, :6]], site="blocks.0", place=5, progress=False)
    every = ki.orbit(model, [ids, ids.flip(0)], site="blocks.0", progress=False)
    assert len(every) == 9 * 12 and every.position[:3].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("ticks", "more", "match"),
    [
        (lambda: rotated(20)[:1], {}, "two ticks or more; got 1"),
        (lambda: rotated(20)[0], {}, r"one tensor holds an orbit as \[tick, path"),
        (lambda: [rotated(20)[0], rotated(19)[0]], {}, "the same paths"),
        (lambda: rotated(20)[:3], {"times": [0, 1]}, "Expected 3 times"),
        (lambda: rotated(20)[:2], {"times": [1, 0]}, "Times must increase"),
        (lambda: [(x, torch.zeros(20)) for x in rotated(20)[:2]], {}, "labels=y|whole numbers"),
    ],
)
def test_what_is_no_orbit_is_refused(ticks, more, match):
    with pytest.raises(InputError, match=f"(?i){match}"):
        observed(ticks(), **more)


def test_a_period_is_positive_and_a_site_is_one():
    with pytest.raises(InputError, match="positive number of ticks"):
        ki.orbit(Mix().eval(), rotated(20), site="mix", period=0, progress=False)
    model = ResidualMLP(inputs=6, width=10, blocks=2, outputs=3).eval()
    with pytest.raises(InputError, match="at one site"):
        ki.orbit(model, rotated(20), site="blocks.*", progress=False)


def test_a_model_in_train_mode_is_warned_of():
    with pytest.warns(UserWarning, match="train mode"):
        observed(rotated(20)[:2], Mix().train())


def test_widths_are_one_and_parts_of_other_clocks_do_not_join(turning):
    orbit = turning[1]
    with pytest.raises(InputError, match="one width"):
        replace(orbit, states=(orbit.states[0][:, :3], *orbit.states[1:]))
    with pytest.raises(InputError, match="same clock"):
        ki.Trajectories.concatenate([orbit, replace(orbit, clock=ki.Clock("mix", 5))])
    assert len(ki.Trajectories.concatenate([orbit[:3], orbit[3:]])) == len(orbit)

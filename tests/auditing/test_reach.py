"""What arrives of an edit is what a slow computation in float64 says, and where nothing does it is said."""

import warnings
from copy import deepcopy

import pytest
import torch
from torch import nn

import koopman_interp as ki
from koopman_interp.edits.certifying import certified, edit_at
from koopman_interp.edits.low_rank import LowRankMap
from koopman_interp.errors import InputError
from koopman_interp.testing import LinearHost

SIZE = 4
SITES = ["blocks.0:input", "blocks.0", "blocks.1"]


def fitted(K, blocks=3):
    """A host whose depth is K, its surrogate by least squares on the states alone, and inputs."""
    host = LinearHost(K, blocks).eval()
    x = torch.randn(400, len(K), generator=torch.Generator().manual_seed(0))
    config = ki.FitConfig(hidden=(), ridge=0.0, normalization=ki.NormalizationConfig(scale="common"))
    koopman = ki.fit(ki.attach(host).observe(x, progress=False), config, method="least_squares")
    return host, koopman, torch.randn(200, len(K), generator=torch.Generator().manual_seed(1))


def along(koopman, depth, direction, reader=None):
    """An edit that takes a direction of the observables away at a depth, about the mean."""
    a = direction.double()[:, None]
    w = a / a.square().sum() if reader is None else reader.double()[:, None]
    change = LowRankMap(a, w, koopman.moments.total_mean(depth) @ w)
    return certified(edit_at(koopman, depth, "take a direction", change), koopman)


def turn(size=SIZE):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(2)))[0]


def test_all_of_it_arrives_where_k_is_an_isometry_and_where_it_is_written_at_the_target():
    host, koopman, x = fitted(turn())
    edit = along(koopman, 1, torch.tensor([1.0, 0.5, 0.0, -1.0]))
    assert edit.certificate.reach == pytest.approx(1, rel=0.05)  # spreads of finite samples
    carried = ki.reach(ki.patched(host, koopman, edit), held_out=x)
    assert carried.carried
    assert carried.patched.share == pytest.approx(1, rel=0.05)
    # Where the host's motion is linear and K is it, carrying does what the host itself does with an edit in place.
    assert carried.agreement == pytest.approx(1, abs=1e-3)
    assert carried.of_in_place == pytest.approx(1, abs=1e-3)
    last = along(koopman, 3, torch.tensor([1.0, 0.5, 0.0, -1.0]))
    there = ki.reach(ki.patched(host, koopman, last, at="each site"), held_out=x)
    assert not there.carried
    assert there.patched.share == pytest.approx(1, abs=1e-9)
    assert there.warning is None


@pytest.mark.parametrize("strength", [1.0, 1e-3])
def test_the_certificate_says_what_k_carries_of_rows_held_out(surrogate, trajectories, quick_config, strength):
    """Of several directions, whose readings are not of mean nothing: the mean of the changes counts as their spread."""
    held_out = trajectories.split(quick_config.validation, seed=quick_config.seed)[1]
    depth, last = 1, len(surrogate.sites) - 1
    edit = ki.erase_class(surrogate, label=[0, 2], site=depth, strength=strength)
    z, there = (surrogate.encode(held_out.states[at], at).double() for at in (depth, last))
    change = edit(z) - z
    assert float(change.mean(0).norm() / change.norm(dim=1).mean()) > 0.1
    carried = change @ torch.linalg.matrix_power(surrogate.K.double(), last - depth).T
    shares = [
        float((part.square().sum(1).mean() / (rows - rows.mean(0)).square().sum(1).mean()).sqrt())
        for part, rows in ((change, z), (carried, there))
    ]
    assert edit.certificate.reach == pytest.approx(shares[1] / shares[0], rel=1e-4)


@pytest.mark.parametrize("mode", ["delta", "replace"])
def test_it_is_what_a_slow_computation_says(case, mode):
    x = case.held_out[0]
    found = ki.reach(case.patch(mode=mode, source=case.edit.depth), held_out=x, batch_size=77)
    koopman, depth, last = deepcopy(case.koopman).double(), case.edit.depth, len(case.koopman.sites) - 1
    states = ki.attach(case.model).observe(x, progress=False).states
    at, there = states[depth].double(), states[last].double()
    z = koopman.encode(at, depth)
    changed = koopman.decode(case.edit(z), depth) - koopman.decode(z, depth)
    carry = torch.linalg.matrix_power(koopman.K.detach(), last - depth).T
    plain = koopman.decode(z @ carry, last)
    moved = koopman.decode(case.edit(z) @ carry, last) - plain

    def relative(change, rows):
        return float((change.square().sum() / (rows - rows.mean(0)).square().sum()).sqrt())

    assert found.change == pytest.approx(relative(changed, at), rel=1e-4)
    assert found.patched.target == pytest.approx(relative(moved, there), rel=1e-4)
    assert found.patched.share == pytest.approx(relative(moved, there) / relative(changed, at), rel=1e-4)
    base = plain if mode == "replace" else there
    with torch.no_grad():
        before, after = (case.model.head(rows.float()).double().log_softmax(1) for rows in (base, base + moved))
    nats = (before.exp() * (before - after)).sum(1).mean()
    assert found.patched.output == pytest.approx(float(nats), rel=1e-3)
    # In place, the model itself goes on from the edited state.
    rows = (at + changed).float()
    with torch.no_grad():
        for block in case.model.blocks[depth:]:
            rows = block(rows)
    change = rows.double() - there
    assert found.otherwise.target == pytest.approx(relative(change, there), rel=1e-3)
    assert found.agreement == pytest.approx(float((change * moved).sum() / change.square().sum()), rel=1e-3)


def test_what_k_takes_to_nothing_does_not_arrive_and_is_warned_of():
    K = turn()
    keep = torch.eye(SIZE)
    keep[0, 0] = 0.0
    host, koopman, x = fitted(keep @ K, blocks=2)
    # The direction that K takes to zero, by its smallest singular vector.
    null = torch.linalg.svd(koopman.K.detach().double()).Vh[-1]
    edit = along(koopman, 0, null)
    assert edit.certificate.reach < 1e-5
    with pytest.warns(UserWarning, match="K carries 0.00 % to"):
        patch = ki.patched(host, koopman, edit)
    with pytest.warns(UserWarning, match="K takes it to nothing on the way. Write it in place"):
        found = ki.reach(patch, held_out=x)
    assert found.patched.share < 1e-4
    assert found.change > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ki.patched(host, koopman, along(koopman, 0, torch.linalg.svd(koopman.K.detach().double()).Vh[0]))


class Shift(nn.Module):
    """Each token gets the first coordinate of the one before it: what no map of one token can know."""

    def forward(self, x):
        brought = torch.zeros_like(x)
        brought[:, 1:, 0] = 3 * x[:, :-1, 1]
        return 0.1 * x + brought


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, SIZE)
        self.blocks = nn.ModuleList([nn.Linear(SIZE, SIZE), Shift()])
        self.head = nn.Linear(SIZE, 2)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture(scope="module")
def attending():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, ids = Attending().eval(), torch.randint(0, 40, (60, 6))
    data = ki.attach(model, SITES, skip=1).observe(ids, progress=False)
    koopman = ki.fit(data, ki.FitConfig(hidden=()), method="least_squares")
    # Taken away at the last depth is what the last block has just brought from the token before.
    a = (koopman.encoder.linear.weight @ koopman.normalization.maps(2)[1].T)[:, 0].detach()
    return model, koopman, along(koopman, 2, a), ids


def test_what_other_tokens_bring_in_again_is_left_by_an_edit_that_is_carried(attending):
    model, koopman, edit, ids = attending
    with pytest.warns(UserWarning, match="written in place.*attention"):
        carried = ki.reach(ki.patched(model, koopman, edit), held_out=ids)
    assert carried.agreement < 0.1
    written = ki.reach(ki.patched(model, koopman, edit, at="each site"), held_out=ids)
    assert written.patched == carried.otherwise
    assert written.patched.share == pytest.approx(1, abs=1e-9)
    assert written.warning is None
    assert "carried by K from 'blocks.0' to 'blocks.1'" in repr(ki.patched(model, koopman, edit))
    assert "written in place at 'blocks.1'" in repr(ki.patched(model, koopman, edit, at="each site"))


def test_it_reads_the_rows_that_it_is_told_to(attending):
    model, koopman, edit, ids = attending
    patch = ki.patched(model, koopman, edit, at="each site", positions=slice(3, None))
    every = ki.reach(patch, held_out=ids)
    last = ki.reach(patch, held_out=ids, last=True)
    assert (every.rows, last.rows) == (60 * 5, 60)
    seen = ki.attach(model, SITES, skip=1).observe(ids, progress=False)
    with patch:
        changed = ki.attach(model, SITES, skip=1).observe(ids, progress=False).states[-1] - seen.states[-1]
    moved = changed.double().square().sum(1)
    assert bool((moved[seen.position < 3] == 0).all())
    rows = seen.states[-1].double()

    def relative(chosen):
        return float((moved[chosen].sum() / (rows[chosen] - rows[chosen].mean(0)).square().sum()).sqrt())

    assert every.patched.target == pytest.approx(relative(slice(None)), rel=1e-5)
    assert last.patched.target == pytest.approx(relative(seen.position == 5), rel=1e-5)


def test_several_sites_add_up_and_the_value_is_kept(case, tmp_path):
    edits = ki.each_site(case.koopman, lambda site: ki.erase_class(case.koopman, label=1, site=site))
    found = ki.reach(case.patch(edits, at="each site"), held_out=case.held_out[0])
    assert found.change == pytest.approx(sum(change**2 for change in found.changes) ** 0.5)
    assert found.sites == case.koopman.sites[1:]
    found.save(tmp_path / "reach.json")
    assert ki.Reach.load(tmp_path / "reach.json") == found
    assert "written in place" in str(found)


def test_an_audit_says_which_way_and_what_arrives(case, found):
    x = case.held_out[0]
    whole = ki.reach(case.patch(), held_out=x)
    # On at most four batches of 64, evenly spaced.
    batches = torch.cat([x[start : start + 64] for start in (0, 64, 128, 192)])
    assert found.reach.patched.share == pytest.approx(ki.reach(case.patch(), held_out=batches).patched.share, rel=1e-5)
    assert found.reach.patched.share == pytest.approx(whole.patched.share, rel=0.1)
    assert found.reach.rows == len(batches)
    assert any(note.startswith("The edit is carried by K from") for note in found.notes())
    assert ki.Audit.from_dict(found.as_dict()).reach == found.reach


def test_without_an_edit_or_installed_it_refuses(case):
    with pytest.raises(InputError, match="no edit"):
        ki.reach(case.patch(()), held_out=case.held_out[0])
    with case.patch() as patch, pytest.raises(InputError, match="installed already"):
        ki.reach(patch, held_out=case.held_out[0])

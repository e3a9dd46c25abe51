"""A set of edits is a sequence in order of depth, and a value."""

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import FileFormatError, HostMismatchError, InputError


@pytest.fixture(scope="module")
def every(surrogate):
    return ki.each_site(surrogate, lambda site: ki.erase_class(surrogate, label=1, site=site), range(5))


def rows(seed=0):
    return torch.randn(20, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_one_a_site_in_order_of_depth(surrogate, every):
    assert [edit.depth for edit in every] == [0, 1, 2, 3, 4]
    assert len(every) == 5
    assert every[2].site == surrogate.sites[2]
    assert [edit.depth for edit in every[1:3]] == [1, 2]
    some = ki.each_site(surrogate, lambda site: ki.erase_class(surrogate, label=1, site=site), ["blocks.2", 0, -1])
    assert [edit.depth for edit in some] == [0, 3, 4]
    assert torch.equal(some[1].readers, every[3].readers)
    assert ki.EditSet(tuple(every)[::-1], "backwards")[0].depth == 0


def test_by_default_all_sites_past_the_first(surrogate, every):
    past_the_first = ki.each_site(surrogate, lambda site: ki.erase_class(surrogate, label=1, site=site))
    assert [edit.depth for edit in past_the_first] == [1, 2, 3, 4]
    assert torch.equal(past_the_first[0].readers, every[1].readers)


def test_it_knows_the_classes_of_its_edits(surrogate, every, tmp_path):
    assert every.labels == (1,)
    other = ki.each_site(surrogate, lambda site: ki.erase_class(surrogate, label=2, site=site), [1, 4])
    both = other @ every
    assert both.labels == (1, 2)
    assert both[0].labels == (1,)
    assert both[1].labels == (1, 2)
    both.scaled(0.5).save(tmp_path / "both.safetensors")
    assert [edit.labels for edit in ki.EditSet.load(tmp_path / "both.safetensors")] == [edit.labels for edit in both]


def test_it_prints(surrogate, every):
    assert repr(every).startswith("EditSet(erase class 1, at 5 sites: 'blocks.0:input'")
    assert str(every).startswith(repr(every))
    frame = every.to_frame()
    assert frame["site"].tolist() == list(surrogate.sites)
    assert frame["undo error"].tolist() == [edit.certificate.undo_error for edit in every]
    assert "–" in str(every.scaled(0.5))
    assert [edit["depth"] for edit in every.as_dict()["edits"]] == [0, 1, 2, 3, 4]


def test_a_file_gives_the_set_back(every, tmp_path):
    every.save(tmp_path / "set.safetensors")
    again = ki.EditSet.load(tmp_path / "set.safetensors")
    assert str(again) == str(every)
    for ours, theirs in zip(every, again, strict=True):
        assert torch.equal(ours(rows()), theirs(rows()))
        assert (ours.host, ours.operator, ours.certificate) == (theirs.host, theirs.operator, theirs.certificate)


def test_the_file_of_one_edit_gives_a_set_of_one(every, surrogate, trajectories, tmp_path):
    every[2].save(tmp_path / "one.safetensors")
    (again,) = ki.EditSet.load(tmp_path / "one.safetensors")
    assert torch.equal(again(rows()), every[2](rows()))
    assert str(again) == str(every[2])
    trajectories.save(tmp_path / "other.safetensors")
    with pytest.raises(FileFormatError, match="holds 'trajectories', not the 'edits' or 'edit'"):
        ki.EditSet.load(tmp_path / "other.safetensors")
    every.save(tmp_path / "set.safetensors")
    with pytest.raises(FileFormatError, match="holds 'edits', not the 'edit'"):
        ki.OperatorEdit.load(tmp_path / "set.safetensors")


def test_sets_compose_depth_by_depth_and_the_order_matters(surrogate, every):
    other = ki.each_site(surrogate, lambda site: ki.erase_class(surrogate, label=2, site=site), [1, 4])
    there, back = other @ every, every @ other
    assert [edit.depth for edit in there] == [0, 1, 2, 3, 4]
    torch.testing.assert_close(there[1](rows()), other[0](every[1](rows())), rtol=0, atol=1e-9)
    torch.testing.assert_close(back[1](rows()), every[1](other[0](rows())), rtol=0, atol=1e-9)
    assert float((there[1](rows()) - back[1](rows())).abs().max()) > 1e-6
    assert torch.equal(there[2](rows()), every[2](rows()))
    assert there.description == "erase class 1, then erase class 2"


def test_strength_and_inverse_are_those_of_the_parts(every):
    half = every.scaled(0.5)
    for one, scaled, back in zip(every, half, half.inverse, strict=True):
        torch.testing.assert_close(scaled(rows()) - rows(), 0.5 * (one(rows()) - rows()))
        torch.testing.assert_close(back(scaled(rows())), rows(), rtol=0, atol=1e-9)
    with pytest.raises(InputError, match="it has no inverse"):
        _ = every.inverse


def test_what_is_no_set_is_refused(surrogate, every):
    with pytest.raises(InputError, match="one or more"):
        ki.EditSet((), "nothing")
    with pytest.raises(InputError, match="Compose those at one depth"):
        ki.EditSet((every[0], every[0]), "twice")
    from dataclasses import replace

    with pytest.raises(HostMismatchError, match="different operators"):
        ki.EditSet((every[0], replace(every[1], operator="other")), "mixed")
    with pytest.raises(InputError, match="needs one or more"):
        ki.each_site(surrogate, lambda site: every[0], [])

"""An affine lens knows its sites, what it left out and its host, and comes back from a file as it went in."""

from dataclasses import replace

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import read_tensors, write_tensors


@pytest.fixture
def lens(trajectories):
    return ki.AffineLens.fit(replace(trajectories, skip=2, layout="batch width"))


def test_what_was_chosen_at_observing_travels_with_it(lens, trajectories):
    assert (lens.sites, lens.skip, lens.host) == (trajectories.sites, 2, trajectories.host)
    assert lens.layout == "batch width"
    assert repr(lens) == "AffineLens(affine lens, least squares, 5 depths from 'blocks.0:input' to 'blocks.3')"


def test_what_is_saved_is_loaded_bit_for_bit(lens, trajectories, tmp_path):
    lens.save(tmp_path / "lens.safetensors")
    loaded = ki.AffineLens.load(tmp_path / "lens.safetensors")
    for name in ("sites", "skip", "layout", "host", "name"):
        assert getattr(loaded, name) == getattr(lens, name)
    assert loaded.digest() == lens.digest()
    for depth in range(4):
        rows = trajectories.states[depth][:20]
        assert torch.equal(loaded.at(depth)(rows), lens.at(depth)(rows))
    assert replace(lens, maps=lens.maps[::-1]).digest() != lens.digest()


def test_a_file_that_is_no_whole_lens_is_refused(lens, tmp_path):
    path = tmp_path / "lens.safetensors"
    lens.save(path)
    tensors, header = read_tensors(path, kind="affine lens")
    del tensors["bias.3"], header["kind"]
    write_tensors(path, tensors, kind="affine lens", header=header)
    with pytest.raises(FileFormatError, match="lacks parts of a lens"):
        ki.AffineLens.load(path)
    write_tensors(path, tensors, kind="edit", header=header)
    with pytest.raises(FileFormatError, match="holds 'edit'"):
        ki.AffineLens.load(path)


def test_it_has_a_site_for_each_map_and_the_last(lens):
    with pytest.raises(InputError, match="Expected 5 sites, one for each map and the last; got 4"):
        replace(lens, sites=lens.sites[1:])

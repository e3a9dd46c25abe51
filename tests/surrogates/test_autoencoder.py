"""A surrogate composes its parts, and comes back from a folder as it went in."""

import copy
import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import koopman_interp as ki
from koopman_interp.errors import FileFormatError, InputError, StorageError
from koopman_interp.files import read_json, write_tensors
from koopman_interp.hosts.layouts import shaped_like, to_rows
from koopman_interp.surrogates.folder import CONFIG_FILE, WEIGHTS_FILE
from koopman_interp.surrogates.operators import OPERATORS

HOST = ki.HostFingerprint(model="m.M", adapter="torch", basis="b", dtype="float32", weights="0" * 32)


def config(**changes):
    settings = {
        "sites": ("a", "b", "c"),
        "times": (0.0, 1.0, 2.0),
        "widths": (5, 6, 5),
        "shapes": ((5,), (6,), (5,)),
        "dimension": 4,
        "observables": 7,
        "architecture": "linear_plus_nonlinear",
        "hidden": (8, 9),
        "operator": "dense",
        "rank": None,
        "classes": (1, 4),
        "host": HOST,
    }
    return ki.SurrogateConfig(**(settings | changes))


def random_surrogate(**changes):
    """Every parameter and buffer is filled, so that none is saved by luck of its default."""
    surrogate = ki.KoopmanAutoencoder(config(**changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in surrogate.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
    return surrogate.eval()


def bit_equal(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
    return True


def test_predicting_is_encode_advance_decode(surrogate, trajectories):
    rows = trajectories.states[1][:20]
    z = surrogate.encoder(surrogate.normalization.normalize(rows, 1))
    z = z @ torch.linalg.matrix_power(surrogate.K, 2).T
    expected = surrogate.normalization.denormalize(surrogate.decoder(z), 3)
    torch.testing.assert_close(surrogate.predict(rows, 1, 3), expected)
    torch.testing.assert_close(surrogate.predict(rows, "blocks.0", "blocks.2"), expected)
    torch.testing.assert_close(
        surrogate.decode(surrogate.operator.advance(surrogate.encode(rows, 1), 2.0), 3), expected
    )


def test_ends_are_the_default_and_backwards_is_refused(surrogate, trajectories):
    rows = trajectories.states[0][:5]
    assert torch.equal(surrogate.predict(rows), surrogate.predict(rows, 0, 4))
    with pytest.raises(InputError, match="target after its source"):
        surrogate.predict(rows, 3, 1)


def test_a_fitted_surrogate_predicts_better_than_the_mean(surrogate, trajectories):
    last = trajectories.states[-1]
    error = (surrogate.predict(trajectories.states[0]) - last).square().sum()
    assert error < 0.5 * (last - last.mean(0)).square().sum()


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("architecture", ["linear_plus_nonlinear", "mlp"])
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, kind, architecture):
    rank = 3 if "low_rank" in kind else None
    before = random_surrogate(operator=kind, architecture=architecture, rank=rank)
    before.save_pretrained(tmp_path / "run" / "koopman")
    after = ki.KoopmanAutoencoder.from_pretrained(tmp_path / "run" / "koopman")
    assert bit_equal(before, after)
    assert after.config == before.config
    assert not after.training
    written = {path.name for path in (tmp_path / "run" / "koopman").iterdir()}
    assert written == {"README.md", CONFIG_FILE, WEIGHTS_FILE}


def test_a_fitted_surrogate_is_loaded_as_it_was(surrogate, trajectories, tmp_path):
    surrogate.save_pretrained(tmp_path)
    after = ki.KoopmanAutoencoder.from_pretrained(str(tmp_path))
    assert bit_equal(surrogate, after)
    assert after.config == surrogate.config
    assert after.digest() == surrogate.digest()
    assert torch.equal(after.predict(trajectories.states[0]), surrogate.predict(trajectories.states[0]))
    assert read_json(tmp_path / CONFIG_FILE)["sites"] == list(surrogate.sites)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_cast_surrogate_keeps_its_dtype_through_a_file(tmp_path, dtype):
    before = random_surrogate().to(dtype)
    before.save_pretrained(tmp_path)
    assert bit_equal(before, ki.KoopmanAutoencoder.from_pretrained(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_cast_surrogate_has_a_digest(dtype):
    one = random_surrogate().to(dtype)
    assert one.digest() == copy.deepcopy(one).digest()
    with torch.no_grad():
        one.operator.K[0, 0] += 1
    assert one.digest() != random_surrogate().to(dtype).digest()


def test_saving_again_replaces_the_old_fit_and_its_card(tmp_path):
    random_surrogate().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    second = random_surrogate(observables=9)
    second.save_pretrained(tmp_path)
    assert bit_equal(second, ki.KoopmanAutoencoder.from_pretrained(tmp_path))
    assert "9 observables" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kept", [0, 10, 0.5, -1])
def test_truncated_weights_are_refused(tmp_path, kept):
    random_surrogate().save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(FileFormatError, match="cut short"):
        ki.KoopmanAutoencoder.from_pretrained(tmp_path)


def test_foreign_weights_are_refused(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(FileFormatError, match="not written by koopman-interp"):
        ki.KoopmanAutoencoder.from_pretrained(tmp_path)
    write_tensors(tmp_path / WEIGHTS_FILE, {"x": torch.zeros(2)}, kind="trajectories", header={})
    with pytest.raises(FileFormatError, match="holds 'trajectories'"):
        ki.KoopmanAutoencoder.from_pretrained(tmp_path)


@pytest.mark.parametrize("header", [{}, {"config": {}}, {"config": 3}, {"config": None}])
def test_weights_without_their_configuration_are_refused(tmp_path, header):
    write_tensors(tmp_path / WEIGHTS_FILE, {"x": torch.zeros(2)}, kind="surrogate", header=header)
    with pytest.raises(FileFormatError, match="does not hold the surrogate"):
        ki.KoopmanAutoencoder.from_pretrained(tmp_path)


def test_weights_of_another_shape_than_their_configuration_are_refused(tmp_path):
    first, second = random_surrogate(), random_surrogate(observables=9)
    first.config = second.config
    first.save_pretrained(tmp_path)
    with pytest.raises(FileFormatError, match="does not hold the surrogate"):
        ki.KoopmanAutoencoder.from_pretrained(tmp_path)


def test_a_missing_folder_and_missing_weights_are_file_not_found_errors(tmp_path):
    for where in (tmp_path / "nothing", tmp_path, "nobody/nothing", "no such name/with/parts"):
        with pytest.raises(FileNotFoundError):
            ki.KoopmanAutoencoder.from_pretrained(where)


def test_an_unknown_operator_or_architecture_is_refused():
    with pytest.raises(InputError, match="no operator 'cayley'"):
        ki.KoopmanAutoencoder(config(operator="cayley"))
    # Past the annotation, as a file of a later release would.
    later = config()
    object.__setattr__(later, "architecture", "transformer")
    with pytest.raises(InputError, match="there are linear_plus_nonlinear, mlp"):
        ki.KoopmanAutoencoder(later)


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 7), (7, 4), (5, 5)])
def test_a_linear_plus_nonlinear_map_starts_near_an_isometry(inputs, outputs):
    surrogate = ki.KoopmanAutoencoder(config(dimension=min(inputs, 5), observables=outputs))
    weight = surrogate.encoder.linear.weight
    width = min(weight.shape)
    gram = weight.T @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.T
    assert torch.equal(gram, torch.eye(width))


def test_shapes_of_images_come_back_from_rows():
    surrogate = random_surrogate(widths=(12, 12, 8), shapes=((3, 2, 2), (3, 2, 2), (2, 2, 2)), dimension=4)
    state = torch.randn(5, 3, 2, 2)
    predicted = shaped_like(surrogate(to_rows(state), 0, 2), state, surrogate.config.shapes[2])
    assert predicted.shape == (5, 2, 2, 2)
    torch.testing.assert_close(predicted.flatten(1), surrogate.predict(state.flatten(1), 0, 2))


def test_tokens_and_their_dtype_come_back_from_rows():
    surrogate = random_surrogate()
    state = torch.randn(2, 3, 5).to(torch.bfloat16)
    predicted = shaped_like(surrogate(to_rows(state), 0, 1), state, surrogate.config.shapes[1])
    assert predicted.shape == (2, 3, 6)
    assert predicted.dtype == torch.bfloat16
    assert torch.equal(predicted[1, 2], surrogate.predict(state[1, 2:], 0, 1)[0].to(torch.bfloat16))


# --- the configuration beside the weights ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(trajectories, quick_config):
    return ki.fit(trajectories, replace(quick_config, seed=1), method="least_squares")


@pytest.mark.parametrize("renamed", [0, 1, 2, 3])
def test_a_kill_between_the_files_leaves_no_configuration_of_another_fit(
    surrogate, other, tmp_path, monkeypatch, renamed
):
    surrogate.save_pretrained(tmp_path)
    rename, left = Path.replace, renamed

    def dies(self, target):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies)
        if renamed == 3:
            other.save_pretrained(tmp_path)
        else:
            with pytest.raises(KeyboardInterrupt):
                other.save_pretrained(tmp_path)
    loaded = ki.KoopmanAutoencoder.from_pretrained(tmp_path)
    assert loaded.digest() == (other if renamed else surrogate).digest()
    if (tmp_path / CONFIG_FILE).exists():
        assert read_json(tmp_path / CONFIG_FILE)["record"]["settings"]["seed"] == loaded.record.settings["seed"]
    if (tmp_path / "README.md").exists():
        by = f"By `{loaded.record.method}`"
        assert by in (tmp_path / "README.md").read_text(encoding="utf-8")
    other.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", CONFIG_FILE, WEIGHTS_FILE}


def test_a_full_disk_leaves_both_files(surrogate, other, tmp_path, monkeypatch):
    surrogate.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full"):
        other.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_configuration_of_other_weights_is_refused_and_none_is_not(surrogate, other, tmp_path):
    surrogate.save_pretrained(tmp_path / "ours")
    other.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / CONFIG_FILE).replace(tmp_path / "ours" / CONFIG_FILE)
    with pytest.raises(FileFormatError, match=r"config\.json is not of the model\.safetensors beside it"):
        ki.KoopmanAutoencoder.from_pretrained(tmp_path / "ours")
    (tmp_path / "ours" / CONFIG_FILE).unlink()
    assert ki.KoopmanAutoencoder.from_pretrained(tmp_path / "ours").digest() == surrogate.digest()


def test_depths_go_by_the_names_of_their_sites_too(surrogate, trajectories):
    z = surrogate.encode(trajectories["blocks.1"], "blocks.1")
    assert torch.equal(z, surrogate.encode(trajectories.states[2], 2))
    assert torch.equal(surrogate.decode(z, "blocks.1"), surrogate.decode(z, 2))
    with pytest.raises(InputError, match=r"'block\.1' is not among the fitted sites"):
        surrogate.encode(trajectories.states[2], "block.1")

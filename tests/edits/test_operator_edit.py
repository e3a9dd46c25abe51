"""An edit is `K → K P` with a low-rank P: applied, undone, composed, scaled and stored without loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import koopman_interp as ki
from koopman_interp.edits.low_rank import LowRankMap
from koopman_interp.edits.operator_edit import Certificate
from koopman_interp.errors import FileFormatError, HostMismatchError, InputError
from koopman_interp.files import write_tensors

HOST = ki.HostFingerprint(model="m.M", adapter="torch", basis="b", dtype="float32", weights="0" * 32)
SIZE = 7


def operator(seed=0):
    return torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_edit(K, rank=2, seed=1, **changes):
    generator = torch.Generator().manual_seed(seed)
    A, W = (torch.randn(SIZE, rank, generator=generator, dtype=torch.float64) for _ in range(2))
    settings = {
        "description": f"edit {seed}",
        "site": "blocks.1",
        "depth": 2,
        "map": LowRankMap(A, W, torch.randn(rank, generator=generator, dtype=torch.float64)),
        "moved": K @ A,
        "host": HOST,
        "operator": "k" * 32,
        "labels": (seed,),
        "certificate": Certificate(rank, 0.2, 0.1, 12, 0.01, 1e-15),
    }
    return ki.OperatorEdit(**(settings | changes))


def rows(count=9, seed=5):
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def affine(edit):
    """P as a matrix on `[z, 1]`, written out entry by entry from its definition."""
    A, W, c = (part.numpy() for part in (edit.directions, edit.readers, edit.offset))
    P = np.eye(SIZE + 1)
    for r in range(A.shape[1]):
        P[:SIZE, :SIZE] -= np.outer(A[:, r], W[:, r])
        P[:SIZE, SIZE] += A[:, r] * c[r]
    return P


def on_rows(P, z):
    return (np.c_[z.numpy(), np.ones(len(z))] @ P.T)[:, :SIZE]


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_rows_move_as_the_affine_matrix_says(rank):
    edit, z = random_edit(operator(), rank), rows()
    np.testing.assert_allclose(edit(z).numpy(), on_rows(affine(edit), z), atol=1e-12)
    assert edit.rank == rank


def test_rows_of_any_batch_shape_and_dtype():
    edit, z = random_edit(operator()), rows(6)
    assert torch.equal(edit(z.view(2, 3, SIZE)), edit(z).view(2, 3, SIZE))
    narrow = edit(z.float())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), edit(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_apply_is_the_dense_product_and_undo_brings_k_back(rank):
    K = operator()
    edit = random_edit(K, rank)
    edited = edit.apply(K)
    np.testing.assert_allclose(edited.numpy(), K.numpy() @ affine(edit)[:SIZE, :SIZE], atol=1e-12)
    assert np.linalg.matrix_rank((edited - K).numpy()) == rank
    assert float((edit.undo(edited) - K).norm() / K.norm()) < 1e-12


def test_apply_answers_in_float64_whatever_k_is():
    K = operator().float()
    edit = random_edit(K.double())
    assert edit.apply(K).dtype == torch.float64
    assert torch.equal(edit.undo(edit.apply(K)).float(), K)


def test_composition_is_one_after_the_other():
    K, z = operator(), rows()
    first, second = random_edit(K, 2, seed=1), random_edit(K, 3, seed=2)
    both = second @ first
    torch.testing.assert_close(both(z), second(first(z)), rtol=0, atol=1e-11)
    np.testing.assert_allclose(affine(both), affine(second) @ affine(first), atol=1e-11)
    dense = K.numpy() @ affine(second)[:SIZE, :SIZE] @ affine(first)[:SIZE, :SIZE]
    np.testing.assert_allclose(both.apply(K).numpy(), dense, atol=1e-10)
    assert both.rank == 5
    assert both.certificate is None
    assert "not certified" in repr(both)
    assert both.description == "edit 1, then edit 2"
    assert (both.site, both.depth, both.host, both.operator) == (first.site, 2, HOST, first.operator)


def test_the_order_of_a_composition_matters():
    K, z = operator(), rows()
    first, second = random_edit(K, 1, seed=1), random_edit(K, 1, seed=2)
    assert float(((first @ second)(z) - (second @ first)(z)).abs().max()) > 0.1


def test_three_compose_either_way_of_bracketing():
    K, z = operator(), rows()
    a, b, c = (random_edit(K, 1, seed=seed) for seed in (1, 2, 3))
    torch.testing.assert_close(((c @ b) @ a)(z), c(b(a(z))), rtol=0, atol=1e-10)
    torch.testing.assert_close((c @ (b @ a))(z), c(b(a(z))), rtol=0, atol=1e-10)


@pytest.mark.parametrize("strength", [-1.0, 0.5, 1.0, 2.0])
def test_scaling_multiplies_the_displacement(strength):
    K, z = operator(), rows()
    edit = random_edit(K)
    scaled = edit.scaled(strength)
    torch.testing.assert_close(scaled(z) - z, strength * (edit(z) - z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scaled.apply(K) - K, strength * (edit.apply(K) - K), rtol=1e-12, atol=1e-12)
    assert scaled.certificate is None
    assert f"× {strength:g}" in scaled.description


def test_strength_nothing_changes_no_bit():
    K, z = operator(), rows(500) * 1e3
    none = random_edit(K).scaled(0.0)
    assert torch.equal(none(z), z)
    assert torch.equal(none(z.float()), z.float())
    assert torch.equal(none.apply(K), K)
    assert torch.equal((none @ none)(z), z)


def test_a_scaled_edit_is_still_undone():
    K = operator()
    scaled = random_edit(K).scaled(1.7)
    torch.testing.assert_close(scaled.undo(scaled.apply(K)), K, rtol=0, atol=1e-12)


def test_the_classes_it_forgets_stay_with_it():
    K = operator()
    first, second = random_edit(K, labels=(4,)), random_edit(K, seed=2, labels=(7, 4))
    assert first.scaled(0.5).labels == (4,)
    assert (second @ first).labels == (4, 7)
    assert (first @ second).labels == (7, 4)
    assert (first @ random_edit(K, labels=())).labels == (4,)
    assert first.inverse.labels == ()
    assert first.as_dict()["labels"] == [4]


def test_edits_at_different_depths_do_not_compose():
    K = operator()
    with pytest.raises(InputError, match=r"'embed' and 'blocks\.1'.*Patch with both"):
        random_edit(K) @ random_edit(K, depth=0, site="embed")


def test_edits_of_different_operators_do_not_compose():
    K = operator()
    with pytest.raises(HostMismatchError, match="different operators"):
        random_edit(K) @ random_edit(K, operator="other")


def test_edits_of_different_hosts_do_not_compose():
    K = operator()
    with pytest.raises(HostMismatchError, match="weights was"):
        random_edit(K) @ random_edit(K, host=replace(HOST, weights="1" * 32))


@pytest.mark.parametrize("rank", [1, 3])
def test_the_inverse_takes_rows_and_the_operator_back(rank):
    K, z = operator(), rows()
    edit = random_edit(K, rank)
    back = edit.inverse
    torch.testing.assert_close(back(edit(z)), z, rtol=0, atol=1e-9)
    torch.testing.assert_close(edit(back(z)), z, rtol=0, atol=1e-9)
    torch.testing.assert_close((back @ edit).apply(K), K, rtol=0, atol=1e-9)
    np.testing.assert_allclose(affine(back), np.linalg.inv(affine(edit)), atol=1e-8)
    np.testing.assert_allclose(back.moved.numpy(), K.numpy() @ back.directions.numpy(), atol=1e-8)


def test_a_projection_has_no_inverse_but_is_undone():
    K = operator()
    edit = random_edit(K, 1)
    projection = edit.scaled(1 / float(edit.directions[:, 0] @ edit.readers[:, 0]))
    torch.testing.assert_close(projection(projection(rows())), projection(rows()), rtol=0, atol=1e-9)
    with pytest.raises(InputError, match=r"has no inverse.*undo"):
        _ = projection.inverse
    torch.testing.assert_close(projection.undo(projection.apply(K)), K, rtol=0, atol=1e-12)


def test_it_prints_as_a_line_and_as_a_table():
    edit = random_edit(operator())
    assert repr(edit).startswith("OperatorEdit(edit 1, at 'blocks.1': rank 2, ")
    names = [line.split("  ")[0] for line in str(edit).splitlines()]
    assert names[:5] == ["fact", "edit", "site", "rank", "reading noise"]
    frame = edit.to_frame()
    assert dict(zip(frame["fact"], frame["value"], strict=True))["site"] == "blocks.1"
    assert ">edit 1</td>" in edit._repr_html_()
    assert edit.as_dict()["certificate"]["drift_rows"] == 12
    assert edit.as_dict()["rank"] == 2
    assert "not certified" in str(edit.scaled(0.5))


def test_past_1_the_certificate_says_so():
    within, past = (replace(random_edit(operator()).certificate, strength=strength) for strength in (1.0, 1.2))
    assert "over-erased" not in str(within)
    assert "1.2, past 1: over-erased" in str(past)


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("certified", [True, False])
def test_a_file_gives_the_edit_back(tmp_path, certified):
    K = operator()
    edit = random_edit(K) if certified else random_edit(K, seed=2) @ random_edit(K)
    edit.save(tmp_path / "deep" / "edit.safetensors")
    again = ki.OperatorEdit.load(tmp_path / "deep" / "edit.safetensors")
    for name in ("directions", "readers", "offset", "moved"):
        assert torch.equal(getattr(again, name), getattr(edit, name))
        assert getattr(again, name).dtype == torch.float64
    for name in ("description", "site", "depth", "host", "operator", "labels", "certificate"):
        assert getattr(again, name) == getattr(edit, name)
    assert (again.certificate is not None) == certified
    assert repr(again) == repr(edit)
    assert torch.equal(again(rows()), edit(rows()))


def test_a_file_of_before_the_longer_certificate_and_the_labels_still_loads(tmp_path):
    edit = random_edit(operator())
    facts = edit.facts()
    facts["certificate"] = {
        name: facts["certificate"][name]
        for name in ("rank", "noise", "retained_drift", "drift_rows", "class_mean_drift", "undo_error")
    }
    del facts["labels"]
    write_tensors(tmp_path / "old.safetensors", edit.factors, kind="edit", header=facts)
    again = ki.OperatorEdit.load(tmp_path / "old.safetensors")
    assert again.labels == ()
    assert again.certificate == edit.certificate
    assert again.certificate.null_dimension is None


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        ki.OperatorEdit.load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "edit.safetensors"
    random_edit(operator()).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileFormatError, match="not a whole safetensors file"):
        ki.OperatorEdit.load(path)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "edit.safetensors"
    save_file({"directions": torch.zeros(2, 1)}, path)
    with pytest.raises(FileFormatError, match="not written by koopman-interp"):
        ki.OperatorEdit.load(path)


def test_a_file_of_another_kind_is_refused(tmp_path, trajectories):
    path = tmp_path / "edit.safetensors"
    trajectories.save(path)
    with pytest.raises(FileFormatError, match="holds 'trajectories', not the 'edit'"):
        ki.OperatorEdit.load(path)


def test_a_file_that_lacks_parts_is_refused(tmp_path):
    path = tmp_path / "edit.safetensors"
    write_tensors(path, {"directions": torch.zeros(2, 1)}, kind="edit", header={"site": "a", "depth": 0})
    with pytest.raises(FileFormatError):
        ki.OperatorEdit.load(path)


def test_the_certificate_says_what_its_drift_was_measured_on():
    measured, bound = Certificate(1, 0.2, 0.1234, 1200, 0.01, 1e-15), Certificate(1, 0.2, 0.1234, 0, 0.01, 1e-15)
    assert "12.34 % (1,200 rows)" in str(measured)
    assert "12.34 % (at most, from held-out moments)" in str(bound)

"""Trajectories are values: they split by input, save and load, and refuse what does not fit."""

from dataclasses import fields, replace

import pytest
import torch

from koopman_interp import HostFingerprint, Trajectories
from koopman_interp.errors import FileFormatError, HostMismatchError, InputError, NonFiniteError

HOST = HostFingerprint(model="m.M", adapter="torch", basis="b", dtype="float32", weights="0" * 32)


def made(inputs=20, positions=3, widths=(4, 5, 6), times=(0.0, 1.0, 2.5), labelled=True, tokens=True):
    rows = inputs * positions
    generator = torch.Generator().manual_seed(0)
    return Trajectories(
        states=tuple(torch.randn(rows, width, generator=generator) for width in widths),
        sites=tuple(f"s{depth}" for depth in range(len(widths))),
        times=times,
        host=HOST,
        sequence=torch.arange(inputs).repeat_interleave(positions),
        position=torch.arange(positions).repeat(inputs),
        labels=torch.arange(rows) % 3 if labelled else None,
        tokens=torch.arange(rows) + 100 if tokens else None,
    )


def made_anew(whole, **changes):
    """The digests of the same rows where none are given."""
    given = {each.name: getattr(whole, each.name) for each in fields(whole) if each.name != "digests"}
    return Trajectories(**(given | changes)).digests


def same(first, second):
    tensors = [*first.states, first.sequence, first.position, first.digests]
    others = [*second.states, second.sequence, second.position, second.digests]
    assert first.sites == second.sites
    assert first.times == second.times
    assert first.host == second.host
    assert first.shapes == second.shapes
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(tensors, others, strict=True))
    assert (first.labels is None) == (second.labels is None)
    assert first.labels is None or torch.equal(first.labels, second.labels)
    assert (first.tokens is None) == (second.tokens is None)
    assert first.tokens is None or torch.equal(first.tokens, second.tokens)
    return True


def test_a_split_keeps_each_input_whole_and_loses_no_row():
    whole = made()
    first, second = whole.split(0.3, seed=4)
    assert set(first.sequence.tolist()).isdisjoint(second.sequence.tolist())
    assert len(torch.unique(second.sequence)) == 6
    rows = [
        (s, p) for part in (first, second) for s, p in zip(part.sequence.tolist(), part.position.tolist(), strict=True)
    ]
    assert sorted(rows) == sorted(zip(whole.sequence.tolist(), whole.position.tolist(), strict=True))
    for part in (first, second):
        at = part.sequence * 3 + part.position
        assert all(torch.equal(state[at], own) for state, own in zip(whole.states, part.states, strict=True))
        assert torch.equal(whole.labels[at], part.labels)
        assert torch.equal(whole.tokens[at], part.tokens)


def test_a_split_is_fixed_by_its_seed_and_leaves_the_random_state_alone():
    whole = made()
    before = torch.get_rng_state()
    assert same(whole.split(0.3, seed=1)[1], whole.split(0.3, seed=1)[1])
    assert torch.equal(torch.get_rng_state(), before)
    others = [whole.split(0.3, seed=seed)[1].sequence.tolist() for seed in range(5)]
    assert len({tuple(sequence) for sequence in others}) > 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.5])
def test_equal_inputs_are_never_on_both_sides(seed, fraction):
    once = made(40)
    twice = Trajectories.concatenate([once, replace(once, labels=once.labels + 3)])
    assert len(torch.unique(twice.sequence)) == 80
    fitted, held_out = twice.split(fraction, seed=seed)
    assert len(torch.unique(held_out.digests)) == round(fraction * 40)  # of those that differ
    assert not torch.isin(fitted.digests, held_out.digests).any()
    assert len(held_out) == 2 * 3 * round(fraction * 40)


def test_a_split_does_not_depend_on_the_order_of_rows():
    whole = made()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    held_out, shuffled = whole.split(0.3, seed=4)[1], whole[order].split(0.3, seed=4)[1]
    assert sorted(held_out.tokens.tolist()) == sorted(shuffled.tokens.tolist())
    renumbered = replace(whole, sequence=19 - whole.sequence)
    assert torch.equal(renumbered.split(0.3, seed=4)[1].states[1], held_out.states[1])


def test_digests_are_those_of_the_inputs_and_follow_their_rows():
    whole = made()
    by_input = whole.digests.reshape(20, 3)
    assert (by_input == by_input[:, :1]).all()
    assert len(torch.unique(by_input)) == 20
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert torch.equal(whole[order].digests, whole.digests[order])
    # Made anew, from rows in any order and whatever lies past the first depth.
    assert torch.equal(made_anew(whole[order]), whole.digests[order])
    first, *later = (state.clone() for state in whole.states)
    assert torch.equal(made_anew(whole, states=(first, *(state + 1 for state in later))), whole.digests)
    first[4] += 1
    changed = made_anew(whole, states=(first, *later)) != whole.digests
    assert changed.nonzero().flatten().tolist() == [3, 4, 5]


def test_digests_that_are_given_are_kept():
    own = torch.arange(60) // 6
    whole = replace(made(), digests=own)
    assert torch.equal(whole.between("s1").digests, own)
    assert torch.equal(whole.with_labels([1] * 60).digests, own)
    fitted, held_out = whole.split(0.3)
    assert len(torch.unique(held_out.digests)) == 3
    assert torch.equal(torch.cat([fitted.digests, held_out.digests]).sort().values, own)


@pytest.mark.parametrize(("inputs", "fraction"), [(20, 0.0), (20, 1.0), (20, 0.01), (1, 0.5), (20, 1.4), (20, -0.2)])
def test_a_split_with_an_empty_part_is_refused(inputs, fraction):
    with pytest.raises(InputError, match=f"of {inputs} distinct inputs"):
        made(inputs).split(fraction)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("tokens", [True, False])
def test_what_is_saved_is_loaded(tmp_path, labelled, tokens):
    whole = made(labelled=labelled, tokens=tokens)
    whole = replace(whole, states=tuple(state.to(torch.bfloat16) for state in whole.states))
    whole.save(tmp_path / "t.safetensors")
    assert same(Trajectories.load(tmp_path / "t.safetensors"), whole)


def test_a_selection_can_be_saved(tmp_path):
    part = made()[3:9]
    part.save(tmp_path / "t.safetensors")
    assert same(Trajectories.load(tmp_path / "t.safetensors"), part)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    made().save(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(FileFormatError, match="cut short"):
        Trajectories.load(path)
    with pytest.raises(FileNotFoundError):
        Trajectories.load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("times", [(0.0, 0.0, 1.0), (0.0, 2.0, 1.0), (0.0, 1.0, float("nan"))])
def test_times_must_increase(times):
    with pytest.raises(InputError, match="Times must increase"):
        made(times=times)


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_depths_and_rows_must_agree():
    whole = made()
    with pytest.raises(InputError, match="two or more depths"):
        replace(whole, states=whole.states[:1], sites=whole.sites[:1], times=whole.times[:1])
    with pytest.raises(InputError, match="3 states, 2 sites and 3 times"):
        replace(whole, sites=whole.sites[:2])
    with pytest.raises(InputError, match="same number of samples"):
        replace(whole, states=(whole.states[0][:5], *whole.states[1:]))
    with pytest.raises(InputError, match="same number of samples"):
        replace(whole, position=whole.position[:5])
    with pytest.raises(InputError, match="60 token ids"):
        replace(whole, tokens=torch.zeros(59, dtype=torch.long))
    with pytest.raises(InputError, match="60 labels"):
        replace(whole, labels=torch.zeros(59, dtype=torch.long))
    with pytest.raises(InputError, match="60 digests"):
        replace(whole, digests=torch.zeros(59, dtype=torch.long))


def test_it_is_frozen():
    with pytest.raises(AttributeError):
        made().sites = ()


def test_rows_are_taken_by_slice_index_and_mask():
    whole = made()
    index = torch.tensor([5, 2, 9])
    mask = torch.zeros(60, dtype=torch.bool)
    mask[[2, 5, 9]] = True
    assert torch.equal(whole[index].states[2], whole.states[2][index])
    assert torch.equal(whole[index].labels, whole.labels[index])
    assert same(whole[mask], whole[torch.tensor([2, 5, 9])])
    assert same(whole[2:5], whole[torch.tensor([2, 3, 4])])
    assert len(whole[:7]) == 7


def test_between_keeps_a_span_with_its_times():
    whole = made()
    part = whole.between("s1")
    assert part.sites == ("s1", "s2")
    assert part.times == (1.0, 2.5)
    assert part.widths == (5, 6)
    assert all(a is b for a, b in zip(part.states, whole.states[1:], strict=True))
    assert whole.between(0, -2).sites == ("s0", "s1")
    with pytest.raises(InputError, match="target after its source"):
        whole.between("s2", "s1")
    with pytest.raises(InputError, match="Nearest: s"):
        whole.between("s9")


def test_labels_may_be_one_a_row_or_one_an_input():
    bare = made(labelled=False)
    by_input = torch.arange(20) * 2
    assert torch.equal(bare.with_labels(by_input).labels, by_input[bare.sequence])
    assert bare.with_labels(list(range(60))).labels.tolist() == list(range(60))
    assert bare.with_labels(torch.tensor([3, 1] * 30)).classes == (1, 3)
    assert bare.classes == ()
    assert bare.labels is None


def test_labels_by_input_follow_a_selection():
    part = made(labelled=False)[torch.tensor([0, 1, 30, 59])]
    assert part.with_labels(torch.arange(20)).labels.tolist() == [0, 0, 10, 19]


@pytest.mark.parametrize("count", [0, 19, 21, 59, 61])
def test_labels_of_another_number_are_refused_with_both_numbers(count):
    with pytest.raises(InputError, match=f"Expected 60 labels.*20 labels, one an observed input; got {count}"):
        made().with_labels(torch.ones(count, dtype=torch.long))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("labels", [[0.5] * 60, ["yin"] * 60, torch.zeros(60)])
def test_labels_that_are_no_whole_numbers_are_refused(labels):
    with pytest.raises(InputError, match="whole numbers"):
        made().with_labels(labels)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_states_that_are_not_finite_name_site_and_row(number):
    whole = made()
    whole.require_finite()
    whole.states[1][7, 2] = number
    with pytest.raises(NonFiniteError, match=r"1 of 60 samples.*'s1'.*row 7") as caught:
        whole.require_finite()
    assert isinstance(caught.value, ArithmeticError)


def test_it_shows_what_it_holds():
    assert repr(made()) == "Trajectories(60 samples, 3 depths from 's0' to 's2', width 4 to 6, 3 classes)"


def test_samples_labelled_to_be_ignored_are_left_out():
    labels = torch.where(torch.arange(60) % 4 == 1, -100, torch.arange(60))
    kept = made().with_labels(labels)
    assert same(kept, replace(made(), labels=labels)[labels != -100])
    assert len(kept) == 45


# --- concatenation ------------------------------------------------------------------------------------------


def test_parts_of_one_whole_are_joined_to_it():
    whole = made()
    parts = [whole[:7], whole[7:7], whole[7:40], whole[40:]]  # cut in the middle of inputs
    assert same(Trajectories.concatenate(iter(parts), same_inputs=True), whole)
    assert same(Trajectories.concatenate([whole]), whole)


def test_inputs_of_separate_observations_stay_apart():
    joined = Trajectories.concatenate([made(4), made(5), made(2)])
    assert joined.sequence.tolist() == torch.arange(11).repeat_interleave(3).tolist()
    # Parts that are numbered through already keep their numbers.
    whole = made(6)
    assert same(Trajectories.concatenate([whole[:9], whole[9:]]), whole)


def test_parts_that_do_not_belong_together_are_refused():
    whole = made()
    others = {
        "same sites": replace(whole, sites=("s0", "s1", "other")),
        "same times": replace(whole, times=(0.0, 1.0, 2.0)),
        "same shapes": replace(whole, shapes=((4,), (5,), (1, 2, 3))),
        "Some parts have labels": replace(whole, labels=None),
        "Some parts have tokens": replace(whole, tokens=None),
        "belongs to another host": replace(whole, host=replace(HOST, weights="1" * 32)),
    }
    for message, other in others.items():
        with pytest.raises((InputError, HostMismatchError), match=message):
            Trajectories.concatenate([whole, other])
    with pytest.raises(InputError, match="no trajectories to concatenate"):
        Trajectories.concatenate([])


# --- text ---------------------------------------------------------------------------------------------------


class Letters:
    """Decodes an id to a letter with a space before it, and drops the first space, as many tokenizers do."""

    def decode(self, ids):
        return "".join(f" {chr(token)}" for token in ids).strip()


def told(text):
    """One input, a letter a token."""
    return replace(made(1, len(text)), tokens=torch.tensor([ord(letter) for letter in text]))


def test_a_row_is_shown_in_its_text():
    spoken = told("abcdefg")
    assert spoken.text(0, Letters()) == "⟦a⟧ b c d e f g"
    assert spoken.text(3, Letters()) == "a b c⟦ d⟧ e f g"
    assert spoken.text(6, Letters()) == "a b c d e f⟦ g⟧"
    assert spoken.text(3, Letters(), around=2) == "… b c⟦ d⟧ e f …"
    assert spoken.text(1, Letters(), around=1) == "a⟦ b⟧ c …"
    assert spoken.text(3, Letters(), around=0) == "… ⟦d⟧ …"


def test_the_text_ends_where_a_token_is_missing():
    spoken = told("abcdefg")
    assert spoken[2:].text(0, Letters()) == "… ⟦c⟧ d e f g"  # two that were skipped
    assert spoken[torch.tensor([0, 1, 3, 4])].text(2, Letters()) == "… ⟦d⟧ e"
    shuffled = spoken[torch.tensor([5, 0, 3, 6, 1, 4, 2])]  # as passes of a generation leave them
    assert shuffled.text(2, Letters()) == "a b c⟦ d⟧ e f g"


def test_the_text_is_that_of_the_rows_own_input():
    both = Trajectories.concatenate([told("abc"), told("xyz")])
    assert both.text(4, Letters()) == "x⟦ y⟧ z"


def test_without_token_ids_there_is_no_text():
    with pytest.raises(InputError, match="no token ids"):
        made(tokens=False).text(0, Letters())


def test_a_name_takes_the_states_of_a_site_and_a_number_one_sample(trajectories):
    assert trajectories["blocks.2"] is trajectories.states[3]
    with pytest.raises(InputError, match=r"'blocks\.7' is not among"):
        trajectories["blocks.7"]
    few = trajectories[:4]
    assert [len(one) for one in few] == [1] * 4
    for number, one in enumerate(few):
        assert torch.equal(one.states[1], few.states[1][number : number + 1])
        assert torch.equal(few[number - 4].states[1], one.states[1])
    with pytest.raises(IndexError, match="4 samples"):
        few[4]

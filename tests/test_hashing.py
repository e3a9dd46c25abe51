"""Hashes tell rows apart by their content alone, and a draw by hash is as even as a random one."""

import time

import numpy as np
import pytest
import torch

from koopman_interp.hashing import (
    among,
    drawn,
    group_digests,
    joined_digests,
    mixed,
    row_digests,
    tensor_digest,
    token_digests,
)


def numbers(digests):
    return digests.tolist()


def test_mixing_is_that_of_splitmix64():
    # Of the reference code at the seed 1234567 (Vigna, prng.di.unimi.it/splitmix64.c).
    states = (1234567 + np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    assert mixed(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (7, 2), (2, 5, 5), (40_000,)])
def test_rows_have_the_same_digest_just_where_they_are_equal(dtype, shape):
    rows = torch.randint(0, 2, (6, *shape), generator=torch.Generator().manual_seed(0)).to(dtype)
    digests = row_digests(rows)
    assert digests.dtype == torch.int64
    for i in range(6):
        for j in range(6):
            assert (digests[i] == digests[j]) == torch.equal(rows[i], rows[j])
    # Neither neighbours nor the place in memory make a difference.
    assert torch.equal(row_digests(rows.flip(0)), digests.flip(0))
    assert torch.equal(row_digests(rows[2:3].clone()), digests[2:3])


def test_shape_and_dtype_are_part_of_a_row():
    rows = torch.zeros(1, 4)
    others = [rows.reshape(1, 2, 2), rows.to(torch.float64), rows.to(torch.int32), torch.zeros(1, 5), torch.zeros(1, 0)]
    assert len({int(row_digests(one)[0]) for one in (rows, *others)}) == 6


def test_a_change_of_any_bit_changes_about_half_of_all_bits():
    rows = torch.zeros(9, 5, dtype=torch.int64)
    for index in range(1, 9):
        rows[index, index % 5] = 1 << (8 * index - 8)
    digests = row_digests(rows).numpy().view(np.uint64)
    changed = [int(one ^ digests[0]).bit_count() for one in digests[1:]]
    assert min(changed) > 16
    assert max(changed) < 48


def test_rows_that_differ_little_do_not_collide():
    # Small whole numbers in float32: all that differs are the high bits of each half of a word.
    grid = torch.cartesian_prod(torch.arange(300.0), torch.arange(300.0))
    assert len(torch.unique(row_digests(grid))) == len(grid)


def test_padding_of_tokens_makes_no_difference_on_either_side():
    ids = torch.tensor([[5, 6, 7], [7, 6, 5], [5, 6, 0]])
    bare = token_digests(ids[:2])
    left = torch.tensor([[9, 9, 5, 6, 7], [9, 7, 6, 5, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 0]]).bool()
    assert numbers(token_digests(left, mask)) == numbers(bare)
    assert numbers(token_digests(ids[:2].to(torch.int32))) == numbers(bare)
    # A token less is another sequence, also where the last is 0; so is another order.
    shorter = token_digests(ids, torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]]).bool())
    assert len({*numbers(shorter), *numbers(token_digests(ids))}) == 4


def test_parts_are_joined_by_name():
    first, second = row_digests(torch.arange(3)), row_digests(torch.arange(3) + 7)
    joined = joined_digests([("a", first), ("b", second)])
    assert numbers(joined_digests([("b", second), ("a", first)])) == numbers(joined)
    assert len({*numbers(joined), *numbers(joined_digests([("a", second), ("b", first)])), *numbers(first)}) == 9


def test_a_group_has_one_digest_whatever_the_order_of_its_rows():
    rows = row_digests(torch.arange(6))
    group, place = torch.tensor([4, 4, 9, 9, 9, 1]), torch.tensor([0, 1, 0, 1, 2, 0])
    digests = group_digests(rows, group, place)
    assert len(set(numbers(digests))) == 3
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    assert torch.equal(group_digests(rows[order], group[order], place[order]), digests[order])
    # The numbers of the groups say nothing; places do.
    assert torch.equal(group_digests(rows, group + 3, place), digests)
    swapped = group_digests(rows, group, torch.tensor([1, 0, 0, 1, 2, 0]))
    assert (swapped == digests).tolist() == [False, False, True, True, True, True]


def test_a_draw_takes_as_many_as_asked_and_depends_on_inputs_and_seed_alone():
    inputs = row_digests(torch.arange(1000))
    first = drawn(inputs, 100, seed=3)
    assert len(torch.unique(first)) == 100
    assert torch.isin(first, inputs).all()
    shuffled = inputs[torch.randperm(1000, generator=torch.Generator().manual_seed(0))].repeat(2)
    assert torch.equal(drawn(shuffled, 100, seed=3), first)
    assert torch.isin(first, drawn(inputs, 300, seed=3)).all()  # more are the same and others
    assert torch.equal(first, first.sort().values)


def test_draws_of_other_seeds_have_as_much_in_common_as_random_ones():
    inputs = row_digests(torch.arange(2000))
    draws = [drawn(inputs, 200, seed) for seed in range(-5, 15)]
    shared = [int(torch.isin(one, other).sum()) for i, one in enumerate(draws) for other in draws[:i]]
    # Hypergeometric: 20 expected, with a spread of 4.
    assert 18 < np.mean(shared) < 22
    assert max(shared) < 20 + 6 * 4
    taken = torch.stack([torch.isin(inputs, draw) for draw in draws]).sum(0)
    assert int(taken.max()) < 12  # binomial of 20 at a tenth


def test_a_hundred_thousand_inputs_take_well_under_a_second():
    inputs = row_digests(torch.arange(100_000))
    started = time.perf_counter()
    held_out = drawn(inputs, 10_000, seed=0)
    assert int(torch.isin(inputs, held_out).sum()) == 10_000
    assert time.perf_counter() - started < 0.5


def test_a_tensor_digest_covers_names_and_bytes():
    whole = [("a", torch.zeros(2, dtype=torch.bfloat16)), ("b", torch.ones(3))]
    digests = {
        tensor_digest(each)
        for each in (whole, whole[:1], [("a", whole[0][1]), ("c", whole[1][1])], [whole[0], ("b", torch.zeros(3))])
    }
    assert len(digests) == 4
    assert tensor_digest(whole) in digests


@pytest.mark.parametrize("known", [0, 1, 40])
def test_digests_among_known_ones_are_those_that_isin_marks(known):
    generator = torch.Generator().manual_seed(known)
    some = torch.randint(-50, 50, (200,), generator=generator)
    ascending = torch.unique(some)[:known]
    assert torch.equal(among(some, ascending), torch.isin(some, ascending))

"""The context of an encoder: causal, the same wherever its sequence lies, nothing at the start, and as attention is."""

import math

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.surrogates.context import CausalContext, CausalEncoder, ContextShape
from koopman_interp.surrogates.networks import LinearPlusNonlinear

INPUTS, OUTPUTS, SHAPE = 6, 9, ContextShape(blocks=2, width=8, heads=2)


@pytest.fixture(scope="module")
def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = CausalEncoder(LinearPlusNonlinear(INPUTS, (12,), OUTPUTS), INPUTS, OUTPUTS, SHAPE).double()
        for parameter in encoder.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return encoder.requires_grad_(False)


def rows(count, seed=0):
    return torch.randn(count, INPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_sequence(length, start=0):
    return ki.Sequences.of(torch.zeros(length, dtype=torch.long), torch.arange(start, start + length))


def slow_attention(block, h, places):
    """Attention and MLP of one sequence, row by row and head by head, after the formulas."""
    normal = block.before_attention(h)
    width = h.shape[1]
    size = width // block.heads
    query, key, value = (normal @ block.query_key_value.weight.T + block.query_key_value.bias).split(width, 1)

    def turned(vector, place):
        half = size // 2
        out = torch.empty_like(vector)
        for i in range(half):
            angle = place * 10_000.0 ** (-i / half)
            cosine, sine = math.cos(angle), math.sin(angle)
            out[i] = vector[i] * cosine - vector[i + half] * sine
            out[i + half] = vector[i + half] * cosine + vector[i] * sine
        return out

    found = torch.zeros_like(h)
    for head in range(block.heads):
        own = slice(head * size, (head + 1) * size)
        for i in range(len(h)):
            q = turned(query[i, own], places[i])
            weights = torch.tensor(
                [float(q @ turned(key[j, own], places[j])) / math.sqrt(size) for j in range(i + 1)], dtype=h.dtype
            ).softmax(0)
            found[i, own] = sum(weight * value[j, own] for j, weight in enumerate(weights))
    h = h + found @ block.out.weight.T + block.out.bias
    return h + block.mlp(block.before_mlp(h))


def test_it_is_the_attention_that_the_formulas_say(encoder):
    x = rows(7)
    h = encoder.context.enter(x)
    for block in encoder.context.blocks:
        h = slow_attention(block, h, list(range(7)))
    expected = encoder.token(x) + encoder.context.norm(h) @ encoder.leave.weight.T
    torch.testing.assert_close(encoder(x, one_sequence(7)), expected, rtol=0, atol=1e-12)


def test_a_later_row_changes_no_earlier_observable(encoder):
    x, sequences = rows(7), one_sequence(7)
    z = encoder(x, sequences)
    for changed in range(7):
        other = x.clone()
        other[changed] += 1.0
        found = encoder(other, sequences)
        torch.testing.assert_close(found[:changed], z[:changed], rtol=0, atol=0)
        assert bool((found[changed:] != z[changed:]).any(1).all()), "a row that no later one sees"


def test_where_a_sequence_begins_and_what_lies_beside_it_changes_nothing(encoder):
    x, other = rows(5), rows(8, seed=1)
    alone = encoder(x, one_sequence(5))
    torch.testing.assert_close(encoder(x, one_sequence(5, start=30)), alone, rtol=0, atol=1e-12)
    # Interleaved with a longer sequence, and given in disorder.
    sequence = torch.tensor([0] * 5 + [1] * 8)
    place = torch.cat([torch.arange(5), torch.arange(8)])
    order = torch.randperm(13, generator=torch.Generator().manual_seed(2))
    found = encoder(torch.cat([x, other])[order], ki.Sequences.of(sequence[order], place[order]))
    torch.testing.assert_close(found[order.argsort()][:5], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_columns_without_a_row_are_never_seen(encoder, side):
    x = rows(5)
    alone = encoder(x, one_sequence(5))
    padding = torch.full((3, INPUTS), math.nan, dtype=torch.float64)
    columns = torch.cat([torch.full((3,), -1), torch.arange(3, 8)]) if side == "left" else torch.arange(8)
    if side == "right":
        columns[5:] = -1
    padded = torch.cat([padding, x] if side == "left" else [x, padding])
    places = torch.arange(8) if side == "right" else torch.arange(8) - 3
    features, _ = encoder.context(encoder.context.enter(padded), ki.Sequences(columns[None], places[None]))
    real = columns >= 0
    expected = alone - encoder.token(x)
    torch.testing.assert_close(encoder.leave(features)[real], expected, rtol=0, atol=1e-12)
    assert not features[~real].any()


def test_columns_one_after_another_are_all_at_once(encoder):
    x = rows(9)
    whole = encoder(x, one_sequence(9))
    past, found = None, []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        z, seen = encoder.look_back(x[start:stop], one_sequence(stop - start, start), past)
        past = seen if past is None else past.then(seen)
        found.append(z)
    torch.testing.assert_close(torch.cat(found), whole, rtol=0, atol=1e-12)


def test_depths_are_apart_from_each_other(encoder):
    x = torch.stack([rows(6, seed) for seed in range(3)])
    apart = torch.stack([encoder(each, one_sequence(6)) for each in x])
    torch.testing.assert_close(encoder(x, one_sequence(6)), apart, rtol=0, atol=1e-12)


def test_without_what_it_gathers_it_is_the_token_wise_encoder(encoder):
    x = rows(6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = CausalEncoder(LinearPlusNonlinear(INPUTS, (12,), OUTPUTS), INPUTS, OUTPUTS, SHAPE).double()
    assert torch.equal(fresh(x, one_sequence(6)), fresh.token(x))
    fresh.token(x).sum().backward()
    gradient = torch.autograd.grad(fresh(x, one_sequence(6)).square().sum(), fresh.leave.weight)[0]
    assert gradient.any(), "a start that it cannot leave"


def test_rows_without_their_sequences_are_refused(encoder):
    with pytest.raises(InputError, match=r"context='causal'.*trajectories.in_sequence\(\)"):
        encoder(rows(4))
    with pytest.raises(InputError, match="tell how 5 rows follow each other, and there are 4"):
        encoder(rows(4), one_sequence(5))


def test_heads_need_an_even_width():
    with pytest.raises(InputError, match="expected a width that 6 divides, for 3 heads; got 8"):
        CausalContext(4, ContextShape(blocks=1, width=8, heads=3))

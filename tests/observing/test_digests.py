"""An input has the same digest in whatever batch it comes, and two that differ have two."""

import pytest
import torch

from koopman_interp.errors import InputError
from koopman_interp.hosts.tokens import right_padded
from koopman_interp.observing.digests import input_digests, named_parts
from koopman_interp.observing.samples import Samples

ROWS = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(3, 90, (12, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("of", ["rows", "ids", "mapping", "pair"])
@pytest.mark.parametrize("size", [1, 5, 12])
def test_how_the_inputs_are_cut_makes_no_difference(of, size):
    def batch(part):
        return {
            "rows": ROWS[part],
            "ids": IDS[part],
            "mapping": {"x": ROWS[part], "image": IDS[part].float(), "scale": torch.tensor(2.0)},
            "pair": (ROWS[part], IDS[part]),
        }[of]

    whole = input_digests(batch(slice(None)))
    assert len(torch.unique(whole)) == 12
    parts = [input_digests(batch(slice(start, start + size))) for start in range(0, 12, size)]
    assert torch.equal(torch.cat(parts), whole)


def test_token_ids_are_the_same_input_however_they_are_padded_and_named():
    sequences = [[5, 6, 7], [8], [5, 6], [6, 5]]
    alone = torch.cat([input_digests(torch.tensor([sequence])) for sequence in sequences])
    assert len(torch.unique(alone)) == 4
    assert torch.equal(input_digests(right_padded(sequences, 0)), alone)
    left = {
        "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 1], [0, 1, 1], [0, 1, 1]]),
        "input_ids": torch.tensor([[5, 6, 7], [1, 1, 8], [1, 5, 6], [1, 6, 5]]),
    }
    assert torch.equal(input_digests(left), alone)
    assert torch.equal(input_digests(left | {"position_ids": left["attention_mask"].cumsum(1)}), alone)
    assert torch.equal(input_digests(torch.tensor([[5, 6]], dtype=torch.int32)), alone[2:3])


def test_what_stands_beside_the_tokens_tells_inputs_apart():
    ids = torch.tensor([[5, 6], [5, 6]])
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert len(torch.unique(input_digests({"input_ids": ids, "pixel_values": images}))) == 2
    assert len(torch.unique(input_digests({"input_ids": ids, "pixel_values": images[:1].repeat(2, 1, 1, 1)}))) == 1


def test_a_batch_that_cannot_be_taken_apart_is_refused():
    for batch in ({"use_cache": False}, object(), {"scale": torch.tensor(1.0)}, [], torch.tensor(1.0)):
        with pytest.raises(InputError, match="cannot be told apart"):
            input_digests(batch)
    with pytest.raises(InputError, match=r"12 entries .* 3 inputs"):
        input_digests(ROWS, Samples.of((3, 4, 5), None))
    assert len(input_digests(ROWS, Samples.of((12, 5), None))) == 12


def test_only_what_there_is_one_of_an_input_is_a_part():
    batch = {"input_ids": IDS, "mask": torch.ones(7, 7), "flag": True, "weight": torch.ones(12)}
    assert set(named_parts(batch)) == {"input_ids", "weight"}

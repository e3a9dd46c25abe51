"""What is read as logits: probabilities, of which another softmax would be taken, and single numbers are refused."""

import pytest
import torch

from koopman_interp.errors import UnsupportedHostError
from koopman_interp.observing.outputs import Output, logits_of

LOGITS = 3 * torch.randn(40, 11, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(40, 11), (8, 5, 11)])
def test_probabilities_are_refused_and_their_logarithms_are_what_the_logits_are(dtype, shape):
    own = LOGITS.reshape(shape)
    with pytest.raises(UnsupportedHostError, match=r"probabilities.*\.log\(\)"):
        Output.of_logits(own.softmax(-1).to(dtype), None)
    expected = Output.of_logits(own, None).logp
    torch.testing.assert_close(Output.of_logits(own.double().softmax(-1).log(), None).logp, expected)


def test_logits_that_happen_to_be_nowhere_negative_are_logits():
    for logits in (LOGITS.relu(), LOGITS.abs(), torch.cat([LOGITS[:1].softmax(-1), LOGITS])):
        torch.testing.assert_close(Output.of_logits(logits, None).logp, logits.double().log_softmax(-1))


@pytest.mark.parametrize("shape", [(6,), (6, 1), (2, 3, 1)])
def test_one_number_an_input_is_no_row_of_logits_and_what_is_offered_gives_its_odds(shape):
    y = torch.randn(shape)
    with pytest.raises(UnsupportedHostError, match=r"torch\.stack\(\[torch\.zeros_like\(y\), y\], -1\)"):
        Output.of_logits(y, None)
    y = y.flatten().double()
    found = Output.of_logits(torch.stack([torch.zeros_like(y), y], -1), None).logp
    torch.testing.assert_close(found[:, 1], torch.nn.functional.logsigmoid(y))


def test_logits_are_found_under_their_name():
    named = type("Named", (), {"logits": LOGITS})()
    assert logits_of({"aux": LOGITS[:1], "logits": LOGITS}) is logits_of(named) is logits_of(LOGITS) is LOGITS
    with pytest.raises(UnsupportedHostError, match="dict"):
        logits_of({"scores": LOGITS})

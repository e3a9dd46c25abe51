import pytest
import torch

from koopman_interp.errors import InputError
from koopman_interp.hosts.finding import host_for
from koopman_interp.observing.next_tokens import labelled_by_next_token
from tests.hosts.lens_models import tokenizer


@pytest.fixture
def host():
    transformers = pytest.importorskip("transformers", reason="transformers is missing")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.tokenizer = tokenizer()
    return host_for(model)


SEQUENCES = [[1, 2, 3, 2], [5, 2], [4, 3, 2, 6, 7]]


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_labels_are_the_ids_one_on_and_padding_has_none(host, skip, batch_size):
    labelled = labelled_by_next_token(host, SEQUENCES, skip=skip, batch_size=batch_size)
    expected = [label for ids in SEQUENCES for label in [*ids[1:], -100][skip:]]
    assert torch.cat([y for _, y in labelled]).tolist() == expected


def test_tokens_that_follow_too_seldom_are_left_out(host):
    following = [label for ids in SEQUENCES for label in ids[1:]]
    ((_, labels),) = labelled_by_next_token(host, SEQUENCES, least=2)
    kept = labels[labels != -100].tolist()
    assert kept == [label for label in following if following.count(label) >= 2]
    with pytest.raises(InputError, match="No token follows 9 times or more"):
        labelled_by_next_token(host, SEQUENCES, least=9)


def test_labels_of_both_kinds_are_refused(host):
    with pytest.raises(InputError, match="got both"):
        labelled_by_next_token(host, [(SEQUENCES[:1], [0])])

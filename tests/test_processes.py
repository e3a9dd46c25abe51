"""What processes say to each other; with one alone, nothing is asked of anybody."""

import pytest
import torch
import torch.distributed as dist

from koopman_interp.errors import ProcessError
from koopman_interp.processes import Processes


def test_one_process_alone_keeps_what_it_has():
    here, tensor = Processes.here(), torch.arange(3.0)
    here.add_up([tensor])
    here.copy_from_first([tensor])
    here.wait()
    assert here.is_first and not here.are_several
    assert (here.given("it"), here.all_of("it")) == ("it", ["it"])
    assert torch.equal(tensor, torch.arange(3.0))


def test_a_lost_process_is_told_in_a_sentence(monkeypatch):
    def lost(*_, **__):
        raise RuntimeError("[/somewhere/pair.cc:553] Connection closed by peer [127.0.0.1]:1. Good luck")

    monkeypatch.setattr(dist, "all_reduce", lost)
    with pytest.raises(ProcessError, match=r"Process 1 of 2 has lost the others \(Connection closed by peer") as found:
        Processes(1, 2).add_up([torch.zeros(2)])
    assert "pair.cc" not in str(found.value)
    assert "resume='auto'" in str(found.value)

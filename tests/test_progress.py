"""What takes long shows a bar where it is asked to or on a terminal, and says nothing elsewhere."""

import pytest

import koopman_interp as ki


@pytest.fixture(scope="module")
def steps(trained, yin_yang_data):
    """The verbs that may take more than some seconds, by the word that their bar begins with."""
    model, koopman, data = trained
    patch = ki.patched(model, koopman, ki.erase_class(koopman, label=1))
    return {
        "fidelity": lambda **how: ki.fidelity(model, koopman, held_out=yin_yang_data, **how),
        "topology": lambda **how: ki.topology(data, points=20, **how),
        "audit": lambda **how: ki.audit(patch, held_out=yin_yang_data, probes=("linear",), **how),
        "forget": lambda **how: ki.forget(model, koopman, fitted=data, held_out=yin_yang_data, label=1, **how),
    }


@pytest.mark.parametrize("name", ["fidelity", "topology", "audit", "forget"])
def test_bars_are_shown_when_asked_for_and_never_off_a_terminal(steps, name, capsys):
    told = steps[name](progress=True)
    shown = capsys.readouterr()
    assert f"{name}" in shown.err
    assert "100%" in shown.err or "batch" in shown.err
    quiet = steps[name]()
    assert capsys.readouterr() == ("", "")
    assert str(quiet) == str(told)

"""A run with harmful text wherever text goes in, and the values that it was given."""

from dataclasses import replace

import pytest

import koopman_interp as ki
from koopman_interp.analysis.substitutes.fidelity import DepthFidelity, Fidelity, OutputFidelity
from koopman_interp.auditing.language import LanguageAudit, LanguageScores
from koopman_interp.auditing.membership import Membership
from koopman_interp.auditing.probe_scores import ProbeScores
from koopman_interp.auditing.relearning import Relearning, RelearningCurve
from koopman_interp.auditing.result import Audit
from koopman_interp.auditing.rows import AuditRow

EVIL = '<script>alert("x")</script> & $style'
FREE = {"identity": 1.5321, "mean": 1.0001, "endpoint linear": 0.3456}

BEFORE = f"Once upon a time\nthere was {EVIL} girl who sang."
SPOKEN = LanguageAudit(
    f"forget {EVIL}",
    {
        "base model": LanguageScores(0.1234, 0.2345, 1.0, 3.4567, (BEFORE, "A"), {"reliability": (0.0514, 0.2671)}),
        EVIL: LanguageScores(0.4567, 0.5678, 0.6789, 4.5678, ("Once upon a time\nthere was no one.", "A"), {}),
        "edit (delta)": LanguageScores(
            0.8761,
            0.7654,
            0.9876,
            3.5678,
            (BEFORE.replace("sang", f"slept {EVIL}"), "A"),
            {"locality": (0.9012, 0.9991)},
        ),
    },
    "in place at 'a'",
)


def texts_alone(row):
    """What a language model wrote, where it was asked nothing else."""
    return LanguageScores(None, None, None, None, row.samples, {})


def meanings(surrogate, spectrum, trajectories):
    """What two modes mean, with harmful text wherever there is text."""
    made = ki.describe_modes(surrogate, spectrum, trajectories, modes=2)
    first, *others = made.modes
    high = tuple(replace(each, text=EVIL) for each in first.high)
    first = replace(first, high=high, up=((EVIL, 0.1357),), down=((EVIL, -0.2468),), tokens=((EVIL, 1.2345, 1357),))
    return replace(made, modes=(first, *others), site=EVIL)


@pytest.fixture(scope="session")
def run(tmp_path_factory, surrogate, trajectories):
    """A folder that write_run wrote, with harmful text wherever text goes in, and the values given."""
    sites = surrogate.sites
    start = DepthFidelity(sites[0], {"surrogate": 0.0123, **dict.fromkeys(FREE)}, None, (0.9, 1.0, 1.1), 0.02, 0.01)
    end = DepthFidelity(EVIL, {"surrogate": 0.0789, **FREE}, float("nan"), (0.9, 1.0, 1.1), 0.09, 0.08)
    outputs = (OutputFidelity("base model", None, 1.0, 0.0), OutputFidelity("surrogate", None, 0.9123, 0.0712))
    rows = (
        AuditRow("base model", 0.9812, 0.9734, 0.0, 0.9923, 0.9945, 0.9567),
        AuditRow(EVIL, 0.0, 0.9756, 0.0111, 0.9978, 0.9989, 0.9501),
        AuditRow("edit (delta)", 0.0123, 0.9645, float("inf"), 0.7167, 0.9389, 0.4012),
    )
    everything = (
        AuditRow(
            "base model", 0.9812, 0.9734, 0.0, 0.9923, 0.9945, 0.9567, 0.9911, 0.5012, 0.8123, 0.0012, 1.5, 0.9698, 0.0,
            0.9999, 0.9888, Membership(0.5612, 0.0412, 0.5213, float("nan")),
            tuple(ProbeScores(site, {"linear": 0.8111}, {10: 0.5}, {"linear": (0.7, 0.9)}) for site in ("a", EVIL)),
            intervals={"forget_accuracy": (0.9111, 0.9921)},
        ),
        AuditRow(
            EVIL, 0.0123, 0.9645, 0.0345, 0.7167, 0.9389, 0.4012, 0.8222, 0.1111, 0.2222, 0.0333, 0.7, 0.4321, 0.0876,
            0.0062, 0.9876, Membership(0.4321, 0.0423, 0.4987, 0.0401),
            tuple(ProbeScores(site, {"linear": 0.7222}, {10: 0.4}, {"linear": (0.6, 0.8)}) for site in ("a", EVIL)),
            (RelearningCurve("K alone", (0, 2), (0.0123, 0.6612), (0.9645, 0.9345)),),
            LanguageScores(0.9, 0.8, None, 3.4567, (EVIL,), {}),
            {"forget_accuracy": (0.0021, 0.0553)},
        ),
    )  # fmt: skip
    edit = ki.erase_class(surrogate, label=2, held_out=trajectories)
    spectrum = ki.spectrum(surrogate, trajectories)
    values = {
        "koopman": surrogate,
        "trajectories": trajectories,
        "spectrum": replace(spectrum, condition=float("inf")),
        "modes": meanings(surrogate, spectrum, trajectories),
        "topologies": {EVIL: ki.topology(trajectories, points=30)},
        "fidelity": Fidelity((start, end), outputs, 1234),
        "edit": replace(edit, description=EVIL),
        "audits": [
            Audit((2,), EVIL, rows, 4321, 9876),
            Audit((3,), EVIL, everything, 4322, 9877, 11, 12, Relearning(steps=(0, 2)), (EVIL,)),
        ],
        "language": [SPOKEN, replace(SPOKEN, rows={name: texts_alone(row) for name, row in SPOKEN.rows.items()})],
    }
    folder = tmp_path_factory.mktemp("runs") / "run"
    page = ki.write_run(
        folder,
        title=EVIL,
        command=EVIL,
        facts={EVIL: EVIL, "layers": (1, 2)},
        seconds={EVIL: 1.5, "fit": 2.25},
        class_names={2: "d$t"},
        **values,
    )
    assert page == folder / "report.html"
    return folder, values

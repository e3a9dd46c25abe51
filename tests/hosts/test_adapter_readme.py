"""The adapter that integrations/README.md teaches is one: its text is run, and held to the laws."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from koopman_interp.errors import UnknownSiteError
from koopman_interp.hosts import finding

README = Path(__file__).parents[2] / "integrations" / "README.md"


def example(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found, f"{README} has no {name}"
    return found[1]


_taught: dict[str, Any] = {"__name__": "taught"}
exec(compile(example("adapter example"), str(README), "exec"), _taught)
exec(compile(example("contract example"), str(README), "exec"), _taught)


class TestPipeline(_taught["TestPipeline"]):  # type: ignore[misc]  # the README's class, run above
    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As the entry point would, for an adapter of a package that is installed."""
        known = [_taught["PipelineHost"], *finding.adapters()]
        monkeypatch.setattr(finding, "adapters", lambda: known)


@pytest.mark.parametrize("selection", ["place 9", [], lambda name: False])
def test_the_example_refuses_unknown_sites(selection: Any) -> None:
    model = _taught["TestPipeline"]().make()
    with pytest.raises(UnknownSiteError, match=r"A Pipeline has no .*Nearest: place"):
        _taught["PipelineHost"](model).sites(selection)


def test_the_example_is_short() -> None:
    adapter = example("adapter example").split("class PipelineHost")[1]
    assert len([line for line in adapter.splitlines() if line.strip()]) <= 60

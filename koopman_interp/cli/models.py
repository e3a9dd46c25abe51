"""Models that the command line names: `module:callable`, a folder of Hugging Face, or a name on its Hub.

Which of these it is follows from its form and from what is there, while the command is read; nothing is loaded then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from koopman_interp.cli.names import imported, is_module, known
from koopman_interp.errors import InputError

if TYPE_CHECKING:
    from torch import nn

FORMS = "module:callable, a folder of Hugging Face, or a name on its Hub"


@dataclass(frozen=True)
class ModelName:
    """A model by name.

    Attributes:
        text: as it was given.
        kind: what it names.
    """

    text: str
    kind: Literal["callable", "hugging face"]

    def __str__(self) -> str:
        return self.text

    def prepared(self) -> ModelMaker:
        """Import what is needed to make it, and make nothing yet."""
        return ModelMaker(self, imported(self.text) if self.kind == "callable" else None)


@dataclass(frozen=True)
class ModelMaker:
    """A model that is about to be made, with all that was imported for it."""

    name: ModelName
    make: Any

    def model(self, device: str | None = None, dtype: str | None = None) -> nn.Module:
        """Make it, on a device and in a dtype where these are given.

        Raises:
            InputError: what was made is no module, or the device is not there.
        """
        import torch

        if device is not None:
            _require_device(device)
        if self.make is None:
            from koopman_interp.cli.hugging_face import load

            model: Any = load(self.name.text)
        else:
            model = self.make()
        if device is None and dtype is None:
            return model
        if not isinstance(model, torch.nn.Module):
            raise InputError(f"{self.name} gave a {type(model).__name__}, which cannot be moved. Leave out --device.")
        return model.to(device=device, dtype=None if dtype is None else getattr(torch, dtype))


class _Model(click.ParamType):  # type: ignore[type-arg]  # it is plain in click 8.1
    """A model by name, looked for when the command is read."""

    name = "model"

    def convert(self, value: Any, *_: Any) -> ModelName:
        if isinstance(value, ModelName):
            return value
        path = Path(value)
        if ":" in value or (is_module(value) and not path.is_dir()):
            return ModelName(known(value), "callable")
        if path.is_dir():
            from koopman_interp.cli.hugging_face import require_known

            require_known(path)
        elif path.exists():
            raise InputError(f"{value} is a file; a model is {FORMS}.")
        elif value.count("/") > 1 or value.startswith((".", "/", "~")):
            raise FileNotFoundError(f"There is no folder {value}; a model is {FORMS}.")
        return ModelName(value, "hugging face")


MODEL = _Model()


def _require_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"The device {device!r} cannot be used here: {str(error).splitlines()[0]} Choose another, such as cpu."
        ) from error

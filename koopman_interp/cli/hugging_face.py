"""Models of Hugging Face by name or folder: the class is chosen by what their config.json says they are.

The only module of the package that imports transformers, and only when such a model is named.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from koopman_interp.errors import FileFormatError, InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

CAUSAL, TEXTS, IMAGES = "ForCausalLM", "ForSequenceClassification", "ForImageClassification"

_CLASSES = {
    CAUSAL: "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    TEXTS: "AutoModelForSequenceClassification",
    IMAGES: "AutoModelForImageClassification",
}
"""The class to load a model with, by how the name of its architecture ends."""

_GENERIC = "LABEL_"
"""What classes are called that nobody has named."""

Prepare = Callable[[Sequence[Any]], "Tensor"]
"""From images to what a model is called with."""


def require_known(folder: Path) -> None:
    """Check that a folder holds a model that can be loaded; reads its config.json alone.

    Raises:
        FileFormatError: it holds none.
        InputError: it holds a model of another kind.
    """
    source = folder / "config.json"
    if not source.is_file():
        raise FileFormatError(
            f"{folder} holds no model of Hugging Face: there is no {source}. Name a function that makes the model, as "
            "module:callable."
        )
    try:
        config = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{source} cannot be read as JSON ({error}). Save the model again.") from error
    _class_for(str(folder), config.get("architectures") if isinstance(config, dict) else None)


def load(name: str) -> nn.Module:
    """Load a model by its name on the Hub or its folder.

    Raises:
        InputError: transformers is missing, there is no such model, or it is of a kind that is not served.
    """
    transformers = _transformers(name)
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        bars.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        model: nn.Module = getattr(transformers, _class_for(name, config.architectures)).from_pretrained(name)
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        where = "" if Path(name).is_dir() else "is no folder here, and as a name on the Hub "
        raise InputError(f"{name} {where}could not be loaded: {_first_sentence(error)}") from error
    finally:
        if shown:
            bars.enable_progress_bar()
    return model.eval()


def says_tokens(model: nn.Module) -> bool:
    """Whether a model says which token follows, as far as its class tells."""
    return any(each.__name__.endswith((CAUSAL, "LMHeadModel")) for each in type(model).__mro__)


def class_names(model: nn.Module) -> tuple[str, ...]:
    """Names of a classifier's outputs in their order; none where nobody has given any."""
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    if says_tokens(model) or any(str(name).startswith(_GENERIC) for name in names.values()):
        return ()
    return tuple(str(names[number]) for number in sorted(names))


def image_preparation(model: nn.Module) -> Prepare | None:
    """How images are prepared for a model, by the processor saved beside its weights; None where it has none."""
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not name:
        return None
    try:
        processor = _transformers(name).AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, KeyError):
        return None

    def prepare(images: Sequence[Any]) -> Tensor:
        pixels: Tensor = processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        return pixels

    return prepare


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"To load {name}, the package transformers is needed: pip install transformers.") from error
    return transformers


def _class_for(name: str, architectures: Sequence[str] | None) -> str:
    for architecture in architectures or ():
        for ending, auto in _CLASSES.items():
            if architecture.endswith(ending):
                return auto
    is_a = f"is a {', '.join(architectures)}" if architectures else "does not say in its config.json which class it is"
    raise InputError(
        f"{name} {is_a}; by name are loaded architectures that end with {', '.join(_CLASSES)}. Name a function that "
        "makes the model, as module:callable."
    )


def _first_sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

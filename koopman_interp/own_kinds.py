"""Arguments of the package's own kinds: a surrogate, an edit, a configuration where one is asked for, or a sentence.

Costs some microseconds a call, so it is for what users call and for nothing inside.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections import abc
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from koopman_interp.errors import InputError

_Arguments = ParamSpec("_Arguments")
_Returned = TypeVar("_Returned")
_PACKAGE = __name__.partition(".")[0]
_MADE_BY = {
    "KoopmanAutoencoder": "fit(trajectories)",
    "Spectrum": "spectrum(koopman, trajectories)",
    "OperatorEdit": "erase_class(koopman, label=…)",
    "Patch": "patched(model, koopman, edit)",
    "Topology": "topology(trajectories)",
    "TopologyBands": "topology_bands(trajectories)",
    "LensVectors": "lens_vectors(model, koopman, tokens=…, inputs=…)",
    "AffineLens": "AffineLens.fit(trajectories)",
}
"""Lines that make a value of a kind, for those who have none."""


def own_kinds(function: Callable[_Arguments, _Returned]) -> Callable[_Arguments, _Returned]:
    """Wrap a public function: what its annotations say is one of the package's own classes has to be one.

    Raises:
        InputError: from the wrapped function, naming what was expected, what came, and what to write.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Returned:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # Python says by name what is amiss
        for name, kinds in _kinds_of(function).items():
            if name in given and not isinstance(given[name], kinds):
                raise InputError(_sentence(function, name, kinds, given))
        return function(*args, **kwargs)

    return checked


@functools.cache
def _kinds_of(function: Callable[..., Any]) -> dict[str, tuple[type, ...]]:
    """Return the classes of each parameter that is of the package's own, of a sequence of these, or None.

    What takes much else beside them says itself what it takes.
    """
    found = {name: _classes(hint) for name, hint in get_type_hints(function).items() if name != "return"}
    return {
        name: kinds
        for name, kinds in found.items()
        if any(map(_is_own, kinds)) and all(_is_own(kind) or kind in (types.NoneType, abc.Sequence) for kind in kinds)
    }


def _classes(hint: Any) -> tuple[type, ...]:
    """Return the classes that an annotation is a union of; none where one part is no class."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    classes = [get_origin(part) or part for part in parts]
    plain = all(isinstance(each, type) and not getattr(each, "_is_protocol", False) for each in classes)
    return tuple(classes) if plain else ()


def _is_own(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == _PACKAGE


def _sentence(function: Callable[..., Any], name: str, kinds: Sequence[type], given: dict[str, Any]) -> str:
    own = [kind for kind in kinds if kind is not types.NoneType]
    value = given[name]
    said = (
        f"{function.__name__}() takes {name}= as {' or '.join(kind.__name__ for kind in own)}; got "
        f"{type(value).__name__}."
    )
    elsewhere = next((other for other, each in given.items() if other != name and isinstance(each, tuple(own))), None)
    if elsewhere:
        order = ", ".join(parameter for parameter in inspect.signature(function).parameters if parameter in given)
        return f"{said} It stands in the place of {elsewhere}=: write {function.__name__}({order})."
    if isinstance(value, dict) and any(kind.__name__.endswith("Config") for kind in own):
        return f"{said} Write {own[0].__name__}(**{name})."
    made = next((_MADE_BY[kind.__name__] for kind in own if kind.__name__ in _MADE_BY), None)
    return f"{said} One is made by {made}." if made else said

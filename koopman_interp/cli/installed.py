"""What is installed and whether it can be used, each part looked at by itself: one that fails hides no other."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, metadata, requires, version
from typing import Any

from packaging.requirements import Requirement

PACKAGE = "koopman-interp"

_NAMED = ("torch", "transformers", "transformer-lens")


@dataclass(frozen=True)
class Part:
    """Something that is looked at.

    Attributes:
        kind: `version`, `extra`, `host` or `device`.
        name: what it is called.
        found: what was found, in words.
        usable: whether it is there and works.
        needed: whether nothing works without it.
        remedy: the line to write where it is missing.
    """

    kind: str
    name: str
    found: str
    usable: bool = True
    needed: bool = False
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def parts() -> list[Part]:
    """Look at versions, extras, hosts and the device."""
    return [*_versions(), *_extras(), *_hosts(), _device()]


def usable(found: list[Part]) -> bool:
    """Whether all that is needed works, and one host at least."""
    hosts = [part for part in found if part.kind == "host"]
    return all(part.usable for part in found if part.needed) and any(part.usable for part in hosts)


def _versions() -> list[Part]:
    needed = [requirement for requirement in _requirements() if requirement.marker is None]
    ours = _version(PACKAGE)
    return [
        Part("version", PACKAGE, ours or "on the path, but not installed", ours is not None, True, _install(not ours)),
        Part("version", "Python", platform.python_version()),
        *(Part("version", name, _version(name) or "absent", _version(name) is not None) for name in _NAMED),
        _together("version", "dependencies", needed, needed=True),  # one part, so that none is lost among fifteen
    ]


def _install(missing: bool) -> str:
    return "pip install -e . (in the folder of its pyproject.toml)" if missing else ""


def _extras() -> list[Part]:
    """Look at each extra's own requirements."""
    try:
        names = metadata(PACKAGE).get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return []
    marked = [requirement for requirement in _requirements() if requirement.marker is not None]
    return [
        _together("extra", name, [each for each in marked if each.marker and each.marker.evaluate({"extra": name})])
        for name in names
    ]


def _together(kind: str, name: str, requirements: list[Requirement], *, needed: bool = False) -> Part:
    """Look at requirements as one part."""
    lacking = {f'"{each.name}{each.specifier}"': lack for each in requirements if (lack := _lack(each))}
    remedy = f"pip install {' '.join(lacking)}" if lacking else ""
    return Part(kind, name, "; ".join(lacking.values()) or "present", not lacking, needed, remedy)


def _requirements() -> list[Requirement]:
    try:
        return [Requirement(line) for line in requires(PACKAGE) or []]
    except PackageNotFoundError:
        return []


def _lack(requirement: Requirement) -> str:
    """Say what is lacking of a requirement; empty where nothing is."""
    there = _version(requirement.name)
    if there is None:
        return f"{requirement.name} is absent"
    if not requirement.specifier.contains(there, prereleases=True):
        return f"{requirement.name} is {there}, needed is {requirement.specifier}"
    return ""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _hosts() -> list[Part]:
    try:
        from koopman_interp.hosts.finding import ENTRY_POINT_GROUP
    except Exception as error:  # torch itself may fail to load
        return [Part("host", "all", _told(error), usable=False, needed=True)]
    return [_host(point) for point in entry_points(group=ENTRY_POINT_GROUP)]


def _host(point: EntryPoint) -> Part:
    try:
        point.load()
    except Exception as error:  # of an adapter that is not ours, anything
        return Part("host", point.name, f"{point.value} does not load: {_told(error)}", usable=False)
    return Part("host", point.name, f"{point.value} loads")


def _device() -> Part:
    try:
        import torch
    except Exception as error:  # a broken library of its own raises what it likes
        return Part("device", "torch", f"does not load: {_told(error)}", usable=False, needed=True)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    return Part("device", "fits run on", f"{name}; threads: {torch.get_num_threads()}")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

"""The model card of a surrogate: what a stranger who finds it has to know, and nothing that was not recorded.

Knows the values that are saved with a surrogate, and no tensors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from koopman_interp.clocks import Clock
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.surrogates.record import FitRecord
from koopman_interp.tables import in_percent

LIBRARY = "koopman-interp"
TAGS = ("koopman", "interpretability")

_LOAD = """import koopman_interp as ki

koopman = ki.KoopmanAutoencoder.from_pretrained({name})  # a folder, or owner/name on the Hub
"""
_USE = """print(ki.fidelity(model, koopman, held_out=inputs))  # model: the one above, with these very weights
"""
_ERASE = """with ki.patched(model, koopman, ki.erase_class(koopman, label={label})):
    model(inputs)
"""
_ORBIT = """print(ki.spectrum(koopman, trajectories))  # of ki.orbit, along the same clock
"""
_SHOWN = (
    "aim",
    "pairs",
    "reconstruction",
    "prediction",
    "linearity",
    "isometry_weight",
    "steps",
    "batch_size",
    "schedule",
)
"""Settings that say most of what was wanted of the fit."""


def model_card(name: str, config: Any, record: FitRecord) -> ModelCard:
    """Write the card of a surrogate.

    Args:
        name: by which the code of the card loads it.
        config: its `SurrogateConfig`.
        record: of its fit.

    Returns:
        The card, with library and tags in its YAML.
    """
    head = ModelCardData(library_name=LIBRARY, tags=list(TAGS)).to_yaml()
    sections = {
        "": _opening(config),
        "The model it is of": _host(config.host),
        "Sites and times": _sites(config.sites, config.times, config.widths),
        "Sizes": _sizes(config),
        "Fidelity, on inputs held out": _held_out(record),
        "How it was fitted": _fit(record),
        "Load and use": f"```python\n{_code(name, config.clock, config.classes)}```",
    }
    text = "\n\n".join(f"## {title}\n\n{body}" if title else body for title, body in sections.items())
    return ModelCard(f"---\n{head}\n---\n\n{text}\n")


def _opening(config: Any) -> str:
    model = config.host.model.rsplit(".", 1)[-1]
    return (
        f"# A Koopman autoencoder of {model}\n\n"
        f"An encoder lifts a state of the model to {config.observables} observables; one linear operator K takes them "
        "from each site to the next; a decoder leads back. It is read, edited and patched back into the model by "
        f"{LIBRARY}. It replaces no model: without the one that it was fitted on it says nothing."
    )


def _host(host: HostFingerprint) -> str:
    return (
        _table(
            ("what", "is"),
            [
                ("class", f"`{host.model}`"),
                ("adapter", host.adapter),
                ("residual basis", host.basis),
                ("dtype", host.dtype),
                ("digest of the weights", f"`{host.weights}`"),
            ],
        )
        + "\n\nA model with other weights is refused."
    )


def _sites(sites: Sequence[str], times: Sequence[float], widths: Sequence[int]) -> str:
    rows = [(f"`{site}`", f"{time:g}", str(width)) for site, time, width in zip(sites, times, widths, strict=True)]
    return _table(("site", "time, in steps of K", "width"), rows)


def _sizes(config: Any) -> str:
    hidden = ", ".join(map(str, config.hidden)) or "none"
    rank = "" if config.rank is None else f", rank {config.rank}"
    looks_back = "no: each row alone" if config.context is None else "yes, by attention"
    return _table(
        ("what", "size"),
        [
            ("normalised state", str(config.dimension)),
            ("observables", str(config.observables)),
            ("hidden layers of the encoder", f"{hidden} ({config.architecture}, {config.activation})"),
            ("K", f"{config.operator}{rank}"),
            ("classes with moments", ", ".join(map(str, config.classes)) or "none"),
            ("encoder looks back", looks_back),
        ],
    )


def _held_out(record: FitRecord) -> str:
    if not record.history:
        return "None was measured: it was built by hand, not fitted."
    named = {
        "fvu": "fraction of variance unexplained at the last site (FVU)",
        "stress": "stress of distances between samples",
        "kl": "KL at the model's output, nats",
    }
    rows = [(shown, f"{record.kept[key]:.4g}") for key, shown in named.items() if key in record.kept]
    if record.distilled:
        best = min(look["kl"] for look in record.distilled)
        rows.append(("KL at the model's output after distillation, nats", f"{best:.4g}"))
    part = in_percent(record.validation, 0)
    share = "" if record.validation is None else f", {part} of those observed, drawn by seed {record.seed}"
    return (
        f"{_table(('figure', 'value'), rows)}\n\nHeld out were {len(record.held_out):,} inputs{share}; their digests "
        "are saved with the weights, and `koopman.is_held_out` knows them again. They chose the weights that were "
        "kept: judge by inputs of your own."
    )


def _fit(record: FitRecord) -> str:
    if not record.history:
        return "It was not."
    shown = [(f"`{key}`", f"{record.settings[key]}") for key in _SHOWN if record.settings.get(key) is not None]
    versions = " and ".join(f"{name} {version}" for name, version in record.versions.items())
    made = f"By `{record.method}`, in {record.seconds:.1f} s, with {versions or 'versions that were not kept'}."
    return "\n\n".join([made, *([_table(("setting", "value"), shown)] if shown else []), *_as_list(record.choices)])


def _as_list(lines: Sequence[str]) -> list[str]:
    return ["\n".join(f"* {line}" for line in lines)] if lines else []


def _code(name: str, clock: Clock | None, classes: Sequence[int]) -> str:
    code = _LOAD.format(name=json.dumps(name))
    if clock is not None:
        return code + _ORBIT
    return code + _USE + (_ERASE.format(label=classes[0]) if classes else "")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

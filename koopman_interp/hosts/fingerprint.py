"""What a surrogate, an edit or a trajectory remembers of its host, so that another host can be refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from koopman_interp.errors import HostMismatchError, UnsupportedHostError
from koopman_interp.hosts.protocol import Host

_PROBED = 16
"""Entries of each weight by which a write past torch's version counters is noticed."""


@dataclass(frozen=True)
class HostFingerprint:
    """What is remembered of a host.

    Attributes:
        model: qualified class name of the model.
        adapter: name of the host adapter.
        basis: residual basis of the states.
        dtype: dtype of the parameters.
        weights: digest of all that computes: parameters, persistent buffers, packed weights, which adapters are on.
        parts: the first 8 hexadecimal digits of the digest of each of these, in order of their names, so that what
            differs can be named.
    """

    model: str
    adapter: str
    basis: str
    dtype: str
    weights: str
    parts: str = ""

    @classmethod
    def of(cls, host: Host) -> HostFingerprint:
        """Take the fingerprint of a host."""
        kind = type(host.model)
        first = next(iter(host.model.parameters()), None)
        digests = _part_digests(host.model, host.weights_elsewhere())
        return cls(
            model=f"{kind.__module__}.{kind.__qualname__}",
            adapter=host.adapter,
            basis=host.basis,
            dtype=str(first.dtype if first is not None else torch.get_default_dtype()).removeprefix("torch."),
            weights=_whole(digests),
            parts="".join(digests[name][:8] for name in sorted(digests)),
        )

    def require(
        self, other: HostFingerprint, what: str, *, ignoring: Iterable[str] = (), host: Host | None = None
    ) -> None:
        """Refuse a host other than the one remembered here.

        The module in which the class was defined is not compared: the same script is `__main__` when run
        and something else when imported.

        Args:
            other: fingerprint of the host at hand.
            what: what is being applied, for the message.
            ignoring: names of fields that may differ.
            host: the host at hand, by which the weights that differ are named.

        Raises:
            HostMismatchError: a field differs.
        """
        skipped = {*ignoring, "parts"}
        ours, theirs = asdict(self), asdict(other)
        ours["model"], theirs["model"] = self.model.rsplit(".", 1)[-1], other.model.rsplit(".", 1)[-1]
        for field, expected in ours.items():
            if field not in skipped and theirs[field] != expected:
                differing = self._differing(other, host) if field == "weights" else ""
                raise HostMismatchError(
                    f"This {what} belongs to another host: {field} was {expected}, here it is {theirs[field]}"
                    f"{differing}. Load the weights that it was fitted on, or observe and fit this model anew."
                )

    def _differing(self, other: HostFingerprint, host: Host | None) -> str:
        """Name what differs, where both have as many weights."""
        if host is None or not self.parts or len(self.parts) != len(other.parts):
            return ""
        names = sorted(_part_digests(host.model, host.weights_elsewhere()))
        pairs = zip(names, range(0, len(self.parts), 8), strict=True)
        differing = [name for name, at in pairs if self.parts[at : at + 8] != other.parts[at : at + 8]]
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        return f" (in {', '.join(differing[:3])}{more})"


def weight_digest(model: nn.Module, elsewhere: Mapping[int, Tensor] | None = None) -> str:
    """Digest all of a model that computes; see `HostFingerprint.weights`.

    The digest is kept until a tensor is replaced or written into,
    as torch's version counters tell and, for writes through `.data`, a few entries of each tensor.

    Args:
        model: the model.
        elsewhere: weights that are kept elsewhere, by the id of their stand-in; see `Host.weights_elsewhere`.

    Returns:
        128 bits of BLAKE2b, in hexadecimal.

    Raises:
        UnsupportedHostError: a weight has no values yet, or is on the meta device and nothing tells where they are.
    """
    return _whole(_part_digests(model, elsewhere or {}))


def weight_versions(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Tell which weights are there and how often each was written into, in microseconds a weight.

    Where it is the same, so are the weights, but for writes through `.data` and into inference tensors, which torch
    does not count.
    """
    weights = chain(model.parameters(), model.buffers())
    return tuple((id(weight), 0 if weight.is_inference() else weight._version) for weight in weights)


@dataclass(frozen=True)
class _Known:
    """Digests, and what they were taken of."""

    tensors: list[tuple[ref[Tensor], int]]
    probes: bytes
    switches: tuple[tuple[str, str], ...]
    digests: dict[str, str]

    def holds(self, tensors: list[Tensor], probes: bytes, switches: tuple[tuple[str, str], ...]) -> bool:
        return (
            (probes, switches) == (self.probes, self.switches)
            and len(tensors) == len(self.tensors)
            and all(
                old() is tensor and version == tensor._version
                for (old, version), tensor in zip(self.tensors, tensors, strict=True)
            )
        )


_known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def _whole(digests: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(digests):
        digest.update(f"{name} {digests[name]}".encode())
    return digest.hexdigest()


def _part_digests(model: nn.Module, elsewhere: Mapping[int, Tensor]) -> dict[str, str]:
    """Digest each tensor that computes, and each switch, by name."""
    parts = dict(_computing(model))
    switches = tuple(_switches(model))
    # Inference tensors keep no version counter; a model that has any is digested anew each time.
    versioned = not any(tensor.is_inference() for tensor in parts.values())
    probes = b"".join(map(_probe, parts.values())) if versioned else b""
    known = _known.get(model)
    if versioned and known is not None and known.holds(list(parts.values()), probes, switches):
        return known.digests
    digests = {name: _digest(name, elsewhere.get(id(tensor), tensor)) for name, tensor in sorted(parts.items())}
    digests |= {name: hashlib.blake2b(value.encode(), digest_size=16).hexdigest() for name, value in switches}
    if versioned:
        tensors = [(ref(tensor), tensor._version) for tensor in parts.values()]
        _known[model] = _Known(tensors, probes, switches, digests)
    return digests


def _computing(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Go through the tensors of a model's state, packed ones too."""
    for name, value in model.state_dict(keep_vars=True).items():
        if is_lazy(value):
            raise UnsupportedHostError(
                f"Expected a model with its weights made; {name!r} is lazy and has none yet. Call the model once, on a "
                "batch of the kind that it is for."
            )
        for place, tensor in enumerate(_tensors_in(value)):
            yield (f"{name}[{place}]" if place else name), tensor


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Find the tensors in an entry of a state dict: quantised modules pack theirs into tuples and script objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors_in(entry)
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _tensors_in(entry)
    elif isinstance(value, torch.ScriptObject) and hasattr(value, "__getstate__"):
        yield from _tensors_in(value.__getstate__())


def _switches(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Say which adapters (of PEFT, for one) each module has switched on."""
    for name, module in model.named_modules():
        if hasattr(module, "active_adapters") and hasattr(module, "disable_adapters"):
            active = () if module.disable_adapters else module.active_adapters
            yield f"{name}: active adapters", repr(active)


def _digest(name: str, tensor: Tensor) -> str:
    if tensor.is_meta:
        raise UnsupportedHostError(
            f"Expected a model with its weights loaded; {name!r} is on the meta device. Load the weights first."
        )
    digest = hashlib.blake2b(digest_size=16)
    tensor = _plain(tensor.detach()).cpu().contiguous()
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(tensor: Tensor) -> Tensor:
    """Bring a quantised or sparse tensor to numbers."""
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _probe(tensor: Tensor) -> bytes:
    """A few entries of a tensor, evenly apart."""
    if tensor.is_meta or not tensor.numel():
        return b""
    flat = _plain(tensor.detach()).flatten()
    stride = max(1, len(flat) // _PROBED)
    return bytes(flat[::stride][: _PROBED + 1].cpu().contiguous().view(torch.uint8).numpy())

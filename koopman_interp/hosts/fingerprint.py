"""What a surrogate, an edit or a trajectory remembers of its host, so that another host can be refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from koopman_interp.errors import HostMismatchError, UnsupportedHostError
from koopman_interp.hosts.protocol import Host


@dataclass(frozen=True)
class HostFingerprint:
    """What a surrogate or an edit remembers of its host, so that another host can be refused.

    Attributes:
        model: qualified class name of the model.
        adapter: name of the host adapter.
        basis: residual basis of the states.
        dtype: dtype of the parameters.
        weights: digest of all parameters and buffers.
    """

    model: str
    adapter: str
    basis: str
    dtype: str
    weights: str

    @classmethod
    def of(cls, host: Host) -> HostFingerprint:
        """Take the fingerprint of a host."""
        kind = type(host.model)
        first = next(iter(host.model.parameters()), None)
        return cls(
            model=f"{kind.__module__}.{kind.__qualname__}",
            adapter=host.adapter,
            basis=host.basis,
            dtype=str(first.dtype if first is not None else torch.get_default_dtype()).removeprefix("torch."),
            weights=weight_digest(host.model),
        )

    def require(self, other: HostFingerprint, what: str, *, ignoring: Iterable[str] = ()) -> None:
        """Refuse a host other than the one remembered here.

        The module in which the class was defined is not compared: the same script is `__main__` when run
        and something else when imported.

        Args:
            other: fingerprint of the host at hand.
            what: what is being applied, for the message.
            ignoring: names of fields that may differ.

        Raises:
            HostMismatchError: a field differs.
        """
        skipped = set(ignoring)
        ours, theirs = asdict(self), asdict(other)
        ours["model"], theirs["model"] = self.model.rsplit(".", 1)[-1], other.model.rsplit(".", 1)[-1]
        for field, expected in ours.items():
            if field not in skipped and theirs[field] != expected:
                raise HostMismatchError(
                    f"This {what} belongs to another host: {field} was {expected}, here it is {theirs[field]}. "
                    "Load the weights that it was fitted on, or observe and fit this model anew."
                )


_digests: WeakKeyDictionary[nn.Module, tuple[list[tuple[ref[Tensor], int]], str]] = WeakKeyDictionary()


def weight_digest(model: nn.Module) -> str:
    """Digest the state dict of a model: names, dtypes, shapes and bytes of parameters and persistent buffers.

    The digest is kept until a tensor is replaced or changed in place, as torch's version counters tell;
    writing through `.data` escapes them.

    Returns:
        128 bits of BLAKE2b, in hexadecimal.

    Raises:
        UnsupportedHostError: a weight is on the meta device, and nothing tells where its values are.
    """
    state = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if torch.is_tensor(tensor)}
    # Inference tensors keep no version counter; a model that has any is digested anew each time.
    versioned = not any(tensor.is_inference() for tensor in state.values())
    if versioned and model in _digests:
        seen, known = _digests[model]
        if len(seen) == len(state) and all(
            old() is tensor and version == tensor._version
            for (old, version), tensor in zip(seen, state.values(), strict=True)
        ):
            return known
    digest = hashlib.blake2b(digest_size=16)
    offloaded = _offloaded(model)
    for name in sorted(state):
        tensor = offloaded.get(id(state[name]), state[name])
        if tensor.is_meta:
            raise UnsupportedHostError(
                f"Expected a model with its weights loaded; {name!r} is on the meta device. Load the weights first."
            )
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    if versioned:
        _digests[model] = ([(ref(tensor), tensor._version) for tensor in state.values()], digest.hexdigest())
    return digest.hexdigest()


def _offloaded(model: nn.Module) -> dict[int, Tensor]:
    """Find the weights behind those that accelerate keeps on the CPU or on disk, by the id of their stand-in."""
    found: dict[int, Tensor] = {}
    for module in model.modules():
        own = [*module._parameters.items(), *module._buffers.items()]
        hook = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):
            weights = getattr(part, "weights_map", None)
            if weights is not None:
                found |= {id(one): weights[name] for name, one in own if one is not None and one.is_meta}
    return found

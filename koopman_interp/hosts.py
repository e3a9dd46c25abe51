"""What the package needs of a host framework, and how it finds the adapter for a model.

A host is a model together with an adapter that can read and write its states at named sites. Adapters live
outside this package and register under the entry-point group `koopman_interp.hosts`; nothing here imports one
by name. Reading and writing go through the same `hooked`, so patching is observation run backwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, runtime_checkable
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from koopman_interp.errors import HostMismatchError, InputError, UnsupportedHostError, nearest
from koopman_interp.tokens import Tokens

ENTRY_POINT_GROUP = "koopman_interp.hosts"

Hook = Callable[[Tensor], Tensor | None]
"""Called with the state at a site, in the host's own shape; a returned tensor takes its place."""

SiteSelection = str | Sequence[str] | Callable[[str], bool] | None
"""Sites as a name or glob, several of them, a predicate on names, or None for the residual stream."""


@runtime_checkable
class Host(Protocol):
    """A model whose states can be read and written at named sites.

    Reading never changes a value, and no context leaves a trace on any exit. `koopman_interp.testing.HostContract`
    holds these laws as tests.
    """

    adapter: ClassVar[str]
    """Name of the adapter, as `koopman-interp hosts` lists it."""
    priority: ClassVar[int]
    """Adapters are asked in descending order; the general torch adapter has 0."""

    model: nn.Module

    @property
    def basis(self) -> str:
        """Which residual basis the states are in now; two hosts with different bases do not share surrogates."""
        ...

    @classmethod
    def accepts(cls, model: object) -> bool:
        """Whether this adapter is made for the model; must be cheap and import no framework."""
        ...

    def __init__(self, model: nn.Module) -> None: ...

    def sites(self, selection: SiteSelection = None) -> tuple[str, ...]:
        """Resolve a selection to site names in order of depth; None means the residual stream.

        Raises:
            UnknownSiteError: nothing has such a name.
            UnsupportedHostError: there is no residual stream to default to.
        """
        ...

    def call(self, batch: Any) -> Any:
        """Call the model on a batch, moved to its device: a tensor, or a mapping of what the framework calls with.

        Token batches are mappings in the conventions of Hugging Face: `input_ids`, `attention_mask`, …
        """
        ...

    def tokenize(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Turn texts into one padded batch for `call`, with its `attention_mask`.

        Raises:
            InputError: the host has no tokenizer.
        """
        ...

    def passes(
        self, begin: Callable[[Tokens | None], None], end: Callable[[], None] | None = None
    ) -> AbstractContextManager[None]:
        """Call `begin` as each forward pass starts, with its tokens where it has any, and `end` when it is done.

        A pass that raises has no end. Both are removed on any exit.
        """
        ...

    def hooked(self, hooks: Mapping[str, Hook], *, first: bool = False) -> AbstractContextManager[None]:
        """Call each hook whenever its site is reached; all are removed on any exit.

        Args:
            hooks: by site.
            first: before the hooks that are there already, so that every other reader of the site sees what these
                write. Otherwise after them.
        """
        ...

    def replaced(self, source: str, target: str, advance: Callable[[Tensor], Tensor]) -> AbstractContextManager[bool]:
        """Put `advance(state at source)` at target, skipping the compute between where that is possible.

        Hooks of others at both ends still fire, those at the target with the new state. The context's value says
        whether the compute is skipped.

        Raises:
            InputError: during a pass that cannot do without the skipped blocks, such as one that reads a cache which
                only they would have filled.
            UnskippableError: during a pass, blocks return what only they can compute.
        """
        ...

    def fwd_hooks(self, hooks: Mapping[str, Hook]) -> list[tuple[str, Callable[..., Tensor | None]]]:
        """Put the same hooks in the framework's own idiom: pairs of site and function, for its `run_with_hooks`.

        Raises:
            UnsupportedHostError: the framework has no such idiom.
        """
        ...


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


def host_for(model: nn.Module | Host) -> Host:
    """Wrap a model in the adapter made for it; a host is returned as it is.

    Args:
        model: the model of the user, or a host.

    Returns:
        The host of the registered adapter with the highest priority that accepts the model.

    Raises:
        UnsupportedHostError: no adapter accepts the object.
    """
    if isinstance(model, Host) and not isinstance(model, nn.Module):
        return model
    for adapter in adapters():
        if adapter.accepts(model):
            return adapter(model)
    raise UnsupportedHostError(
        f"Expected a torch.nn.Module or a model of a known host framework, got {type(model).__name__}. "
        f"Registered adapters: {', '.join(adapter.adapter for adapter in adapters()) or 'none'}."
    )


@cache
def adapters() -> list[Any]:
    """Load the registered host adapters, those of highest priority first."""
    loaded: list[Any] = [point.load() for point in entry_points(group=ENTRY_POINT_GROUP)]
    return sorted(loaded, key=lambda adapter: -adapter.priority)


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


def moved_to(device: torch.device, batch: Any) -> Any:
    """Return a batch with its tensors on a device: a tensor, or a mapping that holds some."""
    if isinstance(batch, Mapping):
        return {name: moved_to(device, value) for name, value in batch.items()}
    return batch.to(device) if isinstance(batch, Tensor) else batch


def device_of(model: nn.Module) -> torch.device:
    """Device of a model's first parameter that has one of its own; the CPU without any."""
    return next((parameter.device for parameter in model.parameters() if not parameter.is_meta), torch.device("cpu"))


def logits_of(output: Any) -> Tensor:
    """Find the logits in what a model returned.

    Raises:
        UnsupportedHostError: it is neither a tensor nor has any in `.logits`.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise UnsupportedHostError(
        f"Expected the model to return logits, as a tensor or in .logits; got {type(output).__name__}. Load it with "
        "its head (AutoModelForCausalLM in place of AutoModel), or wrap it in a module that returns them."
    )


def depth_of(sites: Sequence[str], site: str | int) -> int:
    """Resolve a site name, or a depth that may count from the end, to a depth.

    Raises:
        InputError: it is not among the sites.
    """
    if isinstance(site, str):
        if site not in sites:
            raise InputError(f"{site!r} is not among the fitted sites. {nearest(site, sites)}")
        return list(sites).index(site)
    if not -len(sites) <= site < len(sites):
        raise InputError(f"Depth {site} is outside the {len(sites)} fitted sites (0 to {len(sites) - 1}).")
    return site % len(sites)


def span(sites: Sequence[str], source: str | int | None, target: str | int | None) -> tuple[int, int]:
    """Resolve the two ends of a span to depths.

    Args:
        sites: the sites in order of depth.
        source: site name or depth where the span starts; None for the first.
        target: site name or depth where it ends; None for the last.

    Returns:
        The depths of source and target, as indices into `sites`.

    Raises:
        InputError: an end is unknown, or the target does not lie after the source.
    """
    first = depth_of(sites, 0 if source is None else source)
    last = depth_of(sites, -1 if target is None else target)
    if last <= first:
        raise InputError(f"A span needs its target after its source; got depth {first} to depth {last}.")
    return first, last

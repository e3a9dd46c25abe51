"""The adapter for any `torch.nn.Module`.

A site is the output of a submodule, spelt as its name in `named_modules()`, or its input, spelt with
`:input` behind it. A module that is called several times in a pass has one site a call: `#0`, `#1`, … behind that. The
default sites are the residual stream: the input of the first of a run of same-typed blocks, and the output of each.
Hugging Face models are such models. Costs nothing until hooked; knows nothing of surrogates.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import copy, deepcopy
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from koopman_hosts.compiled import eager
from koopman_hosts.containers import containers, followed
from koopman_hosts.offloaded import offloaded_weights
from koopman_hosts.runs import INPUT, guessed, residual_stream, runs, width_of
from koopman_hosts.site_names import matches
from koopman_hosts.skipped_span import SkippedSpan
from koopman_hosts.skipping import Unheard, overridden, overwritten
from koopman_hosts.states import input_state, output_state, with_state
from koopman_hosts.torch_layouts import advance_of_positions_first, hook_of_positions_first, takes_positions_first
from koopman_interp.errors import InputError, UnknownSiteError, UnsupportedHostError, nearest
from koopman_interp.hosts.devices import device_of, moved_to
from koopman_interp.hosts.listing import SiteListing
from koopman_interp.hosts.passes import Pass, Passes, in_backward
from koopman_interp.hosts.protocol import Hook, SiteSelection
from koopman_interp.hosts.tokens import padded

_SUFFIX = re.compile(r"(:input)?(#\d+)?$")


class TorchHost:
    """A plain torch model as a host.

    Args:
        model: any module; its residual stream is looked for only when no sites are named.

    Raises:
        UnsupportedHostError: it was traced or scripted.
    """

    adapter: ClassVar[str] = "torch"
    priority: ClassVar[int] = 0

    def __init__(self, model: nn.Module) -> None:
        if isinstance(model, torch.jit.ScriptModule):
            raise UnsupportedHostError(
                f"Expected a model that runs as Python, got a {type(model).__name__}, whose code TorchScript has taken "
                "over. Attach to the model that it was traced or scripted from."
            )
        # A compiled model is a wrapper around the one that was given to torch.compile.
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.basis = "module outputs"
        self._modules = dict(self.model.named_modules())
        self._chains: dict[tuple[str, ...], list[nn.Module]] = {}
        self._as_ordered = False

    @classmethod
    def accepts(cls, model: object) -> bool:
        """Accept every module."""
        return isinstance(model, nn.Module)

    def sites(self, selection: SiteSelection = None) -> tuple[str, ...]:
        """Resolve a selection to site names.

        Args:
            selection: a name; a glob, whose `*` stays within one component of a dotted name and whose `**`
                crosses components; several of these; or a predicate on names. None is the residual stream.

        Returns:
            Site names; those of a glob or predicate in the order of `named_modules()`.

        Raises:
            UnknownSiteError: a name or glob matches nothing.
            UnsupportedHostError: no selection was given and no run of blocks was found.
        """
        if selection is None:
            return self._residual_stream()
        names = [name for name in self._modules if name]
        if callable(selection):
            chosen = [name for name in names if selection(name)]
            if not chosen:
                raise UnknownSiteError(f"The predicate chose none of the {len(names)} modules of this model.")
            return tuple(chosen)
        patterns = [selection] if isinstance(selection, str) else list(selection)
        sites = [site for pattern in patterns for site in self._matching(pattern, names)]
        return tuple(dict.fromkeys(sites))

    def call(self, batch: Any) -> Any:
        """Call the model, with a mapping as keyword arguments."""
        batch = moved_to(device_of(self.model), batch)
        return self.model(**batch) if isinstance(batch, Mapping) else self.model(batch)

    @property
    def tokenizer(self) -> Any:
        """The model's own tokenizer: its attribute, or the one saved beside its weights; None where it has neither."""
        return getattr(self.model, "tokenizer", None) or _saved_tokenizer(self.model)

    @property
    def context_length(self) -> int | None:
        """Positions that the model has learnt, as its Hugging Face configuration tells; None without one.

        Positions that are computed (rotary ones, say) go on past what a model was trained on, so they are no limit.
        """
        config = getattr(self.model, "config", None)
        learnt = any("position" in name and isinstance(one, nn.Embedding) for name, one in self._modules.items())
        learnt |= any(name.endswith("wpe") for name in self._modules)
        length = getattr(config, "max_position_embeddings", None)
        return length if learnt and isinstance(length, int) else None

    def copy(self) -> TorchHost:
        """Return a host of a deep copy of the model."""
        return TorchHost(deepcopy(self.model))

    def in_a_row(self, sites: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Return input and output of each of the blocks that are taken to follow each other."""
        run = next((names for names in runs(self._modules) if set(sites[1:]) <= set(names)), [])
        return tuple((block + INPUT, block) for block in run)

    def orders_axes(self, sites: Sequence[str]) -> bool:
        """Whether some of the sites are of torch's own layers that take positions first; they come batch first here."""
        return not self._as_ordered and any(takes_positions_first(self._module(_parsed(site)[0])) for site in sites)

    def as_ordered(self) -> TorchHost:
        """Return a host of the same model that hands out states with their axes as the model has them."""
        host = copy(self)
        host._as_ordered = True
        return host

    def weights_elsewhere(self) -> Mapping[int, Tensor]:
        """Return the weights that accelerate keeps on the CPU or on disk."""
        return offloaded_weights(self.model)

    def tokenize(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Tokenise with the model's own tokenizer.

        Raises:
            InputError: it has none.
        """
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise InputError(
                f"{type(self.model).__name__} has no tokenizer, so it cannot be called with texts. Give one with "
                "observe(…, tokenizer=…), or batches of tensors."
            )
        return padded(tokenizer, texts)

    @contextmanager
    def passes(self, sites: Sequence[str] = (), ended: Callable[[Pass], None] | None = None) -> Iterator[Passes]:
        """Follow the passes through the modules that contain all the sites; see `Host.passes`."""
        with followed(self._containers(tuple(sites)), ended) as passes:
            yield passes

    def eager(self) -> AbstractContextManager[None]:
        """Set aside what `torch.compile` made, of this model or of any."""
        return eager()

    @contextmanager
    def hooked(self, hooks: Mapping[str, Hook], *, first: bool = False) -> Iterator[None]:
        """Call each hook with the state at its site; a returned tensor takes the state's place.

        States of torch's own layers that take positions first are brought to `[batch, position, width]` and back.
        """
        with ExitStack() as stack:
            positions_first = [site for site in hooks if self.orders_axes([site])]
            own = dict(hooks)
            if positions_first:
                passes = stack.enter_context(self.passes(tuple(hooks)))
                own |= {site: hook_of_positions_first(own[site], passes) for site in positions_first}
            stack.enter_context(self._hooked(own, first=first))
            yield

    @contextmanager
    def _hooked(self, hooks: Mapping[str, Hook], *, first: bool = False) -> Iterator[None]:
        """Call each hook with the state as the model has it."""
        with ExitStack() as stack:
            for site, hook in hooks.items():
                name, at_input, call = _parsed(site)
                module = self._module(name)
                if call is not None:
                    hook = _OneCall(hook, call, stack.enter_context(self.passes([site])))
                if at_input:
                    handle = module.register_forward_pre_hook(partial(_at_input, hook), with_kwargs=True, prepend=first)
                else:
                    handle = module.register_forward_hook(partial(_at_output, hook), prepend=first)
                stack.callback(handle.remove)
            yield

    @contextmanager
    def replaced(self, source: str, target: str, advance: Callable[[Tensor], Tensor]) -> Iterator[bool]:
        """Put `advance(state at source)` at target.

        Between two sites of one run of blocks the blocks' own compute is skipped: `forward` is set on the
        instances and taken off again. Hooks within the blocks then do not fire, and those between them see
        the advanced state, of which a warning tells once. Elsewhere the state at the target is overwritten by a
        hook, which gives the same values and saves nothing.

        Yields:
            Whether the compute of the span is skipped.
        """
        run, skipped = self._blocks_between(source, target)
        with ExitStack() as stack:
            if not skipped:
                yield stack.enter_context(overwritten(self, source, target, advance))
                return
            blocks = [self._modules[name] for name in run[skipped.start : skipped.stop]]
            span = SkippedSpan(skipped, (source, target), advance, Unheard(_hooks_inside(blocks), skipped))
            span.passes = stack.enter_context(self.passes((source, target), span.end))
            if self.orders_axes([run[skipped.start]]):
                span.advance = advance_of_positions_first(advance, span.passes)
            stack.enter_context(self._hooked({source: span.read}))
            for index, block in enumerate(blocks):
                stack.enter_context(overridden(block, "forward", span.forward_of(index)))
            yield True

    def fwd_hooks(self, hooks: Mapping[str, Hook]) -> list[tuple[str, Callable[..., Tensor | None]]]:
        """Refuse: plain torch has no `run_with_hooks`.

        Raises:
            UnsupportedHostError: always.
        """
        raise UnsupportedHostError(
            f"{type(self.model).__name__} is not a TransformerLens model, so it has no run_with_hooks to give "
            f"{len(hooks)} hooks to. Use `with koopman_interp.patched(…):` around its calls."
        )

    def _containers(self, sites: tuple[str, ...]) -> list[nn.Module]:
        if sites not in self._chains:
            self._chains[sites] = containers(self.model, [self._module(_parsed(site)[0]) for site in sites])
        return self._chains[sites]

    def _module(self, name: str) -> nn.Module:
        if name not in self._modules:
            known = [known for known in self._modules if known]
            raise UnknownSiteError(f"{type(self.model).__name__} has no module {name!r}. {nearest(name, known)}")
        return self._modules[name]

    def _residual_stream(self) -> tuple[str, ...]:
        sites = residual_stream(self._modules)
        if sites:
            return sites
        listed = [site for site in self.listed() if site.width is not None] or list(self.listed())
        shown = ", ".join(f"{site.name} ({site.kind}, {site.width or '?'})" for site in listed[:8]) or "none"
        named = guessed(self._modules) or ([site.name for site in listed[:3]] if len(listed) > 1 else None)
        line = "attach(model, sites=[…])" if named is None else f"attach(model, {named!r})"
        raise UnsupportedHostError(
            f"{type(self.model).__name__} has no run of two or more blocks, and no plain layers in a row of one width, "
            f"so its residual stream is not clear. Name the sites, as in {line}. Its modules, with type and width: "
            f"{shown}. koopman_interp.sites(model) lists them all."
        )

    def listed(self) -> tuple[SiteListing, ...]:
        """List the outputs of all modules."""
        named = ((name, module) for name, module in self._modules.items() if name)
        return tuple(SiteListing(name, type(module).__name__, width_of(module)) for name, module in named)

    def _matching(self, pattern: str, names: Sequence[str]) -> list[str]:
        suffix = _SUFFIX.search(pattern)
        assert suffix is not None  # both of its parts may be empty
        stem = pattern[: suffix.start()]
        found = [name + suffix[0] for name in names if matches(name.split("."), stem.split("."))]
        if not found:
            raise UnknownSiteError(
                f"{type(self.model).__name__} has no module that matches {stem!r}. {nearest(stem, names)}"
            )
        return found

    def _blocks_between(self, source: str, target: str) -> tuple[Sequence[str], range]:
        """Find the run of blocks, and which of it lie from source to target; none where these are not on one stream."""
        for run in runs(self._modules):
            stream = (run[0] + INPUT, *run)
            if source in stream and target in stream:
                return run, range(stream.index(source), stream.index(target))
            # A block's input is its predecessor's output only where one calls the other directly.
            if any(source == after + INPUT and target in run for _, after in pairwise(run)):
                return run, range(run.index(source.removesuffix(INPUT)), run.index(target) + 1)
        return (), range(0)


def _hooks_inside(blocks: Sequence[nn.Module]) -> Iterator[Mapping[int, Any]]:
    """Find where hooks are kept within blocks in a row and between them, which is all but their two ends."""
    for block in blocks:
        for module in block.modules():
            if module is not block or block is not blocks[-1]:
                yield module._forward_hooks
            if module is not block or block is not blocks[0]:
                yield module._forward_pre_hooks


def _parsed(site: str) -> tuple[str, bool, int | None]:
    """Part a site into the module's name, whether its input is meant, and which of its calls in a pass."""
    suffix = _SUFFIX.search(site)
    assert suffix is not None
    call = suffix[2]
    return site[: suffix.start()], suffix[1] is not None, None if call is None else int(call[1:])


class _OneCall:
    """A hook that acts at one of a module's calls in each pass."""

    def __init__(self, hook: Hook, call: int, passes: Passes) -> None:
        self._hook, self._call, self._passes = hook, call, passes

    def __call__(self, state: Tensor) -> Tensor | None:
        running = self._passes.current
        if running is None:
            # In a backward pass the calls are not counted, so the hook has to say whether it minds.
            return self._hook(state) if in_backward() else None
        count = running.kept[self] = running.kept.get(self, 0) + 1
        return self._hook(state) if count == self._call + 1 else None


def _saved_tokenizer(model: nn.Module) -> Any:
    """Load the tokenizer saved beside a Hugging Face model's weights, if transformers is loaded already."""
    transformers = sys.modules.get("transformers")
    folder = getattr(getattr(model, "config", None), "_name_or_path", "")
    if transformers is None or not folder:
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError):
        return None


def _at_input(
    hook: Hook, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    state = input_state(args, kwargs)
    new = hook(state)
    if new is None:
        return None
    if args and args[0] is state:
        return (new, *args[1:]), kwargs
    return args, {key: new if value is state else value for key, value in kwargs.items()}


def _at_output(hook: Hook, _module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    given = args[0] if args and isinstance(args[0], Tensor) else None
    new = hook(output_state(output, given))
    return None if new is None else with_state(output, new)

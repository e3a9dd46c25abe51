"""The adapter for TransformerLens: `TransformerBridge` (4.x and 3.9) and `HookedTransformer` (3.9).

Sites are TransformerLens's hook names, and hooks go into its own lists, so that whatever it does with hooks it does
with these. Importing this module imports no TransformerLens: who has a model of it has loaded it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

from torch import Tensor, nn

from koopman_hosts.compiled import eager
from koopman_hosts.jacobian_lens import TransportedLens, is_jacobian_lens, transported
from koopman_hosts.lens_calls import each_call
from koopman_hosts.lens_spans import skipped
from koopman_hosts.offloaded import offloaded_weights
from koopman_hosts.site_names import matches
from koopman_hosts.skipping import overwritten
from koopman_interp.errors import InputError, UnknownSiteError, UnsupportedHostError, nearest
from koopman_interp.hosts.devices import device_of, moved_to
from koopman_interp.hosts.laid_out import in_layout
from koopman_interp.hosts.layouts import Layout
from koopman_interp.hosts.listing import SiteListing
from koopman_interp.hosts.passes import Pass, Passes
from koopman_interp.hosts.protocol import Hook, SiteSelection
from koopman_interp.hosts.tokens import right_padded

OLDEST = (3, 9)
_KINDS = ("TransformerBridge", "HookedTransformer", "RemoteBridge")
_BY_HEAD = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_rot_q", "hook_rot_k", "hook_result")
_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_values")
# Where in a block its points fire; those not listed lie between.
_WITHIN = {
    "hook_resid_pre": 0,
    "hook_in": 0,
    "hook_resid_mid": 2,
    "hook_mlp_out": 4,
    "hook_resid_post": 5,
    "hook_out": 5,
}


class TransformerLensHost:
    """A model of TransformerLens as a host.

    Args:
        model: a `TransformerBridge` or a `HookedTransformer`.

    Raises:
        UnsupportedHostError: the model runs elsewhere (a remote bridge), or TransformerLens is too old.
    """

    adapter: ClassVar[str] = "transformer-lens"
    priority: ClassVar[int] = 10

    def __init__(self, model: nn.Module) -> None:
        _require_supported(model)
        self.model = model

    @classmethod
    def accepts(cls, model: object) -> bool:
        """Accept the models of TransformerLens, remote ones too, so that these are refused with a reason."""
        return _kind_of(model) is not None

    @property
    def basis(self) -> str:
        """The basis of the residual stream now: weights as trained, or processed, and whether they are centred.

        `enable_compatibility_mode()` and the loading flags of `HookedTransformer` centre what is written to the
        stream, which projects every state in it.
        """
        processed = bool(getattr(self.model, "_weights_processed", False))
        processed |= str(self._config("normalization_type")).endswith("Pre")
        stream = "residual stream, weights " + ("processed" if processed else "as trained")
        return stream + (", centred" if _writes_are_centred(self.model) else "")

    def sites(self, selection: SiteSelection = None) -> tuple[str, ...]:
        """Resolve a selection to hook names.

        Args:
            selection: a hook name; a glob, whose `*` stays within one component and whose `**` crosses components; a
                short form (`resid_post`, `hook_mlp_out`, …), which is that point in every block; several of these; or
                a predicate on names, as a `names_filter`. None is the residual stream: `blocks.0.hook_resid_pre`, then
                the `hook_resid_post` of each block.

        Returns:
            Hook names; those of a glob, short form or predicate in order of depth, each point once.

        Raises:
            UnknownSiteError: a name, short form or glob matches nothing.
            UnsupportedHostError: no selection was given and the model has no plain run of blocks.
        """
        points = self._points()
        if selection is None:
            return self._residual_stream(points)
        if callable(selection):
            chosen = [name for name in points if selection(name)]
            if not chosen:
                raise UnknownSiteError(f"The predicate chose none of the {len(points)} hook points of this model.")
            return _in_depth_order(chosen, points)
        patterns = [selection] if isinstance(selection, str) else list(selection)
        return tuple(dict.fromkeys(site for pattern in patterns for site in self._matching(pattern, points)))

    def listed(self) -> tuple[SiteListing, ...]:
        """List all hook points, with the width of the residual stream where they are on it."""
        width = self._config("d_model")
        return tuple(SiteListing(name, "hook point", width if "resid" in name else None) for name in self._points())

    def call(self, batch: Any) -> Any:
        """Call the model on tokens, or on a mapping with `input_ids`, `attention_mask` and what else it takes."""
        batch = moved_to(device_of(self.model), batch)
        if not isinstance(batch, Mapping):
            return self.model(batch)
        first = next((name for name in _INPUTS if name in batch), None)
        if first is None:
            raise InputError(
                f"Expected a mapping with one of {', '.join(_INPUTS)}; got {', '.join(map(str, batch)) or 'none'}."
            )
        return self.model(batch[first], **{name: value for name, value in batch.items() if name != first})

    @property
    def tokenizer(self) -> Any:
        """The model's own tokenizer; None where it was booted without one."""
        return getattr(self.model, "tokenizer", None)

    @property
    def context_length(self) -> int | None:
        """The configuration's `n_ctx`."""
        length = self._config("n_ctx")
        return length if isinstance(length, int) else None

    def copy(self) -> TransformerLensHost:
        """Return a host of a deep copy of the model."""
        return TransformerLensHost(deepcopy(self.model))

    def weights_elsewhere(self) -> Mapping[int, Tensor]:
        """Return the weights that accelerate keeps on the CPU or on disk."""
        return offloaded_weights(self.model)

    def tokenize(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        """Tokenise as the model does for itself, its beginning-of-sequence token included; padded on the right.

        Raises:
            InputError: the model has no tokenizer.
        """
        model: Any = self.model
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise InputError(
                f"This {type(model).__name__} has no tokenizer, so it cannot be called with texts. Boot it from a "
                "folder that holds one, or give batches of tokens."
            )
        # One text at a time, since a batch comes without its mask, and padding may share its id with real tokens.
        sequences = [model.to_tokens(text, move_to_device=False)[0] for text in texts]
        fill = next((one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id) if one is not None), 0)
        return right_padded(sequences, fill)

    @contextmanager
    def passes(self, sites: Sequence[str] = (), ended: Callable[[Pass], None] | None = None) -> Iterator[Passes]:
        """Follow the passes that reach some hook points, whichever of TransformerLens's ways starts them.

        Padding is known from the attention mask; in lists of texts from each text's own length; and in tokens that
        come without a mask from a padding token that is not also the end of a sequence.
        """
        points = self._points()
        with each_call(self.model, [self._point(site, points) for site in sites], ended) as passes:
            yield passes

    def eager(self) -> AbstractContextManager[None]:
        """Set aside what `torch.compile` made."""
        return eager()

    @contextmanager
    def hooked(self, hooks: Mapping[str, Hook], *, first: bool = False) -> Iterator[None]:
        """Call each hook with the state at its site; a returned tensor takes the state's place.

        The hooks are permanent ones of TransformerLens, so that a `reset_hooks()` meanwhile leaves them in force.
        """
        points = self._points()
        with ExitStack() as stack:
            for site, hook in hooks.items():
                point = self._point(site, points)
                point.add_hook(_in_lens_idiom(_in_layout(site, hook)), is_permanent=True, prepend=first)
                stack.callback(_take_off, point, point.fwd_hooks[0 if first else -1])
            yield

    @contextmanager
    def replaced(self, source: str, target: str, advance: Callable[[Tensor], Tensor]) -> Iterator[bool]:
        """Put `advance(state at source)` at target.

        Between two sites on the residual stream the blocks' own compute is skipped. Hooks at the first block's input
        and the last block's output still fire; those inside the span do not, of which a warning tells once.

        Yields:
            Whether the compute of the span is skipped.
        """
        points = self._points()
        blocks = self._blocks_between(self._point(source, points), self._point(target, points), points)
        if not blocks:
            with overwritten(self, source, target, advance) as skips:
                yield skips
            return
        ends = (
            self._point(f"blocks.{blocks.start}.hook_resid_pre", points),
            self._point(f"blocks.{blocks.stop - 1}.hook_resid_post", points),
        )
        with skipped(self.model, blocks, ends, advance):
            yield True

    def fwd_hooks(self, hooks: Mapping[str, Hook]) -> list[tuple[str, Callable[..., Tensor | None]]]:
        """Give the hooks as `model.run_with_hooks(fwd_hooks=…)` takes them."""
        points = self._points()
        for site in hooks:
            self._point(site, points)
        return [(site, _in_lens_idiom(_in_layout(site, hook))) for site, hook in hooks.items()]

    def adapted_lens(self, lens: object, sites: tuple[str, ...], skip: int) -> TransportedLens | None:
        """Bring TransformerLens's JacobianLens to the form of lenses here; None for anything else.

        Args:
            lens: the lens.
            sites: the depths to look from.
            skip: leading places of each sequence that are left out.

        Raises:
            HostMismatchError: it was fitted on another model.
            InputError: it has none of the sites, or left out other leading places.
        """
        return transported(lens, self.model, sites, self._points(), skip) if is_jacobian_lens(lens) else None

    def _points(self) -> dict[str, Any]:
        model: Any = self.model
        # Built anew each time: enable_compatibility_mode() rebuilds the registry.
        return dict(model.hook_dict)

    def _blocks(self) -> Any:
        # Not as an attribute, which a bridge without blocks would look for in the model that it wraps.
        return self.model._modules.get("blocks", ())

    def _point(self, site: str, points: Mapping[str, Any]) -> Any:
        if site not in points:
            raise UnknownSiteError(
                f"This {type(self.model).__name__} has no hook point {site!r}. {nearest(site, list(points))}"
            )
        return points[site]

    def _config(self, name: str) -> Any:
        return getattr(getattr(self.model, "cfg", None), name, None)

    def _residual_stream(self, points: Mapping[str, Any]) -> tuple[str, ...]:
        blocks = len(self._blocks())
        stream = ("blocks.0.hook_resid_pre", *(f"blocks.{index}.hook_resid_post" for index in range(blocks)))
        if not blocks or any(site not in points for site in stream):
            raise UnsupportedHostError(
                f"This {type(self.model).__name__} has no single run of blocks with hook_resid_pre and "
                "hook_resid_post, so its residual stream is not clear. Name the sites: attach(model, sites=[…]). "
                f"Its first hook points: {', '.join(list(points)[:8]) or 'none'}."
            )
        return stream

    def _matching(self, pattern: str, points: Mapping[str, Any]) -> tuple[str, ...]:
        if pattern in points:
            return (pattern,)
        spellings = [pattern]
        if "." not in pattern:
            forms = (f"hook_{pattern}", pattern)
            spellings += [f"{place}.{form}" for place in ("blocks.*", "blocks.*.**") for form in forms]
        for spelling in spellings:
            found = [name for name in points if matches(name.split("."), spelling.split("."))]
            if found:
                return _in_depth_order(found, points)
        shortened = {name.split(".")[-1].removeprefix("hook_") for name in points} if "." not in pattern else set()
        raise UnknownSiteError(
            f"This {type(self.model).__name__} has no hook point that matches {pattern!r}. "
            f"{nearest(pattern, [*sorted(shortened), *points])}"
        )

    def _blocks_between(self, source: Any, target: Any, points: Mapping[str, Any]) -> range:
        """Find the blocks from source to target where both lie on the residual stream, else none."""
        starts: dict[int, int] = {}
        stops: dict[int, int] = {}
        for index, block in enumerate(self._blocks()):
            enters, leaves = (points.get(f"blocks.{index}.hook_resid_{end}") for end in ("pre", "post"))
            # In some families these names stand for points inside the block.
            if not (
                enters is getattr(block, "hook_in", enters) is not None
                and leaves is getattr(block, "hook_out", leaves) is not None
            ):
                return range(0)
            starts |= {id(enters): index, id(leaves): index + 1}
            stops |= {id(enters): index, id(leaves): index + 1}
        return range(starts.get(id(source), 0), stops.get(id(target), 0)) if id(source) in starts else range(0)


def _kind_of(model: object) -> str | None:
    """Name the class of TransformerLens that a model is of."""
    for kind in type(model).__mro__:
        if kind.__name__ in _KINDS and kind.__module__.partition(".")[0] == "transformer_lens":
            return kind.__name__
    return None


def _require_supported(model: object) -> None:
    if _kind_of(model) == "RemoteBridge":
        raise UnsupportedHostError(
            f"Expected a model that runs in this process, got a {type(model).__name__}, whose states live in another. "
            "Boot the same model with TransformerBridge.boot_transformers(…)."
        )
    try:
        found = version("transformer-lens")
    except PackageNotFoundError:  # run from a checkout, whose version nothing tells
        return
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        raise UnsupportedHostError(
            f"Expected TransformerLens {OLDEST[0]}.{OLDEST[1]} or newer, got {found}. "
            "Upgrade it: pip install -U transformer-lens."
        )


def _writes_are_centred(model: nn.Module) -> bool:
    """Whether what the embedding writes to the stream has no mean, as after `center_writing_weights`."""
    try:
        written = model.W_E
    except (AttributeError, AssertionError):
        # Models of images and sound have no embedding of tokens, or one that a bridge asserts to have a weight.
        return False
    if not isinstance(written, Tensor) or written.ndim != 2 or written.is_meta:
        return False
    rows = written.detach()[:256].float()
    # The mean of width random numbers is about 1/√width of their size; rounding leaves thousandths of that.
    means, size = rows.mean(1).square().mean().sqrt(), rows.square().mean().sqrt()
    return bool(means * rows.shape[1] ** 0.5 < 0.05 * size)


def _in_depth_order(names: Sequence[str], points: Mapping[str, Any]) -> tuple[str, ...]:
    """Sort hook names as a pass reaches them, and name each point once, by its shortest name."""
    known = {name: index for index, name in enumerate(points)}

    def depth(name: str) -> tuple[int, int, int]:
        head, *rest = name.split(".")
        if head == "blocks" and len(rest) > 1 and rest[0].isdigit():
            return 1, int(rest[0]), _WITHIN.get(rest[1], 3 if rest[1].startswith(("mlp", "ln2")) else 1)
        return (0 if "embed" in head or head == "hook_tokens" else 2), 0, 0

    ordered = sorted(names, key=lambda name: (*depth(name), name.count("."), "resid" not in name, known[name]))
    return tuple({id(points[name]): name for name in reversed(ordered)}.values())[::-1]


def _in_layout(site: str, hook: Hook) -> Hook:
    """Bring states with an axis of heads to `[batch, position, width]` and back, by TransformerLens's own names."""
    return in_layout(hook, Layout("batch position head width")) if site.split(".")[-1] in _BY_HEAD else hook


def _in_lens_idiom(hook: Hook) -> Callable[..., Tensor | None]:
    """Turn a hook into one that TransformerLens calls; the site is bound already, since `hook.name` is an alias."""
    return partial(_called_by_lens, hook)


def _called_by_lens(own: Hook, tensor: Tensor, **_: Any) -> Tensor | None:
    return own(tensor)


def _take_off(point: Any, handle: Any) -> None:
    handle.hook.remove()
    # In place and by identity: handles compare by value, and others may hold the list.
    point.fwd_hooks[:] = [known for known in point.fwd_hooks if known is not handle]

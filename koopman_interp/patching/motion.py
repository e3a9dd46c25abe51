"""Motion: the surrogate's motion over a span, edited or not, prepared for forward passes.

Encoder, powers of K, edits and decoder are affine maps around the hidden layers of two networks. Here they are
multiplied out once, in float64, so that a pass pays neither for steps nor for the number of edits. With z the
observables at the source, and edits `z → z − (z W − o) Aᵀ` at depths d:

    readings      r = z R − o'            edits on the way accounted for
    motion        z (Kⁿ)ᵀ − r S           S = Aᵀ (K^(n−d))ᵀ, all edits as one low-rank change

Two maps in a row stay two where that costs fewer products. Where the encoder looks back on earlier rows, its context is
one more hidden layer beside those of the network, and the rows of a whole pass go in. Knows nothing of hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import InputError
from koopman_interp.patching.looking_back import LookingBack
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.surrogates.context import CausalContext, CausalEncoder
from koopman_interp.surrogates.networks import LinearPlusNonlinear, PlainMLP
from koopman_interp.surrogates.operators import Operator

Mode = Literal["delta", "replace"]


class Motion(nn.Module):
    """A surrogate's motion from one depth to another, on rows in the model's own coordinates.

    The maps are buffers, so that a model that carries a Motion saves and loads it with its own weights. Gradients flow
    from output to input; the surrogate itself is a constant here.

    Args:
        koopman: the surrogate.
        first: depth of the source.
        last: depth of the target.
        edits: that act between them, both ends included; those at one depth act in the given order.
        mode: what a call returns: `replace`, rows at the target; `delta`, what the edits change there.

    Raises:
        InputError: an edit acts outside of the span.
    """

    def __init__(
        self,
        koopman: KoopmanAutoencoder,
        first: int,
        last: int,
        edits: Sequence[OperatorEdit] = (),
        mode: Mode = "delta",
    ) -> None:
        super().__init__()
        for edit in edits:
            require_in_span(koopman.sites, first, last, edit.depth, edit.description)
        self.mode = mode
        with torch.no_grad():
            self._prepare(koopman, first, last, edits)

    def forward(
        self,
        state: Float[Tensor, "row source"],
        back: LookingBack | None = None,
        chosen: Int[Tensor, " sample"] | None = None,
    ) -> Float[Tensor, "sample target"]:
        """Map rows at the source to rows at the target, or to their change.

        Args:
            state: rows; for an encoder that looks back, all of a pass.
            back: how they follow each other, for such an encoder.
            chosen: numbers of the rows that are wanted; None is all.
        """
        with in_full_precision(state):
            x, looked = self.normalize(state.to(self.last.dtype)), []
            if self.context is not None:
                assert back is not None, "an encoder that looks back needs to know on what"
                found, back.seen = self.context(self.context.enter(x), back.sequences, back.past)
                looked = [found if chosen is None else found[chosen]]
            x = x if chosen is None else x[chosen]
            features = torch.cat([x, self.encoder_hidden(x), *looked], 1)
            before, readings, straight = self.observe(features).split(self.parts, 1)
            hidden = self.decoder_hidden(before + readings @ self.shift_before)
            if self.mode == "delta":
                hidden = hidden - self.decoder_hidden(before)
                moved = readings @ self.shift_straight
            else:
                moved = straight + readings @ self.shift_straight
            return self.denormalize(moved + hidden @ self.last)

    def _prepare(self, koopman: KoopmanAutoencoder, first: int, last: int, edits: Sequence[OperatorEdit]) -> None:
        dtype = koopman.normalization.maps(first)[0].dtype
        operator = deepcopy(koopman.operator).double()
        encoder, decoder = _Network.of(koopman.token_encoder), _Network.of(koopman.decoder)

        # Normalisation is part of the encoder where the widths agree, and a step before it where it narrows.
        mean, forward, _ = (part.double() for part in koopman.normalization.maps(first))
        normalize = _Affine(forward, -mean @ forward)
        narrows = len(mean) > koopman.config.dimension
        self.normalize: nn.Module = normalize.to(dtype) if narrows else nn.Identity()
        if not narrows:
            encoder = encoder.after(normalize)
        self.context: CausalContext | None = None
        lifting = [encoder.straight, encoder.last]
        if isinstance(koopman.encoder, CausalEncoder):
            self.context = _after(koopman.encoder.context, None if narrows else normalize).to(dtype)
            lifting.append(koopman.encoder.leave.weight.T.double())
        target_mean, _, inverse = (part.double() for part in koopman.normalization.maps(last))
        # A change has no mean to put back.
        denormalize = _Affine(inverse, torch.zeros_like(target_mean) if self.mode == "delta" else target_mean)
        widens = len(target_mean) > koopman.config.dimension
        self.denormalize: nn.Module = denormalize.to(dtype) if widens else nn.Identity()
        if not widens:
            decoder = decoder.before(denormalize)

        readers, offsets, arrivals = _as_one_edit(operator, koopman, first, last, edits)
        power = operator.power(koopman.steps(first, last)).T
        straight = power @ decoder.straight if self.mode == "replace" else power[:, :0]
        straight_bias = decoder.bias if self.mode == "replace" else decoder.bias[:0]
        self.parts = [decoder.entry.weight.shape[1], readers.shape[1], straight.shape[1]]
        wanted = _Affine(
            torch.cat([power @ decoder.entry.weight, readers, straight], 1),
            torch.cat([decoder.entry.bias, -offsets, straight_bias]),
        )
        lift = _Affine(torch.cat(lifting), encoder.bias)
        self.encoder_hidden = nn.Sequential(encoder.entry, *encoder.middle).to(dtype)
        self.observe = _in_a_row(lift, wanted).to(dtype)
        self.decoder_hidden = nn.Sequential(*decoder.middle).to(dtype)
        self.register_buffer("last", decoder.last.to(dtype))
        self.register_buffer("shift_before", (-arrivals @ decoder.entry.weight).to(dtype))
        self.register_buffer("shift_straight", (-arrivals @ decoder.straight).to(dtype))
        self.requires_grad_(False)

    last: Float[Tensor, "hidden target"]
    shift_before: Float[Tensor, "reading hidden"]
    shift_straight: Float[Tensor, "reading target"]


def in_full_precision(state: Tensor) -> torch.autocast:
    """Return a context without autocast, under which motions are computed.

    In half precision they would lose the digits that tell an edited motion from an unedited one.
    """
    return torch.autocast(state.device.type, enabled=False)


def require_in_span(sites: Sequence[str], first: int, last: int, depth: int, description: str = "") -> None:
    """Check that an edit acts between two depths, both ends included.

    Raises:
        InputError: it does not.
    """
    if not first <= depth <= last:
        named = f"The edit {description!r}" if description else "An edit"
        raise InputError(
            f"{named} acts at {sites[depth]!r}, outside the patched span from {sites[first]!r} to {sites[last]!r}. "
            "Widen the span, or edit at a site in it."
        )


def _as_one_edit(
    operator: Operator, koopman: KoopmanAutoencoder, first: int, last: int, edits: Sequence[OperatorEdit]
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry edits at several depths to one low-rank change: readers at the source, offsets, arrivals at the target.

    What edit k reads is moved by what the edits j before it did: `r_k = z R_k − o_k` with
    `R_k = P W_k − Σ_j R_j T_jk` and `o_k = c_k − Σ_j o_j T_jk`, where `T_jk = A_jᵀ P W_k` and P are the steps between.
    """
    size = koopman.config.observables
    readers = torch.zeros(size, 0, dtype=torch.float64, device=koopman.normalization.maps(first)[0].device)
    offsets, arrivals = readers[0], readers.T
    done: list[OperatorEdit] = []
    for edit in sorted(edits, key=lambda edit: edit.depth):
        change = edit.map.to(readers)
        own, offset = operator.power(koopman.steps(first, edit.depth)).T @ change.readers, change.offset
        if done:
            met = [operator.advance(each.directions.to(own).T, koopman.steps(each.depth, edit.depth)) for each in done]
            passed = torch.cat(met) @ change.readers
            own, offset = own - readers @ passed, offset - offsets @ passed
        readers, offsets = torch.cat([readers, own], 1), torch.cat([offsets, offset])
        arrivals = torch.cat([arrivals, operator.advance(change.directions.T, koopman.steps(edit.depth, last))])
        done.append(edit)
    return readers, offsets, arrivals


class _Affine(nn.Module):
    """`x @ weight + bias`, as buffers."""

    weight: Float[Tensor, "inputs outputs"]
    bias: Float[Tensor, " outputs"]

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Float[Tensor, "sample inputs"]) -> Float[Tensor, "sample outputs"]:
        """Map rows."""
        return torch.addmm(self.bias, x, self.weight)


def _after(context: CausalContext, one: _Affine | None) -> CausalContext:
    """Return the context that takes what `one` takes."""
    copied = deepcopy(context)
    assert isinstance(copied.enter, nn.Linear)
    enter = _Affine(copied.enter.weight.T.double(), copied.enter.bias.double())
    if one is not None:
        enter = _Affine(one.weight @ enter.weight, one.bias @ enter.weight + enter.bias)
    copied.enter = enter
    return copied


def _in_a_row(one: _Affine, other: _Affine) -> nn.Module:
    """Take two maps after each other, multiplied out where that costs fewer products."""
    (inputs, between), outputs = one.weight.shape, other.weight.shape[1]
    if inputs * outputs > between * (inputs + outputs):
        return nn.Sequential(one, other)
    return _Affine(one.weight @ other.weight, one.bias @ other.weight + other.bias)


@dataclass(frozen=True)
class _Network:
    """An encoder or decoder taken apart, in float64: `x straight + bias + middle(entry(x)) last`.

    Without hidden layers `entry` has no outputs, and all of the network is in `straight`.
    """

    straight: Float[Tensor, "inputs outputs"]
    bias: Float[Tensor, " outputs"]
    entry: _Affine
    middle: tuple[nn.Module, ...]
    last: Float[Tensor, "hidden outputs"]

    @classmethod
    def of(cls, network: LinearPlusNonlinear | PlainMLP) -> _Network:
        layers = list(deepcopy(network.nonlinear).double())
        first, last = layers[0], layers[-1]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        straight = last.weight.new_zeros(first.in_features, last.out_features)
        if isinstance(network, LinearPlusNonlinear):
            straight = straight + network.linear.weight.double().T
        if len(layers) == 1:
            empty = _Affine(straight[:, :0], straight[0, :0])
            return cls(straight + last.weight.T, last.bias, empty, (), straight[:0])
        return cls(straight, last.bias, _Affine(first.weight.T, first.bias), tuple(layers[1:-1]), last.weight.T)

    def after(self, one: _Affine) -> _Network:
        """Return the network that takes what `one` takes."""
        entry = _Affine(one.weight @ self.entry.weight, one.bias @ self.entry.weight + self.entry.bias)
        bias = one.bias @ self.straight + self.bias
        return _Network(one.weight @ self.straight, bias, entry, self.middle, self.last)

    def before(self, other: _Affine) -> _Network:
        """Return the network that gives what `other` gives."""
        bias = self.bias @ other.weight + other.bias
        return _Network(self.straight @ other.weight, bias, self.entry, self.middle, self.last @ other.weight)

"""The Koopman autoencoder: normalisation → encoder → K → decoder.

`KoopmanAutoencoder` is the fitted value that everything downstream takes. It saves and loads through
huggingface_hub's mixin as safetensors and config.json, with the record of its fit. How it is fitted stands in
`fitting`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from koopman_interp.annotations import as_annotated
from koopman_interp.clocks import Clock
from koopman_interp.depths import depth_of, span
from koopman_interp.errors import InputError
from koopman_interp.files import Json
from koopman_interp.hashing import tensor_digest
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.sequences import Sequences, whole_pieces
from koopman_interp.surrogates.card import LIBRARY, TAGS, model_card
from koopman_interp.surrogates.context import CausalEncoder, ContextShape
from koopman_interp.surrogates.coordinates import Coordinates
from koopman_interp.surrogates.folder import misdescribed, read_weights, weights_of, write_folder
from koopman_interp.surrogates.moments import Moments
from koopman_interp.surrogates.networks import ARCHITECTURES, Activation, Architecture, LinearPlusNonlinear, PlainMLP
from koopman_interp.surrogates.normalization import Normalization
from koopman_interp.surrogates.operators import operator
from koopman_interp.surrogates.outlying_rows import outlying_rows
from koopman_interp.surrogates.record import INPUTS, FitRecord
from koopman_interp.trajectories import Trajectories

_RECORD = "record."  # before the names of its digests, beside the weights
"""Name, among the weights, of the digests of the inputs held out: too many for a header."""
_CHUNK, _CHUNK_NUMBERS = 8192, 2**23
"""Rows that are lifted at once, and observables of them over all depths: 64 MiB in float64."""


@dataclass(frozen=True)
class SurrogateConfig:
    """Everything that fixes the shape of a surrogate, and where it comes from.

    Attributes:
        sites: site of each depth.
        times: time of each depth, in operator steps.
        widths: width of the model's state at each depth, as rows.
        shapes: shape of one sample's state at each depth, as the model has it.
        skip: leading places of each sequence that it was not fitted on, and that a patch leaves alone.
        layout: names of the axes of the states in the model, where `attach` was told.
        dimension: width of the normalised states.
        observables: width of the observable space.
        architecture: of encoder and decoder.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        operator: kind of K, a key of `operators.OPERATORS`.
        rank: of the low-rank kinds.
        classes: labels that the fit has seen.
        host: fingerprint of the model.
        activation: between the layers of encoder and decoder.
        coordinates: those that the operator acts in, and why these.
        clock: what time is where it is not depth; each "site" is then a tick.
        context: sizes of the attention by which the encoder looks back; None for an encoder of each row alone.
    """

    sites: tuple[str, ...]
    times: tuple[float, ...]
    widths: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    dimension: int
    observables: int
    architecture: Architecture
    hidden: tuple[int, ...]
    operator: str
    rank: int | None
    classes: tuple[int, ...]
    host: HostFingerprint
    skip: int = 0
    layout: str | None = None
    activation: Activation = "leaky_relu"
    coordinates: Coordinates = field(default_factory=Coordinates)
    clock: Clock | None = None
    context: ContextShape | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Json]) -> SurrogateConfig:
        """Rebuild from what `dataclasses.asdict` and JSON made of it."""
        tuples = {name: tuple(values[name]) for name in ("sites", "times", "widths", "hidden", "classes")}
        shapes = tuple(map(tuple, values["shapes"]))
        parts: dict[str, Any] = {
            "host": HostFingerprint(**values["host"]),
            "coordinates": Coordinates.from_dict(values["coordinates"]),
            "clock": Clock.from_dict(values.get("clock")),
            "context": ContextShape.from_dict(values.get("context")),
        }
        return cls(**(values | tuples | parts | {"shapes": shapes}))


class KoopmanAutoencoder(
    nn.Module,
    PyTorchModelHubMixin,
    library_name=LIBRARY,
    tags=list(TAGS),
):
    """A surrogate of a model's motion through depth: encoder, one linear operator, decoder.

    Args:
        config: shape and provenance.

    Attributes:
        normalization: between host states and the common space.
        encoder: from the common space to observables.
        operator: K; `z_next = z @ K.T`.
        decoder: from observables to the common space.
        moments: class means and covariances of the observables on the rows fitted.
        heldout_moments: the same on the held-out rows.
        record: of the fit: its held-out figures by step, the inputs that were held out, its settings.
    """

    def __init__(self, config: SurrogateConfig) -> None:
        super().__init__()
        if config.architecture not in ARCHITECTURES:
            raise InputError(f"There is no architecture {config.architecture!r}; there are {', '.join(ARCHITECTURES)}.")
        build = ARCHITECTURES[config.architecture]
        depths = len(config.sites)
        self.config = config
        self.normalization = Normalization(config.widths, config.dimension)
        self.encoder: LinearPlusNonlinear | PlainMLP | CausalEncoder = build(
            config.dimension, config.hidden, config.observables, config.activation
        )
        self.operator = operator(config.operator, config.observables, config.rank)
        self.decoder = build(config.observables, config.hidden[::-1], config.dimension, config.activation)
        if config.context is not None:  # built last, so that from one seed all else starts as without it
            self.encoder = CausalEncoder(self.encoder, config.dimension, config.observables, config.context)
        self.moments = Moments(depths, config.classes, config.observables)
        self.heldout_moments = Moments(depths, config.classes, config.observables)
        self.record = FitRecord()

    def __repr__(self) -> str:
        c = self.config
        over = f"{len(c.sites)} depths from {c.sites[0]!r} to {c.sites[-1]!r}"
        if c.clock is not None:
            over = f"{len(c.sites)} ticks of {c.clock}"
        model = c.host.model.rsplit(".", 1)[-1]
        lifted = f"{c.observables} observables" + (", context of earlier rows" if self.looks_back else "")
        return f"KoopmanAutoencoder({model}, {over}, {c.dimension} → {lifted}, {c.operator} K)"

    @property
    def K(self) -> Float[Tensor, "observable observable"]:  # noqa: N802 (the field writes it so)
        """The operator as a dense matrix."""
        return self.operator.matrix()

    @property
    def sites(self) -> tuple[str, ...]:
        """Site of each depth."""
        return self.config.sites

    def require_depth(self, what: str) -> None:
        """Check that time is depth, so that the motion has a place in a forward pass.

        Args:
            what: that is asked for, as the subject of a sentence.

        Raises:
            InputError: it moves along an orbit, from tick to tick.
        """
        if self.config.clock is not None:
            raise InputError(self.config.clock.no_span(what))

    def steps(self, source: int, target: int) -> float:
        """Operator steps between two depths."""
        return self.config.times[target] - self.config.times[source]

    @property
    def looks_back(self) -> bool:
        """Whether its encoder attends to the earlier rows of a sequence, so that rows need their sequences."""
        return self.config.context is not None

    def encode(
        self, states: Float[Tensor, "sample width"], depth: int | str, sequences: Sequences | None = None
    ) -> Float[Tensor, "sample observable"]:
        """Lift states at a depth to observables.

        Args:
            states: rows, in the model's own coordinates.
            depth: that they stand at, or the name of its site.
            sequences: how they follow each other, for an encoder that looks back; of no matter to any other.

        Raises:
            InputError: there is no such depth, or the encoder looks back, and it is not told how the rows follow each
                other.
        """
        return self.lift(self.normalization.normalize(states, depth_of(self.sites, depth)), sequences)

    @property
    def token_encoder(self) -> LinearPlusNonlinear | PlainMLP:
        """The encoder of each row alone; of one that looks back, its token-wise part."""
        return self.encoder.token if isinstance(self.encoder, CausalEncoder) else self.encoder

    def lift(
        self, normalized: Float[Tensor, "*batch sample width"], sequences: Sequences | None = None
    ) -> Float[Tensor, "*batch sample observable"]:
        """Lift normalised states to observables; see `encode`. Leading axes, of depths, are apart from each other."""
        if isinstance(self.encoder, CausalEncoder):
            return self.encoder(normalized, sequences)
        return self.encoder(normalized)

    def observables_of(
        self,
        trajectories: Trajectories,
        depth: int,
        rows: Int[Tensor, " some"] | Bool[Tensor, " sample"] | None = None,
    ) -> Float[Tensor, "some observable"]:
        """Lift rows of trajectories at a depth, each among its sequence where the encoder looks back.

        Args:
            trajectories: that have the site of the depth.
            depth: of this surrogate.
            rows: which of them, by index or mask; None is all.

        Returns:
            Observables, on the surrogate's device.

        Raises:
            InputError: there is no such site, or the encoder looks back and rows of a sequence are missing.
        """
        device = self.normalization.maps(depth)[0].device
        at = depth_of(trajectories.sites, self.sites[depth])
        if not self.looks_back:
            states = trajectories.states[at]
            return self.encode((states if rows is None else states[rows.to(states.device)]).to(device), depth)
        sequence = trajectories.sequence
        wanted = torch.arange(len(sequence)) if rows is None else torch.arange(len(sequence))[rows.to("cpu")]
        number = torch.isin(sequence, sequence[wanted]).nonzero().squeeze(1)
        z = torch.empty(len(sequence), self.config.observables, dtype=self.normalization.maps(depth)[0].dtype)
        for piece in whole_pieces(sequence[number], _CHUNK):
            part = trajectories[number[piece]]
            found = self.encode(part.states[at].to(device), depth, part.in_sequence())
            z = z.to(found).index_copy(0, number[piece].to(device), found)
        return z[wanted.to(device)]

    def decode(
        self, observables: Float[Tensor, "sample observable"], depth: int | str
    ) -> Float[Tensor, "sample width"]:
        """Bring observables back to states at a depth, or at the site of that name."""
        return self.normalization.denormalize(self.decoder(observables), depth_of(self.sites, depth))

    def forward(
        self,
        states: Float[Tensor, "sample width"],
        source: str | int | None = None,
        target: str | int | None = None,
        *,
        sequences: Sequences | None = None,
    ) -> Float[Tensor, "sample _"]:
        """`predict`, by the name that torch calls."""
        return self.predict(states, source, target, sequences=sequences)

    def predict(
        self,
        states: Float[Tensor, "sample width"],
        source: str | int | None = None,
        target: str | int | None = None,
        *,
        sequences: Sequences | None = None,
    ) -> Float[Tensor, "sample _"]:
        """`D(K^n E(x))`: states at the target from states at the source.

        Args:
            states: rows at the source, in the model's own coordinates.
            source: site or depth; None is the first.
            target: site or depth; None is the last.
            sequences: how the rows follow each other, as `Trajectories.in_sequence` tells; an encoder that looks back
                needs it, and to any other it is of no matter.

        Returns:
            Rows at the target, in the model's own coordinates.

        Raises:
            InputError: the encoder looks back, and it is not told how the rows follow each other.
        """
        first, last = span(self.sites, source, target)
        z = self.operator.advance(self.encode(states, first, sequences), self.steps(first, last))
        return self.decode(z, last)

    def is_held_out(self, trajectories: Trajectories) -> Bool[Tensor, " sample"]:
        """Mark the rows of inputs that the fit held out: neither it nor a distillation was trained on them."""
        return self.record.is_held_out(trajectories.digests)

    def is_fitted_on(self, trajectories: Trajectories) -> Bool[Tensor, " sample"]:
        """Mark the rows of inputs that the fit is known to have been trained on; see `FitRecord.fitted`."""
        return self.record.is_fitted_on(trajectories.digests)

    @torch.no_grad()
    def gather_moments(self, rows: Trajectories | Iterable[Trajectories]) -> None:
        """Gather both moments anew from the rows of the fit: held-out ones apart from those fitted on.

        Args:
            rows: trajectories, of which those that outlie, and that the fit left out, are left out here too; or parts
                that come one after the other, without such rows.
        """
        if isinstance(rows, Trajectories):
            outlying = outlying_rows(rows.states, self.record.settings.get("outlying"), self.is_held_out(rows))
            rows = [rows[~outlying] if outlying.any() else rows]
        c, device = self.config, next(self.decoder.parameters()).device
        self.moments, self.heldout_moments = (
            Moments(len(c.sites), c.classes, c.observables).to(device) for _ in range(2)
        )
        for piece in (piece for part in rows for piece in part.pieces(self._chunk, whole=self.looks_back)):
            order = piece.in_sequence() if self.looks_back else None
            z = torch.stack([self.encode(state.to(device), depth, order) for depth, state in enumerate(piece.states)])
            held_out = self.is_held_out(piece)
            for moments, side in ((self.moments, ~held_out), (self.heldout_moments, held_out)):
                moments.update(z[:, side.to(device)], None if piece.labels is None else piece.labels[side])

    @property
    def _chunk(self) -> int:
        """Rows whose observables at all depths are held at once."""
        return max(64, min(_CHUNK, _CHUNK_NUMBERS // (len(self.sites) * self.config.observables)))

    def digest(self) -> str:
        """Digest all that gives an edit of K its meaning: normalisation, encoder and operator."""
        parts = (self.normalization, self.encoder, self.operator)
        return tensor_digest(named for part in parts for named in part.state_dict().items())

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write `model.safetensors`, `config.json` and a model card to a folder.

        The weights carry the configuration too, and are all that is read; `config.json` says it to others. A kill
        leaves the old weights or the new ones, and a configuration and a card that are theirs or none.

        Args:
            save_directory: the folder.
            push_to_hub: upload it as well.
            repo_id: Hub repository; the folder's name by default.
            **push_to_hub_kwargs: passed to the mixin's `push_to_hub`.

        Returns:
            The address of the commit where one was pushed, else None.
        """
        folder = Path(save_directory)
        self._save_pretrained(folder, repo_id)
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, **push_to_hub_kwargs)

    def generate_model_card(self, *args: object, name: str = "koopman", **kwargs: object) -> ModelCard:  # noqa: ARG002
        """Say in words what it is of, how well it does and how to load it by a name."""
        return model_card(name, self.config, self.record)

    def _save_pretrained(self, save_directory: Path, name: str | None = None) -> None:
        record = {name: value for name, value in self.record.as_dict().items() if name not in INPUTS}
        tensors = self.state_dict() | {f"{_RECORD}{name}": getattr(self.record, name) for name in INPUTS}
        card = str(self.generate_model_card(name=name or save_directory.name))
        write_folder(save_directory, tensors, asdict(self.config), record, card)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **download: Any
    ) -> KoopmanAutoencoder:
        """Load from a folder, or from the Hub by name.

        Args:
            pretrained_model_name_or_path: a folder that `save_pretrained` wrote, or a Hub repository.
            **download: for the Hub: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Returns:
            The surrogate, in eval mode, on the CPU.

        Raises:
            FileNotFoundError: there is neither such a folder nor such a repository.
            FileFormatError: the weights are truncated or foreign, or the configuration beside them is of others.
        """
        weights = weights_of(os.fspath(pretrained_model_name_or_path), **download)
        tensors, header = read_weights(weights)
        try:
            # Without memory of its own: what a file says of its sizes is believed only once its tensors have them.
            with torch.device("meta"):
                surrogate = cls(as_annotated(SurrogateConfig.from_dict(header["config"])))
            inputs = {name: tensors.pop(f"{_RECORD}{name}") for name in INPUTS if f"{_RECORD}{name}" in tensors}
            record = FitRecord.from_dict(header["record"] | inputs)
            surrogate.record = as_annotated(record)
            # Assigned, not copied, so that the dtype that was saved is the dtype that comes back.
            surrogate.load_state_dict(tensors, assign=True)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise misdescribed(weights) from error
        return surrogate.eval().requires_grad_(False)

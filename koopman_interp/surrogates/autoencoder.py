"""The Koopman autoencoder: normalisation → encoder → K → decoder.

`KoopmanAutoencoder` is the fitted value that everything downstream takes. It saves and loads through
huggingface_hub's mixin as safetensors and config.json, with the record of its fit. How it is fitted stands in
`fitting`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from jaxtyping import Bool, Float
from torch import Tensor, nn

from koopman_interp.clocks import Clock
from koopman_interp.depths import span
from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import Json, read_tensors, write_json, write_tensors, write_text
from koopman_interp.hashing import tensor_digest
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.surrogates.moments import Moments
from koopman_interp.surrogates.normalization import Coordinates, Normalization
from koopman_interp.surrogates.operators import operator
from koopman_interp.surrogates.outlying_rows import outlying_rows
from koopman_interp.surrogates.record import FitRecord
from koopman_interp.trajectories import Trajectories

Architecture = Literal["linear_plus_nonlinear", "mlp"]
Activation = Literal["leaky_relu", "gelu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"leaky_relu": nn.LeakyReLU, "gelu": nn.GELU}

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
_HELD_OUT = "record.held_out"
"""Name, among the weights, of the digests of the inputs held out: too many for a header."""
_CHUNK = 8192


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

    @classmethod
    def from_dict(cls, values: dict[str, Json]) -> SurrogateConfig:
        """Rebuild from what `dataclasses.asdict` and JSON made of it."""
        tuples = {name: tuple(values[name]) for name in ("sites", "times", "widths", "hidden", "classes")}
        shapes = tuple(map(tuple, values["shapes"]))
        parts = {"host": HostFingerprint(**values["host"]), "coordinates": Coordinates.from_dict(values["coordinates"])}
        return cls(**(values | tuples | parts | {"shapes": shapes, "clock": Clock.from_dict(values.get("clock"))}))


class LinearPlusNonlinear(nn.Module):
    """`W x + g(x)`: a linear map beside a small MLP.

    Args:
        inputs: width in.
        hidden: widths of the hidden layers of g.
        outputs: width out.
        activation: between the layers of g.

    W starts as an isometric embedding (or projection) and g small, so that the start is an isometry.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, activation: Activation = "leaky_relu") -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.nonlinear = mlp(inputs, hidden, outputs, activation)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(outputs, inputs))
            last = _last_layer(self.nonlinear)
            last.weight.mul_(0.1)
            last.bias.zero_()

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Map rows."""
        return self.linear(x) + self.nonlinear(x)

    def layers_in(self) -> list[nn.Linear]:
        """The layers that see the input first."""
        return [self.linear, _first_layer(self.nonlinear)]

    def layers_out(self) -> list[nn.Linear]:
        """The layers whose sum is the output."""
        return [self.linear, _last_layer(self.nonlinear)]


class PlainMLP(nn.Module):
    """An MLP alone; with leaky ReLUs, the paper's encoder."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int, activation: Activation = "leaky_relu") -> None:
        super().__init__()
        self.nonlinear = mlp(inputs, hidden, outputs, activation)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Map rows."""
        return self.nonlinear(x)

    def layers_in(self) -> list[nn.Linear]:
        """The layer that sees the input first."""
        return [_first_layer(self.nonlinear)]

    def layers_out(self) -> list[nn.Linear]:
        """The layer whose output is the output."""
        return [_last_layer(self.nonlinear)]


ARCHITECTURES: dict[str, type[LinearPlusNonlinear] | type[PlainMLP]] = {
    "linear_plus_nonlinear": LinearPlusNonlinear,
    "mlp": PlainMLP,
}


class KoopmanAutoencoder(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="koopman-interp",
    tags=["koopman", "interpretability"],
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
        self.encoder = build(config.dimension, config.hidden, config.observables, config.activation)
        self.operator = operator(config.operator, config.observables, config.rank)
        self.decoder = build(config.observables, config.hidden[::-1], config.dimension, config.activation)
        self.moments = Moments(depths, config.classes, config.observables)
        self.heldout_moments = Moments(depths, config.classes, config.observables)
        self.record = FitRecord()

    def __repr__(self) -> str:
        c = self.config
        over = f"{len(c.sites)} depths from {c.sites[0]!r} to {c.sites[-1]!r}"
        if c.clock is not None:
            over = f"{len(c.sites)} ticks of {c.clock}"
        model = c.host.model.rsplit(".", 1)[-1]
        return f"KoopmanAutoencoder({model}, {over}, {c.dimension} → {c.observables} observables, {c.operator} K)"

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

    def encode(self, states: Float[Tensor, "sample width"], depth: int) -> Float[Tensor, "sample observable"]:
        """Lift states at a depth to observables."""
        return self.encoder(self.normalization.normalize(states, depth))

    def decode(self, observables: Float[Tensor, "sample observable"], depth: int) -> Float[Tensor, "sample width"]:
        """Bring observables back to states at a depth."""
        return self.normalization.denormalize(self.decoder(observables), depth)

    def forward(
        self,
        states: Float[Tensor, "sample width"],
        source: str | int | None = None,
        target: str | int | None = None,
    ) -> Float[Tensor, "sample _"]:
        """`predict`, by the name that torch calls."""
        return self.predict(states, source, target)

    def predict(
        self,
        states: Float[Tensor, "sample width"],
        source: str | int | None = None,
        target: str | int | None = None,
    ) -> Float[Tensor, "sample _"]:
        """`D(K^n E(x))`: states at the target from states at the source.

        Args:
            states: rows at the source, in the model's own coordinates.
            source: site or depth; None is the first.
            target: site or depth; None is the last.

        Returns:
            Rows at the target, in the model's own coordinates.
        """
        first, last = span(self.sites, source, target)
        z = self.operator.advance(self.encode(states, first), self.steps(first, last))
        return self.decode(z, last)

    def is_held_out(self, trajectories: Trajectories) -> Bool[Tensor, " sample"]:
        """Mark the rows of inputs that the fit held out: neither it nor a distillation was trained on them."""
        return self.record.is_held_out(trajectories.digests)

    @torch.no_grad()
    def gather_moments(self, trajectories: Trajectories) -> None:
        """Gather both moments anew from the trajectories of the fit: held-out rows apart from those fitted on.

        Rows that outlie, and that the fit left out, are in neither.
        """
        kept = ~outlying_rows(trajectories.states, self.record.settings.get("outlying"))
        c, device = self.config, next(self.encoder.parameters()).device
        self.moments, self.heldout_moments = (
            Moments(len(c.sites), c.classes, c.observables).to(device) for _ in range(2)
        )
        for start in range(0, len(trajectories), _CHUNK):
            rows = trajectories[start : start + _CHUNK]
            z = torch.stack([self.encode(state.to(device), depth) for depth, state in enumerate(rows.states)])
            held_out = self.is_held_out(rows)
            for moments, side in ((self.moments, ~held_out), (self.heldout_moments, held_out)):
                side = side & kept[start : start + _CHUNK]
                moments.update(z[:, side.to(device)], None if rows.labels is None else rows.labels[side])

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

        The mixin's own method deletes the old configuration before it writes; this one replaces each file whole.
        The weights carry the configuration too, so the two can never be from different fits.

        Args:
            save_directory: the folder.
            push_to_hub: upload it as well.
            repo_id: Hub repository; the folder's name by default.
            **push_to_hub_kwargs: passed to the mixin's `push_to_hub`.

        Returns:
            The address of the commit where one was pushed, else None.
        """
        folder = Path(save_directory)
        self._save_pretrained(folder)
        if not (folder / "README.md").exists():
            write_text(folder / "README.md", str(self.generate_model_card()))
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, **push_to_hub_kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        record = self.record.as_dict()
        del record["held_out"]
        header = {"config": asdict(self.config), "record": record}
        write_json(save_directory / CONFIG_FILE, header["config"] | {"record": record})
        tensors = self.state_dict() | {_HELD_OUT: self.record.held_out}
        write_tensors(save_directory / WEIGHTS_FILE, tensors, kind="surrogate", header=header)

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
            FileFormatError: the weights are truncated or foreign.
        """
        where = os.fspath(pretrained_model_name_or_path)
        weights = Path(where) / WEIGHTS_FILE
        if not Path(where).is_dir():
            if where.count("/") != 1:
                raise FileNotFoundError(f"There is no folder {where!r}; a name on the Hub would be owner/name.")
            try:
                weights = Path(hf_hub_download(where, WEIGHTS_FILE, **download))
            except (HFValidationError, EntryNotFoundError, RepositoryNotFoundError) as error:
                raise FileNotFoundError(
                    f"There is no folder {where!r}, and the Hub gave no {WEIGHTS_FILE} under that name."
                ) from error
        tensors, header = read_tensors(weights, kind="surrogate")
        try:
            # Without memory of its own: what a file says of its sizes is believed only once its tensors have them.
            with torch.device("meta"):
                surrogate = cls(SurrogateConfig.from_dict(header["config"]))
            surrogate.record = FitRecord.from_dict(header["record"] | {"held_out": tensors.pop(_HELD_OUT)})
            # Assigned, not copied, so that the dtype that was saved is the dtype that comes back.
            surrogate.load_state_dict(tensors, assign=True)
        except (KeyError, TypeError, RuntimeError) as error:
            raise FileFormatError(
                f"{weights} does not hold the surrogate that its header describes. Write it again from its source."
            ) from error
        return surrogate.eval().requires_grad_(False)


def mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: Activation = "leaky_relu") -> nn.Sequential:
    """Stack linear layers with activations between them."""
    widths = [inputs, *hidden, outputs]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def _first_layer(layers: nn.Sequential) -> nn.Linear:
    layer = layers[0]
    assert isinstance(layer, nn.Linear)
    return layer


def _last_layer(layers: nn.Sequential) -> nn.Linear:
    layer = layers[-1]
    assert isinstance(layer, nn.Linear)
    return layer

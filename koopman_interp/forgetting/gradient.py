"""An edit by gradient: K alone is trained, towards any objective on the model's output.

The factors of a low-rank edit descend; host, encoder and decoder stay as they are. It starts from a closed form or
from nearly nothing, and ends as an `OperatorEdit` like any other. Each step costs what the objective does, forwards and
backwards: hundreds of times a closed form. Knows the model by its patch only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from koopman_interp.edits.certifying import acting_depth, certified, edit_at
from koopman_interp.edits.edit_set import EditSet
from koopman_interp.edits.low_rank import LowRankMap
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import InputError, NonFiniteError
from koopman_interp.hosts.devices import device_of
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Positions
from koopman_interp.own_kinds import own_kinds
from koopman_interp.patching.options import At
from koopman_interp.patching.patch import patched
from koopman_interp.patching.stepped_motion import SteppedMotion
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

Objective = Callable[[nn.Module], Tensor]
"""Takes the patched model, runs it as it likes, and returns what is to become small, a scalar."""

_NEARLY_NOTHING = 1e-3
_LEAST = 0.1
"""Size that a factor's steps are relative to at least, in units of the observables' standard deviation."""


@own_kinds
def gradient_edit(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    objective: Objective,
    *,
    start: OperatorEdit | Sequence[OperatorEdit] | None = None,
    site: str | int | None = None,
    rank: int = 1,
    steps: int = 100,
    rate: float = 0.02,
    at: At = "target",
    positions: Positions = None,
    seed: int = 0,
    progress: bool | None = None,
) -> OperatorEdit | EditSet:
    """Train an edit of the operator.

    Args:
        model: the model that the surrogate was fitted on; its weights are not touched.
        koopman: the surrogate.
        objective: called with the model, patched, at each step; returns a scalar that depends on its output.
        start: an edit, or several, to start from; their ranks stay. None starts from a random edit that hardly moves
            anything, with `site` and `rank`.
        site: without `start`, site or depth; None is the last but one.
        rank: without `start`, rank of the edit.
        steps: how many steps of Adam.
        rate: Adam's learning rate, relative to the size of each factor.
        at: where edits are written; see `patched`.
        positions: places to patch; see `patched`.
        seed: seed of a random start.
        progress: show a bar with the objective; None shows it on a terminal only.

    Returns:
        The trained edit, with its certificate and the labels of its start; an `EditSet` where several were given.

    Raises:
        InputError: the objective is no scalar, or does not depend on the edit.
        NonFiniteError: the objective became NaN or infinite.
        HostMismatchError: the surrogate or an edit belongs to another host.
    """
    if start is None:
        start = _nearly_nothing(koopman, acting_depth(koopman, site), rank, seed)
    edits: list[OperatorEdit] = [start] if isinstance(start, OperatorEdit) else [*start]
    if not all(edit.directions.any() for edit in edits):
        raise InputError("An edit that moves nothing has no slope to start from. Start from another, or from None.")
    host = host_for(model, koopman.config.layout)
    patch = patched(host, koopman, edits, at=at, positions=positions)
    device = device_of(host.model)
    trained = [TrainableMap(edit.map).to(device) for edit in edits]
    changes = [(edit.depth, change) for edit, change in zip(edits, trained, strict=True)]

    def motion(first: int, last: int) -> SteppedMotion:
        within = [(depth, change) for depth, change in changes if first <= depth <= last]
        return SteppedMotion(koopman, first, last, within).to(device)

    patch.moved_by(motion)
    parameters = [parameter for change in trained for parameter in change.parameters()]
    units = [unit for edit in edits for unit in _units(koopman, edit.depth)]
    sizes = [_size(factor, _LEAST * unit) for factor, unit in zip(parameters, units, strict=True)]
    optimizer = torch.optim.Adam(
        [{"params": [factor], "lr": rate * size} for factor, size in zip(parameters, sizes, strict=True)]
    )
    bar = tqdm(total=steps, desc="gradient edit", disable=None if progress is None else not progress)
    with torch.enable_grad(), patch, bar:
        for step in range(steps):
            loss = objective(host.model)
            _require_usable(loss, step)
            # Not .backward(): the model's own .grad is its user's.
            for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = slope
            optimizer.step()
            bar.set_postfix(objective=float(loss.detach()), refresh=False)
            bar.update()
    made = [_trained(edit, change.map, koopman, steps) for edit, change in zip(edits, trained, strict=True)]
    if isinstance(start, OperatorEdit):
        return made[0]
    return EditSet(tuple(made), ", ".join(dict.fromkeys(edit.description for edit in made)))


class TrainableMap(nn.Module):
    """A low-rank map whose factors are parameters, in float32.

    Args:
        start: the map to start from.
    """

    def __init__(self, start: LowRankMap) -> None:
        super().__init__()
        self.directions = nn.Parameter(start.directions.float().clone())
        self.readers = nn.Parameter(start.readers.float().clone())
        self.offset = nn.Parameter(start.offset.float().clone())

    @property
    def map(self) -> LowRankMap:
        """The map as it is now, through which gradients flow to the factors."""
        return LowRankMap(self.directions, self.readers, self.offset)

    def forward(self, z: Float[Tensor, "sample observable"]) -> Float[Tensor, "sample observable"]:
        """Map rows of observables."""
        return self.map(z)


def _nearly_nothing(koopman: KoopmanAutoencoder, depth: int, rank: int, seed: int) -> OperatorEdit:
    """Read rows by random directions, in their standard deviations, and move them by next to nothing."""
    size = koopman.config.observables
    if not 0 < rank <= size:
        raise InputError(f"The rank must lie between 1 and the {size} observables; got {rank}.")
    generator = torch.Generator().manual_seed(seed)
    covariance, mean = koopman.moments.covariance[depth].cpu(), koopman.moments.total_mean(depth).cpu()
    readers, directions = (torch.randn(size, rank, generator=generator, dtype=torch.float64) for _ in range(2))
    readers = readers / torch.einsum("mk,mn,nk->k", readers, covariance, readers).sqrt()
    directions = _NEARLY_NOTHING * directions * covariance.diagonal().mean().sqrt()
    return edit_at(koopman, depth, "gradient edit", LowRankMap(directions, readers, mean @ readers))


def _units(koopman: KoopmanAutoencoder, depth: int) -> tuple[float, float, float]:
    """Units of directions, readers and offset: of observables, of their inverse, and of readings."""
    spread = float(koopman.moments.covariance[depth].diagonal().mean().sqrt())
    return spread, 1 / spread, 1.0


def _size(parameter: Tensor, least: float) -> float:
    """Root mean square of a factor, or, of one that is next to nothing, a size to begin with."""
    return max(float(parameter.detach().square().mean().sqrt()), least)


def _require_usable(loss: Tensor, step: int) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(f"The objective must return a scalar tensor; got {given}. Take its mean or sum.")
    if not loss.requires_grad:
        raise InputError(
            "The objective does not depend on the edit: it was computed without gradients, or from no output of the "
            "patched model. Call the model in the objective, outside of torch.no_grad()."
        )
    if not torch.isfinite(loss):
        raise NonFiniteError(f"The objective is {float(loss.detach())} at step {step}. Lower rate=….")


def _trained(start: OperatorEdit, change: LowRankMap, koopman: KoopmanAutoencoder, steps: int) -> OperatorEdit:
    """Make a certified edit of what became of another in training; it forgets the same classes."""
    factors = (factor.detach().cpu().double() for factor in (change.directions, change.readers, change.offset))
    description = f"{start.description}, {steps} gradient steps"
    return certified(edit_at(koopman, start.depth, description, LowRankMap(*factors), start.labels), koopman)

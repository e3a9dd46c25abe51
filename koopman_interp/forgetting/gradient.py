"""An edit by gradient: K alone is trained, towards any objective on the host's output.

The factors of a low-rank edit descend; host, encoder and decoder stay as they are. It starts from a closed form or
from nearly nothing, and ends as an `OperatorEdit` like any other. Each step costs what the objective does, forwards and
backwards: hundreds of times a closed form. Knows the host by its patch only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from koopman_interp.edits.certifying import certified, edit_at
from koopman_interp.edits.edit_set import EditSet
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import InputError, NonFiniteError
from koopman_interp.hosts.devices import device_of
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Positions
from koopman_interp.patching.options import At
from koopman_interp.patching.patch import patched
from koopman_interp.sites import depth_of
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

Objective = Callable[[nn.Module], Tensor]
"""Takes the patched model, runs it as it likes, and returns what is to become small, a scalar."""

_NEARLY_NOTHING = 1e-3


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
        model: the host that the surrogate was fitted on; its weights are not touched.
        koopman: the surrogate.
        objective: called with the model, patched, at each step; returns a scalar that depends on its output.
        start: an edit, or several, to start from; their ranks stay. None starts from a random edit that hardly moves
            anything, with `site` and `rank`.
        site: without `start`, site or depth; None is the last but one.
        rank: without `start`, of the edit.
        steps: of Adam.
        rate: its learning rate, relative to the size of each factor.
        at: where edits are written; see `patched`.
        positions: places to patch; see `patched`.
        seed: of a random start.
        progress: show a bar with the objective; None shows it on a terminal only.

    Returns:
        The trained edit, with its certificate; an `EditSet` where several were given.

    Raises:
        InputError: the objective is no scalar, or does not depend on the edit.
        NonFiniteError: the objective became NaN or infinite.
        HostMismatchError: the surrogate or an edit belongs to another host.
    """
    if start is None:
        start = _nearly_nothing(koopman, depth_of(koopman.sites, -2 if site is None else site), rank, seed)
    edits: list[OperatorEdit] = [start] if isinstance(start, OperatorEdit) else [*start]
    if not all(edit.directions.any() for edit in edits):
        raise InputError("An edit that moves nothing has no slope to start from. Start from another, or from None.")
    host = host_for(model)
    patch = patched(host, koopman, edits, at=at, positions=positions)
    device = device_of(host.model)
    trained = [_Factors(edit).to(device) for edit in edits]
    surrogate = deepcopy(koopman).to(device)
    patch.moved_by(lambda first, last: _TrainedMotion(surrogate, trained, first, last))
    parameters = [parameter for one in trained for parameter in one.parameters()]
    optimizer = torch.optim.Adam([{"params": [one], "lr": rate * _size(one)} for one in parameters])
    bar = tqdm(total=steps, desc="gradient edit", disable=None if progress is None else not progress)
    with torch.enable_grad(), patch, bar:
        for step in range(steps):
            loss = objective(host.model)
            _require_usable(loss, step)
            # Not .backward(): the host's own .grad is its user's.
            for parameter, slope in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = slope
            optimizer.step()
            bar.set_postfix(objective=float(loss.detach()), refresh=False)
            bar.update()
    made = [certified(_with(edit, one, koopman, steps), koopman) for edit, one in zip(edits, trained, strict=True)]
    if isinstance(start, OperatorEdit):
        return made[0]
    return EditSet(tuple(made), f"{', '.join(dict.fromkeys(edit.description for edit in made))}")


class _Factors(nn.Module):
    """The factors of one edit, to be trained."""

    def __init__(self, edit: OperatorEdit) -> None:
        super().__init__()
        self.depth = edit.depth
        for name in ("directions", "readers", "offset"):
            self.register_parameter(name, nn.Parameter(getattr(edit, name).float().clone()))

    directions: Float[Tensor, "observable rank"]
    readers: Float[Tensor, "observable rank"]
    offset: Float[Tensor, " rank"]

    def forward(self, z: Float[Tensor, "sample observable"]) -> Float[Tensor, "sample observable"]:
        return z - (z @ self.readers - self.offset) @ self.directions.T


class _TrainedMotion(nn.Module):
    """What edits change over a span, step by step, so that gradients reach their factors."""

    def __init__(self, surrogate: KoopmanAutoencoder, trained: Sequence[_Factors], first: int, last: int) -> None:
        super().__init__()
        self.surrogate = surrogate
        self.first, self.last = first, last
        self.edits = nn.ModuleList(one for one in trained if first <= one.depth <= last)

    def forward(self, state: Float[Tensor, "sample source"]) -> Float[Tensor, "sample target"]:
        surrogate = self.surrogate
        plain = surrogate.encode(state.to(surrogate.normalization.maps(self.first)[0].dtype), self.first)
        edited = plain
        for depth in range(self.first, self.last + 1):
            if depth > self.first:
                move = surrogate.operator.propagator(surrogate.steps(depth - 1, depth))
                plain, edited = move(plain), move(edited)
            for edit in self.edits:
                if edit.depth == depth:
                    edited = edit(edited)
        change = surrogate.decoder(edited) - surrogate.decoder(plain)
        return surrogate.normalization.denormalize_difference(change, self.last)


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
    return edit_at(koopman, depth, "gradient edit", directions, readers, mean @ readers)


def _size(parameter: Tensor) -> float:
    """Root mean square of a factor, or, of one that is next to nothing, a unit to begin with."""
    return max(float(parameter.detach().square().mean().sqrt()), 0.1)


def _require_usable(loss: Tensor, step: int) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(f"The objective must return a scalar tensor; got {found}. Take its mean or sum.")
    if not loss.requires_grad:
        raise InputError(
            "The objective does not depend on the edit: it was computed without gradients, or from no output of the "
            "patched model. Call the model in the objective, outside of torch.no_grad()."
        )
    if not torch.isfinite(loss):
        raise NonFiniteError(f"The objective is {float(loss.detach())} at step {step}. Lower rate=….")


def _with(edit: OperatorEdit, trained: _Factors, koopman: KoopmanAutoencoder, steps: int) -> OperatorEdit:
    directions, readers, offset = (
        getattr(trained, name).detach().cpu().double() for name in ("directions", "readers", "offset")
    )
    description = f"{edit.description}, {steps} gradient steps"
    made = edit_at(koopman, edit.depth, description, directions, readers, offset)
    return replace(made, host=edit.host)

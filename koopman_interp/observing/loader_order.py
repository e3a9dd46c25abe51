"""The order in which a loader gives its inputs: labels that come apart from them go by it."""

from __future__ import annotations

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from koopman_interp.errors import InputError


def require_own_order(batches: object) -> None:
    """Refuse a loader that gives inputs in another order than that of its data, to which labels apart would belong.

    Raises:
        InputError: it draws them, or takes them by a sampler whose order is not known.
    """
    if not isinstance(batches, DataLoader) or isinstance(batches.dataset, IterableDataset):
        return
    sampler: object = batches.sampler if batches.batch_sampler is None else batches.batch_sampler
    if type(sampler) is BatchSampler:  # which takes them as its own sampler does
        sampler = sampler.sampler
    if not isinstance(sampler, SequentialSampler):
        raise InputError(
            f"This DataLoader takes its inputs by a {type(sampler).__name__}, in an order that labels which come apart "
            "from them do not follow. Give them together, DataLoader(TensorDataset(x, y), …), or inputs in their own "
            "order: shuffle=False."
        )

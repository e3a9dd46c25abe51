"""Laws of a host adapter on passes: what belongs to one pass is of that pass alone, whoever starts it."""

from __future__ import annotations

import inspect
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal
from unittest import SkipTest

import torch
from torch import Tensor, nn

from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import HostMismatchError
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.layouts import to_rows
from koopman_interp.hosts.protocol import Host
from koopman_interp.observing.attaching import attach
from koopman_interp.patching.patch import patched
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.testing.traces import differences, traces

MODES: tuple[Literal["delta", "replace"], ...] = ("delta", "replace")


class _StopError(Exception):
    """Raised by a hook to end a pass early, as tools that stop at a layer do."""


class _Wrapper(nn.Module):
    """A model around a model, which hands on all that it is called with."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class PassLaws(ABC):
    """The part of `HostContract` that is about passes; what it needs of a host stands there."""

    @abstractmethod
    def _host(self) -> Host: ...

    @abstractmethod
    def _outputs(self, host: Host, start: int = 0) -> Tensor: ...

    @abstractmethod
    def _surrogate(self, host: Host) -> tuple[KoopmanAutoencoder, OperatorEdit]: ...

    @abstractmethod
    def inputs(self, count: int) -> Any:
        """Return a batch of so many inputs."""

    @abstractmethod
    def watch(self, model: nn.Module, site: str, hook: Callable[[Tensor], Tensor | None]) -> Callable[[], object]:
        """Place a hook by the framework's own means."""

    def test_the_first_pass_is_as_the_tenth(self) -> None:
        """Nothing is learnt in one pass that changes the numbers of a later one."""
        host = self._host()
        koopman, edit = self._surrogate(host)
        for mode in MODES:
            with patched(host, koopman, edit, mode=mode):
                outputs = [self._outputs(host) for _ in range(4)]
            assert all(torch.equal(outputs[0], other) for other in outputs[1:]), mode

    def test_a_pass_that_was_broken_off_leaves_nothing_to_the_next(self) -> None:
        """A hook that raises between source and target, or at the target, changes no later pass."""
        host = self._host()
        koopman, edit = self._surrogate(host)

        def stop(_: Tensor) -> None:
            raise _StopError

        for mode in MODES:
            with patched(host, koopman, edit, mode=mode):
                expected = self._outputs(host, 4)
                for site in koopman.sites:
                    remove = self.watch(host.model, site, stop)
                    with suppress(_StopError):
                        self._outputs(host)
                    remove()
                    assert torch.equal(self._outputs(host, 4), expected), (mode, site)

    def test_a_source_is_read_at_once(self) -> None:
        """A hook that later writes into the source's state in place does not reach what was read."""
        host = self._host()
        koopman, edit = self._surrogate(host)
        source, target = koopman.sites
        kept: list[Tensor] = []
        before: list[Tensor] = []

        def write(state: Tensor) -> None:
            before.append(state.clone())
            state.mul_(0.5)

        remove = self.watch(host.model, source, write)
        keep = self.watch(host.model, target, lambda state: kept.append(state.clone()))
        self._outputs(host)
        remove(), keep()
        plain, read = kept.pop(), before.pop()
        with patched(host, koopman, edit):
            remove = self.watch(host.model, source, write)
            keep = self.watch(host.model, target, lambda state: kept.append(state.clone()))
            self._outputs(host)
            remove(), keep()
        rows = to_rows(read)
        moved = (edit(rows) - rows).reshape(plain.shape)
        real = self._real(host, koopman.sites)
        change = kept.pop() - plain
        if real is not None and change.ndim == 3:
            change, moved = change[real], moved[real]
        scale = float(plain.abs().max())
        assert torch.allclose(change, moved.to(change), rtol=1e-3, atol=1e-4 * scale)

    def test_a_pass_within_a_pass_is_its_own(self) -> None:
        """A hook that calls the model again, on other inputs, changes neither pass."""
        host = self._host()
        koopman, edit = self._surrogate(host)
        for mode in MODES:
            with patched(host, koopman, edit, mode=mode):
                expected, inner = self._outputs(host), self._outputs(host, 4)
                nested: list[Tensor] = []
                remove = self.watch(host.model, koopman.sites[0], partial(self._call_again, host, nested))
                found = self._outputs(host)
                remove()
            assert len(nested) == 1 and torch.equal(nested[0], inner) and torch.equal(found, expected), mode

    def _call_again(self, host: Host, nested: list[Tensor], _: Tensor) -> None:
        """Call the model on other inputs, once; a hook."""
        if not nested:
            nested.append(torch.empty(0))  # so that the call within does not call again
            nested[0] = self._outputs(host, 4)

    def test_threads_have_passes_of_their_own(self) -> None:
        """Two threads that stand between source and target at the same time each get their own numbers."""
        host = self._host()
        koopman, edit = self._surrogate(host)
        meet = threading.Barrier(2, timeout=60)
        with patched(host, koopman, edit):
            expected = [self._outputs(host), self._outputs(host, 4)]
            found: list[Any] = [None, None]

            def work(index: int) -> None:
                try:
                    found[index] = self._outputs(host, 4 * index)
                except BaseException as error:  # shown by the assertion below
                    found[index] = error

            def wait(_: Tensor) -> None:
                meet.wait()

            remove = self.watch(host.model, koopman.sites[0], wait)
            threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            remove()
        for own, right in zip(found, expected, strict=True):
            assert isinstance(own, Tensor) and torch.equal(own, right), own

    def test_a_wrapper_is_patched_as_what_it_wraps(self) -> None:
        """A patch of a model in a wrapper acts whether the wrapper is called or the model itself."""
        host = self._host()
        if host.adapter != "torch":
            raise SkipTest("this framework's models are not found within a wrapper")
        koopman, edit = self._surrogate(host)
        for mode in MODES:
            with patched(host, koopman, edit, mode=mode):
                expected = self._outputs(host)
            wrapper = type(host)(_Wrapper(host.model))
            sites = [f"inner.{site}" for site in koopman.sites]
            moved, own = _renamed(koopman, edit, sites, wrapper)
            with patched(wrapper, moved, own, mode=mode):
                for _ in range(2):
                    assert torch.equal(self._outputs(wrapper), expected), mode
                    assert torch.equal(self._outputs(host), expected), mode

    def test_padding_is_dropped_however_the_mask_comes(self) -> None:
        """A mask given by position counts as one given by name."""
        host, batch = self._host(), self.inputs(6)
        names = list(inspect.signature(host.model.forward).parameters)
        if host.adapter != "torch" or not isinstance(batch, Mapping) or names[:2] != ["input_ids", "attention_mask"]:
            raise SkipTest("this host is not called with a mask in second place")
        by_name = attach(host, host.sites()).observe([batch], progress=False)
        tap = attach(host, host.sites())
        rest = {name: value for name, value in batch.items() if name not in names[:2]}
        with torch.no_grad(), tap:
            host.model(batch["input_ids"], batch["attention_mask"], **rest)
        by_place = tap.trajectories
        assert len(by_place) == len(by_name) == int(batch["attention_mask"].sum())
        assert torch.equal(by_place.states[-1], by_name.states[-1])

    def test_patches_may_end_in_any_order(self) -> None:
        """Of two patches the one that is left still acts, and nothing is left of both: no hook and no switch."""
        host = self._host()
        koopman, edit = self._surrogate(host)
        self._outputs(host)
        before, switch = traces(host.model), _stance()
        with patched(host, koopman, edit):
            expected = self._outputs(host)
        first, second = patched(host, koopman, edit.scaled(0.5)).install(), patched(host, koopman, edit).install()
        first.remove()
        assert torch.allclose(self._outputs(host), expected, rtol=1e-5, atol=1e-6)
        second.remove()
        assert differences(traces(host.model), before) == [] and _stance() == switch

    def test_what_is_refused_is_refused_before_the_first_row(self) -> None:
        """A surrogate of another host is refused when the patch is made, with nothing placed on the model."""
        host = self._host()
        koopman, edit = self._surrogate(host)
        other = _of_other_weights(koopman)
        before = traces(host.model)
        try:
            patched(host, other, edit)
        except HostMismatchError:
            assert differences(traces(host.model), before) == []
            return
        raise AssertionError("A surrogate of another host was let through.")

    def _real(self, host: Host, sites: tuple[str, ...]) -> Tensor | None:
        found: list[Tensor | None] = []
        with host.passes(sites, lambda run: found.append(None if run.tokens is None else run.tokens.real)):
            self._outputs(host)
        return found[-1]


def _stance() -> object:
    frame = sys.modules.get("torch._dynamo.eval_frame")
    return None if frame is None else frame._stance.stance


def _of_other_weights(koopman: KoopmanAutoencoder) -> KoopmanAutoencoder:
    other = KoopmanAutoencoder(replace(koopman.config, host=replace(koopman.config.host, weights="0" * 32)))
    other.load_state_dict(koopman.state_dict())
    return other


def _renamed(
    koopman: KoopmanAutoencoder, edit: OperatorEdit, sites: list[str], host: Host
) -> tuple[KoopmanAutoencoder, OperatorEdit]:
    """Bring a surrogate and an edit to other names of the same sites."""
    fingerprint = HostFingerprint.of(host)
    other = KoopmanAutoencoder(replace(koopman.config, sites=tuple(sites), host=fingerprint)).requires_grad_(False)
    other.load_state_dict(koopman.state_dict())
    return other, replace(edit, site=sites[edit.depth], host=fingerprint)

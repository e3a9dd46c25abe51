"""HostContract: the laws that every host adapter keeps, as tests to subclass.

Each law is judged against hooks that the framework itself places (`watch`), not against the adapter's own. The
surrogates are built, not fitted: an identity, and an edit of it, so that what a patch must do is known to the bit.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal
from unittest import SkipTest

import torch
from torch import Tensor, nn

from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.layouts import to_rows
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Tokens
from koopman_interp.observing.attaching import attach
from koopman_interp.observing.outputs import logits_of
from koopman_interp.patching.patch import patched
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.testing.identities import identity, mover
from koopman_interp.testing.pass_laws import MODES, PassLaws
from koopman_interp.testing.traces import differences, traces

Way = Literal["tap", "observe", "delta", "replace"]
WAYS: tuple[Way, ...] = ("tap", "observe", "delta", "replace")


class HostContract(PassLaws):
    """Laws of a host adapter. A subclass in a test module says how to make a model and its inputs.

    Subclasses must give `make`, `inputs` and `watch`; `generate` too, for hosts that generate. The model is made once a
    class, which the laws allow: each leaves it as it was.

    Attributes:
        sites: which sites to observe; None is the residual stream.
        span: depths of source and target of the patches, whose states must have one shape.
        tolerance: how far, relative to the largest entry, states may differ between batches of different size, since
            the sums of a matrix product depend on its shape.
        halves: whether the model also runs in bfloat16.

    Examples:
        A host for models of one's own, tested in a file of its own::

            class TestMyHost(HostContract):
                def make(self):
                    return MyModel(seed=0).eval()

                def inputs(self, count):
                    return torch.arange(count * 5).reshape(count, 5) % 11

                def watch(self, model, site, hook):
                    return model.listen(site, hook).cancel
    """

    sites: ClassVar[str | Sequence[str] | None] = None
    span: ClassVar[tuple[int, int]] = (1, -1)
    tolerance: ClassVar[float] = 1e-5
    halves: ClassVar[bool] = True
    _made: ClassVar[dict[type, nn.Module]] = {}

    # --- what a subclass gives ------------------------------------------------------------------------------

    @abstractmethod
    def make(self) -> nn.Module:
        """Return a new model in eval mode, with the same weights each time."""

    @abstractmethod
    def inputs(self, count: int) -> Any:
        """Return a batch of so many inputs, for `Host.call`: a tensor, or a mapping of tensors."""

    @abstractmethod
    def watch(self, model: nn.Module, site: str, hook: Callable[[Tensor], Tensor | None]) -> Callable[[], object]:
        """Place a hook by the framework's own means, after those already there, and return how to remove it."""

    def generate(self, model: nn.Module, tokens: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Generate greedily with a key-value cache; without one, leave this out.

        It takes the model, tokens `[batch, position]` without padding, and how many to add. It gives all tokens
        `[batch, position + step]`, and the logits `[batch, step, token]` by which each new one was chosen.
        """
        raise SkipTest(f"{type(model).__name__} generates no {steps} tokens after {tuple(tokens.shape)}")

    # --- laws -----------------------------------------------------------------------------------------------

    def test_an_adapter_serves_the_model(self) -> None:
        """`host_for` finds an adapter that keeps the protocol and knows the sites it names."""
        host = self._host()
        assert isinstance(host, Host)
        sites = host.sites(self.sites)
        assert len(sites) >= 2 and host.sites(list(sites)) == sites

    def test_attached_but_idle_changes_no_bit(self) -> None:
        """Attaching hooks nothing."""
        host = self._host()
        before = self._outputs(host)
        left = traces(host.model)
        tap = attach(host, self.sites)
        assert differences(traces(host.model), left) == []
        assert torch.equal(self._outputs(host), before)
        with tap:
            pass
        assert torch.equal(self._outputs(host), before)

    def test_observing_changes_no_bit(self) -> None:
        """Nor does listening."""
        host = self._host()
        before = self._outputs(host)
        with attach(host, self.sites):
            assert torch.equal(self._outputs(host), before)

    def test_observed_states_are_those_that_pass(self) -> None:
        """The states recorded are those that the framework's own hooks see, row for row."""
        host = self._host()
        sites = host.sites(self.sites)
        found, real = self._seen(host, sites)
        observed = attach(host, self.sites).observe([self.inputs(4)], progress=False)
        assert observed.sites == sites
        for states, site in zip(observed.states, sites, strict=True):
            rows = to_rows(found[site][0])
            assert torch.equal(states, rows[real.flatten()] if real is not None and found[site][0].ndim == 3 else rows)

    def test_batches_and_the_order_of_attaching_do_not_matter(self) -> None:
        """Batches of 1, 7 and 64 give the same trajectories, and so do two taps in either order."""
        host = self._host()
        whole = attach(host, self.sites).observe([self.inputs(64)], progress=False)
        for size in (1, 7):
            batches = [_part(self.inputs(64), start, start + size) for start in range(0, 64, size)]
            parts = attach(host, self.sites).observe(batches, progress=False)
            assert torch.equal(parts.sequence, whole.sequence) and torch.equal(parts.position, whole.position)
            for one, other in zip(parts.states, whole.states, strict=True):
                assert torch.allclose(one, other, rtol=0, atol=self.tolerance * float(other.abs().max()))
        first, second = attach(host, self.sites), attach(host, host.sites(self.sites)[:2])
        recorded = []
        for outer, inner in ((first, second), (second, first)):
            with outer, inner:
                self._outputs(host)
            recorded.append([*first.trajectories.states, *second.trajectories.states])
        assert all(map(torch.equal, *recorded))

    def test_a_null_edit_changes_no_bit(self) -> None:
        """In delta, neither no edit nor one of strength 0 changes anything."""
        host = self._host()
        before = self._outputs(host)
        koopman, edit = self._surrogate(host)
        for null in (None, edit.scaled(0.0)):
            with patched(host, koopman, null):
                assert torch.equal(self._outputs(host), before)

    def test_an_identity_replaces_its_span_exactly(self) -> None:
        """In replace, a surrogate that does nothing puts the source's state at the target to the bit."""
        host = self._host()
        koopman, _ = self._surrogate(host)
        carried: list[Tensor] = []
        removals = [
            self.watch(host.model, koopman.sites[0], carried.append),
            self.watch(host.model, koopman.sites[1], lambda _: carried.pop()),
        ]
        expected = self._outputs(host)
        for remove in removals:
            remove()
        with patched(host, koopman, mode="replace"):
            for _ in range(2):  # the first pass may learn what the blocks return
                assert torch.equal(self._outputs(host), expected)

    def test_no_exit_leaves_a_trace(self) -> None:
        """Whatever ends a context, hooks, forwards, modes and weights are as before, and hooks of others still fire."""
        host = self._host()
        koopman, edit = self._surrogate(host)
        heard: list[Tensor] = []
        remove = self.watch(host.model, koopman.sites[1], heard.append)
        self._outputs(host)  # frameworks may set up something of their own in a first pass
        before, outputs = traces(host.model), self._outputs(host)
        for way in WAYS:
            for error in (None, RuntimeError(), KeyboardInterrupt()):
                try:
                    self._go(way, host, koopman, edit, error)
                except (RuntimeError, KeyboardInterrupt) as raised:
                    assert raised is error, raised
                assert differences(traces(host.model), before) == [], (way, error)
        heard.clear()
        assert torch.equal(self._outputs(host), outputs) and len(heard) == 1
        remove()

    def test_an_exception_inside_a_pass_leaves_no_trace(self) -> None:
        """A hook of the user's may raise in the middle of a patched pass."""
        host = self._host()
        koopman, edit = self._surrogate(host)
        self._outputs(host)
        before = traces(host.model)

        def fail(_: Tensor) -> None:
            raise KeyboardInterrupt

        for mode in MODES:
            for site in koopman.sites:
                remove = self.watch(host.model, site, fail)
                raised = False
                try:
                    with patched(host, koopman, edit, mode=mode):
                        self._outputs(host)
                except KeyboardInterrupt:
                    raised = True
                remove()
                assert raised and differences(traces(host.model), before) == [], (mode, site)

    def test_hooks_of_others_see_the_patched_states(self) -> None:
        """At both ends of a span hooks of the user's fire once a pass, set before the patch or in it."""
        host = self._host()
        koopman, edit = self._surrogate(host)
        source, target = koopman.sites
        plain, real = self._seen(host, koopman.sites)
        moved = edit(to_rows(plain[source][0])).reshape(plain[source][0].shape) - plain[source][0]
        if real is not None and moved.ndim == 3:
            moved = moved[real]
        for mode in MODES:
            seen: dict[tuple[str, str], list[Tensor]] = {
                (when, site): [] for when in ("before", "inside") for site in koopman.sites
            }
            removals = [self.watch(host.model, site, seen["before", site].append) for site in koopman.sites]
            with patched(host, koopman, edit, mode=mode):
                self._outputs(host)  # in which a span may be learnt
                removals += [self.watch(host.model, site, seen["inside", site].append) for site in koopman.sites]
                for found in seen.values():
                    found.clear()
                self._outputs(host)
            for remove in removals:
                remove()
            assert all(len(found) == 1 for found in seen.values()), {key: len(found) for key, found in seen.items()}
            for when in ("before", "inside"):
                assert torch.equal(seen[when, source][0], plain[source][0])
            written = seen["before", target][0]
            assert torch.equal(written, seen["inside", target][0])
            change = written - plain[target if mode == "delta" else source][0]
            change = change[real] if real is not None and change.ndim == 3 else change
            assert torch.allclose(change, moved, rtol=1e-3, atol=1e-4 * float(written.abs().max())), mode

    def test_a_half_precision_host_stays_one(self) -> None:
        """Outputs and states of a bfloat16 host are bfloat16, observed and patched."""
        if not self.halves:
            raise SkipTest("this host does not run in bfloat16")
        host = host_for(self.make().to(torch.bfloat16))
        koopman, edit = self._surrogate(host)
        plain = self._outputs(host)
        observed = attach(host, self.sites).observe([_halved(self.inputs(4))], progress=False)
        assert {states.dtype for states in observed.states} == {torch.bfloat16} == {plain.dtype}
        with patched(host, koopman, edit.scaled(0.0)):
            assert torch.equal(self._outputs(host), plain)
        for mode in MODES:
            with patched(host, koopman, edit, mode=mode):
                assert self._outputs(host).dtype == torch.bfloat16
            assert torch.equal(self._outputs(host), plain)

    def test_generation_with_a_cache_is_the_same_without(self) -> None:
        """Greedy generation under a patch agrees with a pass over the whole sequence for each token, within 2e-5."""
        if type(self).generate is HostContract.generate:
            raise SkipTest("this host does not generate")
        host, prompt = self._host(), self._prompt()
        with torch.no_grad():
            self.generate(host.model, prompt, 1)
            koopman, edit = self._surrogate(host)
            self._require_recomputed(host, prompt, "unpatched")
            for mode in MODES:
                with patched(host, koopman, edit, mode=mode):
                    self._require_recomputed(host, prompt, mode)

    # --- how the laws are put to the test -------------------------------------------------------------------

    def _host(self) -> Host:
        kind = type(self)
        if kind not in self._made:
            self._made[kind] = self.make()
        return host_for(self._made[kind])

    def _outputs(self, host: Host, start: int = 0) -> Tensor:
        batch = _part(self.inputs(start + 4), start, start + 4)
        half = next(host.model.parameters()).dtype == torch.bfloat16
        with torch.no_grad():
            return logits_of(host.call(_halved(batch) if half else batch))

    def _seen(self, host: Host, sites: tuple[str, ...]) -> tuple[dict[str, list[Tensor]], Tensor | None]:
        """Record sites by the framework's own hooks in one pass, and which of its rows are real tokens."""
        found: dict[str, list[Tensor]] = {site: [] for site in sites}
        removals = [self.watch(host.model, site, partial(_keep, rows)) for site, rows in found.items()]
        passes: list[Tokens | None] = []
        with host.passes(sites, lambda running: passes.append(running.tokens)):
            self._outputs(host)
        for remove in removals:
            remove()
        assert len(passes) == 1 and all(len(states) == 1 for states in found.values())
        return found, None if passes[0] is None else passes[0].real

    def _surrogate(self, host: Host) -> tuple[KoopmanAutoencoder, OperatorEdit]:
        """Build an identity between the two ends of the span, and an edit that moves every row."""
        sites = host.sites(self.sites)
        source, target = sites[self.span[0]], sites[self.span[1]]
        koopman = identity(host, (source, target), self._shape(host, (source, target))[0])
        return koopman, mover(koopman)

    def _shape(self, host: Host, ends: tuple[str, ...]) -> tuple[tuple[int, ...], int]:
        found, _ = self._seen(host, ends)
        states = [found[site][0] for site in ends]
        shapes = {tuple(state.shape[1:] if state.ndim == 4 else state.shape[-1:]) for state in states}
        assert len(shapes) == 1, f"The states at {ends} have different shapes; choose another span."
        return shapes.pop(), to_rows(states[0]).shape[1]

    def _go(
        self, way: Way, host: Host, koopman: KoopmanAutoencoder, edit: OperatorEdit, error: BaseException | None
    ) -> None:
        def end(batch: Any) -> Any:
            if error is not None:
                raise error
            return batch

        if way == "observe":
            attach(host, self.sites).observe([self.inputs(4)], inputs=end, progress=False)
            return
        with attach(host, self.sites) if way == "tap" else patched(host, koopman, edit, mode=way):
            self._outputs(host)
            end(None)

    def _prompt(self) -> Tensor:
        batch = self.inputs(2)
        tokens: Tensor = batch["input_ids"] if isinstance(batch, Mapping) else batch
        return tokens[:, :3]

    def _require_recomputed(self, host: Host, prompt: Tensor, what: str) -> None:
        tokens, logits = self.generate(host.model, prompt, 5)
        assert tokens.shape[1] == prompt.shape[1] + 5
        for step in range(5):
            length = prompt.shape[1] + step
            recomputed = logits_of(host.call({"input_ids": tokens[:, :length]}))[:, -1]
            worst = float((recomputed - logits[:, step]).abs().max())
            assert worst <= 2e-5, f"{what}, step {step}: logits differ by {worst:.1e}"
            assert torch.equal(logits[:, step].argmax(-1), tokens[:, length])


def _keep(rows: list[Tensor], state: Tensor) -> None:
    rows.append(state.clone())


def _part(batch: Any, start: int, stop: int) -> Any:
    if isinstance(batch, Mapping):
        return {name: _part(value, start, stop) for name, value in batch.items()}
    return batch[start:stop]


def _halved(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return {name: _halved(value) for name, value in batch.items()}
    return batch.to(torch.bfloat16) if batch.is_floating_point() else batch

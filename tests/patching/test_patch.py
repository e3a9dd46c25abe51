"""Patching leaves no trace, composes, and refuses what does not belong together."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import koopman_interp as ki
from koopman_interp.errors import HostMismatchError, InputError
from koopman_interp.testing import ResidualMLP
from tests.naming import named

MODES = ["delta", "replace"]


@pytest.fixture(scope="module")
def x():
    return torch.rand(40, 4, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def edits(surrogate):
    """One a depth, by depth."""
    return [ki.erase_class(surrogate, label=depth % 3, site=depth) for depth in range(5)]


def outputs(model, x, *arguments, **keywords):
    with torch.no_grad(), ki.patched(model, *arguments, **keywords):
        return model(x)


# --- no trace -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("with_edit", [True, False])
def test_no_exit_leaves_a_trace(model, surrogate, edits, x, mode, error, with_edit, traces):
    seen = []
    own = model.blocks[1].register_forward_hook(lambda *_: seen.append(1))
    before, parameters = traces(model), copy.deepcopy(surrogate.state_dict())
    with torch.no_grad():
        plain = model(x)

    def go():
        with torch.no_grad(), ki.patched(model, surrogate, edits[1] if with_edit else None, mode=mode):
            assert (traces(model) != before) == (mode == "replace" or with_edit)
            model(x)
            if error is not None:
                raise error

    if error is None:
        go()
    else:
        with pytest.raises(error):
            go()
    assert traces(model) == before
    assert all(torch.equal(tensor, parameters[name]) for name, tensor in surrogate.state_dict().items())
    seen.clear()
    with torch.no_grad():
        assert torch.equal(model(x), plain)
    assert seen == [1]
    own.remove()


@pytest.mark.parametrize("mode", MODES)
def test_an_exception_inside_the_host_leaves_no_trace(model, surrogate, edits, mode, traces):
    before = traces(model)
    with pytest.raises(RuntimeError), ki.patched(model, surrogate, edits[0], mode=mode):
        model(torch.zeros(3, 99))
    assert traces(model) == before


def test_a_pass_cut_short_does_not_spoil_the_next(model, surrogate, edits, x):
    expected = outputs(model, x, surrogate, edits[0])
    stop = []

    def interrupts(*_):
        if stop:
            raise KeyboardInterrupt

    handle = model.blocks[2].register_forward_hook(interrupts)
    with torch.no_grad(), ki.patched(model, surrogate, edits[0]):
        stop.append(1)
        with pytest.raises(KeyboardInterrupt):
            model(x[:5] * 3)
        stop.clear()
        assert torch.equal(model(x), expected)
    handle.remove()


@pytest.mark.parametrize("wrong", [{"mode": "other"}, {"source": "nowhere"}, {"source": 2, "target": 1}, {"source": 2}])
def test_a_refusal_leaves_no_trace(model, surrogate, edits, wrong, unchecked, traces):
    before = traces(model)
    with pytest.raises(InputError), ki.patched(model, surrogate, edits[0], **wrong):
        pytest.fail("the context was entered")
    assert traces(model) == before


def test_a_context_can_be_left_and_entered_again(model, surrogate, edits, x):
    first = outputs(model, x, surrogate, edits[0])
    assert torch.equal(outputs(model, x, surrogate, edits[0]), first)


# --- nesting and several edits ------------------------------------------------------------------------------


def test_nested_deltas_add_up(model, surrogate, edits, x):
    plain = outputs(model, x, surrogate)
    alone = [outputs(model, x, surrogate, edit) for edit in edits[:2]]
    with torch.no_grad(), ki.patched(model, surrogate, edits[0]):
        assert torch.equal(model(x), alone[0])
        with ki.patched(model, surrogate, edits[1]):
            both = model(x)
        assert torch.equal(model(x), alone[0])
    # The head is linear, so what each adds to the last state adds up at the logits.
    torch.testing.assert_close(both - plain, alone[0] + alone[1] - 2 * plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(outputs(model, x, surrogate), plain)


def test_a_delta_around_a_replacement(model, surrogate, edits, x, traces):
    plain, replaced = outputs(model, x, surrogate), outputs(model, x, surrogate, mode="replace")
    alone = outputs(model, x, surrogate, edits[0])
    before = traces(model)
    with torch.no_grad(), ki.patched(model, surrogate, edits[0]):
        with ki.patched(model, surrogate, mode="replace"):
            for _ in range(2):
                torch.testing.assert_close(model(x), replaced + alone - plain, rtol=1e-4, atol=1e-5)
        assert torch.equal(model(x), alone)
    assert traces(model) == before


def test_a_replacement_in_a_replacement(model, surrogate, edits, x, traces):
    before = traces(model)
    outer = outputs(model, x, surrogate, mode="replace", target=2)
    with torch.no_grad(), ki.patched(model, surrogate, mode="replace", target=2):
        with ki.patched(model, surrogate, edits[3], mode="replace", source=2):
            both = [model(x) for _ in range(3)]
        assert torch.equal(model(x), outer)
    assert torch.equal(both[0], both[1])
    assert torch.equal(both[1], both[2])
    # The second span starts from the state that the first one wrote.
    rows = surrogate.predict(ki.attach(model).observe(x, progress=False).states[0], 0, 2)
    z = surrogate.encode(rows, 2) @ surrogate.K.T
    expected = model.head(surrogate.decode(edits[3](z) @ surrogate.K.T, 4))
    torch.testing.assert_close(both[0], expected, rtol=1e-4, atol=1e-5)
    assert traces(model) == before


@pytest.mark.parametrize("mode", MODES)
def test_edits_at_different_depths_act_in_the_order_of_depth(model, surrogate, edits, x, mode):
    forwards = outputs(model, x, surrogate, [edits[1], edits[3]], mode=mode)
    assert torch.equal(outputs(model, x, surrogate, (edits[3], edits[1]), mode=mode), forwards)
    if mode == "replace":
        z = surrogate.encode(ki.attach(model).observe(x, progress=False).states[0], 0)
        K = surrogate.K
        z = edits[3](edits[1](z @ K.T) @ K.T @ K.T) @ K.T
        torch.testing.assert_close(forwards, model.head(surrogate.decode(z, 4)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_edits_at_one_depth_act_as_their_composition(model, surrogate, x, mode):
    first, second = (ki.erase_class(surrogate, label=label, site=1) for label in (0, 2))
    in_turn = outputs(model, x, surrogate, [first, second], mode=mode)
    torch.testing.assert_close(outputs(model, x, surrogate, second @ first, mode=mode), in_turn, rtol=1e-4, atol=1e-5)
    other_way = outputs(model, x, surrogate, [second, first], mode=mode)
    torch.testing.assert_close(outputs(model, x, surrogate, first @ second, mode=mode), other_way, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(in_turn, other_way, rtol=1e-3, atol=1e-4)


# --- spans --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_part_of_the_span_by_name_or_depth(model, surrogate, edits, x, mode):
    by_depth = outputs(model, x, surrogate, edits[2], mode=mode, source=1, target=3)
    by_name = outputs(model, x, surrogate, edits[2], mode=mode, source="blocks.0", target="blocks.2")
    from_the_end = outputs(model, x, surrogate, edits[2], mode=mode, source=-4, target=-2)
    assert torch.equal(by_depth, by_name)
    assert torch.equal(by_depth, from_the_end)
    assert not torch.allclose(by_depth, outputs(model, x, surrogate, edits[2], mode=mode), rtol=1e-3)


def test_the_blocks_outside_a_replaced_span_run(model, surrogate, x):
    states = ki.attach(model).observe(x, progress=False).states
    rows = surrogate.predict(states[1], 1, 3)
    with torch.no_grad():
        expected = model.head(model.blocks[3](rows))
    torch.testing.assert_close(
        outputs(model, x, surrogate, mode="replace", source=1, target=3), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.filterwarnings("ignore:There are hooks inside")  # by which the test sees what runs
def test_a_replaced_span_is_skipped(model, surrogate, x):
    ran = []
    for index, block in enumerate(model.blocks):
        block.fc1.register_forward_hook(lambda *_, index=index: ran.append(index))
    with torch.no_grad(), ki.patched(model, surrogate, mode="replace", source=1, target=3):
        model(x)
        ran.clear()
        model(x)
    assert ran == [0, 3]


@pytest.mark.parametrize(("depth", "ends"), [(0, (1, 3)), (4, (1, 3)), (4, (0, 2))])
def test_an_edit_outside_of_the_span_is_refused(model, surrogate, edits, depth, ends):
    site = surrogate.sites[depth]
    with (
        pytest.raises(InputError, match=f"acts at '{site}', outside the patched span from .* Widen the span"),
        ki.patched(model, surrogate, [edits[2], edits[depth]], source=ends[0], target=ends[1]),
    ):
        pytest.fail("the context was entered")


def test_a_mode_that_is_none_is_refused(model, surrogate, unchecked):
    with (
        pytest.raises(InputError, match="mode='swap' is neither 'delta' nor 'replace'"),
        ki.patched(model, surrogate, mode="swap"),
    ):
        pytest.fail("the context was entered")


# --- what does not belong together --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_one_changed_weight_makes_another_host(model, surrogate, edits, x, mode, traces):
    outputs(model, x, surrogate, edits[0], mode=mode)
    with torch.no_grad():
        model.blocks[2].fc1.weight[3, 4] += 1e-3
    before = traces(model)
    for edit in (edits[0], None):
        with (
            pytest.raises(HostMismatchError, match="This surrogate belongs to another host: weights was"),
            ki.patched(model, surrogate, edit, mode=mode),
        ):
            pytest.fail("the context was entered")
    assert traces(model) == before
    changed = outputs(model, x, surrogate, edits[0], mode=mode, check_weights=False)
    assert torch.isfinite(changed).all()
    assert traces(model) == before


def test_a_changed_running_statistic_makes_another_host(model, surrogate):
    model.blocks[0].norm1.running_mean[0] += 1
    with pytest.raises(HostMismatchError, match="weights"), ki.patched(model, surrogate):
        pytest.fail("the context was entered")


class Other(ResidualMLP):
    pass


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda model: model.double(), "dtype was float32, here it is float64"),
        (None, "model was ResidualMLP, here"),
    ],
    ids=["dtype", "model"],
)
def test_the_other_fields_are_compared_whether_or_not_weights_are(model, surrogate, change, field):
    if change is None:
        other = Other(4, 10, 4, 3).eval()
        other.load_state_dict(model.state_dict())
    else:
        other = change(model)
    for check in (True, False):
        with (
            pytest.raises(HostMismatchError, match=field),
            ki.patched(other, surrogate, check_weights=check),
        ):
            pytest.fail("the context was entered")


def test_a_model_that_was_trained_on_since_its_patch_was_made_is_refused(model, surrogate, edits, x):
    trained = copy.deepcopy(model)
    patch, let_through = (ki.patched(trained, surrogate, edits[0], check_weights=check) for check in (True, False))
    with torch.no_grad():
        for _ in range(2):  # nothing has changed
            with patch:
                before = trained(x)
        for weight in trained.parameters():
            weight.mul_(1.01)
        for _ in range(2):
            with pytest.raises(HostMismatchError, match="weights was"), patch:
                pytest.fail("the context was entered")
        with let_through:
            assert not torch.equal(trained(x), before)
        trained.load_state_dict(model.state_dict())
        with patch:
            assert torch.equal(trained(x), before)


@pytest.fixture(scope="module")
def another(trajectories):
    """Another surrogate of the same host."""
    return ki.fit(trajectories, ki.FitConfig(observables=14, seed=1), method="least_squares")


def test_an_edit_of_another_surrogate_is_refused(model, surrogate, another):
    foreign = ki.erase_class(another, label=0)
    for check in (True, False):
        with (
            pytest.raises(HostMismatchError, match="'erase class 0' was made for another surrogate of this host"),
            ki.patched(model, surrogate, foreign, check_weights=check),
        ):
            pytest.fail("the context was entered")


def test_one_foreign_edit_among_ones_own_is_refused(model, surrogate, another, edits):
    foreign = ki.erase_class(another, label=0)
    with pytest.raises(HostMismatchError), ki.patched(model, surrogate, [edits[0], foreign]):
        pytest.fail("the context was entered")


def test_an_edit_of_another_host_is_refused(model, surrogate, edits):
    foreign = replace(edits[0], host=replace(edits[0].host, weights="1" * 32))
    with (
        pytest.raises(HostMismatchError, match="This edit belongs to another host: weights was 1111"),
        ki.patched(model, surrogate, foreign),
    ):
        pytest.fail("the context was entered")


def test_an_object_that_is_no_host_is_refused(surrogate, unchecked):
    with pytest.raises(TypeError, match=r"Expected a torch\.nn\.Module"), ki.patched("model", surrogate):
        pytest.fail("the context was entered")


def test_a_host_serves_as_well_as_its_model(model, surrogate, edits, x):
    assert torch.equal(outputs(model, x, surrogate, edits[0]), host_outputs(ki.host_for(model), x, surrogate, edits[0]))


def host_outputs(host, x, *arguments):
    with torch.no_grad(), ki.patched(host, *arguments):
        return host.model(x)


def test_the_surrogate_and_the_edit_stay_as_they_were(model, surrogate, edits, x):
    before = surrogate.digest(), [edit.directions.clone() for edit in edits]
    outputs(model, x, surrogate, edits, mode="replace")
    outputs(model, x, surrogate, edits)
    assert surrogate.digest() == before[0]
    assert all(torch.equal(edit.directions, kept) for edit, kept in zip(edits, before[1], strict=True))


# --- a handle, and a copy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_handle_patches_until_it_is_removed(model, surrogate, edits, x, mode, traces):
    expected, before = outputs(model, x, surrogate, edits[1], mode=mode), traces(model)
    handle = ki.patched(model, surrogate, edits[1], mode=mode)
    assert traces(model) == before
    assert handle.install() is handle
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    with pytest.raises(InputError, match="installed already"):
        handle.install()
    handle.remove()
    handle.remove()
    assert traces(model) == before
    with torch.no_grad(), handle:
        assert torch.equal(model(x), expected)
    assert traces(model) == before


@pytest.mark.parametrize("mode", MODES)
def test_a_baked_copy_is_the_patched_model_and_saves_as_a_state_dict(
    model, surrogate, edits, x, mode, tmp_path, traces
):
    expected, before = outputs(model, x, surrogate, edits[1], mode=mode), traces(model)
    baked = ki.patched(model, surrogate, edits[1], mode=mode).bake()
    assert traces(model) == before
    copies = [baked, copy.deepcopy(baked)]
    with torch.no_grad():
        for each in copies:
            assert torch.equal(each(x), expected)
        save_file(baked.state_dict(), tmp_path / "baked.safetensors")
        other = ki.patched(model, surrogate, edits[1].scaled(2.0), mode=mode).bake()
        assert not torch.allclose(other(x), expected)
        other.load_state_dict(load_file(tmp_path / "baked.safetensors"))
        assert torch.equal(other(x), expected)
    assert [name for name, _ in baked.named_children()] == [
        *(name for name, _ in model.named_children()),
        "koopman_patch",
    ]


def test_a_baked_copy_follows_its_own_weights_and_is_another_host(model, surrogate, edits, x):
    baked = ki.patched(model, surrogate, edits[1]).bake()
    twin = copy.deepcopy(baked)
    with torch.no_grad():
        before = baked(x)
        twin.koopman_patch.shift_straight.zero_()
        twin.koopman_patch.shift_before.zero_()
        assert torch.equal(twin(x), model(x))
        assert torch.equal(baked(x), before)
    with pytest.raises(HostMismatchError, match="weights"), ki.patched(baked, surrogate, edits[1]):
        pytest.fail("the context was entered")


def test_no_edit_baked_is_the_model(model, surrogate, x):
    baked = ki.patched(model, surrogate).bake()
    with torch.no_grad():
        assert torch.equal(baked(x), model(x))


# --- who sees what is written --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("when", ["before", "inside"])
def test_hooks_at_the_target_see_what_the_patch_wrote(model, surrogate, edits, x, mode, when):
    seen = []

    def hook(*found):
        seen.append(found[2].clone())

    handle = model.blocks[2].register_forward_hook(hook) if when == "before" else None
    with torch.no_grad(), ki.patched(model, surrogate, edits[1], mode=mode, target=3):
        handle = handle or model.blocks[2].register_forward_hook(hook)
        for _ in range(2):
            seen.clear()
            output = model(x)
            torch.testing.assert_close(model.head(model.blocks[3](seen[0])), output)
    handle.remove()


# --- positions ----------------------------------------------------------------------------------------------


class Tokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        self.blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(3)
        )

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture(scope="module")
def tokens():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        host = Tokens().eval()
        ids = torch.randint(1, 11, (60, 5))
    labels = torch.arange(60) % 2
    data = ki.attach(host).observe(ids, labels, progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=12), method="least_squares")
    return host, ids, koopman, ki.erase_class(koopman, label=1, site=-1, strength=2.0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("positions", "chosen"),
    [
        (slice(1, None), [1, 2, 3, 4]),
        (slice(None, 4, 2), [0, 2]),
        ([3], [3]),
        ((0, 4), [0, 4]),
        (lambda place: place == 2, [2]),
        ([], []),
    ],
    ids=named,
)
def test_only_the_chosen_positions_are_patched(tokens, mode, positions, chosen):
    host, ids, koopman, edit = tokens
    with torch.no_grad():
        plain = host(ids[:7])
        with ki.patched(host, koopman, edit, mode=mode):
            everywhere = host(ids[:7])
        with ki.patched(host, koopman, edit, mode=mode, positions=positions):
            here = host(ids[:7])
    others = [place for place in range(5) if place not in chosen]
    assert torch.equal(here[:, others], plain[:, others])
    torch.testing.assert_close(here[:, chosen], everywhere[:, chosen], rtol=1e-5, atol=1e-5)
    assert not chosen or not torch.allclose(here[:, chosen], plain[:, chosen])


def test_places_are_counted_from_the_first_real_token(tokens):
    host, ids, koopman, edit = tokens
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        plain = host(ids[:3], attention_mask=mask)
        with ki.patched(host, koopman, edit, positions=[0, 3]):
            patched = host(ids[:3], attention_mask=mask)
    changed = (patched != plain).any(2)
    assert changed.tolist() == [
        [False, False, True, False, False],
        [True, False, False, True, False],
        [True, False, False, False, False],
    ]


@pytest.mark.parametrize(
    ("positions", "sentence"),
    [
        (slice(-1, None), "count from the first token on"),
        ([-1], "count from the first token on"),
        (lambda place: place, "to return a mask of shape"),
    ],
    ids=named,
)
def test_positions_from_the_end_are_refused(tokens, positions, sentence, traces):
    host, ids, koopman, edit = tokens
    before = traces(host)
    with (
        torch.no_grad(),
        ki.patched(host, koopman, edit, positions=positions),
        pytest.raises(InputError, match=sentence),
    ):
        host(ids)
    assert traces(host) == before


def test_positions_of_what_has_none_are_refused(model, surrogate, edits, x):
    with (
        torch.no_grad(),
        ki.patched(model, surrogate, edits[0], positions=[0]),
        pytest.raises(InputError, match=r"expected \[batch, position, width\]. Patch without positions"),
    ):
        model(x)


def test_hooks_in_another_framework_are_refused(model, surrogate, edits):
    with pytest.raises(TypeError, match="is not a TransformerLens model"):
        ki.patched(model, surrogate, edits[0]).fwd_hooks()

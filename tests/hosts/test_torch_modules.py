"""The torch adapter finds the residual stream, reads and writes at sites, and leaves no trace."""

import copy
import warnings
from collections import namedtuple

import pytest
import torch
from torch import nn

import koopman_interp as ki
from koopman_hosts.torch_modules import TorchHost
from koopman_interp.errors import UnknownSiteError, UnsupportedHostError
from koopman_interp.hosts.fingerprint import weight_digest
from tests.hosts.models import seeded

Pair = namedtuple("Pair", ["state", "cache"])


class Block(nn.Module):
    """A residual block that wraps its state the way it is told to."""

    def __init__(self, width, wrap=lambda x: x):
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x + torch.tanh(self.fc(x)))


class Stack(nn.Module):
    """Blocks in a ModuleList, with something before and after, and maybe something between."""

    def __init__(self, width=6, blocks=4, wrap=lambda x: x, between=lambda x: x):
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.blocks = nn.ModuleList(Block(width, wrap) for _ in range(blocks))
        self.head = nn.Linear(width, 2)
        self.between = between

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            output = block(x)
            x = output if isinstance(output, torch.Tensor) else next(iter(_entries(output)))
            x = self.between(x)
        return self.head(x)


def _entries(output):
    return output.values() if isinstance(output, dict) else output


class ConvBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return torch.relu(self.conv(x) + self.short(x))


class TinyResNet(nn.Module):
    """Stages of different width under one parent, one of them of a single block."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(ConvBlock(4, 4, 1), ConvBlock(4, 4, 1))
        self.layer2 = nn.Sequential(ConvBlock(4, 8, 2))
        self.layer3 = nn.Sequential(ConvBlock(8, 16, 2), ConvBlock(16, 16, 1))
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.layer3(self.layer2(self.layer1(self.stem(x)))).mean((2, 3)))


class HeadedBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, width) for _ in range(heads))

    def forward(self, hidden_states, cache=None):
        return (hidden_states + sum(torch.tanh(head(hidden_states)) for head in self.heads), None)


class TinyTransformer(nn.Module):
    """Two blocks, each with more heads than there are blocks; states go by keyword."""

    def __init__(self):
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(11, 8)
        self.transformer.h = nn.ModuleList(HeadedBlock(8, 5) for _ in range(2))
        self.lm_head = nn.Linear(8, 11)

    def forward(self, input_ids):
        x = self.transformer.wte(input_ids)
        for block in self.transformer.h:
            x = block(hidden_states=x)[0]
        return self.lm_head(x)


@pytest.fixture
def x():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


# --- which sites --------------------------------------------------------------------------------------------


def test_blocks_of_a_module_list_are_the_residual_stream():
    sites = TorchHost(Stack(blocks=3)).sites()
    assert sites == ("blocks.0:input", "blocks.0", "blocks.1", "blocks.2")


def test_blocks_of_a_sequential_are_the_residual_stream():
    model = nn.Sequential(nn.Linear(3, 6), nn.Sequential(Block(6), Block(6)), nn.Linear(6, 2))
    assert TorchHost(model).sites() == ("1.0:input", "1.0", "1.1")


def test_a_sequential_of_blocks_may_be_the_model_itself():
    assert TorchHost(nn.Sequential(Block(6), Block(6))).sites() == ("0:input", "0", "1")


def test_sibling_stages_of_different_width_are_one_stream():
    host = TorchHost(TinyResNet())
    assert host.sites() == ("layer1.0:input", "layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer3.1")


def test_the_outermost_run_wins_over_longer_runs_inside_it():
    assert TorchHost(TinyTransformer()).sites() == (
        "transformer.h.0:input",
        "transformer.h.0",
        "transformer.h.1",
    )


def test_the_longer_of_two_separate_runs_wins():
    model = nn.Module()
    model.few = nn.ModuleList(nn.Linear(30, 30) for _ in range(2))
    model.many = nn.ModuleList(Block(3) for _ in range(4))
    assert TorchHost(model).sites()[0] == "many.0:input"


def test_without_a_run_the_modules_are_named():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model.extra = nn.Identity()
    with pytest.raises(UnsupportedHostError, match=r"Name the sites, as in attach\(model, \[.0., .2.\]\)"):
        TorchHost(model).sites()
    with pytest.raises(UnsupportedHostError, match="type and width: none"):
        TorchHost(nn.Linear(2, 2)).sites()


def test_a_star_stays_within_a_component_and_two_stars_cross():
    host = TorchHost(Stack(blocks=2))
    assert host.sites("blocks.*") == ("blocks.0", "blocks.1")
    assert host.sites("*") == ("embed", "blocks", "head")
    assert host.sites("**.fc") == ("blocks.0.fc", "blocks.1.fc")
    assert host.sites("blocks.**.fc") == ("blocks.0.fc", "blocks.1.fc")
    assert set(host.sites("blocks.**")) >= {"blocks.0", "blocks.0.fc", "blocks.1", "blocks.1.fc"}
    assert host.sites("blocks.[1-9]") == ("blocks.1",)


def test_an_input_site_goes_with_names_and_globs():
    host = TorchHost(Stack(blocks=2))
    assert host.sites("head:input") == ("head:input",)
    assert host.sites("blocks.*:input") == ("blocks.0:input", "blocks.1:input")


def test_several_selections_keep_their_order_and_say_nothing_twice():
    host = TorchHost(Stack(blocks=2))
    assert host.sites(["head", "blocks.*", "blocks.1", "embed"]) == ("head", "blocks.0", "blocks.1", "embed")


def test_a_predicate_chooses_by_name():
    host = TorchHost(Stack(blocks=3))
    assert host.sites(lambda name: name.endswith(".fc")) == ("blocks.0.fc", "blocks.1.fc", "blocks.2.fc")
    with pytest.raises(UnknownSiteError, match="chose none"):
        host.sites(lambda name: False)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("blokcs.0", r"blocks\.0"), ("haed:input", "head"), (["embed", "blocks.9"], r"blocks\.")],
)
def test_a_misspelt_site_names_the_nearest(misspelt, meant):
    with pytest.raises(UnknownSiteError, match=f"Stack has no module.*Nearest: .*{meant}") as caught:
        TorchHost(Stack(blocks=3)).sites(misspelt)
    assert isinstance(caught.value, LookupError)


# --- reading and writing ------------------------------------------------------------------------------------


def recorded(model, sites, call):
    found = {}
    with TorchHost(model).hooked({site: lambda state, site=site: found.update({site: state}) for site in sites}):
        call()
    return found


def test_states_read_are_those_that_blocks_get_and_give(x):
    model = seeded(Stack)
    with torch.no_grad():
        found = recorded(model, TorchHost(model).sites(), lambda: model(x))
        expected = model.embed(x)
        assert torch.equal(found["blocks.0:input"], expected)
        for index, block in enumerate(model.blocks):
            expected = block(expected)
            assert torch.equal(found[f"blocks.{index}"], expected)


def test_states_passed_by_keyword_and_in_tuples_are_read():
    model = seeded(TinyTransformer)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        found = recorded(model, TorchHost(model).sites(), lambda: model(ids))
        x = model.transformer.wte(ids)
        assert torch.equal(found["transformer.h.0:input"], x)
        for index, block in enumerate(model.transformer.h):
            x = block(x)[0]
            assert torch.equal(found[f"transformer.h.{index}"], x)


WRAPS = {
    "tensor": lambda x: x,
    "tuple of one": lambda x: (x,),
    "tuple with None": lambda x: (x, None),
    "list": lambda x: [x, None],
    "named tuple": lambda x: Pair(x, None),
    "dict": lambda x: {"state": x, "cache": None},
}
WITH_TENSORS = {
    "tuple with a tensor": lambda x: (x, x.mean()),
    "tuple with a nested tensor": lambda x: (x, (x.mean(), None)),
    "dict with a tensor": lambda x: {"state": x, "attention": x * 2},
    "named tuple with a tensor": lambda x: Pair(x, x.mean()),
}


@pytest.mark.parametrize("wrap", [*WRAPS.values(), *WITH_TENSORS.values()], ids=[*WRAPS, *WITH_TENSORS])
def test_writing_what_was_read_changes_no_bit(wrap, x):
    model = seeded(Stack, wrap=wrap)
    host = TorchHost(model)
    with torch.no_grad():
        before = model(x)
        for hook in (lambda state: state, lambda state: state.clone(), lambda state: None):
            with host.hooked(dict.fromkeys(host.sites(), hook)):
                assert torch.equal(model(x), before)


@pytest.mark.parametrize("wrap", [*WRAPS.values(), *WITH_TENSORS.values()], ids=[*WRAPS, *WITH_TENSORS])
@pytest.mark.parametrize("site", ["blocks.1", "blocks.2:input"])
def test_a_written_state_is_what_goes_on(wrap, site, x):
    model = seeded(Stack, wrap=wrap)
    with torch.no_grad():
        state = recorded(model, [site], lambda: model(x))[site]
        expected = 3 * state
        for block in model.blocks[2:]:
            expected = expected + torch.tanh(block.fc(expected))
        with TorchHost(model).hooked({site: lambda state: 3 * state}):
            assert torch.equal(model(x), model.head(expected))


def test_an_input_passed_by_keyword_can_be_written():
    model = seeded(TinyTransformer)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad(), TorchHost(model).hooked({"transformer.h.1:input": torch.zeros_like}):
        written = model(ids)
        zeros = torch.zeros(1, 3, 8)
        assert torch.equal(written, model.lm_head(model.transformer.h[1].forward(zeros)[0]))


def test_a_kept_output_is_not_written_into(x):
    model = seeded(Stack, wrap=lambda x: [x, None])
    kept = []
    handle = model.blocks[0].register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        model(x)
        first = kept[0][0].clone()
        with TorchHost(model).hooked({"blocks.0": lambda state: state * 0}):
            model(x)
    handle.remove()
    # The user's hook ran first and holds the block's own list, which must still hold the block's own state.
    assert torch.equal(kept[1][0], first)


def test_gradients_flow_through_a_written_state(x):
    model = seeded(Stack)
    shift = torch.zeros(6, requires_grad=True)
    with TorchHost(model).hooked({"blocks.1": lambda state: state + shift}):
        model(x).sum().backward()
    assert shift.grad.abs().min() > 0


def test_outputs_without_a_state_are_refused(x):
    class Odd(nn.Module):
        def forward(self, x):
            return "text"

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd = Odd()

        def forward(self, x):
            self.odd(x)
            return x

    for site in ("odd", "odd:input"):
        model = Holder()
        argument = x if site == "odd" else torch.tensor([1])
        with (
            TorchHost(model).hooked({site: lambda state: None}),
            pytest.raises(UnsupportedHostError, match="Choose other sites"),
        ):
            model(argument)


# --- no trace -----------------------------------------------------------------------------------------------


def traces(model):
    """Everything that hooks and replaced forwards could leave behind."""
    dicts = [name for name in vars(model) if "hooks" in name]
    return {
        name: (
            {key: dict(getattr(module, key)) for key in dicts if isinstance(getattr(module, key), dict)},
            vars(module).get("forward"),
            sorted(vars(module)),
        )
        for name, module in model.named_modules()
    }, weight_digest(model)


ENDS = [None, RuntimeError, KeyboardInterrupt, SystemExit]


@pytest.mark.parametrize("error", ENDS)
@pytest.mark.parametrize("way", ["hooked", "replaced", "replaced by a hook", "tap", "observe"])
def test_no_exit_leaves_a_trace(way, error, x):
    model = seeded(Stack)
    seen = []
    own = [
        model.blocks[1].register_forward_hook(lambda *_: seen.append("after")),
        model.blocks[1].register_forward_pre_hook(lambda *_: seen.append("before")),
    ]
    host, tap = TorchHost(model), ki.attach(model)
    before = traces(model)

    def run():
        model(x)
        if error is not None:
            raise error

    def go():
        match way:
            case "hooked":
                with host.hooked(dict.fromkeys(host.sites(), lambda state: state * 2)):
                    run()
            case "replaced":
                with host.replaced("blocks.0", "blocks.2", lambda state: state * 2):
                    run()
            case "replaced by a hook":
                with host.replaced("embed", "blocks.2", lambda state: state * 2):
                    run()
            case "tap":
                with tap:
                    run()
            case "observe":
                tap.observe([x], inputs=lambda batch: run() or batch, progress=False)

    if error is None:
        go()
    else:
        with pytest.raises(error):
            go()
    assert traces(model) == before
    seen.clear()
    model(x)
    assert seen == ["before", "after"]
    for handle in own:
        handle.remove()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_inside_a_hook_leaves_no_trace(error, x):
    model = seeded(Stack)
    before = traces(model)

    def fails(state):
        raise error

    with pytest.raises(error), TorchHost(model).hooked({"blocks.0": fails}):
        model(x)
    for source in ("embed", "blocks.0"):
        with pytest.raises(error), TorchHost(model).replaced(source, "blocks.2", fails):
            model(x)
    assert traces(model) == before


def test_an_unknown_site_among_hooks_leaves_none_of_the_others(x):
    model = seeded(Stack)
    before = traces(model)
    with (
        pytest.raises(LookupError),
        TorchHost(model).hooked({"blocks.0": lambda s: s, "nowhere": lambda s: s}),
    ):
        pass
    assert traces(model) == before


def test_a_hook_set_by_the_user_inside_the_block_survives(x):
    model = seeded(Stack)
    with TorchHost(model).hooked({"blocks.0": lambda state: None}):
        handle = model.blocks[0].register_forward_hook(lambda *_: None)
    assert list(model.blocks[0]._forward_hooks) == [handle.id]
    handle.remove()


def test_a_forward_of_ones_own_is_put_back(x):
    model = seeded(Stack)

    def own(state):
        return state + 1

    model.blocks[1].forward = own
    with TorchHost(model).replaced("blocks.0", "blocks.1", lambda state: state):
        model(x)
    assert model.blocks[1].forward is own


def test_replacements_can_be_nested(x):
    model = seeded(Stack)
    host = TorchHost(model)
    before = traces(model)
    with torch.no_grad():
        plain = model(x)
        state = recorded(model, ["blocks.0"], lambda: model(x))["blocks.0"]
        with host.replaced("blocks.0", "blocks.1", lambda s: s * 2):
            with host.replaced("blocks.1", "blocks.3", lambda s: s * 3):
                for _ in range(2):
                    assert torch.equal(model(x), model.head(state * 2 * 3))
            model(x)
        assert torch.equal(model(x), plain)
    assert traces(model) == before


def test_attached_but_idle_changes_no_bit(x):
    model = seeded(Stack)
    with torch.no_grad():
        before = model(x)
        tap = ki.attach(model)
        assert torch.equal(model(x), before)
        with tap:
            assert torch.equal(model(x), before)
        assert torch.equal(model(x), before)


# --- replacing a span ---------------------------------------------------------------------------------------

SPANS = [
    ("blocks.0:input", "blocks.3", 0, 3),
    ("blocks.0:input", "blocks.0", 0, 0),
    ("blocks.0", "blocks.2", 1, 2),
    ("blocks.1:input", "blocks.2", 1, 2),
    ("blocks.2", "blocks.3", 3, 3),
]


def continuation(model, first, last):
    """What the blocks compute, by a copy, so that calls of the originals can be counted."""
    blocks = copy.deepcopy(model).blocks[first : last + 1]

    def advance(state):
        for block in blocks:
            state = state + torch.tanh(block.fc(state))
        return state

    return advance


@pytest.mark.parametrize(("source", "target", "first", "last"), SPANS)
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.filterwarnings("ignore:There are hooks inside")  # by which the test sees what runs
def test_the_true_continuation_reproduces_the_logits_and_skips_the_compute(source, target, first, last, wrap, x):
    model = seeded(Stack, wrap=wrap)
    twin, advance = copy.deepcopy(model), continuation(model, first, last)
    runs = []
    for index, block in enumerate(model.blocks):
        block.fc.register_forward_hook(lambda *_, index=index: runs.append(index))
    outside = [index for index in range(4) if not first <= index <= last]
    with torch.no_grad():
        before = model(x)
        with TorchHost(model).replaced(source, target, advance) as skips:
            assert skips
            assert torch.equal(model(x), before)  # the first pass learns what blocks return
            for batch in (x, x[:2], torch.cat([x, x])):
                runs.clear()
                replaced = model(batch)
                assert runs == outside
                assert torch.equal(replaced, twin(batch))
            assert torch.equal(model(x), before)
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("wrap", WITH_TENSORS.values(), ids=WITH_TENSORS)
def test_tensors_beside_the_state_keep_their_values(wrap, x):
    model = seeded(Stack, wrap=wrap)
    seen = []
    model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(list(_entries(output))[1]))
    with torch.no_grad():
        before = model(x)
        with TorchHost(model).replaced("blocks.0", "blocks.2", continuation(model, 1, 2)):
            for batch in (x, x[:2], x):
                after = model(batch)
            assert torch.equal(after, before)
    first, *_, last = (entry[0] if isinstance(entry, tuple) else entry for entry in seen)
    assert torch.equal(first, last)


@pytest.mark.parametrize(("source", "target"), [("embed", "blocks.1"), ("blocks.0.fc", "blocks.2"), ("embed", "head")])
def test_sites_off_the_stream_are_written_by_a_hook(source, target, x):
    model = seeded(Stack)
    runs = []
    model.blocks[1].fc.register_forward_hook(lambda *_: runs.append(1))
    found = {}
    with torch.no_grad():
        before = model(x)
        found = recorded(model, [source, target], lambda: model(x))
        runs.clear()

        def advance(state):
            assert torch.equal(state, found[source])
            return found[target]

        with TorchHost(model).replaced(source, target, advance) as skips:
            assert not skips
            for _ in range(2):
                assert torch.equal(model(x), before)
        assert len(runs) == 2
        with TorchHost(model).replaced(source, target, lambda state: torch.zeros_like(found[target])):
            assert not torch.equal(model(x), before)


@pytest.mark.parametrize(("source", "target"), [("blocks.0:input", "blocks.3"), ("blocks.0", "blocks.2")])
def test_what_a_model_does_between_its_blocks_is_not_done_twice(source, target, x):
    """The states at source and target are those that reading gives, whether or not blocks feed each other."""
    model = seeded(Stack, between=lambda x: 0.5 * x + 1)
    with torch.no_grad():
        before = model(x)
        found = recorded(model, [source, target], lambda: model(x))
        given = []

        def advance(state):
            given.append(state)
            return found[target]

        with TorchHost(model).replaced(source, target, advance):
            passes = [model(x) for _ in range(3)]
    assert all(torch.equal(state, found[source]) for state in given)
    assert all(torch.equal(logits, before) for logits in passes)


def test_a_user_hook_at_the_target_sees_the_replaced_state(x):
    model = seeded(Stack)
    seen = []
    handle = model.blocks[2].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad(), TorchHost(model).replaced("blocks.0", "blocks.2", torch.zeros_like):
        model(x)
        model(x)
    handle.remove()
    assert [float(state.abs().max()) for state in seen] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("module", "before"),
    [("blocks.1.fc", False), ("blocks.2.fc", True), ("blocks.1", False), ("blocks.2", True)],
    ids=["within", "before what is within", "between", "before what is between"],
)
def test_one_warning_tells_of_hooks_inside_the_span(module, before, x):
    model = seeded(Stack)
    part = model.get_submodule(module)
    hear = part.register_forward_pre_hook if before else part.register_forward_hook
    hear(lambda *_: None)
    with torch.no_grad(), TorchHost(model).replaced("blocks.0", "blocks.2", torch.zeros_like):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(x)  # the first pass computes the span
        with pytest.warns(UserWarning, match="inside the replaced blocks 1 to 2"):
            model(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(x)


def test_hooks_at_the_ends_of_a_span_and_outside_cause_no_warning(x):
    model = seeded(Stack)
    for name in ("blocks.0", "blocks.0.fc", "blocks.2", "blocks.3.fc", "head"):
        model.get_submodule(name).register_forward_hook(lambda *_: None)
    for name in ("blocks.1", "blocks.3"):
        model.get_submodule(name).register_forward_pre_hook(lambda *_: None)
    with (
        torch.no_grad(),
        TorchHost(model).replaced("blocks.0", "blocks.2", torch.zeros_like),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        for _ in range(3):
            model(x)


def test_stages_of_a_resnet_can_be_replaced():
    model = seeded(TinyResNet)
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = model(images)
        twin = copy.deepcopy(model)
        with TorchHost(model).replaced(
            "layer1.0", "layer3.0", lambda s: twin.layer3[0](twin.layer2(twin.layer1[1](s)))
        ):
            assert torch.equal(model(images), before)
            assert torch.equal(model(images), before)


def test_blocks_called_by_keyword_can_be_replaced():
    model = seeded(TinyTransformer)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(ids)
        with TorchHost(model).replaced(
            "transformer.h.0:input",
            "transformer.h.1",
            lambda s: twin.transformer.h[1](twin.transformer.h[0](s)[0])[0],
        ) as skips:
            assert skips
            assert torch.equal(model(ids), before)
            assert torch.equal(model(ids), before)


def test_without_a_run_the_members_of_a_list_are_offered():
    model = nn.Module()
    model.stem = nn.Linear(3, 4)
    model.parts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))
    with pytest.raises(UnsupportedHostError, match=r"attach\(model, 'parts\.\*'\)"):
        ki.attach(model)
    assert ki.attach(model, "parts.*").sites == ("parts.0", "parts.1", "parts.2")

"""What is observed is what the network computed, however it was fed, and nothing else happens to it."""

import copy

import datasets
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import koopman_interp as ki
from koopman_interp.errors import InputError, NonFiniteError, UnknownSiteError, UnsupportedHostError


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        return x + torch.tanh(self.fc(x))


class TinyLM(nn.Module):
    """Blocks on `[batch, position, width]`; the mask is taken, as by Hugging Face models, by keyword."""

    def __init__(self, spoil_padding=False):
        super().__init__()
        self.wte = nn.Embedding(9, 5)
        self.blocks = nn.ModuleList(Residual(5) for _ in range(2))
        self.spoil_padding = spoil_padding

    def forward(self, input_ids, attention_mask=None):
        x = self.wte(input_ids)
        if self.spoil_padding:  # as a softmax over nothing but masked keys does
            x = x.masked_fill(attention_mask[..., None] == 0, float("nan"))
        for block in self.blocks:
            x = block(x)
        return x


class TinyConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x):
        return self.layer1(x)


def by_hand(model, points):
    """The residual stream of a ResidualMLP, without hooks."""
    with torch.no_grad():
        states = [torch.relu(model.embed(points))]
        for block in model.blocks:
            states.append(block(states[-1]))
    return states


def same_states(trajectories, states):
    return all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(trajectories.states, states, strict=True))


@pytest.fixture
def host(model):
    return model.double()


@pytest.fixture
def points(yin_yang_data):
    return yin_yang_data[0][:150].double()


@pytest.fixture
def labels(yin_yang_data):
    return yin_yang_data[1][:150]


@pytest.mark.parametrize("size", [1, 7, 64, 500])
def test_the_batch_size_does_not_matter(host, points, labels, size):
    seen = ki.attach(host).observe(points, labels, batch_size=size, progress=False)
    assert same_states(seen, by_hand(host, points))
    assert torch.equal(seen.labels, labels)
    assert torch.equal(seen.sequence, torch.arange(150))
    assert torch.equal(seen.position, torch.zeros(150, dtype=torch.long))
    assert seen.sites == ("blocks.0:input", "blocks.0", "blocks.1", "blocks.2", "blocks.3")
    assert seen.times == (0, 1, 2, 3, 4)


def feeds(points, labels):
    """The same inputs and labels in every form that observe takes."""
    pairs = list(zip(points.split(40), labels.split(40), strict=True))
    rows = {"x": points.tolist(), "label": labels.tolist()}
    return {
        "pairs": (pairs, {}),
        "lists of two": ([list(pair) for pair in pairs], {}),
        "generator": ((pair for pair in pairs), {}),
        "DataLoader": (DataLoader(TensorDataset(points, labels), batch_size=40), {}),
        "mappings": ([{"x": x, "labels": y} for x, y in pairs], {}),
        "mappings with another column": ([{"x": x, "class": y} for x, y in pairs], {"labels": "class"}),
        "one column of several": ([{"id": 3, "p": x, "label": y} for x, y in pairs], {"inputs": "p"}),
        "a function": (
            [{"p": x / 2, "label": y} for x, y in pairs],
            {"inputs": lambda batch: batch["p"] * 2},
        ),
        "data set": (datasets.Dataset.from_dict(rows), {"batch_size": 40}),
        "data set by column": (datasets.Dataset.from_dict(rows), {"labels": "label", "inputs": "x"}),
        "labels beside": (points, {"labels": labels.tolist()}),
        "one pair": ((points, labels), {"batch_size": 40}),
    }


@pytest.mark.parametrize("feed", list(feeds(torch.zeros(1, 4), torch.zeros(1, dtype=torch.long))))
def test_every_form_of_input_gives_the_same_trajectories(model, yin_yang_data, feed):
    points, labels = yin_yang_data[0][:150], yin_yang_data[1][:150]
    batches, arguments = feeds(points, labels)[feed]
    seen = ki.attach(model).observe(batches, progress=False, **arguments)
    for state, expected in zip(seen.states, by_hand(model, points), strict=True):
        torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(seen.labels, labels)
    assert torch.equal(seen.sequence, torch.arange(150))


def test_forward_passes_of_ones_own_are_recorded(host, points):
    tap = ki.attach(host)
    with tap:
        for batch in points.split(64):
            host(batch)
    assert same_states(tap.trajectories, by_hand(host, points))
    assert tap.trajectories.labels is None
    with tap:  # a new block starts anew
        host(points[:3])
    assert len(tap.trajectories) == 3


def test_taps_inside_each_other_leave_no_hook(host, points):
    def hooks():
        return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in host.modules()]

    before = hooks()
    tap = ki.attach(host)
    try:
        with tap, tap:
            host(points)
    except InputError:
        pass  # refusing would do as well
    assert hooks() == before


def test_observing_asks_for_no_gradients_and_changes_no_weights(model, yin_yang_data):
    before = ki.HostFingerprint.of(ki.host_for(model))
    random_state = torch.get_rng_state()
    seen = ki.attach(model).observe(yin_yang_data[0][:20], progress=False)
    assert not any(state.requires_grad for state in seen.states)
    assert seen.host == before == ki.HostFingerprint.of(ki.host_for(model))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


def test_states_keep_the_dtype_of_the_host(model, yin_yang_data):
    half = copy.deepcopy(model).to(torch.bfloat16)
    seen = ki.attach(half).observe(yin_yang_data[0][:20].to(torch.bfloat16), progress=False)
    assert {state.dtype for state in seen.states} == {torch.bfloat16}
    assert seen.host.dtype == "bfloat16"


def test_chosen_sites_and_times_are_kept(host, points):
    tap = ki.attach(host, ["embed", "blocks.1.fc1", "head"], times=[0.0, 0.5, 100.0])
    seen = tap.observe(points, progress=False)
    assert seen.sites == ("embed", "blocks.1.fc1", "head")
    assert seen.times == (0, 0.5, 100)
    assert seen.widths == (10, 10, 3)


def test_too_few_sites_or_times_are_refused(model):
    with pytest.raises(InputError, match="two or more sites"):
        ki.attach(model, "head")
    with pytest.raises(InputError, match="Expected 5 times"):
        ki.attach(model, times=[0.0, 1.0])


def test_tokens_are_rows_and_padding_is_dropped():
    model = TinyLM().double().eval()
    ids = torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0], [5, 6, 7, 8]])
    mask = (ids > 0).long()
    tap = ki.attach(model)
    batches = [
        {"input_ids": ids[:2], "attention_mask": mask[:2]},
        {"input_ids": ids[2:], "attention_mask": mask[2:]},
    ]
    seen = tap.observe(batches, progress=False)
    assert seen.sequence.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert seen.position.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    with torch.no_grad():
        state = model.wte(ids)[mask.bool()]
        assert torch.equal(seen.states[0], state)
        for depth, block in enumerate(model.blocks):
            state = block(state)
            torch.testing.assert_close(seen.states[depth + 1], state)
    # Without a mask every position is a row.
    assert len(tap.observe([{"input_ids": ids}], progress=False)) == 12


def test_positions_count_from_the_first_real_token():
    ids = torch.tensor([[0, 0, 3], [4, 5, 6]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    seen = ki.attach(TinyLM().eval()).observe([batch], progress=False)
    assert seen.sequence.tolist() == [0, 1, 1, 1]
    assert seen.position.tolist() == [0, 0, 1, 2]


def test_padding_that_is_nan_is_dropped_and_not_refused():
    ids = torch.tensor([[0, 0, 3], [4, 5, 6]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    seen = ki.attach(TinyLM(spoil_padding=True).eval()).observe([batch], progress=False)
    assert len(seen) == 4
    seen.require_finite()


@pytest.mark.parametrize("form", ["an input", "a row", "a position"])
def test_labels_of_padded_inputs_may_be_one_an_input_a_row_or_a_position(form):
    ids = torch.tensor([[1, 2, 0], [4, 0, 0]])
    mask = (ids > 0).long()
    labels = {"an input": [7, 8], "a row": [1, 2, 4], "a position": [1, 2, -100, 4, -100, -100]}[form]
    expected = [7, 7, 8] if form == "an input" else [1, 2, 4]
    seen = ki.attach(TinyLM().eval()).observe([{"input_ids": ids, "attention_mask": mask}], labels, progress=False)
    assert seen.labels.tolist() == expected


def test_an_image_is_one_row_of_channels_and_pixels():
    model = TinyConv().double().eval()
    images = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    seen = ki.attach(model).observe(images, progress=False)
    assert seen.widths == (48, 64, 64)
    assert torch.equal(seen.states[0], images.flatten(1))
    with torch.no_grad():
        torch.testing.assert_close(seen.states[2], model(images).flatten(1))
    assert seen.sequence.tolist() == [0, 1, 2]


def test_an_activation_in_place_further_on_does_not_reach_the_record():
    model = (
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU(inplace=True)).double().eval()
    )
    x = torch.randn(20, 4, dtype=torch.float64)
    seen = ki.attach(model, ["0", "2"]).observe(x, progress=False)
    with torch.no_grad():
        first = model[0](x)
        second = model[2](torch.relu(first))
    assert seen.states[0].min() < 0
    torch.testing.assert_close(seen.states[0], first)
    torch.testing.assert_close(seen.states[1], second)


@pytest.mark.parametrize("count", [149, 151, 0])
def test_labels_of_another_number_are_refused(host, points, count):
    with pytest.raises(InputError, match=f"Expected 150 labels.*got {count}"):
        ki.attach(host).observe(points, torch.zeros(count, dtype=torch.long), progress=False)


def test_nan_names_the_site_and_the_batch(model):
    points = torch.rand(50, 4)
    points[33, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"'blocks.0:input'.*batch 3"):
        ki.attach(model).observe(points, batch_size=10, progress=False)


def test_a_site_never_reached_is_named(model):
    model.unused = nn.Linear(2, 2)
    with pytest.raises(UnknownSiteError, match="never reached unused"):
        ki.attach(model, ["embed", "unused"]).observe(torch.rand(3, 4), progress=False)


def test_a_site_reached_twice_in_a_pass_is_named():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.a(self.a(x)))

    model = Twice().eval()
    with pytest.raises(InputError, match=r"'a' was reached twice.*'a#0' or 'a#1'"):
        ki.attach(model, ["a", "b"]).observe(torch.rand(3, 3), progress=False)
    x = torch.rand(3, 3)
    seen = ki.attach(model, ["a#0", "a#1", "b"]).observe(x, progress=False)
    torch.testing.assert_close(seen.states[1], model.a(model.a(x)).detach())


def test_sites_that_differ_in_rows_are_refused():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.a(x).mean(1))

    with pytest.raises(InputError, match="differ in their number of samples"):
        ki.attach(Pooled().eval(), ["a", "b"]).observe(torch.rand(2, 5, 3), progress=False)


def test_train_mode_is_warned_of(model):
    with pytest.warns(UserWarning, match="train mode"):
        ki.attach(model.train()).observe(torch.rand(8, 4), progress=False)
    with pytest.warns(UserWarning, match="train mode"), ki.attach(model):
        pass
    with pytest.warns(UserWarning, match="train mode"):
        list(ki.attach(model).stream(torch.rand(8, 4), progress=False))


@pytest.mark.parametrize("batches", [[], torch.zeros(0, 4), iter(())])
def test_no_samples_are_refused(model, batches):
    with pytest.raises(InputError, match=r"no batches|no samples"):
        ki.attach(model).observe(batches, progress=False)


def test_nothing_recorded_is_said(model):
    tap = ki.attach(model)
    with pytest.raises(InputError, match="Nothing was recorded yet"):
        _ = tap.trajectories
    with tap:
        pass
    with pytest.raises(InputError, match="model was not called"):
        _ = tap.trajectories


@pytest.mark.parametrize("batches", ["a path", b"bytes", 7, None])
def test_what_is_no_batches_is_refused(model, batches):
    with pytest.raises(InputError, match=f"got {type(batches).__name__}"):
        ki.attach(model).observe(batches, progress=False)


def test_a_batch_that_is_not_inputs_and_labels_is_refused(model):
    with pytest.raises(InputError, match="inputs=lambda batch"):
        ki.attach(model).observe([(torch.rand(2, 4), torch.rand(2, 4), torch.rand(2))], progress=False)


def test_an_unknown_column_is_named(model):
    batch = {"x": torch.rand(2, 4), "label": torch.tensor([0, 1])}
    with pytest.raises(InputError, match="no column 'class' for the labels; there are x, label"):
        ki.attach(model).observe([batch], labels="class", progress=False)
    with pytest.raises(InputError, match="no column 'y' for the inputs; there are x, label"):
        ki.attach(model).observe([batch], inputs="y", progress=False)


@pytest.mark.parametrize("argument", ["labels", "inputs"])
def test_a_column_of_batches_without_columns_is_refused(model, argument):
    with pytest.raises(InputError, match="column"):
        ki.attach(model).observe(torch.rand(8, 4), progress=False, **{argument: "label"})


def test_a_pass_that_failed_leaves_no_half_of_a_row(host, points):
    tap = ki.attach(host)
    with tap:
        host(points[:5])
        with pytest.raises(RuntimeError, match="shapes"):
            host(torch.rand(3, 7, dtype=torch.float64))
        host(points[5:9])
    assert same_states(tap.trajectories, by_hand(host, points[:9]))
    assert tap.trajectories.sequence.tolist() == list(range(9))


class Odd(nn.Module):
    """Its first block gives whole numbers, its second a text."""

    def __init__(self):
        super().__init__()
        self.whole, self.text, self.fine = nn.Identity(), Text(), nn.Linear(4, 4)

    def forward(self, x):
        self.whole(x.long())
        self.text(x)
        return self.fine(self.fine(x))


class Text(nn.Module):
    def forward(self, x):
        return "no state"


@pytest.mark.parametrize(("site", "said"), [("whole", "int64; a state is of floating-point"), ("text", "returned str")])
def test_outputs_of_an_unknown_type_are_named(site, said):
    model = Odd().eval()
    with pytest.raises(UnsupportedHostError, match=said):
        ki.attach(model, ["fine#0", site]).observe(torch.rand(3, 4), progress=False)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_states_so_large_that_their_sum_overflows_are_finite(dtype):
    model = nn.Sequential(nn.Identity(), nn.Identity()).eval()
    large = torch.full((64, 4), torch.finfo(dtype).max, dtype=dtype)
    seen = ki.attach(model, ["0", "1"]).observe(large, progress=False)
    assert torch.equal(seen.states[1], large)
    for bad in (float("inf"), float("-inf"), float("nan")):
        spoilt = large.clone()
        spoilt[7, 2] = bad
        spoilt[9, 1] = -bad
        with pytest.raises(NonFiniteError, match="Site '0'"):
            ki.attach(model, ["0", "1"]).observe(spoilt, progress=False)


def test_skipping_needs_positions_and_a_whole_number_that_is_not_negative(model):
    with pytest.raises(InputError, match="0 or more; got -1"):
        ki.attach(model, skip=-1)
    with pytest.raises(InputError, match="skip=1 leaves out leading positions"):
        ki.attach(model, skip=1).observe(torch.rand(3, 4), progress=False)
    seen = ki.attach(TinyLM().eval(), skip=2).observe(torch.ones(2, 3, dtype=torch.long), progress=False)
    assert (seen.position.tolist(), seen.sequence.tolist()) == ([2, 2], [0, 1])


def test_trajectories_read_in_the_middle_of_a_block_do_not_stop_it(host, points):
    tap = ki.attach(host)
    with tap:
        host(points[:5])
        early = tap.trajectories
        host(points[5:9])
        host(points[9:12])
    assert same_states(early, by_hand(host, points[:5]))
    assert same_states(tap.trajectories, by_hand(host, points[:12]))
    assert same_states(tap.trajectories, by_hand(host, points[:12]))


def test_some_batches_with_labels_and_some_without_are_refused(host, points, labels):
    with pytest.raises(InputError, match="Some batches came with labels"):
        ki.attach(host).observe([(points[:9], labels[:9]), points[9:]], progress=False)


def test_a_call_that_makes_no_pass_is_said(host):
    tap = ki.attach(host)
    silent = nn.Module()
    silent.forward = lambda x: x
    tap.host.call = silent
    with pytest.raises(InputError, match="the model was not called"):
        tap.observe([torch.rand(2, 4)], progress=False)


def test_observing_holds_its_samples_once_and_one_depth_more():
    """Counted on what torch allocates, and not on the process."""
    width, blocks, rows, batches = 64, 8, 500, 20
    model = nn.Sequential(*(nn.Identity() for _ in range(blocks))).eval()
    x = torch.rand(rows, width)
    tap = ki.attach(model, [str(block) for block in range(blocks)])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        seen = tap.observe([x] * batches, progress=False)
    live = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    whole = sum(state.numel() * state.element_size() for state in seen.states)
    assert len(seen) == rows * batches
    assert whole <= peak < whole * (1 + 1.5 / blocks)

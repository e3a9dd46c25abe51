"""The adapter for TransformerLens: names, texts, all ways to start a pass, and spans that are really skipped."""

from __future__ import annotations

import inspect
import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import koopman_hosts.transformer_lens as adapter_module
import koopman_interp as ki
from koopman_hosts.transformer_lens import TransformerLensHost
from koopman_interp.errors import HostMismatchError, InputError, UnknownSiteError, UnsupportedHostError
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.testing.traces import traces
from tests.hosts.lens_models import gpt2_bridge, hooked_transformer, llama_bridge, native_bridge
from tests.naming import named

TEXTS = ["once upon a time", "girl"]
PAD = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


@pytest.fixture(scope="module", params=["native", "gpt2", "llama", "hooked"])
def model(request: pytest.FixtureRequest) -> Any:
    return {"native": native_bridge, "gpt2": gpt2_bridge, "llama": llama_bridge, "hooked": hooked_transformer}[
        request.param
    ]()


@pytest.fixture(scope="module", params=["gpt2", "llama", "hooked"])
def reader(request: pytest.FixtureRequest) -> Any:
    """A model with a tokenizer."""
    return {"gpt2": gpt2_bridge, "llama": llama_bridge, "hooked": hooked_transformer}[request.param]()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 30, (2, 6), generator=torch.Generator().manual_seed(0))


def stream(blocks: int = 4) -> tuple[str, ...]:
    return ("blocks.0.hook_resid_pre", *(f"blocks.{index}.hook_resid_post" for index in range(blocks)))


# --- which models and sites -----------------------------------------------------------------------------------


def test_the_adapter_is_found_and_asked_first(model):
    assert type(host_for(model)) is TransformerLensHost
    assert host_for(model).sites() == stream()


def test_importing_the_adapter_imports_no_framework():
    asked = "import koopman_hosts.transformer_lens, sys; print({'transformer_lens', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_accepting_imports_nothing_and_asks_only_for_the_type():
    assert not TransformerLensHost.accepts(torch.nn.Linear(2, 2))
    assert not TransformerLensHost.accepts("text")
    mine = type("TransformerBridge", (torch.nn.Module,), {"__module__": "mine.transformer_lens"})
    assert not TransformerLensHost.accepts(mine())
    theirs = type("Sub", (type("HookedTransformer", (torch.nn.Module,), {"__module__": "transformer_lens.x"}),), {})
    assert TransformerLensHost.accepts(theirs())


def test_a_remote_bridge_is_refused(unchecked):
    remote = type("RemoteBridge", (), {"__module__": "transformer_lens.model_bridge.remote_bridge"})()
    with pytest.raises(UnsupportedHostError, match=r"in this process, got a RemoteBridge.*boot_transformers"):
        ki.attach(remote)


def test_an_older_version_is_refused(monkeypatch):
    monkeypatch.setattr(adapter_module, "version", lambda _: "2.18.0")
    old = type("HookedTransformer", (torch.nn.Module,), {"__module__": "transformer_lens.HookedTransformer"})()
    with pytest.raises(UnsupportedHostError, match=r"3\.9 or newer, got 2\.18\.0.*pip install -U"):
        ki.attach(old)


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("resid_post", stream()[1:]),
        ("hook_resid_post", stream()[1:]),
        ("blocks.*.hook_resid_post", stream()[1:]),
        ("blocks.[12].hook_resid_post", stream()[2:4]),
        ("resid_pre", tuple(f"blocks.{index}.hook_resid_pre" for index in range(4))),
        ("resid_mid", tuple(f"blocks.{index}.hook_resid_mid" for index in range(4))),
        ("mlp_out", tuple(f"blocks.{index}.hook_mlp_out" for index in range(4))),
        ("attn_out", tuple(f"blocks.{index}.hook_attn_out" for index in range(4))),
        ("z", tuple(f"blocks.{index}.attn.hook_z" for index in range(4))),
        (["blocks.2.hook_resid_pre", "blocks.1.hook_*_mid"], ("blocks.2.hook_resid_pre", "blocks.1.hook_resid_mid")),
        (lambda name: name.endswith("resid_post"), stream()[1:]),
        (
            lambda name: name in ("blocks.1.hook_resid_post", "blocks.1.hook_resid_pre"),
            ("blocks.1.hook_resid_pre", stream()[2]),
        ),
    ],
    ids=named,
)
def test_sites_by_name_glob_short_form_and_filter(model, selection, expected):
    assert host_for(model).sites(selection) == expected


def test_a_filter_names_each_point_once_and_in_depth_order(model):
    sites = host_for(model).sites(lambda name: "blocks.1." in name or "blocks.0.hook_resid" in name)
    points = model.hook_dict
    assert len({id(points[site]) for site in sites}) == len(sites)
    assert sites[0] == "blocks.0.hook_resid_pre" and sites[-1] == "blocks.1.hook_resid_post"
    assert sites.index("blocks.0.hook_resid_post") < sites.index("blocks.1.hook_resid_pre")


@pytest.mark.parametrize(
    ("misspelt", "nearest"),
    [
        ("resid_pots", "resid_post"),
        ("blocks.0.hook_resid_pots", r"blocks\.0\.hook_resid_post"),
        ("blocks.9.*", "blocks"),
    ],
)
def test_a_misspelt_site_names_the_nearest(model, misspelt, nearest):
    with pytest.raises(UnknownSiteError, match=f"no hook point.*Nearest: .*{nearest}"):
        host_for(model).sites(misspelt)
    with pytest.raises(UnknownSiteError, match=r"chose none"):
        host_for(model).sites(lambda name: False)


def test_a_model_without_one_run_of_blocks_asks_for_sites(monkeypatch):
    model = native_bridge()
    monkeypatch.setitem(model._modules, "blocks", torch.nn.ModuleList())
    with pytest.raises(UnsupportedHostError, match=r"sites=\[…\]"):
        host_for(model).sites()


# --- the residual basis -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [native_bridge, gpt2_bridge])
def test_a_basis_changed_after_the_fit_is_refused(make, ids):
    model = make()
    tap = ki.attach(model)
    koopman = ki.fit(tap.observe([torch.randint(3, 30, (16, 8))], progress=False), method="least_squares")
    before = HostFingerprint.of(host_for(model))
    model.enable_compatibility_mode(disable_warnings=True)
    after = HostFingerprint.of(tap.host)
    assert (before.basis, after.basis) == (
        "residual stream, weights as trained",
        "residual stream, weights processed, centred",
    )
    refused = pytest.raises(HostMismatchError, match=r"basis was .* as trained, here it is .*centred")
    with refused, ki.patched(model, koopman, check_weights=False):
        pass


def test_names_alone_do_not_change_the_basis():
    model = native_bridge()
    before = HostFingerprint.of(host_for(model))
    model.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    assert HostFingerprint.of(host_for(model)) == before
    assert host_for(model).sites() == stream()


# --- hooks ------------------------------------------------------------------------------------------------------


def test_the_same_hooks_serve_run_with_hooks(model, ids):
    host, seen = host_for(model), []
    site = "blocks.1.hook_resid_post"
    with torch.no_grad():
        with host.hooked({site: lambda state: state * 2}):
            expected = model(ids)
        hooks = host.fwd_hooks({site: lambda state: state * 2, "blocks.2.hook_resid_pre": seen.append})
        assert [name for name, _ in hooks] == [site, "blocks.2.hook_resid_pre"]
        assert torch.equal(model.run_with_hooks(ids, fwd_hooks=hooks), expected)
    assert len(seen) == 1
    with pytest.raises(UnknownSiteError, match=r"no hook point"):
        host.fwd_hooks({"blocks.1.hook_resid_pots": seen.append})


def test_hooks_of_others_are_left_alone(model, ids):
    site, seen = "blocks.1.hook_resid_post", []
    point = model.hook_dict[site]
    point.add_hook(lambda tensor, hook: seen.append("theirs"))
    point.add_perma_hook(lambda tensor, hook: seen.append("permanent"))
    before = list(map(id, point.fwd_hooks))
    host = host_for(model)
    with (
        host.hooked({site: lambda state: seen.append("first")}, first=True),
        host.hooked({site: lambda state: seen.append("last")}),
    ):
        model(ids)
    assert seen == ["first", "theirs", "permanent", "last"]
    assert list(map(id, point.fwd_hooks)) == before
    model.reset_hooks(including_permanent=True)
    assert not point.fwd_hooks and not point._forward_hooks


def test_a_reset_of_hooks_meanwhile_leaves_ours_in_force(model, ids):
    seen = []
    with host_for(model).hooked({"blocks.1.hook_resid_post": lambda state: seen.append(1)}):
        model.reset_hooks()
        model.run_with_cache(ids)
        model.run_with_hooks(ids, fwd_hooks=[("blocks.1.hook_resid_post", lambda tensor, hook: None)])
    assert len(seen) == 2
    assert not model.hook_dict["blocks.1.hook_resid_post"].fwd_hooks


def test_contexts_may_end_in_any_order(model, ids):
    model(ids)
    before, host, seen = traces(model), host_for(model), []
    first = host.passes(ended=lambda _: seen.append("first"))
    second = host.passes(ended=lambda _: seen.append("second"))
    first.__enter__(), second.__enter__()
    model(ids)
    first.__exit__(None, None, None)
    model(ids)
    second.__exit__(None, None, None)
    model(ids)
    assert sorted(seen) == ["first", "second", "second"]
    assert traces(model) == before


# --- passes and tokens --------------------------------------------------------------------------------------------


def passes_of(model, call) -> list[Any]:
    """Where the real tokens of each pass stood, when it ended."""
    found: list[Any] = []

    def ended(running):
        rows = zip(running.tokens.real.tolist(), running.tokens.place.tolist(), strict=True)
        found.append([[place for real, place in zip(*row, strict=True) if real] for row in rows])

    with host_for(model).passes(ended=ended), torch.no_grad():
        call()
    return found


def test_each_way_to_start_a_pass_is_one(reader):
    text = "once upon a"
    length = reader.to_tokens(text).shape[1]
    whole = [[list(range(length))]]
    assert passes_of(reader, lambda: reader(text)) == whole
    assert passes_of(reader, lambda: reader(reader.to_tokens(text)[0])) == whole
    assert passes_of(reader, lambda: reader.run_with_cache(text)) == whole
    assert passes_of(reader, lambda: reader.run_with_hooks(text, fwd_hooks=[])) == whole


def test_padding_of_texts_is_known_though_they_have_no_mask(reader):
    long, short = (reader.to_tokens(text).shape[1] for text in TEXTS)
    expected = [[list(range(long)), list(range(short))]]
    for side in ("right", "left"):
        assert passes_of(reader, lambda side=side: reader(TEXTS, padding_side=side)) == expected
    assert passes_of(reader, lambda: reader.run_with_cache(TEXTS)) == expected
    assert passes_of(reader, lambda: reader(reader.to_tokens(TEXTS))) == expected
    assert passes_of(reader, lambda: host_for(reader).call(host_for(reader).tokenize(TEXTS))) == expected


def test_padding_of_tokens_is_known_by_a_padding_token_of_its_own():
    model = gpt2_bridge(**PAD)
    pad = model.tokenizer.pad_token_id
    ids = torch.tensor([[5, 6, pad, 8, pad, pad], [5, 6, 7, 8, 9, 10]])
    assert passes_of(model, lambda: model(ids)) == [[[0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]]


def test_generation_goes_on_from_the_cache(reader):
    settings: dict[str, Any] = {"max_new_tokens": 3, "stop_at_eos": False, "do_sample": False, "verbose": False}
    length = reader.to_tokens("once upon a").shape[1]
    start = [[list(range(length))]]
    steps = [[[length]], [[length + 1]]]
    assert passes_of(reader, lambda: reader.generate("once upon a", **settings)) == start + steps
    grown = [[list(range(length + 1))], [list(range(length + 2))]]
    assert (
        passes_of(reader, lambda: reader.generate("once upon a", use_past_kv_cache=False, **settings)) == start + grown
    )


def test_generation_from_texts_is_padded_on_the_left(reader):
    if not hasattr(reader, "original_model"):
        pytest.skip("3.9's HookedTransformer makes a mask only where a padding token differs from the first")
    long, short = (reader.to_tokens(text).shape[1] for text in TEXTS)
    found = passes_of(reader, lambda: reader.generate(TEXTS, max_new_tokens=2, stop_at_eos=False, verbose=False))
    assert found == [[list(range(long)), list(range(short))], [[long], [short]]]


def test_a_pass_that_raises_has_no_end(model, ids):
    def fail(state):
        raise RuntimeError("mid-pass")

    seen = []
    host = host_for(model)
    with (
        host.passes(ended=seen.append),
        host.hooked({"blocks.1.hook_resid_post": fail}),
        pytest.raises(RuntimeError, match=r"mid-pass"),
    ):
        model(ids)
    assert seen == []


def test_texts_are_tokenised_as_the_model_does_and_padding_changes_nothing(reader):
    host = host_for(reader)
    batch = host.tokenize(TEXTS)
    with torch.no_grad():
        logits = host.call(batch)
        for row, text in enumerate(TEXTS):
            alone = reader.to_tokens(text)
            assert torch.equal(batch["input_ids"][row, : alone.shape[1]], alone[0])
            assert int(batch["attention_mask"][row].sum()) == alone.shape[1]
            torch.testing.assert_close(logits[row, : alone.shape[1]], reader(alone)[0], rtol=0, atol=1e-5)


def test_without_a_tokenizer_texts_are_refused():
    with pytest.raises(InputError, match=r"no tokenizer.*batches of tokens"):
        host_for(native_bridge()).tokenize(["once"])


def test_a_mapping_without_inputs_is_refused(model):
    with pytest.raises(InputError, match=r"input_ids.*got labels"):
        host_for(model).call({"labels": torch.zeros(1)})


# --- replacing a span ---------------------------------------------------------------------------------------------


def states_of(model, ids) -> dict[str, torch.Tensor]:
    return {name: state for name, state in model.run_with_cache(ids)[1].items() if "resid" in name}


SPAN = ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")
SPANS = [
    ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post", (1, 2)),
    ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_post", (1, 2)),
    ("blocks.0.hook_resid_post", "blocks.3.hook_resid_pre", (1, 2)),
    ("blocks.0.hook_resid_pre", "blocks.3.hook_resid_post", (0, 1, 2, 3)),
    ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post", (2,)),
]


@pytest.mark.parametrize(("source", "target", "inside"), SPANS)
def test_the_true_continuation_gives_the_logits_without_the_compute(model, ids, source, target, inside):
    runs: list[int] = []
    handles = [
        block.mlp.register_forward_hook(lambda *_, index=index: runs.append(index))
        for index, block in enumerate(model.blocks)
    ]
    with torch.no_grad():
        states, expected = {}, model(ids)
        with host_for(model).hooked(
            {site: lambda state, site=site: states.update({site: state}) for site in (source, target)}
        ):
            model(ids)

        def advance(state):
            assert torch.equal(state, states[source])
            return states[target]

        with host_for(model).replaced(source, target, advance) as skips:
            assert skips and torch.equal(model(ids), expected)
            runs.clear()
            assert torch.equal(model(ids), expected)
            assert not set(runs) & set(inside)
        assert torch.equal(model(ids), expected)
    for handle in handles:
        handle.remove()


def test_caches_see_the_ends_and_one_warning_tells_of_what_lies_between(model, ids):
    host = host_for(model)
    with (
        torch.no_grad(),
        host.replaced(*SPAN, lambda state: state * 2),
    ):
        with pytest.warns(UserWarning, match=r"inside the replaced blocks 1 to 2"):
            _, cache = model.run_with_cache(ids)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model.run_with_cache(ids)
    assert torch.equal(cache["blocks.1.hook_resid_pre"], cache["blocks.0.hook_resid_post"])
    assert torch.equal(cache["blocks.2.hook_resid_post"], 2 * cache["blocks.0.hook_resid_post"])
    assert torch.equal(cache["blocks.3.hook_resid_pre"], cache["blocks.2.hook_resid_post"])
    assert "blocks.1.hook_resid_post" not in cache


def test_a_users_write_at_the_source_is_what_is_advanced(model, ids):
    host, given = host_for(model), []
    with host.replaced(
        "blocks.0.hook_resid_post", "blocks.2.hook_resid_post", lambda state: given.append(state) or state
    ):
        model.run_with_hooks(
            ids, fwd_hooks=[("blocks.0.hook_resid_post", lambda tensor, hook: torch.ones_like(tensor))]
        )
    assert torch.equal(given[0], torch.ones_like(given[0]))


def test_sites_off_the_stream_are_written_by_a_hook(model, ids):
    with (
        torch.no_grad(),
        host_for(model).replaced("blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out", torch.zeros_like) as skips,
    ):
        assert not skips
        _, cache = model.run_with_cache(ids)
    assert not cache["blocks.2.hook_mlp_out"].any() and cache["blocks.1.hook_mlp_out"].any()


def test_gradients_reach_the_replacement(model, ids):
    factor = torch.ones((), requires_grad=True)
    with host_for(model).replaced(*SPAN, lambda state: state * factor):
        model(ids).square().sum().backward()
    assert factor.grad is not None and float(factor.grad) != 0


def test_a_cache_is_refused_where_its_length_is_read_from_a_skipped_block(reader):
    before = traces(reader)
    with host_for(reader).replaced("blocks.0.hook_resid_pre", "blocks.2.hook_resid_post", lambda state: state):
        with pytest.raises(InputError, match=r"block 0 cannot be replaced.*key-value cache.*source=1"):
            reader.generate("once upon a", max_new_tokens=3, verbose=False, stop_at_eos=False)
        reader.generate("once upon a", max_new_tokens=2, verbose=False, stop_at_eos=False, use_past_kv_cache=False)
    reader("once")
    assert traces(reader).keys() == before.keys()


@pytest.mark.parametrize("way", ["call", "run_with_cache", "run_with_hooks"])
def test_stopping_inside_a_replaced_span_is_refused(model, ids, way):
    def stopped(layer):
        if way == "call":
            return model(ids, stop_at_layer=layer)
        if way == "run_with_hooks":
            return model.run_with_hooks(ids, stop_at_layer=layer)
        return model.run_with_cache(ids, stop_at_layer=layer, names_filter=lambda name: False)[0]

    with torch.no_grad():
        states = states_of(model, ids)
        with host_for(model).replaced(*SPAN, lambda state: state * 2):
            for layer in (2, -2):
                with pytest.raises(InputError, match=r"stop_at_layer=-?2 lies inside the replaced span"):
                    stopped(layer)
            assert torch.equal(stopped(1), states["blocks.1.hook_resid_pre"])
            assert torch.equal(stopped(3), 2 * states["blocks.1.hook_resid_pre"])


def test_starting_inside_a_replaced_span_is_refused(ids):
    model = gpt2_bridge()
    with torch.no_grad():
        states = states_of(model, ids)
        with host_for(model).replaced(*SPAN, lambda state: state * 2):
            with pytest.raises(InputError, match=r"start_at_layer=2 lies inside"):
                model(states["blocks.2.hook_resid_pre"], start_at_layer=2)
            patched = model(ids)
            try:
                assert torch.equal(model(states["blocks.1.hook_resid_pre"], start_at_layer=1), patched)
            except NotImplementedError:
                pytest.skip("bridges of 3.9 start nowhere but at the first block")


def test_blocks_that_return_more_than_their_state_are_not_skipped(ids):
    model = native_bridge()
    block = model.blocks[1]
    block.__dict__["forward"] = lambda *args, **kwargs: (args[0], torch.zeros(1))
    refused = pytest.raises(UnsupportedHostError, match=r"more than their state.*mode='delta'")
    with host_for(model).replaced(*SPAN, lambda state: state), refused:
        model(ids)
    assert callable(block.__dict__.pop("forward"))


def test_a_cache_that_mixes_kinds_is_read_from_the_first_block_of_each():
    from koopman_hosts.skipping import refuse_cache

    mixed = SimpleNamespace(is_sliding=[True, True, False, True])
    refuse_cache(mixed, range(3, 4))
    refuse_cache(mixed, range(1, 2))
    with pytest.raises(InputError, match=r"over block 2"):
        refuse_cache(mixed, range(1, 3))
    refuse_cache(None, range(4))


def test_a_position_given_without_its_name_is_read_too(ids):
    model = gpt2_bridge()
    names = list(inspect.signature(model.forward).parameters)
    layer = names.index("stop_at_layer")
    call = [ids, "logits", *[inspect.signature(model.forward).parameters[name].default for name in names[2:layer]]]
    host = host_for(model)
    with host.replaced(*SPAN, lambda state: state), host.passes():
        with pytest.raises(InputError, match=r"stop_at_layer=2 lies inside"):
            model(*call, 2)
        model(*call, 3)

"""A host is told from another, and the adapter for a model is found."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from koopman_interp.depths import depth_of, span
from koopman_interp.errors import HostMismatchError, InputError, UnsupportedHostError
from koopman_interp.hosts.finding import adapters, host_for
from koopman_interp.hosts.fingerprint import HostFingerprint, weight_digest
from koopman_interp.hosts.protocol import Host
from koopman_interp.testing import ResidualMLP


def fingerprint(model):
    return HostFingerprint.of(host_for(model))


def test_the_fingerprint_of_a_copy_is_the_same(model):
    assert fingerprint(copy.deepcopy(model)) == fingerprint(model)


def test_one_weight_changed_in_place_changes_the_fingerprint(model):
    before = fingerprint(model)
    with torch.no_grad():
        model.blocks[2].fc1.weight[3, 4] += 1e-3
    assert fingerprint(model).weights != before.weights
    assert replace(fingerprint(model), weights=before.weights, parts=before.parts) == before


def test_one_buffer_changed_in_place_changes_the_fingerprint(model):
    before = fingerprint(model)
    model.blocks[0].norm1.running_var[0] *= 2
    assert fingerprint(model).weights != before.weights


def test_changing_a_weight_back_gives_the_first_fingerprint_again(model):
    before = fingerprint(model)
    kept = model.head.bias.detach().clone()
    with torch.no_grad():
        model.head.bias.zero_()
        assert fingerprint(model) != before
        model.head.bias.copy_(kept)
    assert fingerprint(model) == before


def test_swapping_two_equal_shaped_weights_changes_the_digest(model):
    before = weight_digest(model)
    first, second = model.blocks[0].fc1, model.blocks[1].fc1
    first.weight, second.weight = second.weight, first.weight
    assert weight_digest(model) != before


def test_the_digest_does_not_depend_on_memory_layout_or_on_gradients(model):
    convolution = nn.Conv2d(3, 4, 3)
    before = weight_digest(convolution)
    assert weight_digest(copy.deepcopy(convolution).to(memory_format=torch.channels_last)) == before
    assert weight_digest(copy.deepcopy(convolution).requires_grad_(False)) == before
    # Through float64 and back the bytes are the same.
    assert weight_digest(copy.deepcopy(convolution).double().float()) == before
    assert weight_digest(copy.deepcopy(convolution).double()) != before
    # A forward pass in eval mode changes nothing.
    whole = weight_digest(model)
    model(torch.randn(3, 4)).sum().backward()
    assert weight_digest(model) == whole


def test_the_digest_of_a_cast_model_follows_its_bytes(model):
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert fingerprint(half).dtype == "bfloat16"
    assert fingerprint(half).weights == fingerprint(copy.deepcopy(half)).weights


def test_empty_and_scalar_tensors_can_be_digested():
    module = nn.Module()
    module.register_buffer("empty", torch.zeros(0, 3))
    module.register_buffer("scalar", torch.tensor(3))
    before = weight_digest(module)
    module.scalar += 1
    assert weight_digest(module) != before


def test_inference_tensors_can_be_digested():
    with torch.inference_mode():
        model = nn.Linear(3, 3)
    before = weight_digest(model)
    with torch.inference_mode():
        model.weight[0, 0] += 1
    assert weight_digest(model) != before


@pytest.mark.parametrize("size", [16, 64, 200, 700])
def test_assigned_weights_change_the_digest_though_memory_is_reused(size):
    # Allocators hand a freed block out again at once, so an address is no proof of identity.
    model = nn.Linear(size, size, bias=False)
    digests = set()
    for value in range(30):
        model.weight = None
        model.weight = nn.Parameter(torch.full((size, size), float(value)))
        digests.add(weight_digest(model))
    assert len(digests) == 30


def test_require_accepts_the_same_host_and_names_what_differs(model):
    ours = fingerprint(model)
    ours.require(ours, "surrogate")
    changes = {
        "model": "other.Model",
        "adapter": "transformer_lens",
        "basis": "folded",
        "dtype": "float64",
        "weights": "0" * 32,
    }
    for field, value in changes.items():
        other = replace(ours, **{field: value})
        with pytest.raises(HostMismatchError, match=f"This surrogate belongs to another host: {field} was") as caught:
            ours.require(other, "surrogate")
        assert isinstance(caught.value, ValueError)
        ours.require(other, "surrogate", ignoring=[field])


def test_the_module_of_a_class_may_differ_but_not_its_name(model):
    ours = fingerprint(model)
    ours.require(replace(ours, model="__main__.ResidualMLP"), "edit")
    with pytest.raises(HostMismatchError, match="model was"):
        ours.require(replace(ours, model="koopman_interp.testing.LinearHost"), "edit")


def test_the_installed_package_registers_the_torch_adapter(model):
    host = host_for(model)
    assert type(host).__name__ == "TorchHost"
    assert type(host) in adapters()
    assert isinstance(host, Host)
    assert host.model is model
    priorities = [adapter.priority for adapter in adapters()]
    assert priorities == sorted(priorities, reverse=True)


def test_a_host_is_returned_as_it_is(model):
    host = host_for(model)
    assert host_for(host) is host


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("thing", [3, "gpt2", None, ResidualMLP, lambda x: x])
def test_what_is_no_module_is_refused_with_a_sentence(thing):
    with pytest.raises(UnsupportedHostError, match=r"Expected a torch\.nn\.Module.*torch") as caught:
        host_for(thing)
    assert isinstance(caught.value, TypeError)


SITES = ("in", "a", "b", "out")


def test_a_depth_is_found_by_name_and_from_either_end():
    assert [depth_of(SITES, site) for site in SITES] == [0, 1, 2, 3]
    assert [depth_of(SITES, depth) for depth in range(-4, 4)] == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize("site", [4, -5, "outt"])
def test_an_unknown_depth_is_refused(site):
    with pytest.raises(InputError, match="Nearest: out" if isinstance(site, str) else "0 to 3"):
        depth_of(SITES, site)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [(None, None, (0, 3)), ("a", None, (1, 3)), (None, "a", (0, 1)), (-2, -1, (2, 3)), ("in", 2, (0, 2))],
)
def test_a_span_is_found(source, target, expected):
    assert span(SITES, source, target) == expected


@pytest.mark.parametrize(("source", "target"), [("b", "a"), ("a", "a"), (3, None), (None, 0), (1, -3)])
def test_a_span_that_does_not_go_forward_is_refused(source, target):
    with pytest.raises(InputError, match="target after its source"):
        span(SITES, source, target)

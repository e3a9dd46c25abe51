"""Modules stand for the names of their sites, and what is neither is refused."""

import pytest

import koopman_interp as ki
from koopman_interp.errors import InputError, UnsupportedHostError


def test_modules_stand_for_their_names(model):
    names = ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    for chosen in (model.blocks, list(model.blocks), ["blocks.0", *model.blocks[1:]], "blocks.*"):
        assert ki.attach(model, chosen).sites == names


@pytest.mark.parametrize("foreign", [0, None, object()])
def test_what_is_no_site_is_refused(model, foreign, unchecked):
    with pytest.raises(InputError, match="the name of a module, or a module of this model; got"):
        ki.attach(model, ["blocks.0", foreign])


def test_a_module_of_another_model_is_refused(model):
    other = type(model)(4, 10, 4, 3)
    with pytest.raises(InputError, match="a module of this model"):
        ki.attach(model, other.blocks)


@pytest.mark.parametrize(("model", "line"), [("gpt2", r"from_pretrained\('gpt2'\)"), (dict, r"Build one: dict\(…\)")])
def test_a_name_and_a_class_are_no_models(model, line, unchecked):
    with pytest.raises(UnsupportedHostError, match=line):
        ki.attach(model)

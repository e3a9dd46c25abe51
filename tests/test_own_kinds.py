"""What a public function takes in the place of one of the package's own kinds is refused in a sentence that helps."""

import inspect
from collections.abc import Sequence

import pytest

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.own_kinds import own_kinds

OWN = ("KoopmanAutoencoder", "Patch", "Spectrum", "LensVectors", "AffineLens", "Topology", "TopologyBands")


def required(function):
    """Name the first parameter that has to be one of the package's own kinds; None without any."""
    parameters = inspect.signature(function).parameters.values()
    return next((each.name for each in parameters if each.annotation in OWN and each.default is each.empty), None)


FUNCTIONS = {
    name: parameter
    for name in ki.__all__
    if inspect.isfunction(getattr(ki, name)) and (parameter := required(getattr(ki, name)))
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_names_the_argument_that_is_of_another_kind(name):
    function, wrong = getattr(ki, name), FUNCTIONS[name]
    given = {each.name: None for each in inspect.signature(function).parameters.values() if each.default is each.empty}
    with pytest.raises(InputError, match=rf"^{name}\(\) takes {wrong}= as \w+; got object\. One is made by "):
        function(**given | {wrong: object()})


def test_a_function_of_which_an_argument_is_missing_says_so_as_python_does(surrogate):
    with pytest.raises(TypeError, match=r"missing.* 'trajectories'"):
        ki.spectrum(surrogate)


def test_arguments_in_the_place_of_each_other_are_named(model, surrogate):
    edit = ki.erase_class(surrogate, label=1)
    with pytest.raises(InputError, match=r"in the place of model=: write patched\(model, koopman, edit\)"):
        ki.patched(surrogate, model, edit)
    with pytest.raises(InputError, match=r"in the place of edit=: write patched\(model, koopman, edit\)"):
        ki.patched(model, edit, surrogate)


def test_settings_as_a_mapping_are_told_how_to_become_a_configuration(trajectories):
    with pytest.raises(InputError, match=r"FitConfig; got dict\. Write FitConfig\(\*\*config\)"):
        ki.fit(trajectories, {"steps": 10})


@own_kinds
def either(value: "ki.Trajectories | ki.FitConfig | Sequence[ki.Trajectories] | None") -> object:
    return value


def test_all_that_an_annotation_allows_is_let_through_and_nothing_else(trajectories):
    for value in (None, ki.FitConfig(), trajectories, [trajectories]):
        assert either(value) is value
    with pytest.raises(InputError, match=r"value= as Trajectories or FitConfig or Sequence; got int\."):
        either(3)

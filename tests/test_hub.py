"""What is pushed to the Hub is what comes back from it; a card says what was saved. No network: the Hub is a folder."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open

import koopman_interp as ki
from koopman_interp import hub
from koopman_interp.errors import FileFormatError


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A folder in the place of the Hub, by the functions that are called of it."""
    made = []

    def create_repo(repo, *, private, token, exist_ok):
        assert exist_ok
        made.append((repo, private, token))
        (tmp_path / repo).mkdir(parents=True, exist_ok=True)

    def upload_file(*, path_or_fileobj, path_in_repo, repo_id, token, **more):
        to = tmp_path / repo_id / path_in_repo
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path_or_fileobj, to)
        return SimpleNamespace(commit_url=f"commit of {repo_id} {more}")

    def hf_hub_download(repo, file, **download):
        assert set(download) <= {"revision"}
        if not (tmp_path / repo / file).is_file():
            raise EntryNotFoundError(f"no {file}")
        return str(tmp_path / repo / file)

    for function in (create_repo, upload_file, hf_hub_download):
        monkeypatch.setattr(hub, function.__name__, function)
    return SimpleNamespace(folder=tmp_path, made=made)


@pytest.fixture(params=["edit", "edits", "trajectories"])
def value(request, surrogate, trajectories):
    """A value that saves to one file, and the name of that file."""
    if request.param == "trajectories":
        return trajectories[:20], "trajectories.safetensors"
    if request.param == "edit":
        return ki.erase_class(surrogate, label=1), "edit.safetensors"
    each = ki.each_site(surrogate, lambda site: ki.erase_class(surrogate, label=1, site=site))
    return each, "edits.safetensors"


def written(one, path):
    """What a value saves: its tensors, and what is said of them."""
    one.save(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        return tensors, json.loads(file.metadata()["koopman_interp"])


def test_what_is_pushed_comes_back(stand_in, value, tmp_path):
    one, file = value
    assert one.push_to_hub("owner/name", commit_message="again") == ("commit of owner/name {'commit_message': 'again'}")
    assert stand_in.made == [("owner/name", None, None)]
    assert [path.name for path in (stand_in.folder / "owner/name").iterdir()] == [file]
    back = type(one).from_hub("owner/name", revision="main")
    assert type(back) is type(one)
    assert written(back, tmp_path / "back") == written(one, tmp_path / "one")


def test_a_repository_holds_several_by_name(stand_in, surrogate):
    for label in (0, 1):
        ki.erase_class(surrogate, label=label).push_to_hub("owner/name", f"edits/{label}.safetensors", private=True)
    assert stand_in.made == [("owner/name", True, None)] * 2
    for label in (0, 1):
        assert ki.OperatorEdit.from_hub("owner/name", f"edits/{label}.safetensors").labels == (label,)


def test_what_is_not_there_and_what_is_something_else_are_told(stand_in, trajectories):
    with pytest.raises(FileNotFoundError, match=r"gave no edit\.safetensors under the name 'owner/name'"):
        ki.OperatorEdit.from_hub("owner/name")
    trajectories[:5].push_to_hub("owner/name", "edit.safetensors")
    with pytest.raises(FileFormatError):
        ki.OperatorEdit.from_hub("owner/name")


def card_of(folder):
    """Read a card: its YAML, and its text."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, head, body = text.split("---\n", 2)
    assert ModelCard(text).data.to_dict() == yaml.safe_load(head)
    return yaml.safe_load(head), body


def test_a_card_says_what_was_saved(surrogate, tmp_path):
    surrogate.save_pretrained(tmp_path / "mine")
    head, body = card_of(tmp_path / "mine")
    assert head == {"library_name": "koopman-interp", "tags": ["koopman", "interpretability"]}
    host, record = surrogate.config.host, surrogate.record
    assert f"`{host.weights}`" in body
    assert f"`{host.model}`" in body
    for site, time, width in zip(surrogate.sites, surrogate.config.times, surrogate.config.widths, strict=True):
        assert f"| `{site}` | {time:g} | {width} |" in body
    assert f"(FVU) | {record.kept['fvu']:.4g} |" in body
    assert f"Held out were {len(record.held_out):,} inputs, 10 % of those observed, drawn by seed 0" in body
    assert "| `pairs` | sampled |" in body
    assert "| `steps` | 60 |" in body
    for package, version in record.versions.items():
        assert f"{package} {version}" in body
    for choice in record.choices:
        assert f"* {choice}" in body
    assert "More Information Needed" not in body
    assert str(tmp_path) not in body


def test_the_code_of_a_card_runs(surrogate, model, yin_yang_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    surrogate.save_pretrained("mine")
    code = card_of(tmp_path / "mine")[1].split("```python\n")[1].split("```")[0]
    assert 'from_pretrained("mine")' in code
    with torch.no_grad():
        exec(code, {"model": model, "inputs": yin_yang_data[0][:200]})
    assert "surrogate" in capsys.readouterr().out


def test_a_card_of_no_fit_claims_none(tmp_path, surrogate):
    bare = ki.KoopmanAutoencoder(surrogate.config)
    bare.save_pretrained(tmp_path)
    body = card_of(tmp_path)[1]
    assert "built by hand" in body
    assert "FVU" not in body

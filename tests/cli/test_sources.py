"""What models and data are named by: the forms that are taken, what is chosen from columns, and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import koopman_interp as ki
from koopman_interp.cli.data import DATA
from koopman_interp.cli.models import MODEL
from koopman_interp.cli.rows import Columns, number_of, rows_of
from koopman_interp.errors import InputError
from koopman_interp.testing import yin_yang
from tests.hosts.models import shared_models, stories


def taken(source, prepare=lambda: None, **columns):
    name = DATA.convert(source, None, None)
    return rows_of(*name.prepared().read(), Columns(**columns), made=name.kind == "callable", prepare=prepare)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_texts_are_lines_or_paragraphs(here):
    (here / "lines.txt").write_text("one\ntwo\n")
    (here / "paragraphs.txt").write_text("one\nand more\n\ntwo\n")
    assert taken("lines.txt").texts == ("one", "two")
    assert taken("paragraphs.txt").texts == ("one\nand more", "two")
    assert taken("lines.txt").told == "lines.txt: 2 texts of the column 'text'"


def test_labels_of_rows_are_numbered_by_name_and_as_elsewhere(here):
    lines = [{"text": "a b", "label": "she"}, {"text": "c", "label": "he"}]
    (here / "rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    rows = taken("rows.jsonl")
    assert (rows.labels.tolist(), rows.names) == ([1, 0], ("he", "she"))
    assert number_of("she", rows.names) == 1
    assert taken("rows.jsonl", names=("she", "he")).labels.tolist() == [0, 1]
    with pytest.raises(InputError, match="The classes are 0 he, 1 she"):
        number_of("shee", rows.names)
    with pytest.raises(InputError, match="has the label 'she'"):
        taken("rows.jsonl", names=("it", "he"))
    assert taken("rows.jsonl", labelled=False).labels is None


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_tensors_with_x_and_y(here, suffix):
    x, y = yin_yang(40)
    if suffix == "npz":
        np.savez(here / "rows.npz", x=x.numpy(), y=y.numpy())
    else:
        save_file({"x": x, "y": y}, here / "rows.safetensors")
    rows = taken(f"rows.{suffix}")
    assert torch.equal(rows.given[0], x)
    assert torch.equal(rows.labels, y)


def test_what_could_be_several_columns_is_refused_with_the_option_to_write(here):
    (here / "rows.jsonl").write_text('{"first": "a", "second": "b", "coarse": 1, "label": 0, "y": 1}\n')
    with pytest.raises(InputError, match=r"labels in label, y\. Say which to take: --labels label"):
        taken("rows.jsonl")
    with pytest.raises(InputError, match=r"Say which: --inputs first\."):
        taken("rows.jsonl", labels="coarse")
    with pytest.raises(InputError, match=r"no column 'frst'\. Nearest: first"):
        taken("rows.jsonl", inputs="frst", labels="coarse")
    assert taken("rows.jsonl", inputs="second", labels="coarse").given[0] == ["b"]


def test_data_sets_have_splits(here):
    datasets = pytest.importorskip("datasets")
    for split, count in (("train", 4), ("test", 2)):
        rows = datasets.Dataset.from_dict({"text": [f"{split} {n}" for n in range(count)]})
        (here / "set").mkdir(exist_ok=True)
        rows.to_parquet(here / "set" / f"{split}-00000-of-00001.parquet")
    assert taken("set:test").texts == ("test 0", "test 1")
    assert taken("set:train[:3]").texts == ("train 0", "train 1", "train 2")
    name = DATA.convert("set", None, None)
    assert name.prepared().read("test")[0] == "set:test"
    with pytest.raises(InputError, match=r"splits train, test\. Name one: set:train"):
        taken("set")
    with pytest.raises(InputError, match=r"no split 'trian'\. Nearest: train"):
        taken("set:trian")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["saved"]})}).save_to_disk(here / "disk")
    assert taken("disk").texts == ("saved",)


def test_names_on_the_hub_are_known_by_their_form(here):
    assert MODEL.convert("gpt2", None, None).kind == MODEL.convert("owner/name", None, None).kind == "hugging face"
    assert DATA.convert("owner/name:test[:9]", None, None).split == "test[:9]"
    for kind, name in ((MODEL, "a/b/c"), (DATA, "a/b/c"), (DATA, "none.txt")):
        with pytest.raises(FileNotFoundError, match="There is no"):
            kind.convert(name, None, None)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (None, "there is no model/config.json"),
        ("{", "cannot be read as JSON"),
        ('{"architectures": ["T5ForConditionalGeneration"]}', "is a T5ForConditionalGeneration; by name are loaded"),
        ("{}", "does not say in its config.json which class it is"),
    ],
)
def test_folders_without_a_model_that_is_served_are_refused_when_the_command_is_read(here, config, sentence):
    (here / "model").mkdir()
    if config is not None:
        (here / "model" / "config.json").write_text(config)
    with pytest.raises((InputError, ValueError), match=sentence):
        MODEL.convert("model", None, None)


def test_images_are_prepared_by_the_processor_beside_the_model(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    datasets, image = pytest.importorskip("datasets"), pytest.importorskip("PIL.Image")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    named = {"image_size": 8, "patch_size": 4, "id2label": {0: "dark", 1: "light"}, "label2id": {"dark": 0, "light": 1}}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, **named)).eval()
    model.save_pretrained(tmp_path / "vit")
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    processor.save_pretrained(tmp_path / "vit")
    pictures = [image.new("RGB", (8, 8), (value, value, 10)) for value in range(0, 240, 10)]
    # The data name the classes in another order than the model does.
    labels = datasets.ClassLabel(names=["light", "dark"])
    features = datasets.Features({"image": datasets.Image(), "label": labels})
    rows = {"image": pictures, "label": [int(value < 12) for value in range(24)]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    code, _, err = run("observe", "vit", "set", "--out", "t.safetensors", "--batch-size", "7")
    assert code == 0, err
    assert "24 images of the column 'image', labels of 'label': 0 dark, 1 light" in err
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    expected = ki.attach(model).observe(pixels, [int(value >= 12) for value in range(24)], progress=False)
    seen = ki.Trajectories.load(tmp_path / "t.safetensors")
    assert torch.equal(seen.labels, expected.labels)
    torch.testing.assert_close(seen.states[-1], expected.states[-1])
    assert "holds images" in run("observe", "own_host:model", "set", "--out", "t.safetensors")[2]


def test_a_device_that_is_not_there_is_refused_before_the_model_is_made(run):
    code, _, err = run("sites", "own_host:broken", "--device", "nowhere")
    assert code == 1
    assert "The device 'nowhere' cannot be used here" in err


def test_a_dtype_reaches_the_model(run, tmp_path):
    observe = ("observe", "own_host:model", "own_host:unlabelled", "--out", "t.safetensors")
    assert run(*observe, "--dtype", "float64")[0] == 0
    assert ki.Trajectories.load(tmp_path / "t.safetensors").states[0].dtype == torch.float64


def test_a_state_dict_alone_is_no_model():
    folder = shared_models() / "resnet20-cifar10"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    with pytest.raises(ValueError, match="module:callable"):
        MODEL.convert(str(folder), None, None)


def test_stories_are_loaded_by_their_folder(run):
    code, printed, err = run("sites", str(stories()), "--json")
    assert code == 0, err
    assert "model.layers.4" in json.dumps(json.loads(printed))

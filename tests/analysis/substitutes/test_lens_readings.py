"""A reading of some layers and positions is that part of the whole reading, and tokens go by their strings."""

import pytest
import torch

import koopman_interp as ki
from koopman_interp.analysis.substitutes.layers import depths_of_layers
from koopman_interp.errors import HostMismatchError, InputError
from koopman_interp.observing.site_times import block_outputs
from tests.hosts.lens_models import SENTENCE, gpt2_bridge, tokenizer

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

LENGTHS = [9, 4, 6]


@pytest.fixture(scope="module")
def case():
    model = gpt2_bridge()
    ids = torch.randint(1, 20, (60, 9), generator=torch.Generator().manual_seed(3))
    data = ki.attach(model, skip=1).observe(ids, progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=40), method="least_squares")
    return model, koopman, [row[:length].tolist() for row, length in zip(ids, LENGTHS, strict=False)]


def of(reading, depths, rows):
    """A part of a reading, by its tensors."""
    figures = [getattr(reading, name)[list(depths)][:, rows] for name in ("top", "probability", "kl", "own")]
    return *figures, reading.sequence[rows], reading.position[rows]


@pytest.mark.parametrize(
    ("layers", "depths"),
    [
        (None, [0, 1, 2, 3, 4]),
        ([0, 2], [1, 3, 4]),
        (-2, [3, 4]),
        ([-1], [4]),
        (["blocks.0.hook_resid_pre", 1], [0, 2, 4]),
    ],
)
def test_layers_are_the_outputs_of_blocks_by_their_numbers(case, layers, depths):
    model, koopman, texts = case
    whole = ki.koopman_lens(model, koopman, texts)
    found = ki.koopman_lens(model, koopman, texts, layers=layers)
    assert found.sites == tuple(koopman.sites[depth] for depth in depths)
    every = torch.ones(len(whole), dtype=torch.bool)
    for one, other in zip(of(found, range(len(depths)), every), of(whole, depths, every), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("positions", "chosen"),
    [
        (slice(2, 5), lambda place, length: (place >= 2) & (place < 5)),
        ([1, 3, 8], lambda place, length: torch.isin(place, torch.tensor([1, 3, 8]))),
        ([-1], lambda place, length: place == length - 1),
        (slice(-3, -1), lambda place, length: (place >= length - 3) & (place < length - 1)),
        (slice(None, None, 2), lambda place, length: place % 2 == 0),
        (lambda places: places > 5, lambda place, length: place > 5),
    ],
)
def test_positions_count_from_each_inputs_own_ends(case, positions, chosen):
    model, koopman, texts = case
    whole = ki.koopman_lens(model, koopman, texts)
    rows = chosen(whole.position, torch.tensor(LENGTHS)[whole.sequence])
    assert 0 < int(rows.sum()) < len(whole)
    found = ki.koopman_lens(model, koopman, texts, positions=positions, layers=[1])
    assert list(found.inputs) == [name for name, kept in zip(whole.inputs, rows.tolist(), strict=True) if kept]
    for one, other in zip(of(found, [0, 1], slice(None)), of(whole, [2, 4], rows), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_there_is_not_is_said(unchecked, case):
    model, koopman, texts = case
    with pytest.raises(InputError, match=r"no layer 4 among the sites.*blocks 0, 1, 2, 3.*'blocks\.0\.hook_resid_pre'"):
        ki.koopman_lens(model, koopman, texts, layers=[4])
    with pytest.raises(InputError, match=r"'blocks\.7' is not among the fitted sites"):
        ki.koopman_lens(model, koopman, texts, layers=["blocks.7"])
    with pytest.raises(InputError, match="one layer or more"):
        ki.koopman_lens(model, koopman, texts, layers=[])
    with pytest.raises(InputError, match="no samples"):
        ki.koopman_lens(model, koopman, texts, positions=[0])
    with pytest.raises(InputError, match="Positions go forward"):
        ki.koopman_lens(model, koopman, texts, positions=slice(5, 1, -1))
    with pytest.raises(InputError, match=r"as in \[5\]; got 5"):
        ki.koopman_lens(model, koopman, texts, positions=5)
    with pytest.raises(InputError, match=r"do not tell which is layer 1. Name it: layers=\['head'\]"):
        depths_of_layers(["stem", "body", "head"], [1])


def test_block_numbers_are_read_off_the_names_of_sites():
    assert block_outputs(["transformer.h.0:input", "transformer.h.0", "transformer.h.4"]) == (None, 0, 4)
    assert block_outputs(["blocks.2.hook_resid_pre", "blocks.2.hook_resid_mid", "blocks.3.hook_resid_post"]) == (
        1,
        None,
        3,
    )
    assert block_outputs(["blocks.0:input", "blocks.0"]) == (None, 0)
    assert block_outputs(["layer1.0", "layer2.1"]) == (None, None)
    assert block_outputs(["blocks.0", "head.1"]) == (None, None)


def test_a_lens_of_other_sites_or_another_model_is_refused(case, surrogate):
    model, koopman, texts = case
    ids = torch.randint(1, 20, (60, 9), generator=torch.Generator().manual_seed(3))
    few = ki.attach(model, ["blocks.0.hook_resid_pre", "blocks.3.hook_resid_post"], skip=1).observe(ids, progress=False)
    other = ki.fit(few, ki.FitConfig(observables=40), method="least_squares")
    for lens in (ki.AffineLens.fit(few), ki.KoopmanLens(other, "another")):
        with pytest.raises(
            InputError, match=r"has the sites blocks\.0\.hook_resid_pre, blocks\.3\.hook_resid_post; the"
        ):
            ki.koopman_lens(model, koopman, texts, lens=lens)
    with pytest.raises(HostMismatchError, match="This lens belongs to another host"):
        ki.koopman_lens(model, koopman, texts, lens=ki.KoopmanLens(surrogate))


def plain_gpt2():
    config = transformers.GPT2Config(
        vocab_size=24, n_positions=32, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config).eval()


def test_a_hugging_face_model_reads_texts_and_shows_their_tokens_by_name(tmp_path):
    model, words = plain_gpt2(), tokenizer()
    ids = torch.randint(1, 20, (60, 9), generator=torch.Generator().manual_seed(3))
    koopman = ki.fit(
        ki.attach(model).observe(ids, progress=False), ki.FitConfig(observables=24), method="least_squares"
    )
    texts = ["once upon a time", "girl who had red ball"]
    with pytest.raises(InputError, match="no tokenizer"):
        ki.koopman_lens(model, koopman, texts)
    found = ki.koopman_lens(model, koopman, texts, tokenizer=words, layers=[1])
    assert list(found.inputs) == " ".join(texts).split()
    assert set(found.names.values()) <= {*SENTENCE.split(), "<|end|>", *map(str, range(len(words), 24))}
    vectors = ki.lens_vectors(model, koopman, ["girl", "ball"], texts, tokenizer=words, layers=[1])
    assert vectors.names == ("girl", "ball")
    # One that was saved beside its tokenizer knows its words by itself.
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    beside = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    alone = ki.koopman_lens(beside, koopman, texts, layers=[1])
    assert alone.inputs == found.inputs
    assert alone.names == found.names

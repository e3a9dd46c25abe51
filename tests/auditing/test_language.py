"""What is said of a language model is what asking it directly gives."""

import json
import math

import pytest
import torch
from scipy.stats import binomtest

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.hosts.finding import host_for

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

VOCABULARY = 24


class Letters:
    """A tokenizer of lower-case letters; a space comes first in every text, as a beginning of sequence."""

    pad_token_id = 0
    eos_token_id = None

    def __call__(self, texts, **_):
        return {"input_ids": [[1, *(2 + (ord(letter) - ord("a")) % 20 for letter in text)] for text in texts]}

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(ord("a") + int(one) - 2) for one in ids if one > 1)


PROMPTS = tuple("".join(chr(ord("a") + (7 * i + 3 * j) % 20) for j in range(3 + i % 4)) for i in range(24))


@pytest.fixture(scope="module")
def language():
    """A small Llama, its surrogate, an edit that changes answers, and what is asked."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=None,
            initializer_range=0.5,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config).eval()
    model.tokenizer = Letters()
    x = torch.tensor([[1 + (3 * i + j * j) % (VOCABULARY - 1) for j in range(6)] for i in range(60)])
    labels = (x % 3).flatten()
    data = ki.attach(model).observe(x, labels, progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=24), method="least_squares")
    edit = ki.erase_class(koopman, label=1, strength=4.0, site=1)
    unwanted = tuple(range(2, 12))
    checks = ki.LanguageChecks(
        unwanted, PROMPTS[:10], PROMPTS[5:15], PROMPTS[12:], text=PROMPTS, samples=PROMPTS[:2], new_tokens=5
    )
    return model, koopman, edit, checks


@torch.no_grad()
def answers(model, prompts):
    return [int(model(torch.tensor(Letters()([text])["input_ids"])).logits[0, -1].argmax()) for text in prompts]


@torch.no_grad()
def perplexity(model, texts, skip=0):
    losses = []
    for text in texts:
        ids = torch.tensor(Letters()([text])["input_ids"])
        logp = model(ids).logits[0].double().log_softmax(1)
        losses += [-float(logp[place, ids[0, place + 1]]) for place in range(skip, ids.shape[1] - 1)]
    return math.exp(sum(losses) / len(losses))


def expected(model, checks, before):
    unwanted = set(checks.unwanted)
    return {
        "reliability": sum(one not in unwanted for one in answers(model, checks.edited)) / 10,
        "generality": sum(one not in unwanted for one in answers(model, checks.rephrased)) / 10,
        "locality": sum(a == b for a, b in zip(answers(model, checks.unrelated), before, strict=True)) / 12,
        "perplexity": perplexity(model, checks.text),
    }


def test_host_and_edited_host_are_asked_directly(language):
    model, koopman, edit, checks = language
    found = ki.audit_language(model, koopman, edit, checks)
    before = answers(model, checks.unrelated)
    plain = expected(model, checks, before)
    with ki.patched(model, koopman, edit):
        edited = expected(model, checks, before)
    assert plain["locality"] == 1
    assert edited != plain
    for row, direct in zip(found.rows.values(), (plain, edited), strict=True):
        for name, value in direct.items():
            assert getattr(row, name) == pytest.approx(value, rel=1e-4), name
        for name, rows in (("reliability", 10), ("generality", 10), ("locality", 12)):
            ends = binomtest(round(getattr(row, name) * rows), rows).proportion_ci(0.95, method="wilson")
            assert row.intervals[name] == pytest.approx((ends.low, ends.high), abs=1e-9)
    assert list(found.rows) == ["host", "edit (delta)"]


def test_samples_are_greedy_generation(language):
    model, koopman, edit, checks = language
    found = ki.audit_language(model, koopman, edit, checks)

    def generated():
        told = []
        for prompt in checks.samples:
            ids = torch.tensor(Letters()([prompt])["input_ids"])
            out = model.generate(ids, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(ids))
            told.append(Letters().decode(out[0]))
        return tuple(told)

    assert found.rows["host"].samples == generated()
    with ki.patched(model, koopman, edit):
        assert found.rows["edit (delta)"].samples == generated()


def test_skipped_positions_are_neither_patched_nor_judged(language):
    model, koopman, edit, checks = language
    found = ki.audit_language(model, koopman, edit, checks, skip=2)
    assert found.rows["host"].perplexity == pytest.approx(perplexity(model, checks.text, skip=2), rel=1e-4)
    with ki.patched(model, koopman, edit, positions=slice(2, None)):
        assert found.rows["edit (delta)"].perplexity == pytest.approx(perplexity(model, checks.text, skip=2), rel=1e-4)


def test_a_null_edit_is_the_host(language):
    model, koopman, edit, checks = language
    host, edited = ki.audit_language(model, koopman, edit.scaled(0.0), checks).rows.values()
    assert host == edited


def test_what_is_not_asked_is_not_answered(language):
    model, koopman, edit, _ = language
    found = ki.audit_language(model, koopman, edit, ki.LanguageChecks(text=PROMPTS[:3]))
    row = found.rows["host"]
    assert (row.reliability, row.generality, row.locality, row.samples) == (None, None, None, ())
    assert row.perplexity > 1
    assert "–" in str(found)
    assert "perplexity" in repr(found)


def test_an_audit_of_labelled_tokens_asks_every_way_but_the_mask(language, tmp_path):
    model, koopman, edit, checks = language
    x = {label: torch.tensor([[2 + (label * i + j) % 20 for j in range(5)] for i in range(16)]) for label in (1, 2)}
    batches = {label: [(rows, torch.full_like(rows, label))] for label, rows in x.items()}
    found = ki.audit(model, koopman, edit, forget=batches[1], retain=batches[2], language=checks, probes=())
    spoken = {row.name: row.language for row in found.rows}
    assert spoken.pop("logit mask") is None
    assert all(reading is not None for reading in spoken.values())
    direct = ki.audit_language(model, koopman, edit, checks)
    assert spoken["host"] == direct.rows["host"]
    assert found.rows[-1].language == direct.rows["edit (delta)"]
    assert spoken["mean difference"] != spoken["host"]
    found.save(tmp_path / "audit.json")
    assert ki.Audit.load(tmp_path / "audit.json") == found
    assert f"host: {spoken['host'].samples[0]}" in str(found)


@torch.no_grad()
def test_written_at_each_site_the_host_carries_on(language):
    model, koopman, edit, checks = language
    found = ki.audit_language(model, koopman, edit, checks, at="each site")
    with ki.patched(model, koopman, edit, at="each site"):
        expected = perplexity(model, checks.text)
    assert found.rows["edit (each site)"].perplexity == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(ki.audit_language(model, koopman, edit, checks).rows["edit (delta)"].perplexity)


@torch.no_grad()
def test_positions_an_audit_skips_are_neither_patched_nor_judged(language):
    model, koopman, edit, _ = language
    x = {label: torch.tensor([[2 + (label * i + j) % 20 for j in range(5)] for i in range(16)]) for label in (1, 2)}
    batches = {label: [(rows, torch.full_like(rows, label))] for label, rows in x.items()}
    found = ki.audit(model, koopman, edit, forget=batches[1], retain=batches[2], skip=2, probes=())
    logp = []
    for positions in (slice(0, 0), slice(2, None)):
        with ki.patched(model, koopman, edit, positions=positions):
            logp.append(model(x[2]).logits[:, 2:].double().log_softmax(2))
    own, ours = logp
    assert found.rows[-1].kl == pytest.approx(float((ours.exp() * (ours - own)).sum(2).mean()), rel=1e-3)
    assert (found.forget_rows, found.retain_rows) == (48, 48)


def test_values_are_json(language, tmp_path):
    model, koopman, edit, checks = language
    found = ki.audit_language(model, koopman, edit, checks)
    found.save(tmp_path / "language.json")
    assert json.loads((tmp_path / "language.json").read_text()) == json.loads(json.dumps(found.as_dict()))


def test_a_model_under_relearning_learns_from_tokens(language):
    model, koopman, edit, _ = language
    x = torch.tensor([[2 + (5 * i + j) % 20 for j in range(5)] for i in range(16)])
    rows = {label: [(x, torch.full_like(x, label))] for label in (1, 2)}
    found = ki.audit(
        model, koopman, edit, forget=rows[1], retain=rows[2], forget_training=rows[1], retain_training=rows[2],
        probes=(), relearn=ki.Relearning(at=(0, 3), rate=1e-2),
    )  # fmt: skip
    curve = found.rows[-1].relearning[0]
    assert (curve.forgotten[0], curve.retained[0]) == (found.rows[-1].forgotten, found.rows[-1].retained)
    assert curve.forgotten[1] + curve.retained[1] > curve.forgotten[0] + curve.retained[0]


# --- what is refused ----------------------------------------------------------------------------------------


def test_prompts_need_what_should_not_follow():
    with pytest.raises(InputError, match="unwanted="):
        ki.LanguageChecks(edited=("a",))
    with pytest.raises(InputError, match="nothing to ask"):
        ki.LanguageChecks(unwanted=(3,))


def test_samples_need_a_tokenizer_and_perplexity_tokens(language):
    model, koopman, edit, _ = language
    bare = type(model)(model.config).eval()
    bare.load_state_dict(model.state_dict())
    checks = ki.LanguageChecks(samples=("a",))
    with pytest.raises(InputError, match="tokenizer"):
        ki.audit_language(bare, koopman, edit, checks)
    given = ki.LanguageChecks(samples=("abc",), new_tokens=2, tokenizer=Letters())
    assert len(ki.audit_language(bare, koopman, edit, given).rows["host"].samples[0]) >= 3
    assert host_for(bare).model is bare

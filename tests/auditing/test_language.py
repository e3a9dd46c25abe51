"""What is said of a language model is what asking it directly gives."""

import json
import math

import pytest
import torch
from scipy.stats import binomtest

import koopman_interp as ki
from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import json_digest, write_json
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


@pytest.fixture(scope="module")
def skipping(language):
    """The same of a surrogate that was fitted without the first two positions."""
    model, _, _, checks = language
    x = torch.tensor([[1 + (3 * i + j * j) % (VOCABULARY - 1) for j in range(6)] for i in range(60)])
    data = ki.attach(model, skip=2).observe(x, (x % 3).flatten(), progress=False)
    koopman = ki.fit(data, ki.FitConfig(observables=24), method="least_squares")
    return model, koopman, ki.erase_class(koopman, label=1, strength=4.0, site=1), checks


def labelled_tokens():
    """Sixteen sequences of which all tokens are of class 1, and as many of class 2."""
    x = [torch.tensor([[2 + (label * i + j) % 20 for j in range(5)] for i in range(16)]) for label in (1, 2)]
    return torch.cat(x), torch.tensor([[label] * 5 for label in (1, 2) for _ in range(16)])


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


def test_the_model_and_the_patched_model_are_asked_directly(language):
    model, koopman, edit, checks = language
    found = ki.audit_language(ki.patched(model, koopman, edit), checks)
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
    assert list(found.rows) == ["base model", "edit (delta)"]


def test_samples_are_greedy_generation(language):
    model, koopman, edit, checks = language
    found = ki.audit_language(ki.patched(model, koopman, edit), checks)

    def generated():
        told = []
        for prompt in checks.samples:
            ids = torch.tensor(Letters()([prompt])["input_ids"])
            out = model.generate(ids, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(ids))
            told.append(Letters().decode(out[0]))
        return tuple(told)

    assert found.rows["base model"].samples == generated()
    with ki.patched(model, koopman, edit):
        assert found.rows["edit (delta)"].samples == generated()


def test_positions_that_were_not_fitted_are_neither_patched_nor_judged(skipping):
    model, koopman, edit, checks = skipping
    found = ki.audit_language(ki.patched(model, koopman, edit), checks)
    assert found.rows["base model"].perplexity == pytest.approx(perplexity(model, checks.text, skip=2), rel=1e-4)
    with ki.patched(model, koopman, edit, positions=slice(2, None)):
        assert found.rows["edit (delta)"].perplexity == pytest.approx(perplexity(model, checks.text, skip=2), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("positions", [[3], slice(1, None, 2), lambda place: place > 2], ids=["list", "slice", "mask"])
def test_positions_are_audited_as_they_are_patched(language, positions):
    model, koopman, edit, checks = language
    patch = ki.patched(model, koopman, edit, positions=positions)
    x, y = labelled_tokens()
    own = model(x[y[:, 0] == 2]).logits.double().log_softmax(2)
    with patch:
        ours = model(x[y[:, 0] == 2]).logits.double().log_softmax(2)
        expected = perplexity(model, checks.text)
    assert ki.audit_language(patch, checks).rows["edit (delta)"].perplexity == pytest.approx(expected, rel=1e-4)
    row = ki.audit(patch, held_out=(x, y), probes=()).rows[-1]
    assert row.kl == pytest.approx(float((ours.exp() * (ours - own)).sum(2).mean()), rel=1e-3)
    assert row.kl > 0


def test_each_question_is_asked_once(language):
    model, koopman, edit, checks = language
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    ki.audit_language(ki.patched(model, koopman, edit), checks)
    handle.remove()
    # Three sets of prompts and a text, and five tokens of two samples: by the base model, then under the edit.
    assert len(calls) == 2 * (3 + 1 + 2 * 5)


def test_a_patch_that_is_installed_is_refused(language):
    model, koopman, edit, checks = language
    with ki.patched(model, koopman, edit) as patch, pytest.raises(InputError, match="installed already"):
        ki.audit_language(patch, checks)


def test_a_null_edit_is_the_base_model(language):
    model, koopman, edit, checks = language
    base, edited = ki.audit_language(ki.patched(model, koopman, edit.scaled(0.0)), checks).rows.values()
    assert base == edited


def test_what_is_not_asked_is_not_answered(language):
    model, koopman, edit, _ = language
    found = ki.audit_language(ki.patched(model, koopman, edit), ki.LanguageChecks(text=PROMPTS[:3]))
    row = found.rows["base model"]
    assert (row.reliability, row.generality, row.locality, row.samples) == (None, None, None, ())
    assert row.perplexity > 1
    assert [column.name for column in found.tables()[0].columns] == ["method", "perplexity"]
    assert repr(found).startswith(f"LanguageAudit({edit.description}: perplexity {row.perplexity:.2f} → ")
    texts = ki.audit_language(ki.patched(model, koopman, edit), ki.LanguageChecks(samples=PROMPTS[:2], new_tokens=1))
    assert repr(texts) == f"LanguageAudit({edit.description}: 2 texts)"
    assert texts.to_frame()["edit (delta)"].tolist() == [*texts.rows["edit (delta)"].samples]
    assert str(texts).count(texts.rows["edit (delta)"].samples[0]) == 2  # which is what the base model says, too


def test_each_share_stands_beside_its_interval(language):
    model, koopman, edit, checks = language
    found = ki.audit_language(ki.patched(model, koopman, edit), checks)
    frame = found.to_frame()
    for name, short in (("reliability", "reliable"), ("generality", "general"), ("locality", "local")):
        for place, end in enumerate(("low", "high")):
            assert frame[f"{short}, 95 %, {end}"].tolist() == [
                row.intervals[name][place] for row in found.rows.values()
            ]


def test_an_audit_of_labelled_tokens_asks_every_method_but_the_mask(language, tmp_path):
    model, koopman, edit, checks = language
    patch = ki.patched(model, koopman, edit)
    found = ki.audit(patch, held_out=labelled_tokens(), language=checks, probes=())
    spoken = {row.name: row.language for row in found.rows}
    assert spoken.pop("logit mask") is None
    assert all(scores is not None for scores in spoken.values())
    direct = ki.audit_language(patch, checks)
    assert spoken["base model"] == direct.rows["base model"]
    assert found.rows[-1].language == direct.rows["edit (delta)"]
    assert spoken["mean difference"] != spoken["base model"]
    found.save(tmp_path / "audit.json")
    assert ki.Audit.load(tmp_path / "audit.json") == found
    assert f"base model: {spoken['base model'].samples[0]}" in str(found)


@torch.no_grad()
def test_written_at_each_site_the_host_carries_on(language):
    model, koopman, edit, checks = language
    found = ki.audit_language(ki.patched(model, koopman, edit, at="each site"), checks)
    with ki.patched(model, koopman, edit, at="each site"):
        expected = perplexity(model, checks.text)
    assert found.rows["edit (each site)"].perplexity == pytest.approx(expected, rel=1e-4)
    carried = ki.audit_language(ki.patched(model, koopman, edit), checks)
    assert expected != pytest.approx(carried.rows["edit (delta)"].perplexity)


@torch.no_grad()
def test_an_audit_judges_the_positions_that_were_fitted(skipping):
    model, koopman, edit, _ = skipping
    found = ki.audit(ki.patched(model, koopman, edit), held_out=labelled_tokens(), probes=())
    x, y = labelled_tokens()
    logp = []
    for positions in (slice(0, 0), slice(2, None)):
        with ki.patched(model, koopman, edit, positions=positions):
            logp.append(model(x[y[:, 0] == 2]).logits[:, 2:].double().log_softmax(2))
    own, ours = logp
    assert found.rows[-1].kl == pytest.approx(float((ours.exp() * (ours - own)).sum(2).mean()), rel=1e-3)
    assert (found.forget_rows, found.retain_rows) == (48, 48)


def test_values_are_json_and_come_back_from_it(language, tmp_path):
    model, koopman, edit, checks = language
    found = ki.audit_language(ki.patched(model, koopman, edit), checks)
    found.save(tmp_path / "language.json")
    stored = json.loads((tmp_path / "language.json").read_text())
    values = json.loads(json.dumps(found.as_dict()))
    assert stored == {"kind": "LanguageAudit", "digest": json_digest(values), **values}
    assert ki.LanguageAudit.load(tmp_path / "language.json") == found
    lacking = values | {"rows": {"": {}}}
    signed = {"kind": "LanguageAudit", "digest": json_digest(lacking), **lacking}
    for broken, told in ((stored | {"kind": "audit"}, "does not hold"), (signed, "lacks parts")):
        write_json(tmp_path / "language.json", broken)
        with pytest.raises(FileFormatError, match=told):
            ki.LanguageAudit.load(tmp_path / "language.json")


def test_a_model_under_relearning_learns_from_tokens(language):
    model, koopman, edit, _ = language
    x = torch.tensor([[2 + (5 * i + j) % 20 for j in range(5)] for i in range(16)])
    rows = torch.cat([x, x]), torch.cat([torch.full_like(x, label) for label in (1, 2)])
    relearn = ki.Relearning(steps=(0, 3), rate=1e-2)
    found = ki.audit(ki.patched(model, koopman, edit), held_out=rows, training=rows, probes=(), relearn=relearn)
    curve = found.rows[-1].relearning[0]
    assert (curve.forget_accuracy[0], curve.retain_accuracy[0]) == (
        found.rows[-1].forget_accuracy,
        found.rows[-1].retain_accuracy,
    )
    assert curve.forget_accuracy[1] + curve.retain_accuracy[1] > curve.forget_accuracy[0] + curve.retain_accuracy[0]


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
        ki.audit_language(ki.patched(bare, koopman, edit), checks)
    given = ki.LanguageChecks(samples=("abc",), new_tokens=2, tokenizer=Letters())
    found = ki.audit_language(ki.patched(bare, koopman, edit), given)
    assert len(found.rows["base model"].samples[0]) >= 3
    assert host_for(bare).model is bare


@torch.no_grad()
def test_the_neighbours_of_an_edit_are_asked_the_same(language):
    """Mean difference and LEACE act in place where the edit does, and are what their formulae say."""
    model, koopman, edit, checks = language
    x = torch.tensor([[1 + (3 * i + j * j) % (VOCABULARY - 1) for j in range(6)] for i in range(60)])
    corpus = ki.attach(model).observe(x, progress=False)
    labels = (torch.arange(len(corpus)) % 3 == 1).long()
    taught = corpus[torch.arange(0, len(corpus), 2)]
    attribute = labels[::2]
    other = ki.patched(model, koopman, edit.scaled(0.5), at="each site")
    patch = ki.patched(model, koopman, edit, at="each site")
    found = ki.audit_language(patch, checks, taught=taught, attribute=attribute, corpus=corpus, beside={"half": other})
    names = ["base model", "mean difference", "LEACE", "LEACE, corpus covariance", "half", "edit (each site)"]
    assert list(found.rows) == names
    assert f"The edit is written in place at {edit.site!r}." in found.notes()

    states, wide = (rows.states[edit.depth].double() for rows in (taught, corpus))
    a = states[attribute == 1].mean(0) - states[attribute == 0].mean(0)
    for name, sigma in {
        "mean difference": torch.eye(len(a)).double(),
        "LEACE": torch.cov(states.T, correction=0),
        "LEACE, corpus covariance": torch.cov(wide.T, correction=0),
    }.items():
        w = torch.linalg.solve(sigma + 1e-3 * sigma.diagonal().mean() * torch.eye(len(a)).double(), a)
        w = w / (a @ w)

        def erased(_, __, output, w=w):
            return output - (((output.double() - states.mean(0)) @ w)[..., None] * a).float()

        handle = model.get_submodule(edit.site).register_forward_hook(erased)
        said = torch.isin(torch.tensor(answers(model, checks.edited)), torch.tensor(checks.unwanted))
        handle.remove()
        assert found.rows[name].reliability == pytest.approx(1 - float(said.double().mean()))
    assert found.rows["half"] == ki.audit_language(other, checks).rows["edit (each site)"]


def test_neighbours_that_do_not_fit_are_refused(language):
    model, koopman, edit, checks = language
    patch = ki.patched(model, koopman, edit)
    plain = ki.attach(model).observe(torch.tensor([[3, 4, 5], [6, 7, 8]]), progress=False)
    with pytest.raises(InputError, match="no attribute to erase"):
        ki.audit_language(patch, checks, taught=plain)
    with pytest.raises(InputError, match="Two rows would be called"):
        ki.audit_language(patch, checks, beside={"edit (delta)": patch})
    with pytest.raises(InputError, match="have no site"):
        ki.audit_language(patch, checks, taught=plain.between(2, 3), attribute=[0, 1])

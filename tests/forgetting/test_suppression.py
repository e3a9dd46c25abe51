"""A concept is chosen to be suppressed on teaching data alone, and where teaching cannot find it that is said."""

import pytest
import torch
from torch import nn

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.forgetting.suppression import cross_entropy, host_odds

HE, SHE, WORDS = 2, 3, 40
BOYS, GIRLS = range(4, 12), range(12, 20)
PLAIN = range(20, WORDS)
WIDTH = 12


class Mixing(nn.Module):
    """Each token gets the mean of those before it: how a name reaches the end of a sentence."""

    def forward(self, x):
        counts = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return x + x.cumsum(1) / counts


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + 0.3 * torch.tanh(self.fc(x))


class Teller(nn.Module):
    """Names carry their gender in one coordinate, and the words for it are read off the same one."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList([Own(), Mixing(), Own()])
        self.head = nn.Linear(WIDTH, WORDS)
        with torch.no_grad():
            self.embed.weight[[*BOYS, *GIRLS]] *= 0.3
            self.embed.weight[:, 0] = 0.0
            self.embed.weight[list(GIRLS), 0], self.embed.weight[list(BOYS), 0] = 4.0, -4.0
            self.head.weight.mul_(0.3)
            self.head.weight[[HE, SHE]] = 0.0
            self.head.weight[SHE, 0], self.head.weight[HE, 0] = 2.0, -2.0
            self.head.bias[[HE, SHE]] = 2.0
        self.seen = set()

    def forward(self, input_ids, attention_mask=None):
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        self.seen |= {tuple(row[own.bool()].tolist()) for row, own in zip(input_ids, real, strict=True)}
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


SITES = ["blocks.0:input", "blocks.0", "blocks.1", "blocks.2"]


class Numbers:
    """A tokenizer of numbers."""

    def __call__(self, text):
        return {"input_ids": [int(word) for word in text.split()]}


def sentences(draw, count):
    """Templates with a name in them, and four words after it."""
    rows = [torch.randint(PLAIN.start, PLAIN.stop, (6,), generator=draw).tolist() for _ in range(count)]
    return [" ".join(["{name}" if place == 1 else str(word) for place, word in enumerate(row)]) for row in rows]


def filled(templates, boys, girls):
    return ki.Contrast.filled(
        Numbers(), templates, ([{"name": str(n)} for n in boys], [{"name": str(n)} for n in girls])
    )


@pytest.fixture(scope="module")
def case():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Teller().eval()
    draw = torch.Generator().manual_seed(1)
    stories = [torch.randint(PLAIN.start, PLAIN.stop, (9,), generator=draw).tolist() for _ in range(120)]
    for number, story in enumerate(stories):
        story[number % 4] = 2 + number % 18
    koopman = ki.fit(
        ki.attach(model, SITES).observe(stories[:80], progress=False),
        ki.FitConfig(hidden=()),
        method="least_squares",
    )
    taught = filled(sentences(draw, 6), BOYS[:4], GIRLS[:4])
    choosing = filled(sentences(draw, 3), BOYS[4:6], GIRLS[4:6])
    judged = filled(sentences(draw, 3), BOYS[6:], GIRLS[6:])
    return model, koopman, taught, choosing, judged, stories[80:100]


def suppressed(case, **changes):
    model, koopman, taught, choosing, _, text = case
    given = {"taught": taught, "choosing": choosing, "words": ([HE], [SHE]), "text": text, "budget": 0.5}
    tried = {"weights": (0.001, 0.01), "strengths": (0.5, 1.0, 2.5)}
    return ki.suppress_concept(model, koopman, **given | tried | changes)


@pytest.fixture(scope="module")
def found(case):
    case[0].seen.clear()
    found = suppressed(case)
    case[0].seen_in_choosing = set(case[0].seen)
    return found


def test_prompts_are_filled_in_and_rows_differ_in_the_attribute_alone_within_a_group(case):
    model, _, taught, *_ = case
    assert len(taught) == 6 * 8
    assert taught.value.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] * 6
    rows = taught.rows(ki.attach(model, SITES))
    ids = rows.trajectories.tokens
    for group in rows.group.unique():
        own = rows.group == group
        assert sorted(rows.value[own].tolist()) == [0] * 4 + [1] * 4
        assert len(ids[own].unique()) == 1
    mean, value = rows.pooled(rows.trajectories.states[-1].double())
    assert torch.equal(value, taught.value)
    for prompt in (0, 17):
        own = rows.trajectories.states[-1][rows.prompt == prompt].double()
        torch.testing.assert_close(mean[prompt], own.mean(0))


def test_what_is_chosen_takes_the_preference_on_prompts_that_nothing_has_seen(case, found):
    model, koopman, _, _, judged, _ = case
    host = ki.host_for(model)
    sign = 2 * judged.value - 1
    before = float((host_odds(host, judged, ([HE], [SHE])) * sign).mean())
    with ki.patched(model, koopman, found.edits, at=found.at):
        after = float((host_odds(host, judged, ([HE], [SHE])) * sign).mean())
    assert before > 1
    assert abs(after) < 0.2 * before
    assert not found.failed
    assert found.met
    assert found.right == 1
    assert "written in place" in repr(ki.patched(model, koopman, found.edits, at=found.at))


def test_nothing_but_teaching_data_is_ever_shown_to_the_model(case, found):
    model, _, taught, choosing, _, text = case
    allowed = {*taught.ids, *choosing.ids, *map(tuple, text)}
    assert model.seen_in_choosing == allowed


def test_it_is_loaded_with_its_edits(found, tmp_path):
    found.save(tmp_path / "suppression.json")
    found.edits.save(tmp_path / "edits.safetensors")
    loaded = ki.Suppression.load(tmp_path / "suppression.json", ki.EditSet.load(tmp_path / "edits.safetensors"))
    assert loaded == found
    assert str(loaded) == str(found)


def test_it_is_the_least_that_can_be_afforded(case, found):
    model, koopman, _, choosing, _, text = case
    host = ki.host_for(model)
    plain = cross_entropy(host, text)
    costs = {}
    for trial in found.trials:
        edits = ki.each_site(
            koopman,
            lambda depth, trial=trial: ki.redirect(
                koopman,
                fitted=(rows := case[2].rows(ki.attach(model, SITES))).trajectories,
                targets=ki.counterfactual(rows.value, rows.group),
                weight=trial.weight,
                site=depth,
            ),
            list(trial.sites),
        ).scaled(trial.strength)
        patch = ki.patched(model, koopman, edits, at="each site")
        if trial.strength in (1.0, 2.5):
            with patch:
                odds = host_odds(host, choosing, ([HE], [SHE]))
            assert trial.left == pytest.approx(float(odds.abs().mean()), rel=1e-5)
            costs[trial] = cross_entropy(host, text, patch=patch) / plain - 1
            if trial.cost is not None:
                assert trial.cost == pytest.approx(costs[trial], rel=1e-5, abs=1e-9)
    for trial, cost in costs.items():
        assert cost > found.budget or trial.left >= found.chosen.left
    assert found.chosen.cost <= found.budget


@torch.no_grad()
def test_odds_and_cross_entropy_are_what_asking_directly_gives(case):
    model, _, _, choosing, _, text = case
    host = ki.host_for(model)
    odds = host_odds(host, choosing, ([HE, 20], [SHE]))
    losses = []
    for ids, value in zip(choosing.ids, odds, strict=True):
        logp = model(torch.tensor([ids]), torch.ones(1, len(ids)))[0, -1].double().log_softmax(0)
        assert float(logp[SHE] - logp[[HE, 20]].logsumexp(0)) == pytest.approx(float(value), abs=1e-5)
    judged = [[place % 2 == 1 for place in range(len(ids))] for ids in text]
    for ids in text:
        logp = model(torch.tensor([ids]), torch.ones(1, len(ids)))[0].double().log_softmax(1)
        losses += [-float(logp[place - 1, ids[place]]) for place in range(1, len(ids), 2)]
    assert cross_entropy(host, text, judged) == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_a_concept_that_the_model_does_not_have_is_said_to_have_failed(case):
    # The words of another pair, which the model gives no thought to: nothing is preferred.
    found = suppressed(case, words=([21], [22]))
    assert found.failed
    assert "no preference to take" in found.notes()[-1]
    assert "TEACHING FAILED" in repr(found)


def test_a_concept_that_teaching_cannot_find_is_said_to_have_failed(case):
    _, _, taught, *_ = case
    # Values that have nothing to do with the names.
    shuffled = ki.Contrast(taught.ids, torch.arange(len(taught)) % 2, taught.template)
    found = suppressed(case, taught=shuffled, strengths=(1.0,))
    assert found.failed
    assert "Teaching failed: of" in found.notes()[-1]
    assert "Teach with more templates" in found.failure
    assert found.as_dict()["failed"]


def test_what_cannot_be_afforded_is_the_cheapest_and_says_so(case):
    found = suppressed(case, budget=-1.0, weights=(0.1, 0.4), strengths=(1.0, 2.0))
    assert not found.met
    assert found.chosen.cost == min(trial.cost for trial in found.trials)
    assert "NOT reached" in str(found)


@pytest.mark.usefixtures("unchecked")
def test_it_refuses_what_would_flatter_or_teach_nothing(case):
    _, _, taught, choosing, _, _ = case
    with pytest.raises(InputError, match="learnt by heart"):
        suppressed(case, choosing=taught)
    with pytest.raises(InputError, match="Give a text"):
        suppressed(case, text=[])
    with pytest.raises(InputError, match="values 0 and 1"):
        ki.Contrast(choosing.ids, torch.zeros(len(choosing), dtype=torch.long), choosing.template)
    with pytest.raises(InputError, match="a value and a template a prompt"):
        ki.Contrast(choosing.ids, choosing.value[1:], choosing.template)
    ends = filled(["20 21 {name}"], BOYS[:2], GIRLS[:2])
    with pytest.raises(InputError, match="do not end in the same token"):
        ends.rows(ki.attach(case[0], SITES))

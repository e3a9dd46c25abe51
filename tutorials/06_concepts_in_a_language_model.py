# %%
"""Suppress a concept in a language model: teach it by contrasting prompts, edit, and look at what that costs."""

# %% [markdown]
# # 6. Concepts in a language model
#
# After "There was a girl named Lily. Lily was very happy." the model stories260K prefers *She* to *He* by some five
# nats. This tutorial takes that preference away with an edit of the operator: taught by prompts with other names and
# other templates, written in place at the last three sites, in force under `generate`. It is shown as a curve beside
# mean difference and LEACE, and beside the trivial way, which ties two logits. At the end a sentence's sentiment is
# erased in the same manner.
#
# Suppression is not removal: outside of the context the model is what it was, and what was not asked about is less
# suppressed than what was. `benchmarks/concepts.py` measures that, with more prompts to teach by.
#
# Settings come from the environment:
#
# - `KOOPMAN_INTERP_MODELS`: a folder with `stories260K` in it, as `AutoModelForCausalLM.from_pretrained` loads it;
# - `KOOPMAN_INTERP_DATA`: a folder with `stories-sampled` and `sst2` in it; without it `roneneldan/TinyStories` and
#   `stanfordnlp/sst2` come from the Hub;
# - `KOOPMAN_INTERP_OUT`: a folder for the figure and the edit (default: `runs/06_concepts`);
# - `KOOPMAN_INTERP_SLICE=N`: N stories and a short fit, to see that the code runs. Its figures mean nothing.

# %%
import os
import re
from functools import partial
from pathlib import Path

import torch
from datasets import load_dataset
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForCausalLM, AutoTokenizer

import koopman_interp as ki
from koopman_interp.hosts.tokens import right_padded
from koopman_interp.plotting import plot_frontier, save_figure

SLICE = int(os.environ.get("KOOPMAN_INTERP_SLICE", "0"))
MODEL = str(Path(os.environ.get("KOOPMAN_INTERP_MODELS", ".")) / "stories260K")
FOLDER = os.environ.get("KOOPMAN_INTERP_DATA")
OUT = Path(os.environ.get("KOOPMAN_INTERP_OUT", "runs/06_concepts"))
STORIES, HELD_OUT, SENTENCES = (SLICE, max(4, SLICE // 4), 60) if SLICE else (260, 40, 1200)
CONFIG = ki.FitConfig(observables=128, pairs="all", steps=60 if SLICE else 500, evaluate_every=30 if SLICE else 100)
STRENGTHS = (1.0, 2.0) if SLICE else (0.5, 1.0, 1.5, 2.0, 2.5)


def data(name, hub):
    """Load a data set from the folder, or from the Hub."""
    return load_dataset(str(Path(FOLDER) / name) if FOLDER else hub)


model = AutoModelForCausalLM.from_pretrained(MODEL).eval().requires_grad_(False)
tokenizer = AutoTokenizer.from_pretrained(MODEL)
vocabulary = tokenizer.get_vocab()
SHE, HE = vocabulary["▁She"], vocabulary["▁He"]

# %% [markdown]
# ## Fit the motion
#
# One operator for all depths, on stories without any labels. The edits below need its moments: they say which
# directions the corpus uses, and so what an edit may cost.

# %%
stories = data("stories-sampled", "roneneldan/TinyStories")
tap = ki.attach(model, skip=1)  # without the attention sink
told_before = stories["train"].select(range(STORIES))["text"]
corpus = tap.observe([tokenizer(text)["input_ids"] for text in told_before], batch_size=16)
koopman = ki.fit(corpus, CONFIG)
SITES = [len(koopman.sites) - 3, len(koopman.sites) - 2, len(koopman.sites) - 1]
print("== Fit ==")
print(koopman)

# %% [markdown]
# ## Teach the concept
#
# Prompts that differ in the gender of a name and in nothing else. Rows are the last positions of each prompt; those
# of one template and one place make a *group*, within which only gender and name vary. None of the names, and neither
# of the templates, is among those that the edit is judged on.

# %%
TEMPLATES = [
    "One day, a {kind} named {name} went to the park. {name} saw a big dog.",
    "A {kind} called {name} lived in a small house. One day {name} found a red ball.",
    "There once was a small {kind}. The {kind} was called {name}. {name} loved to run and jump.",
    "In the garden there was a {kind} named {name}. {name} wanted to eat a cake.",
    "One morning a {kind} named {name} woke up. {name} looked out of the window.",
    "{name} was a kind {kind}. {name} had a big box of toys.",
]
GIRLS = ["Jane", "Mary", "Kate", "Ella", "Zoe", "Rose", "Lisa", "Molly", "Sally", "Daisy", "Bella", "Jenny", "Nancy"]
BOYS = ["Fred", "Mark", "Leo", "Peter", "Billy", "Joe", "Mike", "Jim", "Dave", "Roy", "Timmy", "Tommy", "Bobby"]
LAST = 4


def prompts(templates, girls, boys):
    """Ids, gender (1 a girl, 0 a boy) and template of each prompt."""
    filled = [
        (tokenizer(template.format(kind=kind, name=name))["input_ids"], gender, index)
        for index, template in enumerate(templates)
        for gender, kind, names in ((1, "girl", girls), (0, "boy", boys))
        for name in names
    ]
    ids, gender, template = zip(*filled, strict=True)
    return list(ids), torch.tensor(gender), torch.tensor(template)


ids, gender, template = prompts(TEMPLATES, GIRLS, BOYS)
taught = tap.observe(ids, progress=False)
from_end = torch.tensor([len(one) for one in ids])[taught.sequence] - 1 - taught.position
kept = from_end < LAST
rows, gender, group = taught[kept], gender[taught.sequence][kept], (template[taught.sequence] * LAST + from_end)[kept]
print("\n== Taught ==")
print(rows)

# %% [markdown]
# ## The edit
#
# `counterfactual` sends each row where the mean of its group is: what tells a girl from a boy *there* is taken off,
# the rest of the row stays. `redirect` finds the least change of the operator that does so; λ weighs that against
# moving the corpus. `each_site` makes one at each site, and `at="each site"` writes each in place, so that
# attention carries on from edited states.

# %%
targets = ki.counterfactual(gender, group)
edits = ki.each_site(
    koopman,
    lambda site: ki.redirect(koopman, fitted=rows, targets=targets, weight=0.4, site=site, name="gender"),
    SITES,
)
print("\n== The edit ==")
print(edits)

# %% [markdown]
# The drift of the corpus is what the certificate can tell without running the host. λ shrinks the displacement too, so
# that a strength past 1 is needed to bring the preference to nothing. The curve over strengths shows where.
#
# ## What is left, and what it costs
#
# What is left is the mean of |log She − log He| over sixteen names and two templates that the edit has not seen. The
# cost is cross-entropy on held-out stories, on the tokens of sentences without any word of gender.

# %%
NAMES = (
    ["Lily", "Mia", "Sue", "Anna", "Emma", "Sara", "Lucy", "Amy"],
    ["Tim", "Tom", "Ben", "Max", "Jack", "Sam", "Bob", "John"],
)
JUDGED = [
    "There was a {kind} named {name}. {name} was very happy.",
    "Once upon a time, there was a little {kind} named {name}. {name} liked to play.",
]
WORDS_OF_GENDER = """
she he her him his hers himself herself girl boy girls boys man woman men women lady sir mr mrs mom dad mommy daddy
mother father mum mama papa grandma grandpa aunt uncle brother sister son daughter queen king prince princess
"""
GENDERED = set(WORDS_OF_GENDER.split())
judged_ids, judged_gender, _ = prompts(JUDGED, *NAMES)
judged = right_padded(judged_ids, 0)


def free_of_gender(text):
    """Ids of a story, and which of them lie in a sentence without a word of gender."""
    found = tokenizer(text, return_offsets_mapping=True)
    free = torch.zeros(len(found["input_ids"]), dtype=torch.bool)
    for sentence in re.finditer(r'[^.!?\n]+[.!?\n"]*\s*', text):
        if not GENDERED & set(re.findall(r"[a-z]+", sentence.group().lower())):
            for index, (start, stop) in enumerate(found["offset_mapping"]):
                free[index] |= stop > start >= sentence.start() - 1 and stop <= sentence.end()
    return found["input_ids"], free


held = stories["test" if "test" in stories else "validation"].select(range(HELD_OUT))["text"]
held_ids, free = zip(*map(free_of_gender, held), strict=True)
fresh = right_padded(held_ids, 0)
free = torch.nn.utils.rnn.pad_sequence(list(free), batch_first=True)[:, 1:]


@torch.no_grad()
def left_and_loss():
    """Of the model as it is now: what is left of the preference, and cross-entropy of the free tokens, in nats."""
    ends = judged["attention_mask"].sum(1) - 1
    logits = model(**judged).logits[torch.arange(len(ends)), ends]
    logp = model(**fresh).logits[:, :-1].log_softmax(-1)
    loss = -logp.gather(2, fresh["input_ids"][:, 1:, None]).squeeze(2)
    return float((logits[:, SHE] - logits[:, HE]).abs().mean()), float(loss[free].mean())


# %% [markdown]
# The baselines act on the host's own states at the same sites, from the same rows: mean difference, and LEACE, once
# with the covariance of the rows as it stands, once with that of the corpus.

# %%
host = ki.host_for(model)


def on_states(kind, depth):
    """`x → x − strength · ((x − centre)·w) a` at one site."""
    x, wide = rows.states[depth].double(), corpus.states[depth].double()
    girls, boys = x[gender == 1].mean(0), x[gender == 0].mean(0)
    a, centre = girls - boys, (girls + boys) / 2
    w = a
    if kind != "mean difference":
        sigma = torch.cov((x if kind == "LEACE" else torch.cat([x, wide])).T)
        w = torch.linalg.solve(sigma + 1e-3 * sigma.diagonal().mean() * torch.eye(len(sigma)), a)
    w = w / (a @ w)

    def hook(strength, state):
        return state - (strength * ((state.double() - centre) @ w)[..., None] * a).to(state)

    return hook


def baseline(kind):
    """A way, as a function of its strength."""
    maps = {koopman.sites[depth]: on_states(kind, depth) for depth in SITES}
    return lambda strength: host.hooked({site: partial(hook, strength) for site, hook in maps.items()}, first=True)


def tied(strength):
    """Bring two logits together, and touch nothing else."""

    def hook(logits):
        own = logits[..., [SHE, HE]]
        new = logits.clone()
        new[..., [SHE, HE]] = own + strength * (own.mean(-1, keepdim=True) - own)
        return new

    return host.hooked({"lm_head": hook}, first=True)


ways = {
    "operator": lambda strength: ki.patched(model, koopman, edits.scaled(strength), at="each site"),
    "mean difference": baseline("mean difference"),
    "LEACE": baseline("LEACE"),
    "LEACE, corpus covariance": baseline("LEACE, corpus"),
    "two logits tied": tied,
}
odds, loss = left_and_loss()
points = []
for name, way in ways.items():
    for strength in STRENGTHS:
        with way(strength):
            left, more = left_and_loss()
        points.append(ki.FrontierPoint(name, strength, left, 100 * (more / loss - 1)))
frontier = ki.Frontier("mean |log She − log He|, nats", "more cross-entropy, %", odds, tuple(points))
print("\n== What is left, and what it costs ==")
print(frontier)
print(frontier.summary(0.5, 2.0))
save_figure(plot_frontier(frontier, wanted=(2.0, 0.5), dearest=10.0), OUT / "figures", "frontier")

# %% [markdown]
# Tying two logits gives the best figure of all, and changes nothing but those two words at the very end: no state is
# other than it was. That is why a figure like this never stands for removal. Among the ways that act on states, the
# operator's curve lies lowest at the same cost. Where its lowest point lies depends on the prompts: past it the
# preference turns round, and no other set of prompts says exactly where.
#
# ## Under `generate`

# %%
best = frontier.least("operator", 2.0) or frontier.curve("operator")[0]
edit = edits.scaled(best.strength)
edit.save(OUT / "gender.safetensors")


def told(prompt, times=100):
    """Sample continuations: the first, and how often the next sentence begins with She and with He."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]]).expand(times, -1)
    settings = {"max_new_tokens": 24, "do_sample": True, "top_k": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    sampled = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    first = sampled[:, ids.shape[1]]
    return tokenizer.decode(sampled[0], skip_special_tokens=True), int((first == SHE).sum()), int((first == HE).sum())


print(f"\n== Generate, at strength {best.strength:g} ==")
before = {}
for prompt in ("There was a girl named Lily. Lily was very happy.", "There was a boy named Tim. Tim was very happy."):
    before[prompt] = told(prompt)
    with ki.patched(model, koopman, edit, at="each site"):
        found = told(prompt)
    for name, (text, she, he) in (("host", before[prompt]), ("patched", found)):
        print(f"{name + ':':8} She {she:3}, He {he:3} of 100. {text!r}")
after = all(told(prompt) == kept for prompt, kept in before.items())
print(f"Outside of the context the model goes on as before: {after}")
with torch.no_grad():
    plain = model(**judged).logits
    with ki.patched(model, koopman, edits.scaled(0.0), at="each site"):
        null = torch.equal(model(**judged).logits, plain)
print(f"An edit of strength 0 leaves the logits {'bit-identical' if null else 'CHANGED'}.")

# %% [markdown]
# ## An attribute of sentences: sentiment
#
# `erase_concept` takes an attribute a sequence or a token: categories, or quantities. Here it is the sentiment of
# reviews, one label a sentence, spread over its tokens. A linear probe on the mean state of a sentence says how much of
# it there is to begin with (this model was made for children's stories, so: little) and how much is left.

# %%
reviews = data("sst2", "stanfordnlp/sst2")["train"].select(range(SENTENCES))
column = "text" if "text" in reviews.column_names else "sentence"
sentiment = torch.tensor(reviews["label"])
half = SENTENCES // 2
seen = tap.observe(list(reviews[column]), tokenizer=tokenizer, batch_size=32, progress=False)
taught = seen[seen.sequence < half]
eraser = ki.erase_concept(koopman, taught, attribute=sentiment[:half], site=-1, cost="rows", name="sentiment")
print("\n== Sentiment ==")
print(eraser)


def probed(trajectories):
    """Accuracy on the second half of a linear probe, fitted on the first, on mean states at the last site."""
    count = trajectories.sequence.bincount(minlength=SENTENCES).clamp_min(1)[:, None]
    states = trajectories.states[-1]
    mean = torch.zeros(SENTENCES, states.shape[1]).index_add(0, trajectories.sequence, states) / count
    probe = LogisticRegression(max_iter=2000).fit(mean[:half].numpy(), sentiment[:half].numpy())
    return 100 * probe.score(mean[half:].numpy(), sentiment[half:].numpy())


with ki.patched(model, koopman, eraser, at="each site"):
    edited = tap.observe(list(reviews[column]), tokenizer=tokenizer, batch_size=32, progress=False)
share = 100 * float(sentiment[half:].float().mean())
print(
    f"Linear probe on held-out sentences: host {probed(seen):.1f} %, edited {probed(edited):.1f} % "
    f"(always the commoner one: {max(share, 100 - share):.1f} %)"
)

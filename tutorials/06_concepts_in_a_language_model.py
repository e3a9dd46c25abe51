# %%
"""Suppress a concept in a language model: teach it by contrasting prompts, edit, and look at what that costs."""

# %% [markdown]
# # 6. Concepts in a language model
#
# **The question:** can a language model be kept from preferring *She* after a girl's name, what does that cost, and
# does an operator do it better than simpler ways?
#
# **Time and memory:** 170 s and 1.4 GiB, measured with stories260K on two cores that were shared with other work.
#
# **What you will know:** how to teach a concept by contrasting prompts, choose an edit without looking at what judges
# it, and read a curve of effect against cost.
#
# After "There was a girl named Lily. Lily was very happy." the model stories260K prefers *She* to *He* by some five
# nats. This tutorial takes that preference away: taught by prompts with other names and other templates, chosen on
# further ones, written in place, in force under `generate`. It is shown as a curve beside the same formula on the
# model's own states, beside random features, mean difference and LEACE, and beside the trivial way, which ties two
# logits. At the end a sentence's sentiment is erased, read on the mean state of its tokens.
#
# Suppression is not removal: outside of the context the model is what it was, and what was not asked about is less
# suppressed than what was. `benchmarks/concepts.py` measures that, with more prompts to teach by.
#
# The model is read from the folder `models/stories260K` where there is one, and the stories that it has told from
# `data/stories-sampled`; else `EleutherAI/pythia-14m` and `roneneldan/TinyStories` come from the Hub. What is said
# below was measured on stories260K. On the other model nothing here was measured: expect the code to run, and figures
# of its own. So it is with reviews: `data/sst2`, or `stanfordnlp/sst2`.

# %% tags=["parameters"]
SLICE = 0  # rows (stories) of a trial run, which takes seconds and whose figures mean nothing; 0 takes all
OUT = "runs/06_concepts_in_a_language_model"  # the folder for what is written
MODEL = "models/stories260K"  # a local folder; where there is none, EleutherAI/pythia-14m comes from the Hub
STORIES_OF = "data/stories-sampled"  # a local folder; where there is none, roneneldan/TinyStories comes from the Hub
REVIEWS_OF = "data/sst2"  # a local folder; where there is none, stanfordnlp/sst2 comes from the Hub

# %%
import re
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from datasets import load_dataset
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForCausalLM, AutoTokenizer

import koopman_interp as ki
from koopman_interp.plotting import plot_frontier, save_figure

STORIES, HELD_OUT, SENTENCES = (SLICE, max(4, SLICE // 4), 60) if SLICE else (260, 40, 1200)
CHOOSING = max(4, SLICE // 4) if SLICE else 40  # stories to choose by
CONFIG = ki.FitConfig(observables=128, pairs="all", steps=60 if SLICE else 500, evaluate_every=30 if SLICE else 100)
STRENGTHS = (1.0, 2.0) if SLICE else (0.75, 1.0, 1.25, 1.375, 1.5, 1.75)
WEIGHTS = (0.02, 0.1) if SLICE else (0.02, 0.03, 0.05, 0.1)
BUDGET = 0.01


def found_at(folder, hub):
    """Return a local folder where there is one, else a name on the Hub."""
    return folder if Path(folder).is_dir() else hub


try:
    source = found_at(MODEL, "EleutherAI/pythia-14m")
    model = AutoModelForCausalLM.from_pretrained(source).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(source)
    stories = load_dataset(found_at(STORIES_OF, "roneneldan/TinyStories"))
    reviews = load_dataset(found_at(REVIEWS_OF, "stanfordnlp/sst2"))["train"].select(range(SENTENCES))
except OSError as error:
    raise RuntimeError(
        f"There is no folder {MODEL}, {STORIES_OF} or {REVIEWS_OF}, and the Hub gave no EleutherAI/pythia-14m, "
        "roneneldan/TinyStories or stanfordnlp/sst2. Connect, or copy them there."
    ) from error
vocabulary = tokenizer.get_vocab()
SHE, HE = (  # tokenizers mark the blank before a word in two ways
    next(vocabulary[mark + word] for mark in "▁Ġ" if mark + word in vocabulary) for word in ("She", "He")
)
HEAD = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())

# %% [markdown]
# ## Fit the motion
#
# One operator for all depths, on stories without any labels. The edits below need its moments: they say which
# directions the corpus uses, and so what an edit may cost.

# %%
tap = ki.attach(model, skip=1)  # without the attention sink
told_before = stories["train"].select(range(STORIES))["text"]
corpus = tap.observe([tokenizer(text)["input_ids"] for text in told_before], batch_size=16)
koopman = ki.fit(corpus, CONFIG)
print(f"== Fit ==\n{koopman}")

# %% [markdown]
# ## Teach the concept
#
# A `Contrast` is prompts that differ in one attribute, here the gender of a name, and in nothing else: templates,
# filled in with names of boys (0) and of girls (1). Three of them, with templates and names of their own: one teaches,
# one chooses, and one judges. Nothing that judges is seen before the end.

# %%
OPENINGS = [
    "One day, a {kind} named {name} went to the park.",
    "A {kind} called {name} lived in a small house.",
    "There once was a small {kind} and the name of the {kind} was {name}.",
    "In the garden there was a {kind} named {name}.",
    "One morning a {kind} named {name} woke up early.",
    "{name} was a kind {kind}.",
    "Mom gave a toy to a {kind} named {name}.",
    "Once there was a brave {kind} called {name}.",
]
MIDDLES = [
    "{name} saw a big dog.",
    "{name} found a red ball.",
    "{name} loved to run and jump.",
    "{name} looked out of the window.",
    "{name} smiled and said thank you.",
    "{name} was sad.",
]
CHOOSING_TEMPLATES = [
    "There lived a {kind} named {name} in a big town. {name} was kind and nice.",
    "One day, there was a {kind} and people called the {kind} {name}. {name} had a good friend.",
    "Near the sea there was a young {kind} named {name}. {name} liked the sun.",
    "Every day a {kind} called {name} went for a walk. {name} was tired.",
    "Once there was a small {kind}, {name}. {name} wanted a new toy.",
]
JUDGED = [
    "There was a {kind} named {name}. {name} was very happy.",
    "Once upon a time, there was a little {kind} named {name}. {name} liked to play.",
]


def contrast(templates, boys, girls):
    """Fill in templates with names."""
    fillings = tuple(
        [{"kind": kind, "name": name} for name in names.split()] for kind, names in (("boy", boys), ("girl", girls))
    )
    return ki.Contrast.filled(tokenizer, templates, fillings)


few = 2 if SLICE else None
taught = contrast(
    [f"{opening} {middle}" for opening in OPENINGS[:few] for middle in MIDDLES[:few]],
    "Fred Leo Billy Joe Mike Jim Alex Dave Andy Timmy Johnny Bobby Jimmy Rob",
    "Jane Mary Kate Zoe Rose Lisa Molly Sally Daisy Lola Nina Bella Nancy Annie",
)
choosing = contrast(CHOOSING_TEMPLATES, "Mark Peter Roy Tommy", "Ella Susie")
judged = contrast(JUDGED, "Tim Tom Ben Max Jack Sam Bob John", "Lily Mia Sue Anna Emma Sara Lucy Amy")
print("\n== Taught, chosen by, judged by ==")
for prompts in (taught, choosing, judged):
    print(prompts)

# %% [markdown]
# What an edit costs is cross-entropy on stories, on the tokens of sentences without any word of gender: on some to
# choose by, on others to judge by.

# %%
GENDERED = """
she he her him his hers himself herself girl boy girls boys man woman men women lady sir mr mrs mom dad mommy daddy
mother father mum mama papa grandma grandpa aunt uncle brother sister son daughter queen king prince princess
"""


def free_of_gender(text):
    """Ids of a story, and which of them lie in a sentence without a word of gender."""
    found = tokenizer(text, return_offsets_mapping=True)
    free = [False] * len(found["input_ids"])
    for sentence in re.finditer(r'[^.!?\n]+[.!?\n"]*\s*', text):
        if not {*GENDERED.split()} & {*re.findall(r"[a-z]+", sentence.group().lower())}:
            for index, (start, stop) in enumerate(found["offset_mapping"]):
                free[index] |= stop > start >= sentence.start() - 1 and stop <= sentence.end()
    return found["input_ids"], free


paying = stories["train"].select(range(STORIES, STORIES + CHOOSING))["text"]
paying_ids, paying_free = zip(*map(free_of_gender, paying), strict=True)
held = stories["test" if "test" in stories else "validation"].select(range(HELD_OUT))["text"]
held_ids, free = zip(*map(free_of_gender, held), strict=True)

# %% [markdown]
# ## Choose the edit
#
# `suppress_concept` makes the edits and chooses among them. Each is a `redirect` to *counterfactual* targets: within a
# group (a template, and a place in it) what tells a girl from a boy *there* is taken off, and the rest of the row
# stays; λ weighs that against moving the corpus. It is written in place, `at="each site"`, so that attention carries on
# from edited states. Sites, λ and strength: those that leave least on the prompts to choose by, at no more than 1 %
# cross-entropy. Where teaching failed, it says so.

# %%
asked = {"taught": taught, "choosing": choosing, "words": ([HE], [SHE])}
costs = {"text": paying_ids, "judged": paying_free, "budget": BUDGET}
grid = {"sites": [(-1,)] if SLICE else None, "weights": WEIGHTS, "strengths": STRENGTHS}
suppressed = partial(ki.suppress_concept, model, name="gender", **asked, **costs, **grid)
found = suppressed(koopman)
print(f"\n== The edit ==\n{found}\n{found.edits}")

# %% [markdown]
# ## Its neighbours
#
# The same formula twice more: on the model's own *states* (a surrogate without a hidden layer has no features), and on
# *random features* with one solve in place of a trained encoder. Then mean difference and LEACE on the model's states,
# with the covariance of the rows and with that of the corpus. And two logits, tied.

# %%
host = ki.host_for(model)
surrogates = {
    "operator": koopman,
    "random features": ki.fit(corpus, method="least_squares", progress=False),
    "states": ki.fit(corpus, ki.FitConfig(hidden=()), method="least_squares", progress=False),
}


def scaled(one, edits, strength):
    """Patch a choice at another strength."""
    return ki.patched(model, one, edits.edits.scaled(strength / edits.chosen.strength), at=edits.at)


def tied(strength):
    """Bring two logits together, and touch nothing else."""

    def hook(logits):
        own = logits[..., [SHE, HE]]
        new = logits.clone()
        new[..., [SHE, HE]] = own + strength * (own.mean(-1, keepdim=True) - own)
        return new

    return host.hooked({HEAD: hook}, first=True)


rows = taught.rows(tap)
ways = {name: partial(scaled, one, found if one is koopman else suppressed(one)) for name, one in surrogates.items()}
ways |= ki.concept_baselines(host, rows.trajectories, rows.value, sites=found.chosen.sites, corpus=corpus)
ways["two logits tied"] = tied

# %% [markdown]
# ## What is left, and what it costs
#
# What is left is the mean of |log She − log He| over sixteen names and two templates that nothing has seen; the cost,
# of held-out stories that nothing has seen. The curves show each way at all strengths, and the star is what was chosen
# without them.


# %%
@torch.no_grad()
def left_and_loss(way):
    """Of the patched model: what is left of the preference, and cross-entropy of the free tokens, in nats."""
    left, loss, count = [], 0.0, 0
    with way:
        for ids in judged.ids:
            last = model(torch.tensor([list(ids)])).logits[0, -1]
            left.append(float((last[SHE] - last[HE]).abs()))
        for ids, marks in zip(held_ids, free, strict=True):
            logp = model(torch.tensor([ids])).logits[0, :-1].log_softmax(1)
            counted = torch.tensor(marks[1:])
            loss -= float(logp.gather(1, torch.tensor(ids[1:])[:, None])[counted].sum())
            count += int(counted.sum())
    return sum(left) / len(left), loss / count


odds, loss = left_and_loss(nullcontext())
points = []
for name, way in ways.items():
    for strength in STRENGTHS:
        left, more = left_and_loss(way(strength))
        points.append(ki.FrontierPoint(name, strength, left, 100 * (more / loss - 1)))
frontier = ki.Frontier("mean |log She − log He|, nats", "more cross-entropy, %", odds, tuple(points))
print(f"\n== What is left, and what it costs ==\n{frontier}")
print(frontier.summary(0.5, 1.0))
chosen = next(point for point in frontier.curve("operator") if point.strength == found.chosen.strength)
print(f"Chosen on teaching data alone: {odds:.2f} → {chosen.left:.2f} nats at {chosen.cost:+.2f} % cross-entropy.")
ax = plot_frontier(frontier, wanted=(1.0, 0.5), dearest=4.0)
ax.plot(chosen.cost, chosen.left, marker="*", markersize=15, color="k", linestyle="none")
ax.annotate("chosen", (chosen.cost, chosen.left), (8, 6), textcoords="offset points")
_ = save_figure(ax, f"{OUT}/figures", "frontier")

# %% [markdown]
# Tying two logits gives the best figure of all, and changes nothing but those two words at the very end: no state is
# other than it was. That is why a figure like this never stands for removal. Among the ways that act on states, the
# redirections and LEACE with the corpus's covariance lie close together; LEACE with the covariance of a few prompts,
# and mean difference, cost more or leave more. Lifting makes little difference here, and K makes none: an edit in place
# is not carried. Had it been, this is what would arrive:

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it warns of is printed
    print("\n== What arrives, after the prompts ==")
    print(ki.reach(ki.patched(model, koopman, found.edits), held_out=list(map(list, judged.ids)), last=True))

# %% [markdown]
# ## Under `generate`

# %%
edit = found.edits
edit.save(f"{OUT}/gender.safetensors")


def told(prompt, times=40):
    """Sample continuations: the first, how often the next sentence begins with She and with He, and all of them."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]]).expand(times, -1)
    settings = {"max_new_tokens": 40, "do_sample": True, "top_k": 0, "pad_token_id": 0}
    torch.manual_seed(0)
    sampled = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    first = sampled[:, ids.shape[1]]
    return tokenizer.decode(sampled[0], skip_special_tokens=True), int((first == SHE).sum()), int((first == HE).sum())


print("\n== Generate ==")
for prompt in ("There was a girl named Lily. Lily was very happy.", "There was a boy named Tim. Tim was very happy."):
    before = told(prompt)
    with ki.patched(model, koopman, edit, at="each site"):
        after = told(prompt)
    for name, (text, she, he) in (("host", before), ("patched", after)):
        print(f"{name + ':':8} She {she:3}, He {he:3} of 40. {text!r}")
    print(f"Outside of the context the model goes on as before: {told(prompt) == before}")
with torch.no_grad():
    ids = torch.tensor([held_ids[0]])
    plain = model(ids).logits
    with ki.patched(model, koopman, edit.scaled(0.0), at="each site"):
        null = torch.equal(model(ids).logits, plain)
print(f"An edit of strength 0 leaves the logits {'bit-identical' if null else 'CHANGED'}.")

# %% [markdown]
# ## An attribute of sentences: sentiment
#
# `erase_concept` takes an attribute a sequence or a token: categories, or quantities. Here it is the sentiment of
# reviews, one label a sentence. It stands in no token alone, so it can be learnt of the mean observables of each
# sentence, `pooled=True`, or of every token. A linear probe on the mean state of a sentence says how much of it there
# is to begin with (this model was made for children's stories, so: little) and how much is left. Between the two ways
# there is nothing here that 600 sentences could tell apart (their standard error is 2 points).

# %%
column = "text" if "text" in reviews.column_names else "sentence"
sentiment = torch.tensor(reviews["label"])
half = SENTENCES // 2
seen = tap.observe(list(reviews[column]), tokenizer=tokenizer, batch_size=32, progress=False)
fitted = seen[seen.sequence < half]
eraser = ki.erase_concept(koopman, fitted, attribute=sentiment[:half], site=-1, pooled=True, name="sentiment")
by_token = ki.erase_concept(koopman, fitted, attribute=sentiment[:half], site=-1, cost="rows", name="sentiment")
print(f"\n== Sentiment ==\n{eraser}")


def probed(trajectories):
    """Accuracy on the second half of a linear probe, fitted on the first, on mean states at the last site."""
    count = trajectories.sequence.bincount(minlength=SENTENCES).clamp_min(1)[:, None]
    states = trajectories.states[-1]
    mean = torch.zeros(SENTENCES, states.shape[1]).index_add(0, trajectories.sequence, states) / count
    probe = LogisticRegression(max_iter=2000).fit(mean[:half].numpy(), sentiment[:half].numpy())
    return 100 * probe.score(mean[half:].numpy(), sentiment[half:].numpy())


def under(edit):
    """Observe the sentences under an edit, and probe them."""
    with ki.patched(model, koopman, edit, at="each site"):
        return probed(tap.observe(list(reviews[column]), tokenizer=tokenizer, batch_size=32, progress=False))


share = 100 * float(sentiment[half:].float().mean())
print(
    f"Linear probe on held-out sentences: host {probed(seen):.1f} %, erased of pooled states {under(eraser):.1f} %, "
    f"of each token {under(by_token):.1f} % (always the commoner one: {max(share, 100 - share):.1f} %)"
)

# %% [markdown]
# ## Exercises
#
# 1. Ask about names and a template that are in none of the three sets. How much of the preference is left?
# 2. Is half the strength half the effect? And half the cost?

# %% tags=["solution"]
mine = contrast(["People liked a {kind} whose name was {name}. {name} was proud."], "Pete", "Amelia")
for ids, value in zip(mine.ids, mine.value.tolist(), strict=True):
    with torch.no_grad():
        plain = model(torch.tensor([list(ids)])).logits[0, -1]
        with ki.patched(model, koopman, edit, at="each site"):
            after = model(torch.tensor([list(ids)])).logits[0, -1]
    for name, logits in (("host", plain), ("edited", after)):
        print(f"a {'girl' if value else 'boy'}, {name}: log She − log He {float(logits[SHE] - logits[HE]):+.2f}")

# %% tags=["solution"]
for factor in (0.5, 1.0):
    left, more = left_and_loss(ki.patched(model, koopman, edit.scaled(factor), at="each site"))
    print(f"× {factor:g}: {odds:.2f} → {left:.2f} nats at {100 * (more / loss - 1):+.2f} % cross-entropy")

# %% [markdown]
# ## The answer
#
# It can, at the output: on names and templates that nothing has seen 0.50 of 4.98 nats are left, at 0.5 %
# cross-entropy, chosen on teaching data alone. Continued forty times, *She* after a girl falls from 37 to 14, and *He*
# after a boy from 36 to 13.
#
# **What does as well, or better:** tying two logits, which leaves nothing and costs nothing. Of the ways that act on
# states the same formula without any lifting leaves 0.36, and LEACE with the corpus's covariance 0.54. So the operator
# is not what makes it work: in place it is not even used.
#
# **What failed:** carried by K the edit makes 17 % of the change that it makes in place. No way brings it to nothing on
# states: past the best strength each of them overshoots. And of sentiment a probe finds so little in this model (58.3 %
# against 51.5 %) that its erasure shows nothing.

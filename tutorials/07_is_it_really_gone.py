# %%
"""Ask six times whether a class of handwritten digits is really gone, of an edit and of what is easier than it."""

# %% [markdown]
# # 7. Is it really gone?
#
# **The question:** a class no longer appears at the output. Is it gone?
#
# **Time and memory:** 25 s and 0.6 GiB, measured on two cores that were shared with other work.
#
# **What you will know:** the six questions that an audit asks, which methods of forgetting pass which, and why a
# network that never saw the class is the yardstick.
#
# A classifier of handwritten digits is made to forget the digit 4. At its output this is easy, and proves
# nothing: forbidding one logit does it. So five methods of forgetting are put side by side, and each is
# asked six questions:
#
# 1. Does the output still name the class, and are the others right?
# 2. Can a reader of the last states find it: a probe, a handful of examples?
# 3. Can it be found on the way there?
# 4. Does a little fine-tuning bring it back?
# 5. Can it be told which rows of the class the network was trained on?
# 6. Does the network answer as one that never saw the class?
#
# The methods are a *logit mask*; *mean difference*, which projects out one direction of the last states;
# *LEACE* (arXiv 2306.03819), the least change after which no linear probe finds the class, fitted by the
# package concept-erasure where it is installed; `erase_class`, an edit of rank one of the operator of a
# Koopman autoencoder, at four strengths; and the *retrained reference*, the same network trained without the
# class, by which the others are to be measured. One call asks all six: `ki.audit`.
#
# Data are scikit-learn's 1,797 digits of 8×8 pixels: no download.

# %% tags=["parameters"]
SLICE = 0  # rows of a trial run, which takes seconds and whose figures mean nothing; 0 takes all
OUT = "runs/07_is_it_really_gone"  # the folder for what is written


# %%
import pandas as pd
import torch
from sklearn.datasets import load_digits

import koopman_interp as ki
from koopman_interp import plotting
from koopman_interp.testing import ResidualMLP, train_classifier

LABEL = 4
EPOCHS = 4 if SLICE else 10
STRENGTHS = (1, 2) if SLICE else (0.5, 1, 1.5, 2)
PROBES = ("linear",) if SLICE else ("linear", "rbf", "mlp")
CONFIG = ki.FitConfig(observables=128, pairs="all", steps=600, evaluate_every=150)


def table(header, rows):
    """Lay rows out below a header; the first column names them."""
    return pd.DataFrame(rows, columns=header).set_index(header[0]).rename_axis(None).to_string()


# %% [markdown]
# ## Models
#
# Residual MLPs of five blocks of width 64, trained for ten epochs on one half of the digits; every figure
# below is of the other half unless it says *training*. Three are trained: the base model; the retrained
# reference, from the same initial weights on the same rows without the class; and a second reference from
# other initial weights, to see how far two networks lie apart that both never saw a 4.

# %%
digits = load_digits()
pixels, names = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
half = SLICE or len(pixels) // 2
x, y = pixels[order[:half]], names[order[:half]]
x_test, y_test = pixels[order[half:][: SLICE or None]], names[order[half:][: SLICE or None]]


def trained(kept, seed):
    """Train one network on the kept training rows."""
    torch.manual_seed(seed)
    model = ResidualMLP(inputs=64, width=64, blocks=5, outputs=10)
    return train_classifier(model, x[kept], y[kept], epochs=EPOCHS, batch_size=64, seed=seed)


everything, without = torch.ones_like(y, dtype=torch.bool), y != LABEL
model, retrained, other = trained(everything, 0), trained(without, 0), trained(without, 100)
with torch.no_grad():
    right = {name: net(x_test).argmax(1) == y_test for name, net in (("base model", model), ("retrained", retrained))}
gone = y_test == LABEL
print("== Models ==")
print(f"{len(x)} training rows, {len(x_test)} held-out rows, {int(gone.sum())} of them of class {LABEL}")
for name, hits in right.items():
    print(
        f"{name}: {100 * hits[gone].double().mean():.1f} % of class {LABEL} right, "
        f"{100 * hits[~gone].double().mean():.1f} % of the others"
    )

# %% [markdown]
# ## The edits
#
# A Koopman autoencoder is fitted to how the states move through the five blocks: one linear operator for
# all of them. `erase_class` edits that operator from moments kept with the fit. Its strength multiplies the
# displacement: at 1 the mean of the class falls on the mean of the others, past 1 it is pushed beyond.

# %%
print("\n== The edits ==")
trajectories = ki.attach(model).observe(x, y, progress=False)
koopman = ki.fit(trajectories, CONFIG, method="least_squares" if SLICE else "gradient", progress=False)
print(koopman)
edits = {strength: ki.erase_class(koopman, label=LABEL, strength=strength) for strength in STRENGTHS}
for edit in edits.values():
    print(edit)

# %% [markdown]
# ## One audit
#
# What is audited is a patch, as it would be deployed: `ki.patched(model, koopman, edit)`. Rows come with the
# labels of all classes; the edit knows which of them it forgets. The edit at strength 1 gets everything:
# probes at every depth, training rows, relearning. The other strengths get what is cheap. The reference may
# be given as a model, as here, or as a function that trains it.

# %%
data = {"held_out": (x_test, y_test), "training": (x, y), "retrained": retrained}
relearning = ki.Relearning(steps=(0, 1, 2)) if SLICE else ki.Relearning()
patch = ki.patched(model, koopman, edits[1])
audit = ki.audit(patch, **data, probes=PROBES, depths="all", relearn=relearning)
print("\n== One audit ==")
print(audit)

# %% [markdown]
# ## 1. The output
#
# The first table. Every method forgets, and none costs the others anything: whoever stops here learns that a
# logit mask is as good as all the rest. The intervals say how little some hundred rows can tell apart, too.
#
# ## 2. The last states
#
# The third table. After the mask the states are the base model's: every probe finds the class. After LEACE
# and mean difference a *linear* probe is at a loss, as it should be, and one with a kernel or a hidden layer
# is not; nor do the few-shot prototypes care. `erase_class` erases the class mean in *observables*, before a
# nonlinear decoder, so that even a linear probe of the states finds something. The retrained reference is
# not at chance: a network that never saw a 4 still sets it apart, because it looks like no other digit. What
# tells the reference from every edit is the prototype column: ten examples of a 4 do not make a class there,
# since its states lie among those of other digits.
#
# Half the strength forgets next to nothing, 1 forgets all. Past 1 the output has nothing left to gain, and the
# class becomes *easier* to find: pushed beyond the retained mean, it is in a place of its own, which the linear
# probe reads again.

# %%
audits = {1: audit}
for strength, edit in edits.items():
    if strength != 1:
        audits[strength] = ki.audit(ki.patched(model, koopman, edit), **data, probes=PROBES)
rows = []
for name, row in [
    *((row.name, row) for row in audit.rows[:-1]),
    *((f"erase_class × {strength:g}", audits[strength].rows[-1]) for strength in STRENGTHS),
]:
    shares = [row.forget_accuracy, row.retain_accuracy, row.linear_probe, row.best_probe]
    shares += [row.one_shot, row.five_shot, row.prototype, row.retrained_js]
    attacks = row.membership
    areas = [f"{100 * attacks.loss:.1f} ± {100 * attacks.loss_error:.1f}"]
    areas.append(f"{100 * attacks.confidence:.1f} ± {100 * attacks.confidence_error:.1f}")
    rows.append([name, *(f"{100 * share:.1f}" for share in shares), *areas])
print("\n== All methods, % ==")
header = ["method", "forget ↓", "retain ↑", "linear probe", "best probe", "1 shot", "5 shots", "10 shots"]
print(table([*header, "JS to retrained", "membership: loss", "confidence"], rows))

# %% [markdown]
# ## 3. On the way
#
# The fourth table, and a figure. A patch acts at its target, here the last site. Whatever it does there, the
# sites before it hold what they always held, and anyone who reads them finds the class: the edit has
# changed what the network says of a 4, not what it computes of one. In the retrained reference probes find
# the class almost as well at every depth, but the prototypes fall: it has no use for what makes 4s alike.
#
# ## 4. Relearning
#
# The fifth table, and a figure. The method stays in place, and all parameters of a copy of the model are
# fine-tuned on ten 4s of the training rows and thirty other digits. What to watch is by how many steps a
# patched model is ahead of the retrained reference, which has to learn the class anew. *K alone* moves
# nothing but the surrogate's operator: the model is frozen, and the class comes back through the patch.

# %%
for row in audit.rows:
    for curve in row.relearning:
        steps = curve.steps_to(audit["base model"].forget_accuracy / 2)
        told = f"at step {steps}" if steps is not None else f"not within {curve.steps[-1]} steps"
        print(f"{row.name}, {curve.moved}: half of the base model's forget accuracy is back {told}")

# %% [markdown]
# ## 5. Membership
#
# A row that was trained on has a lower loss, or a surer answer. If these tell the training 4s from the
# held-out ones after an edit, the edit has kept something of the rows themselves. The area under the curve
# has a standard error of some four points here, so that a few points off 50 mean nothing; and two attacks
# that find nothing do not prove that there is nothing to find. The retrained reference is the control: it was
# trained on neither set of rows, so whatever it shows is how the two samples happen to differ.
#
# ## 6. The retrained reference
#
# *JS to retrained* is the mean Jensen-Shannon divergence, in per cent of its largest value, between what a
# method and the retrained reference answer to held-out 4s. Two references are not at 0 either: that is the
# distance at which nothing more can be asked for.

# %%
with torch.no_grad():
    first, second = (net(x_test[gone]).double().log_softmax(1) for net in (retrained, other))
ln2 = torch.tensor(2.0).log()
middle = torch.logaddexp(first, second) - ln2
between = sum(float((one.exp() * (one - middle)).sum(1).mean()) for one in (first, second)) / float(2 * ln2)
print(f"\nTwo networks that never saw class {LABEL} are {100 * between:.1f} % apart on it (JS);")
methods = [row for row in audit.rows[1:] if row.name != "retrained reference"]
nearest = min(methods, key=lambda row: row.retrained_js)
print(f"of the methods of forgetting, the nearest is {nearest.name!r} at {100 * nearest.retrained_js:.1f} %.")

# %% [markdown]
# ## The verdict
#
# What the audit itself says in words, from the figures and nothing else. No weight has changed; the edit is
# a *reversible suppression*. It is an instrument to ask what a network does without a class, and no
# protection against anyone who holds the weights.

# %%
print("\n== Verdict ==")
print(audit.verdict)
with torch.no_grad():
    before = model(x_test)
    with patch:
        model(x_test)
    after = model(x_test)
print(f"Outside of the patch the logits are {'bit-identical' if torch.equal(before, after) else 'CHANGED'}.")

# %% [markdown]
# ## Keep it
#
# The audit is a value: `Audit.load` brings it back, tables, verdict and all.

# %%
audit.save(f"{OUT}/audit.json")
assert ki.Audit.load(f"{OUT}/audit.json") == audit
plotting.save_figure(plotting.plot_audit(audit), f"{OUT}/figures", "audit")
plotting.save_figure(plotting.plot_forgetting_by_depth(audit), f"{OUT}/figures", "depth")
plotting.save_figure(plotting.plot_relearning(audit), f"{OUT}/figures", "relearning")
print(f"Audit: {OUT}/audit.json")

# %% [markdown]
# ## Exercises
#
# 1. Is 4 special? Erase another class, and ask the cheap questions.
# 2. How many examples does it take to find the class again, after the mask and after the edit?

# %% tags=["solution"]
other_class = ki.patched(model, koopman, ki.erase_class(koopman, label=3))
for row in ki.audit(other_class, held_out=(x_test, y_test), probes=("linear",)).rows:
    print(f"{row.name}: forget {100 * row.forget_accuracy:.1f} %, linear probe {100 * row.linear_probe:.1f} %")

# %% tags=["solution"]
for name in ("base model", "logit mask", "edit (delta)", "retrained reference"):
    shares = (audit[name].one_shot, audit[name].five_shot, audit[name].prototype)
    print(f"{name}: with 1, 5 and 10 examples {', '.join(f'{100 * share:.1f} %' for share in shares)}")

# %% [markdown]
# ## The answer
#
# No. At the output it is gone after each method, and no other digit suffers. In the last states probes with a kernel
# or a hidden layer still find it at 94 % or more, ten examples find it at 99.8 %, and each site before the patch
# holds it as ever. Under the edit half of the accuracy is back within five steps of fine-tuning, where the retrained
# reference takes twenty.
#
# **What does as well, or better:** at the output the logit mask, for free. Against a linear probe mean difference and
# LEACE leave 61 %, `erase_class` 83 %. In the answers to 4s the edit lies nearest to the retrained reference (44.7
# %), by less than a point, which is nothing to read; two references lie 34.2 % apart.
#
# **What failed:** more strength. From 1 to 2 the output has nothing to gain, and the linear probe rises from 83 to 97
# %. And by confidence the training rows are told from others (39.8 ± 4.2 %, as far from 50 on the other side), after
# LEACE and mean difference too.

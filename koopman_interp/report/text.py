"""The fixed text of a run's page: its frame and its explanations. Knows no numbers."""

from __future__ import annotations

PRIMER = """<section aria-labelledby="primer">
<h2 id="primer">In five lines</h2>
<ol class="primer">
<li>A network turns an input into an answer layer by layer; what it holds between two layers is a <em>state</em>, a
list of numbers.</li>
<li>A <em>Koopman autoencoder</em> learns coordinates in which one and the same matrix, <em>K</em>, moves every state
on by one layer.</li>
<li>A matrix can be read: its <em>modes</em> are patterns that fade, stay or turn at a known rate, and each is checked
on data.</li>
<li>A matrix can be edited, and the edited motion put back into the network while it runs, say to make it forget a
class.</li>
<li>This page shows what came of that on inputs which the fit never saw, beside cheaper methods, and how far to trust
it.</li>
</ol>
</section>"""

GLOSSARY = """<dl>
<dt>state, site</dt><dd>What the model holds at a place between two of its layers, and that place.</dd>
<dt>surrogate</dt><dd>The Koopman autoencoder: it lifts a state to observables, moves these on by K, and brings them
back.</dd>
<dt>K, mode, λ</dt><dd>The matrix that moves observables on by one step; a mode is a pattern that it only multiplies by
a number, λ. |λ| below 1 fades, the angle of λ turns.</dd>
<dt>residual, trusted</dt><dd>How far a mode misses what the data do, 1 is all of it; trusted is a residual within the
tolerance.</dd>
<dt>held out</dt><dd>Rows that the fit never saw.</dd>
<dt>edit, patch</dt><dd>A change of K, and the changed motion put into the running model. No weight of the model
changes.</dd>
<dt>FVU</dt><dd>Fraction of variance unexplained: 0 is exact, 1 no better than the mean.</dd>
<dt>loss recovered</dt><dd>Where the model's loss lies between the mean in place of the state (0) and no substitute
(100).</dd>
<dt>βk, Betti number</dt><dd>How many holes of dimension k a cloud of states has at a scale: β0 counts pieces, β1
loops.</dd>
<dt>forget accuracy ↓</dt><dd>Share of the rows of the classes to forget that are still predicted as their own: low is
what was wanted.</dd>
<dt>retain accuracy ↑</dt><dd>Accuracy on the other classes. It can exceed the base model's: one wrong answer
is gone.</dd>
<dt>95 %</dt><dd>Where the true share lies at 95 %, by Wilson's score.</dd>
<dt>KL, JS to base model</dt><dd>How far the other classes' probabilities move: Kullback-Leibler in nats, Jensen-Shannon
in per cent of its largest value. 0 is not at all.</dd>
<dt>JS to retrained</dt><dd>How far the rows to forget are answered from as the retrained reference answers, which never
saw their classes: 0 is the same, 100 has nothing in common. Another seed of that model is not at 0 either.</dd>
<dt>training</dt><dd>The same on rows that the model was trained on.</dd>
<dt>membership</dt><dd>How well training rows of the classes are told from held-out ones, by loss and by confidence:
area under the curve in %, ± one standard error. 50 is at chance; below it tells as much as above.</dd>
<dt>linear, RBF, MLP probe</dt><dd>How well a fresh balanced classifier finds the classes at the last site:
50 % is at chance; well above it, they are still there.</dd>
<dt>prototype</dt><dd>Recall of the classes from 1, 5 and 10 examples a class at the last site.</dd>
<dt>reliability, generality</dt><dd>Share of the prompts that an edit is about, and of others that ask for the same,
after which no unwanted token is the likeliest.</dd>
<dt>locality, perplexity</dt><dd>Share of unrelated prompts whose likeliest next token is the base model's; and how far
unrelated texts surprise the model, which should stay what it is.</dd>
<dt>drift</dt><dd>How far the other classes' last states move, in per cent of the spread of all.</dd>
<dt>rows</dt><dd>“logit mask” only forbids the answer and changes no representation; “mean difference” and “LEACE”
project the last site; “retrained reference”, if given, never saw the classes: by it the others are measured.</dd>
</dl>"""

FILES = """<p>Each is there if the run made it.</p>
<dl>
<dt><code>koopman/</code></dt><dd>the surrogate: weights, configuration, model card</dd>
<dt><code>edit.safetensors</code></dt><dd>the edit, with its certificate</dd>
<dt><code>trajectories.safetensors</code></dt><dd>the states, labels and their origin</dd>
<dt><code>spectrum.safetensors</code></dt><dd>the spectrum, with its eigenvectors</dd>
<dt><code>topology-….safetensors</code></dt><dd>persistence diagrams by depth</dd>
<dt><code>lens.safetensors</code></dt><dd>what a lens reads, where one was looked through</dd>
<dt><code>metrics.json</code></dt><dd>every number on this page</dd>
<dt><code>figures/</code></dt><dd>every figure, as PNG and SVG</dd>
</dl>
<pre tabindex="0"><code>import koopman_interp as ki

koopman = ki.KoopmanAutoencoder.from_pretrained("koopman")
edit = ki.EditSet.load("edit.safetensors")
with ki.patched(model, koopman, edit): logits = model(x)</code></pre>"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
$result
</header>
<main>
$primer
$contents
$sections
</main>
</body>
</html>
"""

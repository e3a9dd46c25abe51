"""The fixed text of a run's page: its frame, its style sheet and its explanations. Knows no numbers."""

from __future__ import annotations

AUDIT_KEY = """<details open><summary>What the columns say</summary><dl>
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
<dt>drift</dt><dd>How far the other classes' last states move, in per cent of the spread of all.</dd>
<dt>rows</dt><dd>“logit mask” only forbids the answer and changes no representation; “mean difference” and “LEACE”
project the last site; “retrained reference”, if given, never saw the classes: by it the others are measured.</dd>
</dl></details>"""

FILES = """<section aria-labelledby="files">
<h2 id="files">Files in this folder</h2>
<p>Each is there if the run made it.</p>
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
with ki.patched(model, koopman, edit): logits = model(x)</code></pre>
</section>"""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --paper: #fff; --line: #d5dae0;
  --mark: #fff3cf; --edge: #b35900; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a2abb5; --paper: #14171a;
  --line: #3a4149; --mark: #43340d; --edge: #f0a44b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; font: 1rem/1.55 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.75rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
.result { font-size: 1.12rem; }
.plain { border-left: 4px solid var(--edge); padding: .4rem .9rem; background: var(--mark); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; max-width: calc(100vw - 2rem); }
th, td { padding: .35rem .8rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; white-space: normal; }
th:first-child, .words, tfoot td { text-align: left; }
th:first-child { padding-left: .4rem; }
.words { white-space: normal; }
tbody th { font-weight: 400; white-space: normal; min-width: 10.5rem; }
.marked, .marked th { background: var(--mark); font-weight: 700; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .25rem 1.2rem;
  font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; }
pre { padding: .7rem .9rem; border: 1px solid var(--line); border-radius: 6px;
  overflow-x: auto; overflow-wrap: normal; }
code { font: .88rem/1.5 ui-monospace, monospace; }
summary { cursor: pointer; color: var(--soft); }
figure { margin: 1.25rem 0; }
.card { margin: 0; padding: .75rem; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
.card img { display: block; min-width: 30rem; max-width: 100%; height: auto; margin: 0 auto; }
.card img.wide { min-width: 44rem; }
figcaption { color: var(--soft); font-size: .92rem; margin-top: .4rem; }
:focus-visible { outline: 2px solid var(--edge); outline-offset: 2px; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
@media print {
  :root { --ink: #000; --soft: #444; --paper: #fff; --line: #bbb; --mark: #f3f0e6; --edge: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; } .scroll, pre { overflow: visible; }
  pre { white-space: pre-wrap; } .card img, .card img.wide { min-width: 0; max-width: min(100%, 17cm); }
  h2, caption { break-after: avoid; max-width: none; }
  figure, tr, .plain, pre { break-inside: avoid; }
  th, td { padding: .2rem .35rem; font-size: 9pt; }
}
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="result">$result</p>
</header>
<main>
<section aria-labelledby="done">
<h2 id="done">What was done</h2>
<pre tabindex="0"><code>$command</code></pre>
$facts
$seconds
</section>
$sections
</main>
</body>
</html>
"""

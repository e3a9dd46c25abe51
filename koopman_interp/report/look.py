"""The style sheet of a page: light and dark, narrow and wide, on screen and on paper.

Figures name their colours as variables; in the dark, those of `plotting.style` get lighter ones here.
"""

from __future__ import annotations

DARK = {
    "ffffff": "14171a", "000000": "e6e9ec", "e6e6e6": "2b3137", "cccccc": "4a525b", "c8c8c8": "4a525b",
    "dddddd": "39414a", "767676": "a2abb5",
    "0072b2": "58aee0", "d55e00": "ff8d42", "009e73": "2fc898", "cc79a7": "e39cc4", "56b4e9": "9bd8fa",
    "e69f00": "f4b942",
    "332288": "9d90f0", "cc6677": "e58a99", "117733": "4fbd78", "ddaa33": "e6bb55", "88ccee": "a5dcf7",
    "882255": "d273a5", "44aa99": "67cab9", "999933": "c2c25c", "aa4499": "d67fc8",
}  # fmt: skip
"""What colours of figures become on dark paper."""

_VARIABLES = " ".join(f"--c{light}: #{dark};" for light, dark in DARK.items())

STYLE = (
    """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --paper: #fff; --line: #d5dae0;
  --mark: #fff3cf; --edge: #b35900; --link: #0a58a8; --shade: rgb(0 0 0 / .28); }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a2abb5; --paper: #14171a;
  --line: #3a4149; --mark: #43340d; --edge: #f0a44b; --link: #7cb8f2; --shade: rgb(255 255 255 / .3);
  VARIABLES } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 78rem; font: 1rem/1.55 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
p, .primer, nav, details > dl, section > dl { max-width: 52rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.75rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
a { color: var(--link); }
.result { font-size: 1.15rem; }
.primer { padding-left: 1.4rem; }
#primer { margin-top: 1.5rem; font-size: 1.05rem; }
nav ol { columns: 17rem; column-gap: 2rem; padding-left: 2rem; margin: 1.5rem 0 0; }
.plain { border-left: 4px solid var(--edge); padding: .4rem .9rem; background: var(--mark); }
/* What goes on past the right edge casts a shade there; the first column stays. */
.scroll { overflow-x: auto; margin: 1rem 0; max-width: 100%; scrollbar-width: thin;
  background: linear-gradient(to left, var(--paper) 1.2rem, transparent 2.4rem) right / 2.4rem 100% no-repeat local,
  linear-gradient(to left, var(--shade), transparent) right / 1.1rem 100% no-repeat scroll; }
table { border-collapse: separate; border-spacing: 0; font-size: .88rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; position: sticky; left: 0;
  max-width: calc(100vw - 3rem); }
th, td { padding: .35rem .5rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; white-space: normal; }
th:first-child, .words, tfoot td { text-align: left; }
th:first-child { padding-left: .4rem; position: sticky; left: 0; z-index: 1; background: var(--paper);
  border-right: 1px solid var(--line); }
.words { white-space: normal; } td.words { min-width: 11rem; }
tbody th { font-weight: 400; white-space: normal; min-width: 8.5rem; }
.marked, .marked th, .marked th:first-child { background: var(--mark); font-weight: 700; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .25rem 1.2rem;
  font-size: .92rem; }
dt { color: var(--soft); max-width: 14rem; } dd { margin: 0; }
pre { padding: .7rem .9rem; border: 1px solid var(--line); border-radius: 6px;
  overflow-x: auto; overflow-wrap: normal; }
code { font: .88rem/1.5 ui-monospace, monospace; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--soft); }
figure { margin: 1.25rem 0; }
.card { margin: 0; padding: .75rem; border: 1px solid var(--line); border-radius: 6px; }
svg { display: block; max-width: 100%; min-width: 30rem; height: auto; margin: 0 auto; fill: var(--ink);
  stroke-linejoin: round; stroke-linecap: butt; }
figcaption { color: var(--soft); font-size: .92rem; margin-top: .4rem; max-width: 52rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: 1rem; }
.pair figure { min-width: 0; }
.texts { gap: .6rem 2rem; padding: .6rem 0 .9rem; border-top: 1px solid var(--line); } .texts figure { margin: 0; }
blockquote { margin: .3rem 0 0; padding: 0 .9rem; border-left: 3px solid var(--line); white-space: pre-wrap; }
mark { background: var(--mark); color: inherit; }
.run { display: block; } .run b { color: var(--soft); font-size: .8em; margin-right: .25em; }
.differs { background: var(--mark); }
:focus-visible { outline: 2px solid var(--edge); outline-offset: 2px; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
  tbody th { min-width: 5.5rem; } td.words { min-width: 9rem; } }
@media print {
  :root { --ink: #000; --soft: #444; --paper: #fff; --line: #bbb; --mark: #f3f0e6; --edge: #000; --link: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; } .scroll, pre { overflow: visible; background: none; }
  pre { white-space: pre-wrap; } svg { min-width: 0; max-width: min(100%, 17cm); }
  h2, caption { break-after: avoid; max-width: none; } nav { display: none; }
  figure, tr, .plain, pre { break-inside: avoid; }
  th, td { padding: .15rem .25rem; font-size: 7.5pt; white-space: normal; } tbody th { min-width: 0; }
  th:first-child { position: static; } td.words { min-width: 0; }
}
"""
).replace("VARIABLES", _VARIABLES)

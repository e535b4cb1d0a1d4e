"""The fixed parts of the HTML report: page, style, and what it tells a newcomer."""

from __future__ import annotations

from string import Template

LEGEND = '<p class="legend"><span>no layer computed</span><i></i><span>all did</span></p>'
"""Colour bar of the ponder maps."""

INTRODUCTION = """<p>This network labels every pixel of a photo. Small <em>gates</em> inside it can decide,
pixel by pixel and layer by layer, where to compute and where to skip. This page shows how much was skipped,
what that saved and what it did to the result.</p>"""

TABLE_CAPTION = Template("""<details><summary>What the columns mean</summary><ul>
<li><b>target rho</b>: the share of pixels that training asked each gated layer to compute; 1 = all.</li>
<li><b>density</b>: the share that the gates really opened on these images, mean over the layers.</li>
<li><b>MACs / image</b>: multiply-accumulates executed for an image, mean, counted from the masks; below it
the share of what the same network would need with every gate open.</li>
$scores
<li><b>dense, sparse</b>: median milliseconds of an image, compilation excluded, below it the 10th to the
90th percentile. <em>Dense</em> computes everywhere and multiplies by the masks; <em>sparse</em> executes only
the open positions and gives the same result.</li></ul></details>""")
"""``scores``: a list item for each of the task's scores."""

PONDER_CAPTION = f"""<p>A <em>ponder map</em> shows how much was computed at each pixel:</p>{LEGEND}"""

CHOICE_CAPTION = (
    """<p>Some layers have several branches, and every pixel takes the one that weighs most there:</p>"""
)

STYLE = Template("""
:root { color-scheme: light dark;
  --ink: #1c1e21; --paper: #fff; --soft: #5f6368; --line: #ddd; --card: #f6f7f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6e9; --paper: #17191c; --soft: #9aa0a6; --line: #3a3d42; --card: #202327; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; }
h3 { font-size: 1.05rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h4 { font-size: .95rem; margin: 1rem 0 .3rem; }
dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem .8rem; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
small { color: var(--soft); font-size: .8rem; }
sup { line-height: 0; }
/* Shadows at the sides where there is more of a table. */
.scroll { overflow-x: auto; background:
    linear-gradient(to right, var(--paper) 30%, transparent) 0 0 / 3rem 100%,
    linear-gradient(to left, var(--paper) 30%, transparent) 100% 0 / 3rem 100%,
    linear-gradient(to right, #8888, transparent) 0 0 / 1rem 100%,
    linear-gradient(to left, #8888, transparent) 100% 0 / 1rem 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: top; }
th:first-child { text-align: left; }
td small { display: block; }
details { margin: .6rem 0; font-size: .9rem; }
summary { cursor: pointer; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: 1rem; margin: 1rem 0; }
figure { margin: 0; }
figcaption { font-size: .85rem; }
img { width: 100%; height: auto; display: block; border-radius: .25rem; }
img.crisp { image-rendering: pixelated; border: 1px solid var(--line); box-sizing: border-box; }
.tiles { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.tiles.small { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); margin-top: .5rem; }
.wide { display: grid; gap: 1.5rem; margin-top: 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.legend { display: flex; align-items: center; gap: .6rem; font-size: .85rem; }
.legend i { flex: 0 1 12rem; height: .8rem; border-radius: .2rem;
  background: linear-gradient(to right, $heat); }
.classes { display: flex; flex-wrap: wrap; gap: .2rem .9rem; font-size: .85rem; }
.classes i { display: inline-block; width: .8rem; height: .8rem; margin-right: .3rem; border-radius: .15rem; }
""")

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
$body
</body>
</html>
""")

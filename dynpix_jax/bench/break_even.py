"""From which density on sparse execution pays: the table and picture of docs/sparse-execution.md.

Times `gather` and what `implementation=None` picks against the dense convolution of the same layer, in turn.
Leave the machine alone meanwhile.

example:
  dynpix bench break-even --out docs
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import jax
import matplotlib.pyplot as plt

from dynpix_jax.bench import conv
from dynpix_jax.bench.arg_specs import find
from dynpix_jax.bench.arguments import check_counts, make_folder
from dynpix_jax.bench.masks import KINDS
from dynpix_jax.bench.timed import Settings, Timed, measure
from dynpix_jax.core.text import a_path
from dynpix_jax.ops.sparse import Convolution, break_even

LAYERS = (
    "hrnet_w18_branch1_1024x2048",
    "hrnet_w18_branch2_1024x2048",
    "hrnet_w48_branch1_1024x2048",
    "res2_480x640",
    "hrnet_w48_branch2_1024x2048",
    "res3_480x640",
    "res4_480x640",
    "res5_480x640",
)
DENSITIES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    parser.add_argument("--out", required=True, type=a_path, help="folder of the picture")
    parser.add_argument("--mask", choices=KINDS, default="random")
    parser.add_argument("--runs", type=int, default=7, metavar="N", help="rounds that count (default: 7)")


def run(args: argparse.Namespace) -> int:
    """Prints the table and draws the picture; gives the exit status."""
    check_counts(args, "runs")
    make_folder(args.out)
    settings = Settings(densities=DENSITIES, mask=args.mask, runs=args.runs)
    ratios: dict[str, dict[str, list[float]]] = {}
    print(f"{jax.devices()[0].device_kind}, float32, masks of kind {args.mask}; time over that of dense\n")
    heads = ("layer", "channels", "dense ms", *(f"{d:g}" for d in DENSITIES), "None from")
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for name in LAYERS:
        spec = find(name)
        first, *rows = measure(name, conv.programs(spec, ("gather", conv.AUTO), settings), args.runs)
        ratios[name] = {kind: _ratios(rows, kind) for kind in ("gather", conv.AUTO)}
        cells = [f"{gather:.2f} ({auto:.2f})" for gather, auto in zip(*ratios[name].values(), strict=True)]
        x, kernel = jax.eval_shape(partial(conv.arrays, spec, settings))
        by_winograd = Convolution(kernel, None, spec.strides, spec.dilation).by_winograd(x)
        limit = f"{break_even(spec.channels, winograd=by_winograd):.2f}"
        line = (name, str(spec.channels), f"{first.timing.median:.1f}", *cells, limit)
        print("| " + " | ".join(line) + " |", flush=True)
    picture(ratios, args.out / "sparse-execution.png")
    return 0


def _ratios(rows: list[Timed], kind: str) -> list[float]:
    return [row.time_ratio for row in rows if row.label == kind]


def picture(ratios: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Curves of `gather` over density, one for each layer."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, by_kind in ratios.items():
        axes.plot(DENSITIES, by_kind["gather"], "o-", ms=3, label=f"{find(name).channels} ({name})")
    axes.plot((0, 1), (0, 1), "k:", label="density")
    axes.axhline(1, color="gray", lw=0.8)
    axes.set(xlabel="density", ylabel="time / dense", xlim=(0, 1.02), ylim=(0, None))
    axes.legend(title="channels (layer)", fontsize=7)
    figure.savefig(path, dpi=110)
    print(f"\npicture: {path}")

"""Converts published weights of another library into a .safetensors file of our names.

examples:
  A backbone that ImageNet trained, and a config that begins with it. torchvision's ResNets have strides and
  colours unlike the networks of the papers; the file says so, and a config that differs refuses it:

  dynpix import-weights --arch resnet50 --source resnet50-0676ba61.pth --out weights/resnet50.safetensors
  python train.py --config=configs/pag/bsds500.py:weights=weights/resnet50.safetensors --workdir=runs/a \\
      --set model.backbone.stride_in_1x1=False model.backbone.preprocessing=torch

  A network of a paper's authors, evaluated as it is; the config says which network it is:

  dynpix import-weights --config configs/anytime/cityscapes.py:variant=ca,budget=gpu \\
      --source final_state.pth --out weights/ca.safetensors
  python eval.py --config=configs/anytime/cityscapes.py:variant=ca,budget=gpu \\
      --weights=weights/ca.safetensors --out=out

  Weights for other classes, without the layer that predicts them:

  dynpix import-weights --arch hrnet_w48 --source hrnet_cityscapes.pth --out weights/hrnet.safetensors \\
      --skip exit4/classify

Reads .safetensors, .npz, PyTorch's files of any version (.pth, .pt, .pth.tar, .pkl), MatConvNet's .mat of any
version, and .caffemodel. None of these libraries is needed, and no code in the file is run: a pickle that
holds more than tensors, dicts, lists and scalars is refused.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

from dynpix_jax.cli.common import add_overrides
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.text import a_path
from dynpix_jax.flops import variable_shapes
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import stage_system
from dynpix_jax.weights import ARCHITECTURES, ImportReport, import_network, import_weights, write_weights
from dynpix_jax.weights.convention import CONVENTIONS, describe, to_header
from dynpix_jax.weights.importer import flat_shapes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--arch", metavar="ARCH", help=f"one of {', '.join(ARCHITECTURES)}")
    of.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        help="in place of --arch: the network of this config's last stage, as its authors released it",
    )
    add_overrides(parser)
    parser.add_argument("--source", required=True, type=a_path, help="the file to read")
    parser.add_argument("--out", required=True, type=a_path, help="the .safetensors file to write")
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="PLACE",
        help="leave out tensors of this place in our network, such as exit4/classify (a regex; repeatable)",
    )
    parser.add_argument(
        "--convention",
        choices=tuple(CONVENTIONS),
        help="what the weights follow, if the file does not tell: caffe (stride in the first 1x1, BGR "
        "less the mean) or torch (stride in the 3x3, RGB, mean and standard deviation)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _import(args: argparse.Namespace) -> tuple[dict[str, Any], ImportReport]:
    options: dict[str, Any] = dict(convention=args.convention, skip=args.skip)
    if args.arch is not None:
        if args.set:
            raise UserError("--set: changes values of a --config; --arch has none")
        return import_weights(args.arch, args.source, **options)
    stage = read_run(args.config, args.set).stages[-1]
    shapes = flat_shapes(variable_shapes(stage_system(stage)))
    return import_network(stage.model, shapes, args.source, **options)


def _describe(report: ImportReport, source: Path, out: Path) -> str:
    # Most tensors are loaded: a count for each block is enough. So are tensors that no network of ours has.
    # The others are listed by name.
    lines = [f"{source} -> {out}", f"network: {report.architecture}"]
    lines.append(f"convention: {_convention(report)}")
    lines.extend(f"note: {note}" for note in report.notes)
    lines.append(f"loaded: {len(report.loaded)}")
    blocks = collections.Counter(name.split("/")[1] for name in report.loaded)
    lines.extend(f"  {block}: {count}" for block, count in blocks.items())
    lines.append(f"left out, never used: {len(report.left_out)}")
    kinds = collections.Counter(_kind(name) for name in report.left_out)
    lines.extend(f"  {kind}: {count}" for kind, count in kinds.items())
    for kind in ("skipped", "missing", "unexpected"):
        names = getattr(report, kind)
        lines.append(f"{kind}: {len(names)}")
        lines.extend(f"  {name}" for name in names)
    if report.missing:
        lines.append("incomplete: training can begin with it (init_from), eval.py --weights refuses it")
    return "\n".join(lines)


def _convention(report: ImportReport) -> str:
    parts = [describe(report.settings)] if report.settings else []
    if report.untold:
        parts.append(f"the file does not tell {', '.join(report.untold)} (--convention states it)")
    return "; ".join(parts) or "the only one of this network"


def _kind(name: str) -> str:
    """What a tensor that is left out is: its leaf (a counter, a constant), or its first module."""
    first, *_, leaf = name.split(".")
    return f"*.{leaf}" if leaf in ("num_batches_tracked", "square_dis") else f"{first}.*"


def run(args: argparse.Namespace) -> int:
    """Imports, writes, prints what became of every tensor; returns 0."""
    variables, report = _import(args)
    header = {"architecture": report.architecture, "source": args.source.name, **to_header(report.settings)}
    write_weights(args.out, variables, header)
    if args.json:
        files = {"source": str(args.source), "out": str(args.out)}
        print(json.dumps({"arch": report.architecture, **files, **dataclasses.asdict(report)}, indent=2))
    else:
        print(_describe(report, args.source, args.out))
    return 0

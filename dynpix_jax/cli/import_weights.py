"""`dynpix import-weights`: pretrained weights of other libraries into a file that training starts from."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
from pathlib import Path

from dynpix_jax.weights import ARCHITECTURES, ImportReport, import_weights, write_weights

_EXAMPLE = """\
example:
  dynpix import-weights --arch resnet50 --source resnet50-0676ba61.pth --out weights/resnet50.safetensors

Reads .safetensors, .npz, PyTorch's files of any version (.pth, .pt, .pth.tar, .pkl) and .caffemodel. Neither
PyTorch nor Caffe is needed, and no code in the file is run: a pickle that holds more than tensors, dicts,
lists and scalars is refused.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the `dynpix` parser."""
    parser = subparsers.add_parser(
        "import-weights",
        help="convert pretrained weights of another library",
        description="Converts pretrained weights of another library into a .safetensors file of our names.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--arch", required=True, metavar="ARCH", help=f"one of {', '.join(ARCHITECTURES)}")
    parser.add_argument("--source", required=True, type=Path, help="the file to read")
    parser.add_argument("--out", required=True, type=Path, help="the .safetensors file to write")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def _describe(report: ImportReport, source: Path, out: Path) -> str:
    # Most tensors are loaded: a count for each block is enough. The others are listed by name.
    lines = [f"{source} -> {out}", f"loaded: {len(report.loaded)}"]
    blocks = collections.Counter(name.split("/")[1] for name in report.loaded)
    lines.extend(f"  {block}: {count}" for block, count in blocks.items())
    for kind in ("missing", "unexpected"):
        names = getattr(report, kind)
        lines.append(f"{kind}: {len(names)}")
        lines.extend(f"  {name}" for name in names)
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Imports, writes, prints what was loaded, missing and unexpected; returns 0."""
    variables, report = import_weights(args.arch, args.source)
    write_weights(args.out, variables, {"architecture": args.arch, "source": args.source.name})
    if args.json:
        files = {"arch": args.arch, "source": str(args.source), "out": str(args.out)}
        print(json.dumps({**files, **dataclasses.asdict(report)}, indent=2))
    else:
        print(_describe(report, args.source, args.out))
    return 0

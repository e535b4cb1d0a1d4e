"""`python -m tools.annotate_panorama`: one click a panorama, which turns its normals to the viewer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dynpix_jax.cli.common import call
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.locks import Lock
from dynpix_jax.data.stanford2d3d import AREAS, WHERE_TO_GET, find_panoramas
from tools.annotate_panorama.points import Points
from tools.annotate_panorama.server import AnnotationServer

_PROGRAM = "python -m tools.annotate_panorama"
_EXAMPLE = f"""\
example:
  {_PROGRAM} --source data/stanford2d3d --out points.json

Run it in a clone of the repository. It serves a page on this machine only. Click where a wall faces the
camera; the turned normals show at once. Every click is saved; a later run with the same --out continues.
Ctrl-C ends it. Train with source = dict(name="stanford2d3d", points="points.json", ...).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C and gives the exit status."""
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Serves a local web page to click the canonical points of Stanford 2D-3D-S panoramas.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source", required=True, type=Path, metavar="DIR", help="the folder that holds area_1, area_2, ..."
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="the .json file of the points"
    )
    parser.add_argument(
        "--area", nargs="+", metavar="AREA", help="such as 3 or 5a (default: all in the folder)"
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    args = parser.parse_args(argv)
    return call(_PROGRAM, lambda: annotate(args.source, args.out, args.area, args.port))


def annotate(source: Path, out: Path, areas: Sequence[str] | None, port: int) -> int:
    """Serves until Ctrl-C.

    Args:
      source: folder of the areas.
      out: file of the points.
      areas: to annotate; None for all in the folder.
      port: 0 takes a free one.

    Returns:
      0.

    Raises:
      UserError: no such folder, file or port; another server has the file.
    """
    panoramas = find_panoramas(source, tuple(areas or present_areas(source)))
    points = Points(out)
    lock = Lock(out.with_name(f"{out.name}.lock"), f"--out {out}", "its points are clicked there")
    with lock, AnnotationServer(panoramas, points, port) as server:
        print(f"{len(panoramas)} panoramas at {server.url} (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(file=sys.stderr)
    done = points.all()
    count = sum(panorama.name in done for panorama in panoramas)
    print(f"{count} of {len(panoramas)} panoramas have a point in {out}")
    return 0


def present_areas(root: Path) -> tuple[str, ...]:
    """The areas in the folder.

    Raises:
      UserError: there is none.
    """
    areas = sorted(area for split in AREAS.values() for area in split)
    found = tuple(area for area in areas if (root / f"area_{area}").is_dir())
    if not found:
        raise UserError(f"stanford2d3d: no folder area_1 to area_6 in {root.absolute()}; {WHERE_TO_GET}")
    return found


if __name__ == "__main__":
    sys.exit(main())

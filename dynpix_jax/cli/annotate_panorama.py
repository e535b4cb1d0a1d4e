"""`dynpix annotate-panorama`: one click a panorama, from which its normals are turned to the viewer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dynpix_jax.data.annotation import Points
from dynpix_jax.data.annotation_server import AnnotationServer
from dynpix_jax.data.stanford2d3d import find_panoramas, present_areas

_EXAMPLE = """\
example:
  dynpix annotate-panorama --source data/stanford2d3d --out points.json

Serves a page on this machine only. Click where a wall faces the camera; the turned normals show at once.
Every click is saved; a later run with the same --out continues. Ctrl-C ends it. Train with
source = dict(name="stanford2d3d", points="points.json", ...).
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the `dynpix` parser."""
    parser = subparsers.add_parser(
        "annotate-panorama",
        help="click the canonical points of panoramas in a local web page",
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
        "--area", nargs="+", metavar="AREA", help="such as 3 or 5a; all that are there by default"
    )
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")


def run(args: argparse.Namespace) -> int:
    """Serves until Ctrl-C; returns 0."""
    panoramas = find_panoramas(args.source, tuple(args.area or present_areas(args.source)))
    points = Points(args.out)
    with AnnotationServer(panoramas, points, args.port) as server:
        print(f"{len(panoramas)} panoramas at {server.url} (Ctrl-C ends)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(file=sys.stderr)
    done = points.all()
    count = sum(panorama.name in done for panorama in panoramas)
    print(f"{count} of {len(panoramas)} panoramas have a point in {args.out}")
    return 0

"""Serves a page on this machine: drop a photo, move a slider, see the prediction and what it costs.

example:
  dynpix demo --model boundaries
  dynpix demo --workdir=runs/quickstart --port 8000

The slider of a network with exits, loops or iterates is its budget; that of gates makes them compute less or
more than they have learned. The page answers to this machine alone and keeps no photo. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse

from dynpix_jax.cli.compilation_cache import use_compilation_cache
from dynpix_jax.cli.runs import add_run_arguments, run_of
from dynpix_jax.core.capabilities import inputs_of
from dynpix_jax.core.errors import UserError
from dynpix_jax.serving.demo import Demo, DemoServer
from dynpix_jax.serving.predictor import Predictor
from dynpix_jax.serving.trained import open_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_run_arguments(parser)
    parser.add_argument("--port", type=int, default=8765, metavar="N", help="0: any free one (default: 8765)")
    parser.add_argument(
        "--max-side", type=int, default=640, metavar="N", help="downsize larger photos (default: 640)"
    )


def run(args: argparse.Namespace) -> int:
    """Serves until it is interrupted."""
    use_compilation_cache(args)
    if args.max_side < 16:
        raise UserError(f"--max-side {args.max_side}: expected at least 16 pixels")
    settings = run_of(args)
    predictor = Predictor(settings, open_run(settings, args.workdir, args.stage, args.weights))
    if inputs := inputs_of(predictor.system):
        raise UserError(f"{settings.name}: its network takes {' and '.join(inputs)} beside the image")
    with DemoServer(Demo(predictor, args.max_side), args.port) as server:
        print(f"open {server.url} (Ctrl-C ends it)", flush=True)
        server.serve_forever()
    return 0

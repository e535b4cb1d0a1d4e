"""The `dynpix` command: one subcommand a module, imported when it is called.

The docstring of a subcommand's module is its help; the module has `add_arguments(parser)`, and `run(args)`,
which does the work and gives the exit status. Users' mistakes end with one line on stderr and status 2.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

import dynpix_jax
from dynpix_jax.cli.common import call, help_of

# Command -> (module in this folder, line of help). The help stands here so that `dynpix --help` imports none
# of them.
COMMANDS = {
    "bench": ("bench", "time computing at active positions only"),
    "check-config": ("check_config", "read a config strictly and tell what it trains"),
    "eval-boundaries": ("eval_boundaries", "score a folder of boundary maps: ODS, OIS, AP"),
    "eval-pose": ("eval_pose", "score predicted joints of people: PCKh"),
    "flops": ("flops", "count the MACs of a config's network"),
    "import-weights": ("import_weights", "convert pretrained weights of another library"),
    "plan": ("plan", "compile a training step for a TPU slice that is not there: does it fit?"),
    "predict": ("predict", "label photos with a trained network"),
    "prepare": ("prepare", "pack a data set into checksummed shards"),
    "reference": ("reference", "collect single-task scores, for delta_m of a multi-task run"),
    "reproduce": ("reproduce", "train and evaluate the rows of a paper's tables"),
    "tables": ("paper_tables", "list the rows of a paper's tables, with configs and scores"),
}

_HELP = """\
Tools for pixel labelling with dynamic computation.

example:
  dynpix check-config configs/quickstart.py
  dynpix COMMAND --help    shows the arguments of a command and an example
"""


def make_parser(command: str | None = None) -> tuple[argparse.ArgumentParser, ModuleType | None]:
    """The parser, with `command` in full and the others by name only, and the module of `command`, if any."""
    parser = argparse.ArgumentParser(prog="dynpix", **help_of(_HELP))
    parser.add_argument("--version", action="version", version=f"dynpix_jax {dynpix_jax.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    module = None
    for name, (module_name, line) in COMMANDS.items():
        if name == command:
            module = importlib.import_module(f"dynpix_jax.cli.{module_name}")
            module.add_arguments(subparsers.add_parser(name, help=line, **help_of(module.__doc__)))
        else:
            subparsers.add_parser(name, help=line)
    return parser, module


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dynpix` with `argv` (the process's own by default) and give the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    parser, module = make_parser(command)
    args = parser.parse_args(arguments)  # without a known command this exits with status 2
    assert module is not None
    return call(f"dynpix {args.command}", lambda: module.run(args))


if __name__ == "__main__":
    sys.exit(main())

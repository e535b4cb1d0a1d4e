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
from dynpix_jax.cli.common import call, help_of, respelled

# Command -> (module in this folder, line of help). The help stands here so that `dynpix --help` imports none
# of them.
COMMANDS = {
    "bench": ("bench", "time computing at active positions only"),
    "check-config": ("check_config", "read a config strictly and tell what it trains"),
    "completion": ("completion", "print the completion script of a shell"),
    "config": ("config", "list the configs, show all settings of one, or how two differ"),
    "demo": ("demo", "serve a page: a photo, a slider, the prediction and its costs"),
    "eval": ("eval", "evaluate a trained network: scores beside MACs and milliseconds"),
    "eval-boundaries": ("eval_boundaries", "score a folder of boundary maps: ODS, OIS, AP"),
    "eval-pose": ("eval_pose", "score predicted joints of people: PCKh"),
    "export": ("export", "write a trained network to one file: a program, or its weights"),
    "flops": ("flops", "count the MACs of a config's network"),
    "import-weights": ("import_weights", "convert pretrained weights of another library"),
    "models": ("models", "list the networks that ship, or print the card of one"),
    "plan": ("plan", "compile a training step for a TPU slice that is not there: does it fit?"),
    "predict": ("predict", "label photos with a trained network"),
    "prepare": ("prepare", "pack a data set into checksummed shards"),
    "reference": ("reference", "collect single-task scores, for delta_m of a multi-task run"),
    "reproduce": ("reproduce", "train and evaluate the rows of a paper's tables"),
    "tables": ("paper_tables", "list the rows of a paper's tables, with configs and scores"),
    "train": ("train", "train the system of a config, or continue"),
}

_HELP = """\
Tools for pixel labelling with dynamic computation.

example:
  dynpix train --config=quickstart.py --workdir=runs/quickstart
  dynpix COMMAND --help    shows the arguments of a command and an example
"""


def make_parser(*commands: str) -> tuple[argparse.ArgumentParser, dict[str, ModuleType]]:
    """The parser, with `commands` in full and the others by name only, and their modules."""
    parser = argparse.ArgumentParser(prog="dynpix", **help_of(_HELP))
    parser.add_argument("--version", action="version", version=f"dynpix_jax {dynpix_jax.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules = {}
    for name, (module_name, line) in COMMANDS.items():
        if name in commands:
            modules[name] = importlib.import_module(f"dynpix_jax.cli.{module_name}")
            modules[name].add_arguments(
                subparsers.add_parser(name, help=line, **help_of(modules[name].__doc__))
            )
        else:
            subparsers.add_parser(name, help=line)
    return parser, modules


def main(argv: Sequence[str] | None = None) -> int:
    """Run `dynpix` with `argv` (the process's own by default) and give the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((argument for argument in arguments if not argument.startswith("-")), "")

    def run() -> int:
        parser, modules = make_parser(command)
        args = parser.parse_args(respelled(arguments))  # without a known command this exits with status 2
        status: int = modules[command].run(args)
        return status

    return call(f"dynpix {command}".strip(), run)


if __name__ == "__main__":
    sys.exit(main())

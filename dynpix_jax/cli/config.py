"""Lists the configs that ship, shows all settings of one, or tells how two differ.

example:
  dynpix config list
  dynpix config show pag/camvid.py:rho=0.7 --config.training.batch_size=4
  dynpix config diff pag/camvid.py runs/camvid

A CONFIG is a file with its argument, or the workdir of a run. What is shown has the defaults written out;
--json prints the settings as sections.
"""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path

from dynpix_jax.cli.common import CONFIG_HELP, add_overrides
from dynpix_jax.core.config import RunConfig, differences, settings
from dynpix_jax.core.configs import shipped_configs
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.merging import leaves
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checkpoints import Checkpoints


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    doing = parser.add_subparsers(dest="doing", metavar="list | show | diff", required=True)
    doing.add_parser("list", help="the configs that ship, each with what it trains")
    show = doing.add_parser("show", help="all settings, defaults included")
    show.add_argument("config", metavar="CONFIG", help=f"{CONFIG_HELP}; or a workdir")
    add_overrides(show)
    show.add_argument("--json", action="store_true", help="print sections, as JSON")
    diff = doing.add_parser("diff", help="the settings that two runs do not share; status 1 if there are any")
    diff.add_argument("config", metavar="CONFIG", help="as of show; --set changes it alone")
    diff.add_argument("other", metavar="CONFIG", help="another")
    add_overrides(diff)


def run(args: argparse.Namespace) -> int:
    """Prints what was asked for; returns 0, or 1 where two runs differ."""
    if args.doing == "list":
        for name, title in titles().items():
            print(f"{name:28} {title}")
        return 0
    found = run_named(args.config, args.set)
    if args.doing == "diff":
        lines = differences(found, run_named(args.other), harmless=())
        for line in lines:
            print(line)
        return 1 if lines else 0
    if args.json:
        print(json.dumps(settings(found), indent=2))
        return 0
    for path, value in leaves(settings(found)):
        print(f"{path} = {value!r}")
    return 0


def titles() -> dict[str, str]:
    """The configs that ship, with the first line of each."""
    folder, found = shipped_configs(), {}
    for file in sorted(folder.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "get_config" for node in tree.body):
            title = (ast.get_docstring(tree) or "").partition("\n")[0]
            found[file.relative_to(folder).as_posix()] = title
    return found


def run_named(name: str, overrides: list[str] | None = None) -> RunConfig:
    """The settings of a config file, or of the run in a workdir."""
    if not Path(name).is_dir():
        return read_run(name, overrides or ())
    saved = Checkpoints(Path(name) / "checkpoints").config()
    if saved is None:
        raise UserError(f"{name}: holds no checkpoint, which would hold the config; train it first")
    return read_run(saved, overrides or ())

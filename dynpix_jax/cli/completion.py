"""Prints the script that completes `dynpix` in a shell.

example:
  dynpix completion bash > ~/.local/share/bash-completion/completions/dynpix
  dynpix completion zsh > "${fpath[1]}/_dynpix"
"""

from __future__ import annotations

import argparse
import importlib

import shtab


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS, help="which shell")


def run(args: argparse.Namespace) -> int:
    """Prints the script; returns 0."""
    # Not at the top: that module has this one in its table.
    main = importlib.import_module("dynpix_jax.cli.main")
    parser, _ = main.make_parser(*main.COMMANDS)
    print(shtab.complete(parser, shell=args.shell))
    return 0

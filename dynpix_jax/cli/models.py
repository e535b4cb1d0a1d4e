"""Lists the networks that ship, with their scores and sizes; with a name, its whole card.

example:
  dynpix models
  dynpix models boundaries
  dynpix predict --model boundaries photo.jpg

A name may also be a file that dynpix export --to safetensors has written.
"""

from __future__ import annotations

import argparse
import json

from dynpix_jax.cli.tables import print_table
from dynpix_jax.core.errors import UserError
from dynpix_jax.serving.network_file import card_text, find_network, read_card, shipped_networks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="print the card of this one")
    parser.add_argument("--json", action="store_true", help="print all cards as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the table or a card; returns 0."""
    if args.name is None:
        files = shipped_networks()
    else:
        path = find_network(args.name)
        if path.is_dir():
            raise UserError(f"{path}: a workdir has no card; dynpix export --to safetensors writes one")
        files = {path.stem: path}
    cards = {name: read_card(file) for name, file in files.items()}
    if args.json:
        print(json.dumps(cards, indent=2))
    elif args.name is not None:
        for name, card in cards.items():
            print(card_text(name, card), end="")
    else:
        heads = ("name", "what it does", "scores", "MACs an image", "MB")
        rows = [
            (
                name,
                *(card.get(key, "") for key in ("title", "scores", "macs")),
                f"{files[name].stat().st_size / 1e6:.1f}",
            )
            for name, card in cards.items()
        ]
        print_table(heads, rows)
    return 0

"""One trained network in one .safetensors file: tensors, its config, and what its card says.

Such files ship in `dynpix_jax/networks`; any other is opened by its path. The config stands in the header,
so that nothing else is needed to run it; the card (`CARD`) says what it was trained on and what it scores.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.text import parse_json
from dynpix_jax.data.sources import SOURCES
from dynpix_jax.run_config import read_run
from dynpix_jax.serving.trained import Trained, saved_run
from dynpix_jax.weights import Precision, write_weights
from dynpix_jax.weights.readers import read_metadata

SHIPPED = Path(__file__).resolve().parents[1] / "networks"
"""The folder of the networks that come with the library."""
CARD = {
    "title": "What it does, one line",
    "data": "Data",
    "licence": "Licence of the data",
    "command": "Command of its training",
    "seed": "Seed",
    "scores": "Scores",
    "exits": "Exits",
    "macs": "MACs an image",
    "milliseconds": "Milliseconds an image",
    "limits": "Limits",
}
"""Entries of a model card, with their headings; networks without exits leave those out."""


def shipped_networks() -> dict[str, Path]:
    """The networks that come with the library, by name."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.safetensors"))}


def write_network(
    path: Path, run: RunConfig, trained: Trained, card: Mapping[str, str], *, precision: Precision = "float16"
) -> None:
    """Writes a network, and its card beside it as NAME.md.

    Args:
        path: File *.safetensors.
        run: Its settings; the file has them without paths of this machine.
        trained: The network.
        card: Entries of `CARD`; those that are not known may be left out.
        precision: Of its kernels; vectors, such as moments of norms, stay float32.

    Raises:
        UserError: A value that the precision does not hold; a path that cannot be written.
    """
    header = {
        "config": json.dumps(_without_paths(run.given)),
        "stage": trained.stage,
        "card": json.dumps(dict(card)),
    }
    write_weights(path, trained.variables, header, precision)
    path.with_suffix(".md").write_text(card_text(path.stem, card), encoding="utf-8")


def _without_paths(given: Mapping[str, Any]) -> dict[str, Any]:
    """The config without paths of the machine that trained: of data, the names of folders are left."""
    config = copy.deepcopy(dict(given))
    for section in config["data"].values():
        _shorten_places(section["source"], section["source"]["name"])
    config["training"].pop("init_from", None)
    config.get("evaluation", {}).pop("reference", None)
    return config


def _shorten_places(options: dict[str, Any], name: str) -> None:
    """Leaves the last part of each path among the options of the source ``name``, and of its parts."""
    known = dataclasses.fields(SOURCES.resolve(name, "name").Config)
    for place in ("root", *(field.name for field in known if field.metadata.get("place"))):
        if options.get(place):
            options[place] = Path(options[place]).name
    for part in options.get("sources", ()):
        _shorten_places(part, part["name"])
    if options.get("of") and "options" in options:
        _shorten_places(options["options"], options["of"])


def card_text(name: str, card: Mapping[str, str]) -> str:
    """The model card as Markdown."""
    lines = [f"# {name}", "", card.get("title", ""), ""]
    for key, heading in CARD.items():
        if key != "title" and key in card:
            value = f"`{card[key]}`" if key == "command" else card[key]
            lines += [f"- **{heading}**: {value}"]
    return "\n".join(lines) + "\n"


def read_card(path: Path) -> dict[str, str]:
    """The card in the header of a network's file; a UserError if it is none of ours."""
    return {str(key): str(value) for key, value in parse_json(_header(path)["card"]).items()}


def is_network(path: Path) -> bool:
    """Whether a weights file holds its config."""
    return path.suffix.lower() == ".safetensors" and path.is_file() and "config" in read_metadata(path)


def find_network(name: str | Path) -> Path:
    """What a name, a workdir or a file names: a folder or a file; names that ship come first.

    Raises:
        UserError: None of them.
    """
    shipped = shipped_networks()
    if str(name) in shipped:
        return shipped[str(name)]
    if Path(name).exists():
        return Path(name)
    raise UserError(
        f"{name}: no network of this name ships, and no such workdir or file; {suggest(str(name), shipped)}"
    )


def network_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of a network, after overrides as --set takes them, from its workdir or its file."""
    if path.is_dir():
        return saved_run(path, overrides)
    return read_run(parse_json(_header(path)["config"]), overrides)


def network_stage(path: Path) -> str:
    """The training stage that the network in a file was taken from."""
    return _header(path)["stage"]


def _header(path: Path) -> dict[str, str]:
    if not is_network(path):
        raise UserError(
            f"{path}: is no network with its config; expected what dynpix export --to safetensors writes"
        )
    return read_metadata(path)

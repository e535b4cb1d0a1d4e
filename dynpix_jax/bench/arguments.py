"""Arguments that measurements of sparse execution share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dynpix_jax.bench import arg_specs
from dynpix_jax.bench.arg_specs import ConvSpec
from dynpix_jax.bench.masks import KINDS
from dynpix_jax.bench.timed import Settings
from dynpix_jax.core.errors import UserError, cause_of
from dynpix_jax.core.text import changes


def add_specs(parser: argparse.ArgumentParser) -> None:
    """Adds --spec: which layers."""
    parser.add_argument(
        "--spec", nargs="+", default=["all"], metavar="NAME", help="layers by name, or all (default)"
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Adds --dtype: of features and weights."""
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")


def add_timing(
    parser: argparse.ArgumentParser, *, densities: Sequence[float] = (), backward: bool = False
) -> None:
    """Adds the arguments of every measurement."""
    if densities:
        parser.add_argument(
            "--density",
            nargs="+",
            type=float,
            default=list(densities),
            metavar="D",
            help=f"shares of active positions (default: {' '.join(map(str, densities))})",
        )
    parser.add_argument(
        "--mask",
        choices=KINDS,
        default="random",
        help="independent pixels (default), or blobs as real gates make them",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at a time (default: 1)")
    parser.add_argument("--runs", type=int, default=11, metavar="N", help="rounds that count (default: 11)")
    if backward:
        parser.add_argument("--backward", action="store_true", help="forward and backward pass")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")


def read_settings(args: argparse.Namespace) -> Settings:
    """The settings of a measurement."""
    densities = tuple(getattr(args, "density", ()))
    check_densities(densities)
    check_counts(args, "batch", "runs")
    given = {name: value for name, value in vars(args).items() if name in ("dtype", "backward")}
    return Settings(densities, args.mask, args.batch, args.runs, **given)


def check_densities(densities: Sequence[float]) -> None:
    """Raises UserError for a --density that is no share."""
    for density in densities:
        if not 0.0 <= density <= 1.0:
            raise UserError(f"--density {density:g}: expected a share of positions in [0, 1]")


def check_counts(args: argparse.Namespace, *names: str, least: int = 1) -> None:
    """Raises UserError for arguments of these names that are below ``least``."""
    for name in names:
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: expected at least {least}")


def check_not_set(overrides: Sequence[str], key: str, reason: str) -> None:
    """Raises UserError if ``--set`` changes a key that the program itself sets."""
    if changes(overrides, key):
        raise UserError(f"--set {key}: {reason}")


def make_folder(folder: Path) -> None:
    """Makes the folder that --out names, before anything is measured; a UserError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {folder}: cannot be made: {cause_of(error)}") from None


def find_specs(names: Sequence[str], specs: Sequence[ConvSpec]) -> list[ConvSpec]:
    """The specs of the names, each once; "all" gives all."""
    if "all" in names:
        return list(specs)
    try:
        return [arg_specs.find(name, specs) for name in dict.fromkeys(names)]
    except UserError as error:
        raise UserError(f"--{error}") from None

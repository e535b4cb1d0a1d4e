"""The network of a config, as measurements of whole networks take it."""

from __future__ import annotations

import argparse
import dataclasses

from dynpix_jax.core.system import NetworkConfig, System
from dynpix_jax.core.text import parse_size
from dynpix_jax.run_config import read_run
from dynpix_jax.training.checks import stage_system


@dataclasses.dataclass(frozen=True)
class Network:
    """A network to measure.

    Attributes:
        name: Config and stage, for people.
        system: The network.
        size: (H, W) of the images in pixels.
        implementation: Implementation of the sparse mode, as the config names it; None: the engine decides.
        dtype: In which it computes; with rules by modules all of them, "bfloat16 and float32".
    """

    name: str
    system: System
    size: tuple[int, int]
    implementation: str | None
    dtype: str = "float32"


def add_network(parser: argparse.ArgumentParser) -> None:
    """Adds --config, --size, --stage and --set."""
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="config with its argument")
    parser.add_argument("--size", required=True, metavar="HxW", help="height x width of the image in pixels")
    parser.add_argument("--stage", metavar="NAME", help="training stage (default: the last one)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change config values"
    )


def read_network(args: argparse.Namespace) -> Network:
    """The network that the arguments of :func:`add_network` name."""
    size = parse_size(args.size)
    run = read_run(args.config, args.set)
    stage = run.stage(args.stage)
    name = f"{args.config}, stage '{stage.name}'"
    return Network(name, stage_system(stage), size, run.execution.implementation, _dtype(stage.model))


def _dtype(model: object) -> str:
    if not isinstance(model, NetworkConfig):
        return "float32"
    rules = model.compute_dtype
    return rules if isinstance(rules, str) else " and ".join(sorted({dtype for _, dtype in rules}))

"""Slices of TPU chips by name ("v5e-16"), and what a chip can do."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from dynpix_jax.core.errors import UserError, suggest


@dataclass(frozen=True)
class Chip:
    """A chip, by its vendor's pages.

    Attributes:
        flops: Floating-point operations a second, in bfloat16.
        bandwidth: Bytes a second between the chip and its memory.
        memory: Bytes of it.
        axes: Dimensions of the grids that slices are.
    """

    flops: float
    bandwidth: float
    memory: int
    axes: int

    @property
    def intensity(self) -> float:
        """Operations a byte from which on a program is bound by arithmetic."""
        return self.flops / self.bandwidth


CHIPS = {
    "v5e": Chip(197e12, 819e9, 16 * 2**30, axes=2),
    "v5p": Chip(459e12, 2765e9, 95 * 2**30, axes=3),
    "v6e": Chip(918e12, 1640e9, 32 * 2**30, axes=2),
}
H100 = Chip(989e12, 3352e9, 80 * 2**30, axes=1)
"""A GPU to compare with: SXM, dense bfloat16."""


@dataclass(frozen=True)
class Slice:
    """A slice: its kind of chip, and how many there are along each side."""

    kind: str
    sides: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """What each of its chips can do."""
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """How many it has."""
        return math.prod(self.sides)


def parse_slice(name: str) -> Slice:
    """The slice of a name: "v5e-16", or by its sides, "v5e:4x4".

    Raises:
        UserError: Another name, or a number of chips that is no power of two.
    """
    found = re.fullmatch(r"(\w+?)(?:-(\d+)|:(\d+(?:x\d+)+))", name)
    if found is None or found[1] not in CHIPS:
        kinds = suggest(found[1] if found else name, CHIPS)
        raise UserError(f"--topology {name}: expected a slice such as v5e-16 or v5e:4x4; {kinds}")
    kind, axes = found[1], CHIPS[found[1]].axes
    if found[3]:
        sides = tuple(int(side) for side in found[3].split("x"))
        if len(sides) != axes or min(sides) < 1:
            raise UserError(f"--topology {name}: a slice of {kind} has {axes} sides")
        return Slice(kind, sides)
    power = int(found[2]).bit_length() - 1
    if power < 0 or int(found[2]) != 2**power:
        raise UserError(f"--topology {name}: expected a power of two chips")
    # As near to a square (a cube) as can be, longer sides last, but for those of 1.
    lengths = sorted((2 ** ((power + axis) // axes) for axis in range(axes)), key=lambda side: side == 1)
    return Slice(kind, tuple(lengths))


def slice_devices(of: Slice) -> Sequence[Any]:
    """The devices of a slice that programs can be compiled for; none has to be there.

    Raises:
        UserError: The compiler is not installed, or does not know the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the compiler for TPUs (libtpu) is not installed: pip install 'dynpix_jax[tpu]'")
    # Else it asks a server, which only a TPU VM has, what chip it runs on, and refuses to be loaded by two
    # processes at a time, which would be wrong with a chip.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
    name = f"{of.kind}:{'x'.join(map(str, of.sides))}"
    options: Any = {"chips_per_host_bounds": (1, 1, 1)} if of.chips == 1 else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:  # the type differs between versions of jax
        raise UserError(f"--topology {name}: {str(error).splitlines()[0]}") from error

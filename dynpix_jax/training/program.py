"""What a compiled program's text tells: its collectives, its cycles, how often its loops run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

SMALL = 64 * 1024
"""Bytes below which a collective takes its latency rather than its transfer."""

_HEADER = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(r"(?:body|to_apply|calls|(?:branch|true|false)_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count[^}]*?"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BOUND = re.compile(r"%?([\w.\-]+) = [su]\d+\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"ROOT .* compare\(.*[ ,(%]([\w.\-]+)\), direction=LT")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_COLLECTIVE = re.compile(
    r"\s*(?:ROOT )?%?[\w.\-]+ = (.*?) "
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
_STARTS = 'custom_call_target="AsyncCollectiveStart"'
_ARRAY = re.compile(r"(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """The collectives of one kind in a step: how many, their bytes on a chip, how many are `SMALL`."""

    count: int
    bytes: int
    small: int


def collectives(program: str) -> dict[str, Collective]:
    """The collectives of a compiled program, by kind; those in loops as often as the loops run."""
    found: dict[str, list[int]] = {}
    for line, times in _lines(program, fused_starts=True):
        if match := _COLLECTIVE.match(line):
            # Where it starts apart from its end, its value holds the operands, the results, and flags; only
            # an all-reduce's is the results alone.
            apart = match[3] and match[2] != "all-reduce"
            types = _parts(match[1])[1] if apart else match[1]
            found.setdefault(match[2], []).extend([_bytes(types)] * times)
    return {
        kind: Collective(len(sizes), sum(sizes), sum(size < SMALL for size in sizes))
        for kind, sizes in found.items()
    }


_RESULT = re.compile(r"\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(")
_NO_WORK = frozenset(("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"))


def repetition(program: str) -> float:
    """How many times the bytes of a program are those that XLA counts: it takes the body of a loop once."""
    once = often = 0
    for line, times in _lines(program):
        if (match := _RESULT.match(line)) and match[2] not in _NO_WORK:
            size = _bytes(match[1])
            once, often = once + size, often + size * times
    return often / once if once else 1.0


def estimated_cycles(program: str) -> int:
    """Cycles that the compiler of a TPU expects, in loops as often as they run; 0 where it writes none."""
    return sum(int(cycles) * times for line, times in _lines(program) for cycles in _CYCLES.findall(line))


def _turns(loop: str, parts: Mapping[str, Sequence[str]]) -> int:
    """How often a loop runs: as it says, or, for TPUs, by its condition; 1 where only the run decides.

    JAX's loops of known length count from 0, and go on while the count is less than a constant.
    """
    if told := _TRIPS.search(loop):
        return int(told[1])
    condition = _CONDITION.search(loop)
    lines = parts.get(condition[1], ()) if condition else ()
    bounds = {found[1]: int(found[2]) for found in map(_BOUND.search, lines) if found}
    below = next((found[1] for found in map(_BELOW.search, lines) if found), "")
    return bounds.get(below, 1)


def _lines(program: str, *, fused_starts: bool = False) -> Iterator[tuple[str, int]]:
    """Each line of a program that is a step of it, and how often it runs.

    None within fusions, but with ``fused_starts`` those of fusions that start a collective on a TPU, which
    goes on beside other work: fusions that follow repeat it.
    """
    parts: dict[str, list[str]] = {"": []}
    name = ""
    for line in program.splitlines():
        if header := _HEADER.match(line):
            name = header[1]
        parts.setdefault(name, []).append(line)
    callers: dict[str, list[tuple[str, int]]] = {}
    inside = set(re.findall(r" fusion\(.*calls=%?([\w.\-]+)", program))
    for caller, lines in parts.items():
        for line in lines:
            turns = _turns(line, parts) if " while(" in line else 1
            for called in _CALLED.findall(line):
                for one in re.findall(r"[\w.\-]+", called):
                    callers.setdefault(one, []).append((caller, turns))

    def times(part: str) -> int:
        return sum(count * times(caller) for caller, count in callers.get(part, ())) or 1

    for part, lines in parts.items():
        if part not in inside or (fused_starts and any(_STARTS in line for line in lines)):
            often = times(part)
            yield from ((line, often) for line in lines)


def _parts(types: str) -> list[str]:
    """The elements of a tuple's text: ["f32[4]{0}", " (u32[], s32[])"] of "(f32[4]{0}, (u32[], s32[]))"."""
    parts, depth = [""], 0
    for character in types.removeprefix("(").removesuffix(")"):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _bytes(types: str) -> int:
    """Bytes of the arrays in a type's text, such as "(f32[64]{0}, pred[2,3])"."""
    return sum(
        math.prod(int(side) for side in shape.split(",") if side) * max(int(bits or 8) // 8, 1)
        for _, bits, shape in _ARRAY.findall(types)
    )

"""What active positions cost: a gated 3x3 with its 1x1 through `map_active`, against the dense computation.

    python benchmarks/active.py [--density 0.7 0.5] [--runs 7]

Shapes are the bottlenecks of PAG's ResNet-50 at 321x481, masks independent pixels. Dense and sparse run in
turn, so that a slow moment of the machine meets both; times are medians.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from statistics import median

import jax

from dynpix_jax.ops import active_set, conv, map_active, pointwise

SHAPES = {
    "res2": (64, 81, 121, 1),
    "res3": (128, 41, 61, 1),
    "res4": (256, 41, 61, 2),
    "res5": (512, 41, 61, 4),
}
"""Block: channels of its 3x3, height, width, dilation."""


def dense_block(x: jax.Array, shortcut: jax.Array, k3: jax.Array, k1: jax.Array, dilation: int) -> jax.Array:
    """I + F3(F2(X)) everywhere."""
    y = jax.nn.relu(conv(x, k3, dilation=(dilation, dilation)))
    return shortcut + pointwise(y, k1)


def sparse_block(
    x: jax.Array, shortcut: jax.Array, k3: jax.Array, k1: jax.Array, mask: jax.Array, dilation: int
) -> jax.Array:
    """The same at the active positions only."""

    def block(windows: jax.Array) -> jax.Array:
        return jax.nn.relu(windows.reshape(len(windows), -1) @ k3.reshape(-1, k3.shape[-1])) @ k1

    return map_active(block, x, active_set(mask), dilation=(dilation, dilation), init=shortcut, combine="add")


def medians(programs: Sequence[Callable[[], jax.Array]], runs: int) -> list[float]:
    """Milliseconds of each program, run in turn; the first turn compiles and does not count."""
    times: list[list[float]] = [[] for _ in programs]
    for turn in range(runs + 1):
        for program, taken in zip(programs, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(program())
            if turn:
                taken.append(1e3 * (time.perf_counter() - start))
    return [median(taken) for taken in times]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--density", type=float, nargs="+", default=[1.0, 0.7, 0.5, 0.3])
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, float32; sparse / dense time of a gated 3x3 and 1x1")
    for name, (channels, height, width, dilation) in SHAPES.items():
        keys = jax.random.split(jax.random.key(0), 5)
        x = jax.nn.relu(jax.random.normal(keys[0], (1, height, width, channels)))
        shortcut = jax.random.normal(keys[1], (1, height, width, 4 * channels))
        k3 = jax.random.normal(keys[2], (3, 3, channels, channels)) / channels
        k1 = jax.random.normal(keys[3], (channels, 4 * channels)) / channels
        dense = functools.partial(jax.jit(dense_block, static_argnums=4), x, shortcut, k3, k1, dilation)
        sparse = jax.jit(sparse_block, static_argnums=5)
        masks = [jax.random.uniform(keys[4], (1, height, width)) < density for density in args.density]
        programs = [functools.partial(sparse, x, shortcut, k3, k1, mask, dilation) for mask in masks]
        base, *taken = medians([dense, *programs], args.runs)
        ratios = ", ".join(f"{d:g}: {t / base:.2f}" for d, t in zip(args.density, taken, strict=True))
        print(f"{name} ({channels} channels, dilation {dilation}): dense {base:.1f} ms; by density {ratios}")


if __name__ == "__main__":
    main()

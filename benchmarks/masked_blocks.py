"""Residual blocks of HRNet's branches by active rows against whole maps: where `row_costs` comes from.

    python benchmarks/masked_blocks.py --width 48 --size 512x1024

One line a branch and density: milliseconds of the branch's blocks of one module over the whole map, without
masks, and what the same by rows takes of it; the shares of rows that are active and interpolated. What
dynpix_jax.nn.masked_conv.row_costs says should be that ratio: active * a + interpolated * b.
"""

from __future__ import annotations

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.evaluation.timing import interleaved_medians
from dynpix_jax.nn.masked_conv import Masking, row_costs
from dynpix_jax.ops.conv import conv
from dynpix_jax.ops.sparse.masks import make_mask
from dynpix_jax.ops.sparse.rows import Layer, active_rows, residual_blocks


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=48, help="channels of the highest branch")
    parser.add_argument("--size", default="512x1024", help="height x width of the image")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--density", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--mask", default="blobs", choices=("blobs", "random"))
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    height, width = (int(side) // 4 for side in args.size.split("x"))
    print("branch          dense ms  density  rows/dense  interpolated  row_costs")
    for branch in range(4):
        size, channels = (height >> branch, width >> branch), args.width << branch
        keys = iter(jax.random.split(jax.random.key(branch), 3 + 2 * args.blocks))
        x = jax.nn.relu(jax.random.normal(next(keys), (1, *size, channels)))
        affine = (jnp.ones(channels), jnp.zeros(channels))
        layers = [
            Layer(
                jax.random.normal(next(keys), (3, 3, channels, channels)) / (6 * channels**0.5), affine, 3.0
            )
            for _ in range(2 * args.blocks)
        ]
        kernels = [layer.kernel for layer in layers]

        @jax.jit
        def dense(x: jax.Array, kernels: list[jax.Array], affine=affine) -> jax.Array:
            for first, second in zip(kernels[::2], kernels[1::2], strict=True):
                y = jax.nn.relu(conv(x, first) * affine[0] + affine[1])
                x = jax.nn.relu(x + conv(y, second) * affine[0] + affine[1])
            return x

        @jax.jit
        def sparse(
            x: jax.Array, kernels: list[jax.Array], mask: jax.Array, needed: jax.Array, affine=affine
        ) -> jax.Array:
            rows = active_rows(mask, needed, x.shape[-1], radius=3)
            made = [Layer(kernel, affine, jnp.float32(3.0)) for kernel in kernels]
            pairs = list(zip(made[::2], made[1::2], strict=True))
            return residual_blocks(x, pairs, rows, normalize="full")

        field_key, programs, shares = next(keys), [partial(dense, x, kernels)], []
        for density in args.density:
            mask = make_mask(args.mask, field_key, (1, height, width), density)
            masking = Masking(mask, mode="sparse")
            own, needed = masking.at(size), masking.needed[size]
            programs.append(partial(sparse, x, kernels, own, needed))
            shares.append((float(own.mean()), float(np.mean(needed & ~own))))
        reference, *others = interleaved_medians(programs, args.runs)
        for (active, ring), timing in zip(shares, others, strict=True):
            costs = row_costs(channels)
            print(
                f"{size[0]:>3}x{size[1]:<4} x {channels:<4}{reference.median:>8.1f}{active:>9.2f}"
                f"{timing.median / reference.median:>12.2f}{ring:>14.2f}"
                f"{active * costs[0] + ring * costs[1]:>11.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()

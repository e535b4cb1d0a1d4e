"""Residual blocks of HRNet's branches by active rows against whole maps: where `row_costs` comes from.

A line for each branch and density: milliseconds of the branch's blocks of one module over the whole map,
without masks; the ratio of the time by active rows to that time; the shares of rows that are active and that
are interpolated. The last column is the ratio that dynpix_jax.ops.sparse.row_costs predicts: active * a +
interpolated * b.

example:
  dynpix bench row-costs --width 48 --size 512x1024
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.bench.arguments import check_counts, check_densities
from dynpix_jax.bench.masks import KINDS, make_mask
from dynpix_jax.core.text import parse_size
from dynpix_jax.core.typing import Array, Mask
from dynpix_jax.evaluation.timing import interleaved_medians
from dynpix_jax.nn.masked_conv import Masking
from dynpix_jax.ops.conv import conv
from dynpix_jax.ops.sparse import (
    Affine,
    Convolution,
    Interpolation,
    Relu,
    ResidualBlock,
    active_rows,
    row_costs,
    sparse_block,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    parser.add_argument("--width", type=int, default=48, help="channels of the highest branch")
    parser.add_argument("--size", default="512x1024", help="height x width of the image")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--density", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--mask", default="blobs", choices=KINDS)
    parser.add_argument("--runs", type=int, default=7)


def run(args: argparse.Namespace) -> int:
    """Prints the table; gives the exit status."""
    check_counts(args, "width", "blocks", "runs")
    check_densities(args.density)
    image = parse_size(args.size)
    # A stride of 2 rounds up, in the stem and from branch to branch.
    sizes = [(-(-image[0] // stride), -(-image[1] // stride)) for stride in (4, 8, 16, 32)]
    print("branch          dense ms  density  rows/dense  interpolated  row_costs")
    for branch in range(4):
        (height, width), channels = sizes[branch], args.width << branch
        keys = iter(jax.random.split(jax.random.key(branch), 3 + 2 * args.blocks))
        x = jax.nn.relu(jax.random.normal(next(keys), (1, height, width, channels)))
        scale = 1 / (6 * channels**0.5)
        kernels = [
            scale * jax.random.normal(next(keys), (3, 3, channels, channels)) for _ in range(2 * args.blocks)
        ]
        field_key, programs, shares = next(keys), [partial(_dense, x, kernels)], []
        for density in args.density:
            mask = make_mask(args.mask, field_key, (1, *sizes[0]), density)
            masking = Masking(mask, mode="sparse")
            own, needed = masking.at((height, width)), masking.needed[height, width]
            programs.append(partial(_sparse, x, kernels, own, needed))
            shares.append((float(own.mean()), float(np.mean(needed & ~own))))
        reference, *others = interleaved_medians(programs, args.runs)
        costs = row_costs(channels, winograd=Convolution(kernels[0]).by_winograd(x))
        for (active, ring), timing in zip(shares, others, strict=True):
            print(
                f"{height:>3}x{width:<4} x {channels:<4}{reference.median:>8.1f}{active:>9.2f}"
                f"{timing.median / reference.median:>12.2f}{ring:>14.2f}"
                f"{active * costs[0] + ring * costs[1]:>11.2f}",
                flush=True,
            )
    return 0


def _affine(channels: int) -> Affine:
    return Affine(jnp.ones(channels), jnp.zeros(channels))


@jax.jit
def _dense(x: Array, kernels: Sequence[Array]) -> Array:
    affine = _affine(x.shape[-1])
    for first, second in zip(kernels[::2], kernels[1::2], strict=True):
        x = jax.nn.relu(x + affine(conv(jax.nn.relu(affine(conv(x, first))), second)))
    return x


@jax.jit
def _sparse(x: Array, kernels: Sequence[Array], mask: Mask, needed: Mask) -> Array:
    rows, affine = active_rows(mask, needed, x.shape[-1], radius=3), _affine(x.shape[-1])
    layers = [(Convolution(kernel), Interpolation(jnp.float32(3.0)), affine) for kernel in kernels]
    pairs = zip(layers[::2], layers[1::2], strict=True)
    blocks = [ResidualBlock((*first, Relu(), *second)) for first, second in pairs]
    return sparse_block(x, rows, blocks, implementation="gather")

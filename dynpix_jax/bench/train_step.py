"""A training step of the dilated ResNet-50 here and in PyTorch, in turn, on a CPU.

Forward and backward pass of the backbone, norms by their stored moments, for the mean square of its top
feature. Both compute the same gradients, which is checked first. `make bench-runtimes` installs PyTorch into
an environment of its own. Leave the machine alone meanwhile.

example:
  dynpix bench train-step --batch 1 4
  dynpix bench train-step --frozen stem res2      what budget=cpu of PAG leaves to train
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.bench import torch_conv
from dynpix_jax.bench.runtimes import NETWORKS, channels_last, cores, record, run_torch, table
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.text import parse_size
from dynpix_jax.core.typing import Array
from dynpix_jax.evaluation.timing import timed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    parser.add_argument("--size", default="320x320", metavar="HxW", help="of the images (default: 320x320)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4], metavar="N", help="images at a time")
    parser.add_argument(
        "--frozen", nargs="+", default=[], metavar="STAGE", help="stages at the bottom that are not trained"
    )
    parser.add_argument("--runs", type=int, default=7, metavar="N", help="rounds that count (default: 7)")


def run(args: argparse.Namespace) -> int:
    """Prints a table for each batch; gives the exit status."""
    if jax.default_backend() != "cpu" or min(args.runs, *args.batch) < 1:
        batches = " ".join(map(str, args.batch))
        raise UserError(f"--runs {args.runs} --batch {batches}: expected at least 1, on a CPU")
    for batch in args.batch:
        listed = programs(parse_size(args.size), batch, args.frozen)
        timings = timed(listed, args.runs)
        trained = f"all but {', '.join(args.frozen)}" if args.frozen else "everything"
        print(
            f"\nresnet50, {args.size}, batch {batch}, {trained} trained, float32, {cores()} CPU cores,"
            f" {args.runs} rounds in turn\n"
        )
        table(timings)
    return 0


def programs(size: tuple[int, int], batch: int, frozen: Sequence[str] = ()) -> dict[str, Callable[[], Any]]:
    """The step by runtime; each gives the gradients of the trained kernels, (Cout, Cin, kh, kw), by module.

    Raises:
        UserError: PyTorch is not installed or computes something else, or nothing is frozen by a name.
    """
    torch_conv.check("train-step")
    config = NETWORKS["resnet50"].config
    network: Any = config.build()
    images = jax.random.normal(jax.random.key(0), (batch, *size, 3))
    variables = jax.jit(network.init)(jax.random.key(1), images[:1, :64, :64])
    top, params = config.stages[-1].name, variables["params"]
    for name in frozen:
        if not any(module.startswith(name) for module in params):
            raise UserError(f"--frozen {name}: no such stage; expected stem, res2, res3, res4 or res5")
    fixed = {name: leaf for name, leaf in params.items() if name.startswith(tuple(frozen))}
    trained = {name: leaf for name, leaf in params.items() if name not in fixed}
    if not trained:
        raise UserError(f"--frozen {' '.join(frozen)}: nothing is left to train")

    def loss(trained: Any, fixed: Any, images: Array) -> Array:
        own = {**variables, "params": {**fixed, **trained}}
        return jnp.mean(network.apply(own, images, train=True)[top] ** 2)

    ours = partial(jax.jit(jax.grad(loss)), trained, fixed, images)
    nodes = record(lambda images: network.apply(variables, images)[top], images, fold=False)
    theirs = _torch(nodes, np.asarray(images).transpose(0, 3, 1, 2), frozenset(fixed))
    _check(ours(), theirs())
    return {"dynpix": ours, "torch": theirs}


def _torch(nodes: list[Any], images: np.ndarray, fixed: frozenset[str]) -> Callable[[], Any]:
    weights, biases = ([channels_last(getattr(node, of)) for node in nodes] for of in ("kernel", "bias"))
    given = channels_last(images)
    kernels = {}
    for node, kernel, bias in zip(nodes, weights, biases, strict=True):
        if node.kind in ("Conv", "Norm") and node.name.split("/")[0] not in fixed:
            kernel.requires_grad_()
            bias.requires_grad_(node.kind == "Norm")  # these convolutions have none
            kernels[node.name] = kernel

    def program() -> dict[str, Any]:
        for tensor in (*weights, *biases):
            tensor.grad = None
        run_torch(nodes, given, weights, biases).square().mean().backward()
        return {name: kernel.grad.numpy() for name, kernel in kernels.items()}

    return program


def _check(ours: Any, theirs: dict[str, np.ndarray]) -> None:
    for name, gradient in theirs.items():
        if gradient.ndim != 4:
            continue
        own: Any = ours
        for part in name.split("/"):
            own = own[part]
        expected = np.asarray(own["kernel"]).transpose(3, 2, 0, 1)
        if np.abs(gradient - expected).max() > 1e-2 * np.abs(expected).max():
            raise UserError(f"torch: its gradient of {name} is another than ours; expected the same to 1e-2")

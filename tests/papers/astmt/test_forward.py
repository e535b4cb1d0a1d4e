"""Forward passes of ASTMT's networks against NumPy: what the released code computes, to rounding."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax import papers
from dynpix_jax.core.trees import map_named, named_leaves
from dynpix_jax.flops import variable_shapes
from tests.one_step import QUICKLY
from tests.papers.astmt.reference import Weights, deeplab, se_mobilenet_v2, se_resnet_26
from tests.papers.astmt.tiny import OWN, TASKS

TASK = TASKS[1]
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
RATES = (1, 2)
ENCODER = dict(width=8, output_stride=16, preprocessing="torch")
NETWORKS = {
    "se_resnet_26": dict(
        backbone=dict(name="resnet", depth=26, se=True, stride_in_1x1=True, **ENCODER),
        encoder=OWN,
        decoder=dict(OWN, features=16, rates=RATES),
    ),
    "se_mobilenet_v2": dict(
        backbone=dict(name="mobilenetv2", width=0.25, output_stride=16, se=True),
        encoder=dict(se=True, norm=True),
        decoder=dict(features=16, rates=RATES),
    ),
}


def drawn(shapes: Any) -> Any:
    """Random everything, adapters and moments of norms too, each by its name."""

    def draw(path: str, leaf: Any) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(path.encode()))
        if path.endswith(("/scale", "/var")):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        elif path.endswith("/kernel"):
            values = rng.uniform(-1, 1, leaf.shape) * (4.5 / np.prod(leaf.shape[:-1])) ** 0.5
        else:
            values = rng.uniform(-0.3, 0.3, leaf.shape)
        return values.astype(np.float32)

    return map_named(draw, shapes)


def both(name: str) -> tuple[Any, dict[str, np.ndarray], Weights]:
    """(system, what it makes of the image for one task, the weights for NumPy)."""
    system = papers.build(dict(system="astmt", tasks=TASKS, **NETWORKS[name]))
    variables = drawn(variable_shapes(system))

    def run(variables: Any, image: Any) -> dict[str, Any]:
        def forward(network: Any) -> dict[str, Any]:
            low, high = network.encode(image[None], TASK, train=False)
            return dict(low=low[0], high=high[0], decoded=network.decode(low, high, TASK, train=False)[0][0])

        return system.network.apply(variables, method=forward)

    program = jax.jit(run).lower(variables, jnp.asarray(IMAGE)).compile(compiler_options=QUICKLY)
    found = {key: np.moveaxis(np.asarray(x), -1, 0) for key, x in program(variables, IMAGE).items()}
    return system, found, Weights({path: np.asarray(leaf) for path, leaf in named_leaves(variables)}, TASK)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """To 1e-5 of the greatest value."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_se_resnet_26_with_every_flag():
    """SE, norms and adapters of encoder and decoder are all the task's own."""
    _, found, weights = both("se_resnet_26")
    low, high = se_resnet_26(weights, IMAGE)
    decoded = deeplab(weights, low, high, RATES)
    assert_same(found["low"], low)
    assert_same(found["high"], high)
    assert_same(found["decoded"], decoded)
    # The other task's modules are others.
    other = se_resnet_26(Weights(weights.arrays, TASKS[0]), IMAGE)[1]
    assert np.abs(other - high).max() > 0.1 * np.abs(high).max()


def test_mobilenet_v2_with_dilation():
    """From block 14 on, behind the removed stride, depthwise kernels are dilated by two."""
    system, found, weights = both("se_mobilenet_v2")
    assert [spec.dilation for spec in system.config.backbone.block_specs[-4:]] == [2, 2, 2, 2]
    low, high = se_mobilenet_v2(weights, IMAGE)
    assert high.shape[1:] == (4, 6)
    assert_same(found["low"], low)
    assert_same(found["high"], high)

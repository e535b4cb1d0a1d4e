"""Forward passes of ASTMT's networks against NumPy: what the released code computes, to rounding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dynpix_jax import papers
from dynpix_jax.papers.astmt.weight_names import translate
from tests.numpy_layers import normalized
from tests.one_step import QUICKLY
from tests.papers.astmt.reference import Weights, deeplab, se_mobilenet_v2, se_resnet
from tests.papers.astmt.tiny import OWN, TASKS
from tests.weights import official

THEIRS = {"edge": 1, "depth": 1}
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
ENCODER = dict(width=8, output_stride=16, preprocessing="torch")
GOLDEN_RESNET = (0.2287471470, 0.2488003601, -0.1053067914)
"""NumPy's, in the middle of the map at stride 4, of that at stride 16, and of the prediction."""
GOLDEN_MOBILENET = (0.0439647707, 0.1554141445)


def both(section: dict[str, Any], shapes: official.Shapes, *, decoder: bool) -> tuple[Any, list, Weights]:
    """(system, what it makes of the image for the second task, the weights for NumPy)."""
    system = papers.build(dict(system="astmt", tasks=TASKS, **section))
    tensors = official.filled(shapes)
    targets = {name: translate(name) for name in tensors if not name.endswith("num_batches_tracked")}
    flat = {target.name: jnp.asarray(target.convert(tensors[name])) for name, target in targets.items()}
    variables = traverse_util.unflatten_dict(flat, sep="/")

    def run(variables: Any, image: Any) -> list[Any]:
        def forward(network: Any) -> list[Any]:
            task, size = TASKS[1], image.shape[:2]
            maps = network.encode(image[None], task, train=False)
            if not decoder:
                return list(maps)
            decoded = network.decode(*maps, task, train=False)
            return [*maps, network.read(decoded, task, size, train=False)]

        return system.network.apply(variables, method=forward)

    program = jax.jit(run).lower(variables, jnp.asarray(IMAGE)).compile(compiler_options=QUICKLY)
    found = [np.moveaxis(np.asarray(x)[0], -1, 0) for x in program(variables, IMAGE)]
    return system, found, Weights(tensors, "depth")


def assert_same(found: list[np.ndarray], expected: list[np.ndarray], golden: tuple[float, ...]) -> None:
    """Maps to 1e-5 of their greatest value; in the middle, both are the golden numbers."""
    middles = [x[0, x.shape[1] // 2, x.shape[2] // 2] for x in expected]
    assert middles == pytest.approx(golden, rel=1e-6)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_se_resnet_26_with_every_flag():
    """SE, norms and adapters of encoder and decoder are all the task's own."""
    section = dict(
        backbone=dict(name="resnet", depth=26, se=True, stride_in_1x1=True, **ENCODER),
        encoder=OWN,
        decoder=dict(OWN, features=16),
    )
    _, found, weights = both(section, official.astmt(8, (2, 2, 2, 2), THEIRS, decoder=16), decoder=True)
    image = normalized(IMAGE)
    low, high = se_resnet(weights, image, 2)
    assert_same(found, [low, high, deeplab(weights, low, high, IMAGE.shape[:2])], GOLDEN_RESNET)
    # The other task's modules are others.
    other = se_resnet(Weights(weights.tensors, "edge"), image, 2)[1]
    assert np.abs(other - high).max() > 0.1 * np.abs(high).max()


def test_mobilenet_v2_with_dilation():
    """From block 14 on, behind the removed stride, depthwise kernels are dilated by two."""
    section = dict(
        backbone=dict(name="mobilenetv2", width=0.25, output_stride=16, se=True),
        encoder=dict(se=True, norm=True),
        decoder=dict(features=16),
    )
    shapes = official.astmt_mobilenet(8, (4, 6, 8, 16, 24, 40, 80), THEIRS)
    system, found, weights = both(section, shapes, decoder=False)
    assert [spec.dilation for spec in system.config.backbone.block_specs[-4:]] == [2, 2, 2, 2]
    low, high = se_mobilenet_v2(weights, normalized(IMAGE))
    assert high.shape[1:] == (4, 6)
    assert_same(found, [low, high], GOLDEN_MOBILENET)

"""ResNets: published sizes, strides, and dilation that keeps a pretrained network's responses."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.backbones.base import normalize
from dynpix_jax.backbones.resnet import ResNet, ResNetConfig


def shapes_of(network: ResNet, size: tuple[int, int]):
    """Shapes of (variables, outputs) for one image; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    outputs, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    return variables, outputs


@pytest.mark.parametrize(
    ("depth", "parameters"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160)]
)
def test_published_parameter_counts(depth, parameters):
    variables, outputs = shapes_of(
        ResNet(ResNetConfig(depth=depth, output_stride=32), classes=1000), (64, 64)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    assert outputs["logits"].shape == (1, 1000)


@pytest.mark.parametrize("depth", [18, 26, 34, 50, 101])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_stages_tell_what_they_give(depth, output_stride):
    """Also at sizes that the stride does not divide: ceil(side / stride)."""
    for stride_in_1x1 in (True, False):
        config = ResNetConfig(depth, 8, output_stride, stride_in_1x1)
        _, features = shapes_of(ResNet(config), (65, 98))
        for info in config.stages:
            assert features[info.name].shape == (
                1,
                -(-65 // info.stride),
                -(-98 // info.stride),
                info.channels,
            )
        assert max(info.stride for info in config.stages) == output_stride


@pytest.mark.parametrize(("depth", "stride_in_1x1"), [(26, True), (26, False), (18, False)])
def test_dilation_keeps_the_responses(depth, stride_in_1x1):
    """A dilated network subsampled is the undilated one: pretrained weights mean what they meant."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(1, 45, 66, 3)), jnp.float32)
    networks = {s: ResNet(ResNetConfig(depth, 4, s, stride_in_1x1)) for s in (8, 32)}
    shapes = jax.eval_shape(networks[32].init, jax.random.key(0), images)

    def draw(path, leaf):
        positive = path[-1].key in ("var", "scale")
        values = rng.uniform(0.5, 1.5, leaf.shape) if positive else rng.normal(0, 0.1, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    dilated, plain = (jax.jit(networks[stride].apply)(variables, images) for stride in (8, 32))
    for stage, step in (("res3", 1), ("res4", 2), ("res5", 4)):
        size = float(jnp.abs(plain[stage]).max())
        np.testing.assert_allclose(dilated[stage][:, ::step, ::step], plain[stage], atol=1e-5 * size)


def test_dilations_and_strides_of_the_papers_backbone():
    """Dilation 2 in Res4 and 4 in Res5 at output stride 8; names as in the papers."""
    for stride_in_1x1, first in ((True, (1, 1, 2, 4)), (False, (1, 1, 1, 2))):
        specs = ResNetConfig(depth=50, stride_in_1x1=stride_in_1x1).block_specs
        stages = [list(blocks) for _, blocks in itertools.groupby(specs, lambda spec: spec.stage)]
        assert [stage[0].dilation for stage in stages] == list(first)
        assert [stage[1].dilation for stage in stages] == [1, 1, 2, 4]
        assert [stage[0].strides for stage in stages] == [1, 2, 1, 1]
        assert [len(stage) for stage in stages] == [3, 4, 6, 3]
        assert stages[2][1].name == "res4_2"


def test_preprocessing_conventions():
    pixel = np.array([[[[200, 100, 50]]]], np.uint8)
    np.testing.assert_allclose(
        normalize(jnp.asarray(pixel), "caffe")[0, 0, 0],
        [50 - 103.939, 100 - 116.779, 200 - 123.68],
        rtol=1e-5,
    )
    expected = [(200 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (50 / 255 - 0.406) / 0.225]
    np.testing.assert_allclose(normalize(jnp.asarray(pixel), "torch")[0, 0, 0], expected, rtol=1e-5)
    np.testing.assert_array_equal(normalize(jnp.asarray(pixel), "none"), np.float32(pixel))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(depth=51), "^depth: 51"),
        (dict(output_stride=4), "^output_stride: 4"),
        (dict(depth=18, se=True), "^se: depth 18 has no bottlenecks"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**options)

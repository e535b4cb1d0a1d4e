"""VGG-16: published sizes, Caffe's and torchvision's pooling, what is handed out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.backbones.vgg import VGG, VGGConfig
from dynpix_jax.core.errors import UserError
from tests import numpy_layers


def shapes_of(network: VGG, size: tuple[int, int]):
    """Shapes of (variables, outputs) for one image; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    outputs, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    return variables, outputs


@pytest.mark.parametrize(("pooling", "more"), [("ceil", 1), ("floor", 0)])
def test_stages_tell_what_they_give(pooling, more):
    """Also at odd sizes: 67 rows are 34, 17, 9, 5, 3 in Caffe and 33, 16, 8, 4, 2 in torchvision."""
    config = VGGConfig(4, 8, pooling)
    names = tuple(info.name for info in config.stages)
    assert names[-3:] == ("conv5_3", "fc6", "fc7")
    _, features = shapes_of(VGG(config, taps=names), (67, 98))
    for info in config.stages:
        sides = [67, 98]
        for _ in range(info.stride.bit_length() - 1):
            sides = [(side + more) // 2 for side in sides]
        assert features[info.name].shape == (1, *sides, info.channels)


def test_published_widths_and_strides():
    channels = {info.name: (info.channels, info.stride) for info in VGGConfig().stages}
    assert channels["conv1_2"] == (64, 1)
    assert channels["conv4_3"] == (512, 8)
    assert channels["conv5_3"] == (512, 16)
    assert channels["fc7"] == (4096, 32)


def test_nothing_above_the_highest_tap():
    variables, _ = shapes_of(VGG(VGGConfig(), taps=("conv1_2", "conv3_1")), (32, 32))
    assert set(variables["params"]) == {"conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1"}


def test_the_layers_by_hand():
    """conv1_1, conv1_2 and conv2_1 of a 3x3 image, written out; ReLU before or after."""
    rng = np.random.default_rng(0)
    config, image = VGGConfig(width=2, tap="conv"), rng.normal(size=(1, 3, 3, 3)).astype(np.float32)
    network = VGG(config, taps=("conv1_2", "conv2_1"))
    shapes, _ = shapes_of(network, (3, 3))
    values = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes["params"])

    def conv(x: np.ndarray, name: str) -> np.ndarray:
        kernel, bias = values[name]["kernel"].transpose(3, 2, 0, 1), values[name]["bias"]
        return numpy_layers.conv(x.transpose(2, 0, 1), kernel, bias).transpose(1, 2, 0)

    first = np.maximum(conv(image[0], "conv1_1"), 0)
    second = conv(first, "conv1_2")
    alive = np.maximum(second, 0)
    pooled = np.array([[alive[:2, :2].max((0, 1)), alive[:2, 2].max(0)], [alive[2, :2].max(0), alive[2, 2]]])
    found = jax.jit(network.apply)({"params": values}, image)
    np.testing.assert_allclose(found["conv1_2"][0], second, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["conv2_1"][0], conv(pooled, "conv2_1"), rtol=1e-4, atol=1e-4)
    after = VGG(VGGConfig(width=2), taps=("conv1_2",)).apply({"params": values}, image)["conv1_2"]
    np.testing.assert_allclose(after[0], alive, rtol=1e-4, atol=1e-4)


def test_the_feature_of_fc7_is_after_its_relu_and_dropout():
    """As in all released networks, whatever is taken of the convolutions below."""
    config = VGGConfig(width=2, fc_features=32, tap="conv", dropout=0.5)
    network, image = VGG(config, taps=("conv1_2", "fc7")), np.ones((1, 8, 8, 3), np.float32)
    shapes, _ = shapes_of(network, (8, 8))
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes["params"])
    found = network.apply({"params": values}, image)
    assert found["conv1_2"].min() < 0 == found["fc7"].min()
    trained = network.apply({"params": values}, image, train=True, rngs={"dropout": jax.random.key(0)})
    assert (trained["fc7"] == 0).mean() > (found["fc7"] == 0).mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(width=0), "width: 0"),
        (dict(fc_features=0), "fc_features: 0"),
        (dict(dropout=1.0), "dropout: 1.0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        VGGConfig(**options)


def test_an_image_too_small_for_torchvisions_pooling():
    with pytest.raises(UserError, match="a map of 1x1 cells is to be pooled"):
        shapes_of(VGG(VGGConfig(width=2, pooling="floor")), (8, 8))

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dynpix_jax.backbones.resnet import ResNetConfig
from dynpix_jax.bench.runtimes import NETWORKS, Node, block_masks, picture, record, table
from dynpix_jax.core.errors import UserError
from dynpix_jax.evaluation.timing import Timing
from dynpix_jax.nn.conv import Conv, DepthwiseConv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.ops.resize import resize_bilinear


def follow(nodes: list[Node], image: jax.Array) -> jax.Array:
    """The list as XLA runs it, on (B, C, H, W)."""
    maps = {-1: image}
    for number, node in enumerate(nodes):
        x = maps[node.inputs[0]]
        if node.kind == "Conv":
            sides, strides, dilation = [(node.padding,) * 2] * 2, (node.strides,) * 2, (node.dilation,) * 2
            y = lax.conv_general_dilated(
                x, node.kernel, strides, sides, rhs_dilation=dilation, feature_group_count=node.groups
            )
            maps[number] = y + node.bias[:, None, None]
        elif node.kind == "MaxPool":
            window, strides, sides = (1, 1, 3, 3), (1, 1, 2, 2), [(0, 0), (0, 0), (1, 1), (1, 1)]
            maps[number] = lax.reduce_window(x, -jnp.inf, lax.max, window, strides, sides)
        elif node.kind == "Resize":
            maps[number] = jax.image.resize(x, (*x.shape[:2], *node.size), "linear", antialias=False)
        elif node.kind == "Norm":
            maps[number] = x * node.kernel[:, None, None] + node.bias[:, None, None]
        elif node.kind == "Add":
            maps[number] = x + maps[node.inputs[1]]
        else:
            maps[number] = jnp.clip(x, 0, 6 if node.kind == "Clip" else None)
    return maps[len(nodes) - 1]


class Network(nn.Module):
    """Every kind of layer that is recorded."""

    @nn.compact
    def __call__(self, x):
        x = jax.nn.relu(BatchNorm(4, name="norm1")(Conv(3, 4, 3, 2, name="conv1")(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        y = BatchNorm(4, name="norm2")(DepthwiseConv(4, 3, 2, 2, name="conv2")(x))
        Conv(4, 4, name="not_read")(y)
        return jax.nn.relu6(x + resize_bilinear(y, x.shape[1:3]))


@pytest.mark.parametrize("fold", [True, False])
def test_the_list_of_operations_computes_the_network(fold):
    image = 9 * jnp.asarray(np.random.default_rng(0).standard_normal((1, 33, 40, 3)), jnp.float32)
    variables = jax.jit(Network().init)(jax.random.key(0), image)
    # Moments that a norm cannot hide.
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.5, variables["batch_stats"])
    nodes = record(lambda image: Network().apply(variables, image), image, fold=fold)
    norm = [] if fold else ["Norm"]
    assert [node.kind for node in nodes] == [
        "Conv",
        *norm,
        "Relu",
        "MaxPool",
        "Conv",
        *norm,
        "Resize",
        "Add",
        "Clip",
    ]
    names = ["conv1", "conv2"] if fold else ["conv1", "norm1", "conv2", "norm2"]
    assert [node.name for node in nodes if node.name] == names
    expected = jax.jit(Network().apply)(variables, image)
    got = jax.jit(lambda image: follow(nodes, image))(image.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(got.transpose(0, 2, 3, 1), expected, rtol=1e-4, atol=1e-4)


def test_other_layers_are_refused():
    with pytest.raises(UserError, match="tanh: this network cannot be run elsewhere"):
        record(lambda image: jnp.tanh(image) + 1, jnp.zeros((1, 8, 8, 3)))


def test_the_picture_has_the_sparse_curve_and_a_line_for_each_other_program():
    times = {"dynpix, dense": 8.0, "sparse, density 0.5": 6.0, "sparse, density 0.3": 5.0, "torch": 9.0}
    axes = picture(
        {label: Timing(ms, ms, ms, ms) for label, ms in times.items()}, "title", [0.5, 0.3, 0.9]
    ).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["dynpix, sparse"].get_xydata().tolist() == [[0.5, 6.0], [0.3, 5.0]]
    assert {label: set(line.get_ydata()) for label, line in lines.items() if "sparse" not in label} == {
        "dynpix, dense": {8.0},
        "torch": {9.0},
    }


def test_times_are_over_those_of_the_fastest_program_that_computes_everywhere(capsys):
    times = {"sparse pages": 8.0, "sparse, density 0.5": 4.0, "torch": 10.0}
    table({label: Timing(ms, ms, ms, ms) for label, ms in times.items()}, [0.5])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[-1] for row in rows] == ["1.00 |", "0.50 |", "1.25 |"]


@pytest.mark.parametrize(
    ("name", "channels", "stride"),
    [("resnet50", 2048, 8), ("hrnet_w18_small", 16, 4), ("mobilenetv2", 320, 16)],
)
def test_the_feature_is_of_the_last_stage(name, channels, stride):
    network = NETWORKS[name]
    (stage,) = (stage for stage in network.config.stages if stage.name == network.feature)
    assert (stage.channels, stage.stride) == (channels, stride)


def test_masks_are_those_of_the_blocks_that_can_skip():
    masks = block_masks(ResNetConfig(), (30, 41), 0.5, "random")
    assert len(masks) == 16
    assert {name: mask.shape for name, mask in masks.items() if name in ("res2_1", "res5_3")} == {
        "res2_1": (1, 8, 11),
        "res5_3": (1, 4, 6),
    }
    assert masks["res2_1"].mean() == 0.5
    assert (masks["res2_1"] != masks["res2_2"]).any()

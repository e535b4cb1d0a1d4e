"""Small networks of PAG and recurrent scene parsing as their `.mat` files hold them, and a NumPy DagNN.

The graphs have the names and the order of layers of the released scripts. `run` computes what MatConvNet
computes for such a struct, layer by layer, so what an import makes of the file has something to be compared
with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import softmax

from tests import numpy_layers
from tests.weights.matlab_net import Structs

MEAN = np.array([123.68, 116.779, 103.939])
BLOCKS = (1, 1, 1, 2)
"""Blocks of res2 to res5."""


class Graph:
    """A DagNN that is built layer by layer: every method adds one and gives the name of its output."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.params, self.layers = Structs(), Structs()

    def struct(self, mean: np.ndarray = MEAN) -> dict[str, Any]:
        meta = {"normalization": {"averageImage": mean.reshape(1, 1, 3)}}
        return {"params": self.params, "layers": self.layers, "meta": meta}

    def param(self, name: str, array: np.ndarray) -> str:
        if not any(known["name"] == name for known in self.params):  # loops share theirs
            self.params.append({"name": name, "value": array.astype(np.float32), "learningRate": 1.0})
        return name

    def layer(self, name: str, kind: str, inputs: list[str], params: list[str] | None = None, **block: Any):
        # A cell array of one text is one cell, of none it is empty.
        self.layers.append(
            {"name": name, "type": kind, "inputs": inputs, "outputs": [name], "params": params or [],
             "block": block or {"leak": 0.0}}
        )  # fmt: skip
        return name

    def conv(
        self,
        name: str,
        x: str,
        shape: tuple[int, int, int],
        stride: int = 1,
        dilate: int = 1,
        *,
        bias: bool = False,
        shared: str = "",
    ) -> str:
        """``shape``: kernel size, inputs, outputs. ``shared``: the parameters' name, if it is another."""
        size, into, out = shape
        kernel = self.rng.normal(size=(size, size, into, out)) * (2 / (size * size * into)) ** 0.5
        params = [self.param(f"{shared or name}_f", kernel)]
        if bias:
            params.append(self.param(f"{shared or name}_b", self.rng.normal(size=out)))
        fields = {"stride": stride, "dilate": dilate, "pad": dilate * (size // 2)}
        return self.layer(name, "dagnn.Conv", [x], params, **{k: float(v) for k, v in fields.items()})

    def attention(self, name: str, x: str, channels: int) -> str:
        """PAG's norm with moments in the layer; the field that is called variance is the deviation."""
        params = [
            self.param(f"{name}_multiplier", self.rng.uniform(0.5, 1.5, channels)),
            self.param(f"{name}_bias", self.rng.normal(size=channels) / 4),
        ]
        moments = {
            "globalMean": (self.rng.normal(size=channels) / 4).astype(np.float32),
            "globalVariance": self.rng.uniform(0.5, 1.5, channels).astype(np.float32),
        }
        return self.layer(name, "attentionChannel", [x], params, **moments)

    def norm(self, name: str, x: str, channels: int, shared: str = "") -> str:
        base = shared or name
        moments = np.stack([self.rng.normal(size=channels) / 4, self.rng.uniform(0.5, 1.5, channels)], 1)
        params = [
            self.param(f"{base}_g", self.rng.uniform(0.5, 1.5, channels)),
            self.param(f"{base}_b", self.rng.normal(size=channels) / 4),
            self.param(f"{base}_m", moments),
        ]
        return self.layer(name, "dagnn.BatchNorm", [x], params, epsilon=1e-4)

    def relu(self, name: str, x: str) -> str:
        return self.layer(name, "dagnn.ReLU", [x])

    def unit(self, base: str, x: str, shape: tuple[int, int, int], dilate: int = 1, shared: str = "") -> str:
        """Convolution, norm, ReLU with the endings of the recurrent modules."""
        x = self.conv(f"{base}_conv", x, shape, 1, dilate, shared=f"{shared}_conv" if shared else "")
        x = self.norm(f"{base}_bn", x, shape[2], f"{shared}_bn" if shared else "")
        return self.relu(f"{base}_relu", x)


def backbone(graph: Graph, width: int, *, stride: int, gates: bool = False, pool: bool = False) -> str:
    """The ResNet with dilations beyond ``stride``, a gate in every block, and a MultiPool in res5_2."""
    x = graph.conv("conv1_1", "data", (7, 3, width), 2)
    x = graph.attention("conv1_1_ChaAtten", x, width)
    graph.layers[-1]["block"]["globalVariance"] *= 100  # of colours in 0..255: no softmax is to be certain
    x = graph.relu("conv1_1_relu", x)
    x = graph.layer("pool1", "dagnn.Pooling", [x], method="max")
    below, at, dilation = width, 4, 1
    for stage, count in zip((2, 3, 4, 5), BLOCKS, strict=True):
        inner = width * 2 ** (stage - 2)
        strides = 2 if stage > 2 and at < stride else 1
        dilation = dilation * 2 if stage > 2 and strides == 1 else dilation
        at *= strides
        for block in range(1, count + 1):
            name, step = f"res{stage}_{block}", strides if block == 1 else 1
            entry = x
            first = graph.conv(f"{name}_1conv", x, (1, below, inner), step)
            first = graph.relu(f"{name}_1relu", graph.attention(f"{name}_1ChaAtten", first, inner))
            second = graph.conv(f"{name}_2conv", first, (3, inner, inner), 1, dilation)
            second = graph.relu(f"{name}_2relu", graph.attention(f"{name}_2ChaAtten", second, inner))
            if pool and name == "res5_2":
                second = multipool(graph, "res5", first, second, inner)
            elif gates:
                logits = graph.conv(f"{name}_attentionConv", entry, (1, below, 2), step, bias=True)
                weights = graph.layer(f"{name}_attentionProb", "dagnn.SoftMax", [logits])
                second = graph.layer(f"{name}_attentionGating", "dagnn.MaskGating", [first, second, weights])
            third = graph.conv(f"{name}_3conv", second, (1, inner, 4 * inner))
            third = graph.attention(f"{name}_3ChaAtten", third, 4 * inner)
            if below != 4 * inner:
                entry = graph.conv(f"{name}_projBranch", entry, (1, below, 4 * inner), step)
                entry = graph.attention(f"{name}_projBranchChaAtten", entry, 4 * inner)
            total = graph.layer(f"{name}_sum", "dagnn.Sum", [entry, third])
            x, below = graph.relu(f"{name}_relu", total), 4 * inner
    return x


def multipool(graph: Graph, stage: str, first: str, second: str, inner: int) -> str:
    """insertPyramidPool.m: copies of the 3x3 with other dilations, and the choice, largest dilation first."""
    pools = []
    for size in (2, 4, 6, 8, 10):
        base = f"{stage}_pyramid_pool{size}"
        x = graph.conv(f"{base}_conv", first, (3, inner, inner), 1, size)
        pools.append(graph.relu(f"{base}_relu", graph.attention(f"{base}_ChaAtten", x, inner)))
    x = graph.unit(f"{stage}_AttentionLayerOne", first, (1, inner, 128))
    x = graph.unit(f"{stage}_AttentionLayerTwo", x, (3, 128, 32))
    x = graph.conv(f"{stage}_AttentionLayer_conv", x, (1, 32, 7), bias=True)
    weights = graph.layer(f"{stage}_AttentionSoftmax", "dagnn.SoftMax", [x])
    inputs = [*reversed(pools), second, first, weights]
    return graph.layer(f"{stage}_AttentionGatingLayer", "dagnn.MaskGating", inputs)


def recurrent(graph: Graph, x: str, top: int, width: int, classes: int, loops: int) -> None:
    """train_NYUv2.m above the backbone: res6, the feed-forward pass, loops that share their parameters."""
    res6 = graph.conv("res6_conv", x, (3, top, width))
    res6 = graph.relu("res6_relu", graph.norm("res6_bn", res6, width))
    feature = res6
    for loop in range(loops + 1):
        prefix, own = (f"recurrentModule{loop}_", "recurrentModule1_") if loop else ("", "")
        x = res6
        if loop:
            x = graph.layer(f"round{loop}_concatLayer", "dagnn.Concat", [res6, feature])
            x = graph.unit(f"{prefix}block1", x, (3, 2 * width, width), shared=f"{own}block1")
        depth = graph.unit(f"{prefix}depthEstLayerOne", x, (1, width, 6), shared=f"{own}depthEstLayerOne")
        depth = graph.unit(f"{prefix}depthEstLayerTwo", depth, (3, 6, 4), shared=f"{own}depthEstLayerTwo")
        graph.conv(f"{prefix}depthReg", depth, (3, 4, 1), bias=True, shared=f"{own}depthReg")
        bins = graph.conv(f"{prefix}depthCls_conv", depth, (1, 4, 5), bias=True, shared=f"{own}depthCls")
        weights = graph.layer(f"{prefix}depthSoftmax", "dagnn.SoftMax", [bins])
        maps = [
            graph.unit(
                f"{prefix}block2_pyramidAtrous_pool{d}",
                x,
                (3, width, width),
                d,
                f"{own}block2_pyramidAtrous_pool{d}",
            )
            for d in (1, 2, 4, 8, 16)
        ]
        # On NYUv2 the first bin is the nearest, which takes the largest dilation.
        inputs = [*reversed(maps), weights]
        feature = graph.layer(f"{prefix}depthGatingLayer", "dagnn.MaskGating", inputs)
        if loop:
            feature = graph.unit(f"{prefix}block3", feature, (1, width, width), shared=f"{own}block3")
        graph.conv(f"{prefix}cls", feature, (1, width, classes), bias=True, shared=f"{own}cls")
    kernel = np.zeros((16, 16, 1, classes))
    graph.layer("res7_interp", "dagnn.ConvTranspose", ["cls"], [graph.param("res7_interp_f", kernel)], up=8.0)


def run(struct: dict[str, Any], image: np.ndarray, *, hard: bool) -> dict[str, np.ndarray]:
    """All variables (H, W, C) of a network for an RGB image (H, W, 3) in 0..255.

    Args:
      struct: of a `Graph`.
      image: with even sides at every stride.
      hard: masks are one-hot, as in the paper; otherwise the softmax's, as released.
    """
    params = {param["name"]: np.asarray(param["value"], np.float64) for param in struct["params"]}
    known = {"data": image - struct["meta"]["normalization"]["averageImage"]}
    for layer in struct["layers"]:
        inputs = [known[name] for name in layer["inputs"]]
        values = [params[name] for name in layer["params"]]
        known[layer["name"]] = _layer(layer, inputs, values, hard=hard)
    return known


def _layer(layer: dict[str, Any], inputs: list[np.ndarray], values: list[np.ndarray], *, hard: bool) -> Any:
    kind, block, x = layer["type"].removeprefix("dagnn."), layer["block"], inputs[0]
    if kind == "Conv":
        return convolved(x, values[0], int(block["stride"]), int(block["dilate"])) + sum(values[1:])
    if kind == "attentionChannel":
        return (x - block["globalMean"]) / (1e-5 + block["globalVariance"]) * values[0] + values[1]
    if kind == "BatchNorm":
        return (x - values[2][:, 0]) / values[2][:, 1] * values[0] + values[1]
    if kind == "SoftMax":
        return softmax(x, -1)
    if kind == "MaskGating":
        *maps, weights = inputs
        if hard:
            weights = np.eye(weights.shape[-1])[weights.argmax(-1)]
        return sum(one * weights[..., index, None] for index, one in enumerate(maps))
    if kind == "Pooling":
        return numpy_layers.max_pool(x.transpose(2, 0, 1)).transpose(1, 2, 0)
    if kind == "Concat":
        return np.concatenate(inputs, -1)
    return {"ReLU": lambda: np.maximum(x, 0), "Sum": lambda: sum(inputs), "ConvTranspose": lambda: x}[kind]()


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int = 1, dilation: int = 1) -> np.ndarray:
    """(H, W, C) by (h, w, C, O), padded by half the kernel."""
    y = numpy_layers.conv(
        x.transpose(2, 0, 1), kernel.transpose(3, 2, 0, 1), stride=stride, dilation=dilation
    )
    return y.transpose(1, 2, 0)

"""MatConvNet's networks in all versions of .mat files, with the names of PAG's and RSP's releases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.weights.matlab_file import Unread, read_matlab
from dynpix_jax.weights.network_file import Convention, Convolution
from dynpix_jax.weights.readers import read_network, read_tensors
from tests.data.matlab_v73 import new_v73
from tests.weights import matlab_net as mn
from tests.weights.matlab_net import Structs

RNG = np.random.default_rng(0)
VERSIONS = ("5", "7", "7.3")
MEAN = np.array([123.68, 116.779, 103.939]).reshape(1, 1, 3)
WIDTH = 6


def _refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def _normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype("f4")


class Dag:
    """Builds what `DagNN.saveobj` gives, and what a reader must find in it."""

    def __init__(self) -> None:
        self.params, self.layers = Structs(), Structs()
        self.tensors: dict[str, np.ndarray] = {}

    def param(self, name: str, array: np.ndarray) -> str:
        self.params.append({"name": name, "value": array, "learningRate": 1.0, "weightDecay": 1.0})
        self.tensors[name] = array
        return name

    def layer(self, name: str, kind: str, params: list[str], **block: Any) -> None:
        io = {"inputs": ["x"], "outputs": [name]}
        self.layers.append({"name": name, "type": kind, **io, "params": params, "block": block})

    def conv(self, name: str, shape: tuple[int, ...], stride: int = 1, dilate: int = 1, bias: bool = False):
        params = [self.param(f"{name}_f", _normal(*shape))]
        params += [self.param(f"{name}_b", _normal(shape[3]))] if bias else []
        stride_, dilate_ = np.array([[stride, stride]], "f8"), np.array([[dilate]], "f8")
        size = np.array([shape], "f8")
        self.layer(
            name,
            "dagnn.Conv",
            params,
            size=size,
            stride=stride_,
            dilate=dilate_,
            hasBias=bias,
            opts=["cuDNN"],
        )

    def norm(self, name: str, channels: int):
        params = [self.param(f"{name}_{s}", _normal(channels)) for s in "gb"]
        params.append(self.param(f"{name}_m", _normal(channels, 2)))
        self.layer(name, "dagnn.BatchNorm", params, numChannels=float(channels), epsilon=1e-4)

    def attention(self, name: str, channels: int):
        """PAG's norm with moments in the layer."""
        params = [self.param(f"{name}_{s}", _normal(channels)) for s in ("multiplier", "bias")]
        moments = {f"global{s}": _normal(channels) for s in ("Mean", "Variance")}
        self.layer(name, "attentionChannel", params, numChannels=float(channels), **moments)
        self.tensors |= {f"{name}.{field}": array for field, array in moments.items()}

    def struct(self, mean: np.ndarray = MEAN) -> dict[str, Any]:
        variables = Structs([{"name": "data", "precious": 0.0}, {"name": "prediction", "precious": 1.0}])
        meta = {"normalization": {"averageImage": mean, "border": np.array([[0.0, 768.0]])}}
        return {
            "vars": variables,
            "params": self.params,
            "layers": self.layers,
            "meta": meta,
            "conserveMemory": 1.0,
        }


def _release() -> Dag:
    """A part of each module of PAG's and RSP's networks, channels reduced."""
    dag = Dag()
    dag.conv("conv1_1", (3, 3, 3, WIDTH), stride=2)
    dag.attention("conv1_1_ChaAtten", WIDTH)
    dag.layer("conv1_1_relu", "dagnn.ReLU", [], leak=0.0)
    dag.conv("res3_1_projBranch", (1, 1, WIDTH, 8), stride=2)
    dag.conv("res3_1_1conv", (1, 1, WIDTH, 2), stride=2)
    dag.conv("res3_1_2conv", (3, 3, 2, 2))
    dag.conv("res3_1_attentionConv", (1, 1, WIDTH, 2), stride=2, bias=True)
    dag.conv("res5_pyramid_pool8_conv", (3, 3, WIDTH, WIDTH), dilate=8)
    dag.attention("res5_pyramid_pool8_ChaAtten", WIDTH)
    dag.norm("res5_AttentionLayerOne_bn", WIDTH)
    dag.conv("recurrentModule1_depthReg", (3, 3, WIDTH, 1), bias=True)  # MATLAB drops the last axis
    dag.norm("recurrentModule1_narrow_bn", 1)
    shared = [f"recurrentModule1_narrow_bn_{s}" for s in "gbm"]
    dag.layer("recurrentModule2_narrow_bn", "dagnn.BatchNorm", shared, numChannels=1.0)
    interp = dag.param("res7_interp_f", _normal(16, 16, 1, 3))
    dag.layer("res7_interp", "dagnn.ConvTranspose", [interp], upsample=8.0)
    dag.layer("obj_normalEst", "dagnn.Loss", [], loss="normalDotProd")
    return dag


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("place", ["netbasemodel", "net", "fields"])
def test_released_networks(tmp_path, version, place):
    """PAG's file has the variable `netbasemodel`, RSP's `net` (and `stats`); some have the fields alone."""
    dag = _release()
    variables = dag.struct() if place == "fields" else {place: dag.struct(), "stats": {"train": 1.0}}
    network = read_network(mn.save(tmp_path / "softmax_net-epoch-140.mat", variables, version))
    assert sorted(network.tensors) == sorted(dag.tensors)
    for name, array in dag.tensors.items():
        assert network.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(network.tensors[name], array, err_msg=name, strict=True)
    assert network.convention == Convention("HWIO", True, "rgb", (123.68, 116.779, 103.939))
    assert network.convolutions["conv1_1"] == Convolution((3, 3), 3, 2, 1)
    assert network.convolutions["res5_pyramid_pool8_conv"] == Convolution((3, 3), WIDTH, 1, 8)
    assert len(network.convolutions) == 7


@pytest.mark.parametrize("version", VERSIONS)
def test_a_network_of_one_layer_and_one_parameter(tmp_path, version):
    """MATLAB's struct arrays of one element are structs."""
    dag = Dag()
    dag.conv("conv1", (3, 3, 8, 2), stride=2)
    network = read_network(mn.save(tmp_path / "a.mat", {"net": dag.struct()}, version))
    np.testing.assert_array_equal(network.tensors["conv1_f"], dag.tensors["conv1_f"])
    assert network.convention.stride_in_1x1 is None


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (MEAN.astype("f4"), ("rgb", (123.68, 116.779, 103.939))),
        (MEAN.reshape(3), ("rgb", (123.68, 116.779, 103.939))),
        (np.broadcast_to(MEAN[..., ::-1], (6, 5, 3)), ("bgr", (103.939, 116.779, 123.68))),
        (np.full((1, 1, 3), 128.0), (None, (128.0, 128.0, 128.0))),
        (np.empty((0, 0)), (None, None)),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_mean_image(tmp_path, version, mean, expected):
    dag = Dag()
    dag.conv("conv1", (3, 3, 3, 2))
    convention = read_network(mn.save(tmp_path / "a.mat", {"net": dag.struct(mean)}, version)).convention
    assert convention.channel_order == expected[0]
    assert convention.mean == (None if expected[1] is None else pytest.approx(expected[1], rel=1e-12))


def test_stride_in_3x3(tmp_path):
    dag = Dag()
    dag.conv("conv1", (7, 7, 3, 8), stride=2)
    dag.conv("layer2_0_conv1", (1, 1, 8, 8))
    dag.conv("layer2_0_conv2", (3, 3, 8, 8), stride=2)
    dag.conv("layer2_0_downsample", (1, 1, 8, 8), stride=2)
    assert (
        read_network(mn.save(tmp_path / "a.mat", {"net": dag.struct()}, "7")).convention.stride_in_1x1
        is False
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("old", [False, True])
def test_simple_networks(tmp_path, version, old):
    """imagenet-vgg-verydeep-16.mat, with `filters` and `biases` before 2015; all layers in a cell array."""
    kernel, bias, dense = _normal(3, 3, 3, 6), _normal(6), _normal(1, 1, 6, 1)
    gain, shift, moments = _normal(4), _normal(4), _normal(4, 2)
    stride = {"stride": 1.0, "pad": 1.0}

    def parameters(filters, biases):
        return {"filters": filters, "biases": biases} if old else {"weights": [filters, biases]}

    layers = [
        {"name": "conv1_1", "type": "conv", **parameters(kernel, bias), **stride},
        {"name": "relu1_1", "type": "relu"},
        {"name": "bn1", "type": "bnorm", "weights": [gain, shift, moments]},
        {"type": "conv", **parameters(dense, np.empty((0, 0), "f4")), "stride": np.array([[2.0, 2.0]])},
        {"name": "prob", "type": "softmax"},
    ]
    normalization = {"averageImage": MEAN}
    net = {
        "layers": layers,
        **({"normalization": normalization} if old else {"meta": {"normalization": normalization}}),
    }
    network = read_network(mn.save(tmp_path / "vgg.mat", net, version))
    expected = {
        "conv1_1f": kernel,
        "conv1_1b": bias,
        "bn1m": gain,
        "bn1b": shift,
        "bn1x": moments,
        "layer4f": dense,
    }
    assert list(network.tensors) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(network.tensors[name], array, strict=True)
    assert network.convolutions["layer4"] == Convolution((1, 1), 6, 2, 1)
    assert network.convention == Convention("HWIO", True, "rgb", (123.68, 116.779, 103.939))


@pytest.mark.parametrize("version", VERSIONS)
def test_kinds_of_values(tmp_path, version):
    values = {
        "text": "res2_1",
        "none": "",
        "cell": ["a", [np.float32(2.0), {"b": "c"}], []],
        "structs": Structs([{"a": "x", "b": [1.0]}, {"a": "y", "b": []}]),
        "struct": {"a": {"b": np.arange(6, dtype=np.uint8).reshape(3, 2)}},
        "array": np.arange(24, dtype=np.int16).reshape(2, 3, 4),
    }
    read = read_matlab(mn.save(tmp_path / "a.mat", values, version))
    assert read["text"] == "res2_1"
    assert read["none"] == ""
    assert read["cell"][0] == "a"
    assert read["cell"][1][0] == 2.0
    assert read["cell"][1][1] == {"b": "c"}
    assert np.size(read["cell"][2]) == 0
    assert [item["a"] for item in read["structs"]] == ["x", "y"]
    assert read["structs"][0]["b"][0] == 1.0
    np.testing.assert_array_equal(read["struct"]["a"]["b"], [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(read["array"], values["array"], strict=True)


def test_whole_numbers_keep_their_class(tmp_path):
    array = np.array([[0, 1, 2], [3, 0, 255]], "f4")
    read = read_matlab(mn.save_as_bytes(tmp_path / "a.mat", "bias", array))["bias"]
    np.testing.assert_array_equal(read, array, strict=True)


def test_an_object_is_named_with_the_way_out(tmp_path):
    path = mn.save_object(tmp_path / "net.mat", "net", "dagnn.DagNN")
    assert Unread("dagnn.DagNN") in read_matlab(path).values()
    assert "(dagnn.DagNN), not a struct; in MATLAB: net = net.saveobj()" in _refusal(path)
    with new_v73(path) as file:
        node = file.create_dataset("net", data=np.zeros((6, 1), np.uint32))
        node.attrs["MATLAB_class"] = np.bytes_("dagnn.DagNN")
        node.attrs["MATLAB_object_decode"] = np.int32(3)
    assert "(dagnn.DagNN), not a struct" in _refusal(path)


def _changed(change: Any) -> dict[str, Any]:
    dag = Dag()
    dag.conv("conv1", (3, 3, 3, 2), bias=True)
    dag.norm("bn1", 2)
    net = dag.struct()
    change(net)
    return {"net": net}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda net: net["params"][0].update(value="text"), "parameter 'conv1_f' is str, expected numbers"),
        (lambda net: net["params"][0].update(value=["cell"]), "is list, expected numbers"),
        (lambda net: net["params"][1].update(name="conv1_f"), "two parameters 'conv1_f'"),
        (lambda net: net["params"][4].update(value=np.ones((3, 3))), "moments of shape (3, 3)"),
        (lambda net: net["params"][0].update(value=np.ones((1, 1, 1, 1, 2))), "a filter of shape"),
        (lambda net: net["params"][2].update(value=np.ones((3, 2))), "shape (3, 2) where one number"),
        (lambda net: net["layers"][0].update(params=["gone_f"]), "'gone_f' that is not there"),
        (lambda net: net["layers"][1].update(params=["conv1_f"] * 4), "has 4 parameters"),
        (lambda net: net["layers"][0].update(params=[]), "corrupt network"),
        (lambda net: [layer.pop("params") for layer in net["layers"]], "no field 'params'"),
        (lambda net: net.update(layers=3.0), "corrupt network"),
        (lambda net: net.update(params=["a"]), "corrupt network"),
        (
            lambda net: net.pop("layers"),
            "holds 0 networks of MatConvNet, expected one; its variables are net",
        ),
    ],
)
def test_damaged_networks(tmp_path, version, change, said):
    assert said in _refusal(mn.save(tmp_path / "a.mat", _changed(change), version))


@pytest.mark.parametrize("version", VERSIONS)
def test_damaged_simple_networks(tmp_path, version):
    layer = {"name": "conv1", "type": "conv", "weights": [np.ones((3, 3, 3, 2)), np.ones(2)]}
    for layers, said in (
        ([layer, layer], "two layers 'conv1'"),
        ([{"name": "conv1", "type": "conv"}, layer], "no field 'conv1f'"),
        ([{"name": "conv1"}, layer], "no field 'type'"),
        (["text", layer], "corrupt network"),
    ):
        assert said in _refusal(mn.save(tmp_path / "a.mat", {"net": {"layers": layers}}, version))


def test_other_files(tmp_path):
    path = tmp_path / "a.mat"
    for data in (b"", b"<html>404</html>", b"MATLAB 4", b"PK\x03\x04" + bytes(600)):
        path.write_bytes(data)
        assert "not a .mat file" in _refusal(path)
    net = _changed(lambda net: None)["net"]
    assert "holds 2 networks" in _refusal(mn.save(path, {"one": net, "two": net}, "7"))
    assert "its variables are imdb" in _refusal(mn.save(path, {"imdb": {"images": 1.0}}, "7"))


@pytest.mark.parametrize("version", VERSIONS)
def test_truncated_anywhere(tmp_path, version):
    path = mn.save(tmp_path / "a.mat", _changed(lambda net: None), version)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, len(whole) // 60):
        path.write_bytes(whole[:length])
        _refusal(path)


def test_hdf5_that_would_not_end(tmp_path):
    """A struct within itself, more zeros than memory, and a reference to nothing."""
    path = tmp_path / "a.mat"
    with new_v73(path) as file:
        inner = file.create_group("net")
        inner.attrs["MATLAB_class"] = np.bytes_("struct")
        inner["self"] = inner
    assert "too deeply" in _refusal(path)
    with new_v73(path) as file:
        file.create_dataset("net", (2**20, 2**20), "f8", chunks=(1024, 1024))
    assert "too large" in _refusal(path)
    with new_v73(path) as file:
        node = file.create_dataset("net", data=np.empty((1, 1), h5py.ref_dtype))
        node.attrs["MATLAB_class"] = np.bytes_("cell")
    assert "corrupt .mat file" in _refusal(path)

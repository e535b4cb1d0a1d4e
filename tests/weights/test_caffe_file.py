from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.weights import import_weights
from dynpix_jax.weights.network_file import Convention, Convolution
from dynpix_jax.weights.readers import read_network, read_tensors
from tests.weights import caffe_net as cn

RNG = np.random.default_rng(0)


def _refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def _normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype("f4")


def _check(read, arrays):
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


# PixelNet's edge network, channels divided by 64: the names are the release's.
PIXELNET = {
    "conv1_1": ("Convolution", (1, 3, 3, 3)),
    "conv1_2": ("Convolution", (1, 1, 3, 3)),
    "conv5_3": ("Convolution", (8, 8, 3, 3)),
    "fc6o": ("Convolution", (64, 8, 7, 7)),
    "fc7o": ("Convolution", (64, 64, 1, 1)),
    "fc6n": ("InnerProduct", (64, 87)),
    "fc7n": ("InnerProduct", (64, 64)),
    "cls_score": ("InnerProduct", (1, 64)),
}


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("form", ["shape", "legacy", "unpacked", "chunks"])
def test_pixelnet(tmp_path, form, v1):
    """Of either generation of layers and blobs; `legacy` blobs of vectors and matrices have four axes."""
    arrays, layers = {}, []
    for name, (kind, shape) in PIXELNET.items():
        kernel, bias = _normal(*shape), _normal(shape[0])
        arrays |= {f"{name}.0": kernel, f"{name}.1": bias}
        blobs = [cn.blob(kernel, form=form), cn.blob(bias, form=form)]
        layers += [cn.layer(name, kind, blobs, v1=v1), cn.layer(f"relu_{name}", "ReLU", v1=v1)]
    network = read_network(cn.save(tmp_path / "edges.caffemodel", *layers))
    _check(network.tensors, arrays)
    assert network.convention == Convention("OIHW", None, None, None)
    assert network.convolutions["fc6o"] == Convolution((7, 7), 8, 1, 1)
    assert list(network.convolutions) == ["conv1_1", "conv1_2", "conv5_3", "fc6o", "fc7o"]


def test_vgg_is_imported(tmp_path):
    """Names and layouts of Caffe's VGG-16 are known to the importer as they are."""
    kernel, bias = _normal(64, 3, 3, 3), _normal(64)
    blobs = [cn.blob(kernel, form="legacy"), cn.blob(bias, form="legacy")]
    path = cn.save(
        tmp_path / "VGG_ILSVRC_16_layers.caffemodel", cn.layer("conv1_1", "Convolution", blobs, v1=True)
    )
    variables, report = import_weights("vgg16", path)
    assert report.loaded == ("params/conv1_1/bias", "params/conv1_1/kernel")
    assert not report.unexpected
    np.testing.assert_array_equal(variables["params"]["conv1_1"]["kernel"], kernel.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(variables["params"]["conv1_1"]["bias"], bias)


def test_double_data_and_blobs_without_axes(tmp_path):
    kernel, factor = RNG.normal(size=(2, 3)), np.float32(0.5)
    path = cn.save(
        tmp_path / "a.caffemodel",
        cn.layer("ip", "InnerProduct", [cn.blob(kernel, form="double")]),
        cn.layer("bn", "BatchNorm", [cn.blob(_normal(4)), cn.blob(factor[None])]),
        cn.layer("scale", "Scale", [cn.sized(5, factor.tobytes())]),
    )
    read = read_tensors(path)
    assert read["ip.0"].dtype == np.float64
    np.testing.assert_array_equal(read["ip.0"], kernel)
    assert read["bn.1"].shape == (1,)
    assert read["scale.0"].shape == ()
    assert read["scale.0"] == factor


def _resnet(three_by_three: bool) -> list[bytes]:
    """The stem and the block of Caffe's ResNet that halves the resolution, or torchvision's."""
    strides = (1, 2) if three_by_three else (2, 1)
    shapes = {
        "conv1": ((8, 3, 7, 7), 2),
        "res3a_branch1": ((8, 8, 1, 1), 2),
        "res3a_branch2a": ((8, 8, 1, 1), strides[0]),
        "res3a_branch2b": ((8, 8, 3, 3), strides[1]),
    }
    return [
        cn.layer(name, "Convolution", [cn.blob(_normal(*shape))], convolution=cn.number(6, stride))
        for name, (shape, stride) in shapes.items()
    ]


@pytest.mark.parametrize("three_by_three", [False, True])
@pytest.mark.parametrize("v1", [False, True])
def test_convention(tmp_path, three_by_three, v1):
    data = cn.layer("data", "Data", v1=v1, mean=(103.939, 116.779, 123.68))
    path = cn.save(tmp_path / "a.caffemodel", data, data, *_resnet(three_by_three))
    assert read_network(path).convention == Convention(
        "OIHW", not three_by_three, "bgr", (103.939, 116.779, 123.68)
    )


def test_means_that_differ_are_no_mean(tmp_path):
    means = ((104.0, 117.0, 123.0), (123.68, 116.779, 103.939))
    layers = [cn.layer(f"data{i}", "Data", mean=mean) for i, mean in enumerate(means)]
    path = cn.save(tmp_path / "a.caffemodel", *layers, *_resnet(False))
    assert read_network(path).convention == Convention("OIHW", True, None, None)


def test_geometry_of_convolutions(tmp_path):
    """Strides by either way of writing them, packed dilations, and groups."""
    blobs = [cn.blob(_normal(8, 2, 3, 5))]
    both = cn.number(13, 1) + cn.number(14, 4) + cn.number(5, 4)
    packed = cn.sized(6, b"\x02\x01") + cn.sized(18, b"\x01\x06")
    path = cn.save(
        tmp_path / "a.caffemodel",
        cn.layer("both", "Convolution", blobs, convolution=both),
        cn.layer("packed", "Convolution", blobs, convolution=packed),
        cn.layer("up", "Deconvolution", blobs, convolution=packed),
    )
    assert read_network(path).convolutions == {
        "both": Convolution((3, 5), 8, 4, 1),
        "packed": Convolution((3, 5), 2, 2, 6),
    }


LAYER = cn.layer("conv1_1", "Convolution", [cn.blob(np.ones((2, 1, 3, 3))), cn.blob(np.ones(2))])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "mmap"),
        (b"name: 'VGG'\nlayer {", "corrupt"),
        (b"<html>404</html>", "corrupt"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "corrupt"),
        (cn.sized(1, "a net without layers"), "no layer with weights"),
        (cn.layer("relu1_1", "ReLU"), "no layer with weights"),
        (LAYER * 2, "two layers 'conv1_1'"),
        (cn.number(100, 3), "field 100 is a number"),
        (cn.sized(2, cn.sized(1, b"")), "first format"),
        (cn.layer("c", "Scale", [cn.number(7, 3)]), "layer 'c': field 7 is a number"),
        (cn.layer("c", "Scale", [cn.sized(7, cn.number(1, -2)) + cn.sized(5, bytes(8))]), "shape (-2,)"),
        (cn.layer("c", "Scale", [cn.sized(7, cn.number(1, 3)) + cn.sized(5, bytes(8))]), "2 numbers"),
        (cn.layer("c", "Scale", [cn.sized(7, cn.number(1, 2**62) * 4)]), "0 numbers"),
        (cn.layer("c", "Scale", [cn.sized(7, cn.number(1, 1)) + cn.sized(5, bytes(5))]), "multiple"),
        (cn.sized(100, cn.sized(1, b"\xff")), "decode"),
        (b"\x80" * 11, "more than 64 bits"),
        (b"\x02\x00", "number 0"),
        (b"\x0b", "wire type 3"),
        (b"\x0d\x00", "field 1 has 4 bytes where 1 are left"),
    ],
)
def test_damaged_files(tmp_path, data, said):
    path = tmp_path / "a.caffemodel"
    path.write_bytes(data)
    assert said in _refusal(path)


def test_truncated_at_any_point(tmp_path):
    """A network that is cut between two layers is a smaller network: nothing in the format tells."""
    first = cn.layer("conv1_1", "Convolution", [cn.blob(np.ones((2, 1, 3, 3)))])
    whole = cn.save(
        tmp_path / "a.caffemodel", first, cn.layer("fc8", "InnerProduct", [cn.blob(np.ones((9, 2)))])
    )
    data = whole.read_bytes()
    boundary = data.index(first) + len(first)
    for length in range(len(data)):
        whole.write_bytes(data[:length])
        if length == boundary:
            assert list(read_tensors(whole)) == ["conv1_1.0"]
        else:
            _refusal(whole)

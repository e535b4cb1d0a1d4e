"""VGG-16's tensors under torchvision's and Caffe's names; the real network."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import safetensors.numpy

from dynpix_jax.backbones.base import normalize
from dynpix_jax.backbones.vgg import VGG, VGGConfig
from dynpix_jax.backbones.vgg_names import fc6_kernel, fc7_kernel, translate
from dynpix_jax.core.errors import UserError
from dynpix_jax.weights import import_weights
from dynpix_jax.weights.importer import expected_shapes

# torchvision.models.vgg16().features: the convolutions' places among 31 layers.
PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
PLACES_BN = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
NAMES = tuple(f"conv{block}_{k}" for block, n in enumerate((2, 2, 3, 3, 3), 1) for k in range(1, n + 1))
FEATURES = "weights/vgg16_features_torchnames_fp16.safetensors"


def test_torchvision_and_caffe_names():
    for place, place_bn, name in zip(PLACES, PLACES_BN, NAMES, strict=True):
        ours = f"params/{name}/kernel"
        for file in (f"features.{place}.weight", f"{name}.weight", f"{name}.0"):
            assert translate(file, batch_norm=False).name == ours, file
        assert translate(f"features.{place_bn}.weight", batch_norm=True).name == ours
        norm = name.replace("conv", "bn")
        for leaf, target in (("weight", "params/{}/scale"), ("running_var", "batch_stats/{}/var")):
            found = translate(f"features.{place_bn + 1}.{leaf}", batch_norm=True)
            assert found.name == target.format(norm)
    assert translate("classifier.3.bias", batch_norm=False).name == "params/fc7/bias"
    assert translate("fc6.1", batch_norm=False).name == "params/fc6/bias"
    for name in ("classifier.6.weight", "fc8.weight", "features.1.weight", "features.30.weight", "conv1"):
        assert translate(name, batch_norm=False) is None


def test_fc_as_convolutions():
    """Channel-major, as Caffe and torchvision flatten: out[o] = sum over c, y, x of w[o, (c, y, x)]."""
    rng = np.random.default_rng(0)
    matrix, cells = rng.normal(size=(5, 3 * 49)), rng.normal(size=(7, 7, 3))
    flat = cells.transpose(2, 0, 1).ravel()
    np.testing.assert_allclose(np.einsum("yxc,yxco->o", cells, fc6_kernel(matrix)), matrix @ flat)
    np.testing.assert_array_equal(fc6_kernel(matrix.reshape(5, 3, 7, 7)), fc6_kernel(matrix))
    np.testing.assert_array_equal(fc7_kernel(matrix)[0, 0], matrix.T)
    np.testing.assert_array_equal(fc7_kernel(matrix[..., None, None]), fc7_kernel(matrix))


def test_published_parameter_counts():
    """Simonyan and Zisserman: 138 M with the classifier, of which fc8 has 4096 * 1000 + 1000."""
    for arch, count in (("vgg16", 138_357_544), ("vgg16_bn", 138_365_992)):
        shapes = expected_shapes(arch)
        have = sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith("params/"))
        assert have == count - 4_097_000
    convs = {name: shape for name, shape in expected_shapes("vgg16").items() if "conv" in name}
    assert sum(int(np.prod(shape)) for shape in convs.values()) == 14_714_688


def test_what_is_there_and_what_is_not(tmp_path):
    state = {"conv1_1.0": np.full((64, 3, 3, 3), 0.5, "f4"), "fc8.0": np.ones((2, 2), "f4")}
    safetensors.numpy.save_file(state, tmp_path / "a.safetensors")
    variables, report = import_weights("vgg16", tmp_path / "a.safetensors")
    assert report.loaded == ("params/conv1_1/kernel",)
    assert report.unexpected == ("fc8.0",)
    assert "params/fc6/kernel" in report.missing
    assert variables["params"]["conv1_1"]["kernel"].shape == (3, 3, 3, 64)
    safetensors.numpy.save_file({"fc6.weight": np.ones((2, 9), "f4")}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"fc6\.weight has shape \(2, 9\).*expects \(7, 7, 512, 4096\)"):
        import_weights("vgg16", tmp_path / "b.safetensors")
    safetensors.numpy.save_file({"layer1.0": np.ones((2, 9), "f4")}, tmp_path / "c.safetensors")
    with pytest.raises(UserError, match=r"none of its 1 tensors belongs to vgg16.*features\.0\.weight"):
        import_weights("vgg16", tmp_path / "c.safetensors")


def test_the_real_network(shared):
    """conv1_1 by an explicit sum, and values of the usual size further up."""
    variables, report = import_weights("vgg16", shared / FEATURES)
    assert report.unexpected == ()
    assert {name.split("/")[1] for name in report.missing} == {"fc6", "fc7"}
    raw = safetensors.numpy.load_file(shared / FEATURES)
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    x = normalize(image, "torch")
    network = VGG(VGGConfig(preprocessing="torch", tap="conv"), taps=("conv1_1", "conv3_1"))
    found = jax.jit(network.apply)(variables, x)
    window = np.asarray(x)[0, 9:12, 19:22].transpose(2, 0, 1)  # around row 10, column 20
    expected = (raw["features.0.weight"] * window).sum((1, 2, 3), dtype="f8") + raw["features.0.bias"]
    np.testing.assert_allclose(found["conv1_1"][0, 10, 20], expected, atol=2e-3)
    assert found["conv3_1"].shape == (1, 8, 8, 256)
    assert 0.5 < float(np.abs(found["conv3_1"]).mean()) < 50

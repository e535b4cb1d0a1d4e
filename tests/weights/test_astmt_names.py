"""Backbones of ASTMT: published sizes, both numberings of MobileNetV2, and its real ImageNet weights."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from dynpix_jax.backbones.base import normalize
from dynpix_jax.backbones.mobilenet import MobileNetConfig, MobileNetV2
from dynpix_jax.core.errors import UserError
from dynpix_jax.weights import import_weights
from dynpix_jax.weights.importer import expected_shapes

WEIGHTS = "weights/mobilenetv2_bottleneck_fp16.safetensors"


def parameters(arch: str) -> int:
    shapes = expected_shapes(arch)
    return sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith("params/"))


def test_published_parameter_counts():
    # 28.09 million (Hu et al., table 2: SE-ResNet-50); 49.33 million of SE-ResNet-101 (timm's model card).
    assert parameters("se_resnet50") == 28_088_024
    assert parameters("se_resnet101") == 49_326_872
    # torchvision prints 3 504 872 for MobileNetV2; the last convolution, its norm and the classifier are not
    # part of the dense network.
    above = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert parameters("mobilenetv2") == 3_504_872 - above
    # Squeeze-and-excitation of reduction 4 after each block: two matrices and their biases.
    blocks = (16, 24, 24, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320)
    excite = sum(2 * c * (c // 4) + c // 4 + c for c in blocks)
    assert parameters("se_mobilenetv2") == parameters("mobilenetv2") + excite


def mobilenet_state(flat: bool) -> dict[str, np.ndarray]:
    """A state dict as torchvision (or, flat, the older code) lays out MobileNetV2; values tell tensors
    apart, equal ones of both layouts have the same.
    """
    state: dict[str, np.ndarray] = {}
    values = iter(range(1, 1000))

    def conv(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = np.full(shape, next(values), np.float16)

    def norm(name: str, channels: int) -> None:
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{leaf}"] = np.full(channels, next(values), np.float16)
        state[f"{name}.num_batches_tracked"] = np.asarray(9, np.int64)

    conv("features.0.0", 32, 3, 3, 3)
    norm("features.0.1", 32)
    channels, index = 32, 0
    for t, c, n in ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)):
        for _ in range(n):
            index += 1
            at, hidden, place = f"features.{index}.conv", t * channels, 0
            shapes = [(hidden, channels, 1, 1)] if t > 1 else []
            for number, shape in enumerate([*shapes, (hidden, 1, 3, 3)]):
                conv(f"{at}.{place}" if flat else f"{at}.{number}.0", *shape)
                norm(f"{at}.{place + 1}" if flat else f"{at}.{number}.1", hidden)
                place += 3
            last = place if flat else len(shapes) + 1
            conv(f"{at}.{last}", c, hidden, 1, 1)
            norm(f"{at}.{last + 1}", c)
            channels = c
    conv("features.18.0", 1280, 320, 1, 1)
    norm("features.18.1", 1280)
    state["classifier.1.weight"] = np.zeros((1000, 1280), np.float16)
    state["classifier.1.bias"] = np.zeros(1000, np.float16)
    return state


def test_both_numberings_of_mobilenet_fit(tmp_path):
    imported = []
    for flat in (False, True):
        file = tmp_path / f"{flat}.safetensors"
        safetensors.numpy.save_file(mobilenet_state(flat), file)
        variables, report = import_weights("mobilenetv2", file)
        assert (report.missing, report.unexpected) == ((), ())
        imported.append(variables)
    chex.assert_trees_all_equal(*imported)
    params = imported[0]["params"]
    assert params["block_2"]["depthwise"]["kernel"].shape == (3, 3, 1, 96)
    # Of ASTMT's network only what torchvision's has not is missing.
    _, report = import_weights("se_mobilenetv2", file)
    assert report.unexpected == ()
    assert len(report.missing) == 17 * 4
    assert all("/se/" in name for name in report.missing)


def test_se_resnet_names(tmp_path):
    state = {
        "layer1.0.conv3.weight": np.ones((256, 64, 1, 1), np.float32),
        "layer1.0.se.fc.0.weight": np.full((16, 256), 2, np.float32),
        "layer1.0.se.fc.0.bias": np.full(16, 3, np.float32),
        "layer1.0.se.fc.2.weight": np.full((256, 16), 4, np.float32),
        "layer1.0.se.fc.2.bias": np.full(256, 5, np.float32),
        "layer1.0.se.fc.3.bias": np.full(256, 5, np.float32),
    }
    file = tmp_path / "se.safetensors"
    wrong = tmp_path / "wrong.safetensors"
    safetensors.numpy.save_file({**state, "layer1.0.se.fc.0.bias": np.ones(4, np.float32)}, wrong)
    with pytest.raises(UserError, match="shape"):
        import_weights("se_resnet50", wrong)
    safetensors.numpy.save_file(state, file)
    variables, report = import_weights("se_resnet50", file)
    assert report.unexpected == ("layer1.0.se.fc.3.bias",)
    se = variables["params"]["res2_1"]["se"]
    assert se["reduce"]["kernel"].shape == (256, 16)
    assert se["expand"]["kernel"].shape == (16, 256)
    assert (float(se["reduce"]["kernel"][0, 0]), float(se["expand"]["bias"][0])) == (2.0, 5.0)


def test_real_mobilenet_weights_fit_photographs(shared):
    """What a norm saw on ImageNet, it sees on photographs: the moments stored beside the kernels are those of
    the features, layer after layer, if names, layouts and preprocessing are right.
    """
    file = shared / WEIGHTS
    photos = sorted((shared / "data/BSDS500/data/images/val").glob("*.jpg"))
    if not file.is_file() or not photos:
        pytest.skip(f"needs {file} and photographs of BSDS500")
    from dynpix_jax.data.images import read_image

    variables, report = import_weights("mobilenetv2", file)
    assert (report.missing, report.unexpected) == ((), ())
    model = MobileNetV2(MobileNetConfig(output_stride=32, se=False))
    images = np.stack([read_image(path)[40:264, 40:264] for path in photos[:8]])
    run = jax.jit(lambda v, x: model.apply(v, normalize(x, "torch"), train=True, mutable=["batch_stats"])[1])
    moved = run(variables, jnp.asarray(images))["batch_stats"]
    for name in ("block_1", "block_4", "block_9", "block_15", "block_17"):
        before = variables["batch_stats"][name]["depthwise_bn"]["mean"]
        batch = 10 * moved[name]["depthwise_bn"]["mean"] - 9 * before  # the stored mean moves by a tenth
        assert np.corrcoef(before, batch)[0, 1] > 0.9, name

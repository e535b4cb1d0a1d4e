from __future__ import annotations

import argparse
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from dynpix_jax.backbones.resnet import ResNet, ResNetConfig
from dynpix_jax.cli import import_weights as cli
from dynpix_jax.cli import main
from dynpix_jax.core.errors import UserError
from dynpix_jax.weights import ARCHITECTURES, import_weights, read_weights
from dynpix_jax.weights.convention import CONVENTIONS, check_settings, read_settings
from dynpix_jax.weights.importer import expected_shapes

# torchvision's printed number of parameters (docs of torchvision.models), running statistics not counted.
TORCHVISION_PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
}
LAYERS = {
    "resnet18": (2, 2, 2, 2),
    "resnet26": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
CAFFE = "weights/resnet50_v1_caffe_torchnames_fp16.safetensors"


def _torch_state(arch: str, classes: int = 1000) -> dict[str, np.ndarray]:
    """A state dict as torchvision.models.resnet lays it out, every value telling its tensor apart."""
    state: dict[str, np.ndarray] = {}

    def put(name, *shape):
        state[name] = np.full(shape, len(state) + 1, np.float16)

    def norm(name, channels):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            put(f"{name}.{leaf}", channels)
        state[f"{name}.num_batches_tracked"] = np.asarray(9, np.int64)

    basic = arch in ("resnet18", "resnet34")
    put("conv1.weight", 64, 3, 7, 7)
    norm("bn1", 64)
    channels = 64
    for layer, blocks in enumerate(LAYERS[arch], 1):
        width = 64 * 2 ** (layer - 1)
        out = width if basic else 4 * width
        for block in range(blocks):
            at = f"layer{layer}.{block}"
            shapes = (
                [(width, channels, 3, 3), (width, width, 3, 3)]
                if basic
                else [(width, channels, 1, 1), (width, width, 3, 3), (out, width, 1, 1)]
            )
            for k, shape in enumerate(shapes, 1):
                put(f"{at}.conv{k}.weight", *shape)
                norm(f"{at}.bn{k}", shape[0])
            if block == 0 and channels != out:
                put(f"{at}.downsample.0.weight", out, channels, 1, 1)
                norm(f"{at}.downsample.1", out)
            channels = out
    put("fc.weight", classes, channels)
    put("fc.bias", classes)
    return state


def _save(tmp_path, state, name="source.safetensors"):
    path = tmp_path / name
    safetensors.numpy.save_file(state, path)
    return path


@pytest.mark.parametrize("arch", TORCHVISION_PARAMETERS)
def test_parameter_counts_are_torchvisions(arch):
    shapes = expected_shapes(arch)
    count = sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith("params/"))
    assert count == TORCHVISION_PARAMETERS[arch]


@pytest.mark.parametrize("arch", ["resnet18", "resnet26", "resnet34", "resnet50"])
def test_torchvision_layout_fits_completely(tmp_path, arch):
    state = _torch_state(arch)
    variables, report = import_weights(arch, _save(tmp_path, state))
    assert report.missing == report.unexpected == ()
    assert len(report.loaded) == sum("num_batches" not in name for name in state)
    leaves = traverse_util.flatten_dict(variables, sep="/")
    assert {name: leaf.shape for name, leaf in leaves.items()} == dict(expected_shapes(arch))
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype("f4")}
    # No two tensors landed in one place: every source value is found once.
    values = sorted(float(array.flat[0]) for name, array in state.items() if "num_batches" not in name)
    assert sorted(float(leaf.flat[0]) for leaf in leaves.values()) == values


def test_names_and_layouts(tmp_path):
    state = _torch_state("resnet50")
    rng = np.random.default_rng(0)
    for name in ("conv1.weight", "layer3.2.conv2.weight", "layer2.0.downsample.0.weight", "fc.weight"):
        state[name] = rng.normal(size=state[name].shape).astype("f4")
    state["layer4.0.downsample.1.running_var"] = rng.uniform(size=2048).astype("f4")
    state["layer1.2.bn3.weight"] = rng.uniform(size=256).astype("f4")
    variables, _ = import_weights("resnet50", _save(tmp_path, state))
    params, stats = variables["params"], variables["batch_stats"]
    assert params["stem_conv"]["kernel"][5, 6, 1, 40] == state["conv1.weight"][40, 1, 5, 6]
    assert params["res4_3"]["conv2"]["kernel"][0, 2, 7, 9] == state["layer3.2.conv2.weight"][9, 7, 0, 2]
    assert (
        params["res3_1"]["projection"]["kernel"][0, 0, 3, 5]
        == state["layer2.0.downsample.0.weight"][5, 3, 0, 0]
    )
    assert params["fc"]["kernel"][11, 999] == state["fc.weight"][999, 11]
    np.testing.assert_array_equal(
        stats["res5_1"]["projection_bn"]["var"], state["layer4.0.downsample.1.running_var"]
    )
    np.testing.assert_array_equal(params["res2_3"]["bn3"]["scale"], state["layer1.2.bn3.weight"])


def test_variables_run(tmp_path):
    variables, _ = import_weights("resnet18", _save(tmp_path, _torch_state("resnet18", classes=7)))
    model = ResNet(ResNetConfig(depth=18, output_stride=32), classes=7)
    assert jax.eval_shape(model.apply, variables, jnp.zeros((1, 64, 64, 3)))["logits"].shape == (1, 7)


def test_missing_and_unexpected_are_reported(tmp_path):
    state = _torch_state("resnet18")
    del state["fc.weight"], state["fc.bias"], state["layer1.0.bn1.running_mean"]
    state["decoder.weight"] = np.ones(3, "f4")
    variables, report = import_weights("resnet18", _save(tmp_path, state))
    assert report.missing == ("batch_stats/res2_1/bn1/mean", "params/fc/bias", "params/fc/kernel")
    assert report.unexpected == ("decoder.weight",)
    assert "fc" not in variables["params"]


def test_two_tensors_of_one_place(tmp_path):
    """One would silently replace the other: Caffe's and torchvision's names of VGG's first kernel."""
    kernel = np.zeros((64, 3, 3, 3), "f4")
    file = _save(tmp_path, {"conv1_1.weight": kernel, "features.0.weight": kernel + 1})
    both = r"conv1_1\.weight and features\.0\.weight both belong to params/conv1_1/kernel of vgg16"
    with pytest.raises(UserError, match=rf"source\.safetensors: {both}"):
        import_weights("vgg16", file)
    names = {
        "conv1.weight": np.zeros((64, 3, 3, 3), "f4"),
        "model.conv1.weight": np.ones((64, 3, 3, 3), "f4"),
    }
    with pytest.raises(UserError, match=r"'conv1\.weight' and 'model\.conv1\.weight' are both"):
        import_weights("hrnet_w18s1", _save(tmp_path, names))


@pytest.mark.parametrize(
    ("of", "asked"), [("resnet50", "resnet34"), ("resnet34", "resnet18"), ("resnet26", "resnet50")]
)
def test_another_architecture_is_named(tmp_path, of, asked):
    with pytest.raises(UserError, match=rf"source\.safetensors: .* those of {of}, expected {asked}"):
        import_weights(asked, _save(tmp_path, _torch_state(of)))


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (
            "layer1.1.conv2.weight",
            (64, 32, 3, 3),
            r"\(64, 32, 3, 3\).*\(3, 3, 64, 64\).*params/res2_2/conv2/kernel",
        ),
        ("layer1.1.conv2.weight", (64, 64), r"\(64, 64\).*\(3, 3, 64, 64\)"),
        (
            "bn1.bias",
            (32,),
            r"bn1.bias has shape \(32,\), but resnet18 expects \(64,\) for params/stem_bn/bias",
        ),
        ("fc.weight", (1000,), r"fc.weight has shape \(1000,\).*\(512, 1000\)"),
    ],
)
def test_shape_mismatch(tmp_path, name, shape, said):
    state = _torch_state("resnet18")
    state[name] = np.ones(shape, "f4")
    with pytest.raises(UserError, match=said):
        import_weights("resnet18", _save(tmp_path, state))


def test_no_match_is_an_error(tmp_path):
    with pytest.raises(
        UserError, match=r"none of its 1 tensors belongs to resnet50; the first is 'features.0'"
    ):
        import_weights("resnet50", _save(tmp_path, {"features.0": np.ones(3, "f4")}))


def test_values_that_are_not_finite(tmp_path):
    state = _torch_state("resnet18")
    state["bn1.weight"][3] = np.nan
    with pytest.raises(UserError, match=r"bn1\.weight has values that are not finite"):
        import_weights("resnet18", _save(tmp_path, state))


def test_unknown_architecture(tmp_path):
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        import_weights("resnet5o", tmp_path / "none.pth")


def _run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.run(parser.parse_args(argv))


def test_command(tmp_path, capsys):
    state = _torch_state("resnet18")
    del state["fc.bias"]
    state["extra"] = np.ones(3, "f4")
    source, out = _save(tmp_path, state), tmp_path / "out" / "w.safetensors"
    argv = ["--arch", "resnet18", "--source", str(source), "--out", str(out)]
    assert _run(*argv) == 0
    text = capsys.readouterr().out
    assert "loaded: 101\n" in text
    assert "missing: 1\n  params/fc/bias\n" in text
    assert "unexpected: 1\n  extra\n" in text
    assert _run(*argv, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (len(report["loaded"]), report["missing"], report["unexpected"]) == (
        101,
        ["params/fc/bias"],
        ["extra"],
    )
    # Our own file goes through again, and says what it is.
    again = tmp_path / "again.safetensors"
    assert _run("--arch", "resnet18", "--source", str(out), "--out", str(again)) == 0
    chex.assert_trees_all_equal(read_weights(again, "resnet18"), read_weights(out))
    with pytest.raises(UserError, match="weights of resnet18, expected resnet34"):
        _run("--arch", "resnet34", "--source", str(out), "--out", str(again))


@pytest.mark.parametrize(
    ("stated", "settings"),
    [
        ("caffe", {"stride_in_1x1": True, "preprocessing": "caffe"}),
        ("torch", {"stride_in_1x1": False, "preprocessing": "torch"}),
    ],
)
def test_the_convention_that_is_stated(tmp_path, capsys, stated, settings):
    """A file without layers does not tell it: the header has what was stated, and a config is held to it."""
    source, out = _save(tmp_path, _torch_state("resnet26", classes=7)), tmp_path / "w.safetensors"
    argv = ["--arch", "resnet26", "--source", str(source), "--out", str(out)]
    assert _run(*argv) == 0
    assert "the file does not tell stride_in_1x1, preprocessing (--convention" in capsys.readouterr().out
    assert read_settings(out) == {}
    assert _run(*argv, "--convention", stated) == 0
    assert "the file does not tell" not in capsys.readouterr().out
    assert read_settings(out) == settings
    for name, value in CONVENTIONS.items():
        backbone = ResNetConfig(depth=26, **value)
        if name == stated:
            check_settings(out, settings, backbone)
            continue
        with pytest.raises(UserError, match=f"--set .*preprocessing={stated}"):
            check_settings(out, settings, backbone)


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["import-weights", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "dynpix import-weights --arch resnet50 --source" in text
    assert all(arch in text for arch in ARCHITECTURES)


def test_the_real_resnet50(shared):
    variables, report = import_weights("resnet50", shared / CAFFE)
    assert (len(report.loaded), report.missing, report.unexpected) == (267, (), ())
    assert variables["params"]["fc"]["kernel"].shape == (2048, 1000)


def test_the_real_vgg_is_no_resnet(shared):
    with pytest.raises(UserError, match="none of its 26 tensors belongs to resnet50"):
        import_weights("resnet50", shared / "weights/vgg16_features_torchnames_fp16.safetensors")

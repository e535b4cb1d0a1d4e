"""HRNet: stages, parameters and MACs of the papers, and the forward pass of another library's HRNet."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dynpix_jax.backbones import pretrained
from dynpix_jax.backbones.hrnet import (
    ARCHITECTURES,
    HRNet,
    HRNetConfig,
)
from dynpix_jax.flops import count_macs
from dynpix_jax.papers.anytime import weight_names
from tests.backbones.hrnet_reference import Reference


@cache
def shapes_of(config: HRNetConfig):
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(HRNet(config).init, jax.random.key(0), image)


def heads(config: HRNetConfig, outputs: int) -> tuple[int, int]:
    """(parameters, MACs a position) of the plain head above all branches, single for pose."""
    c = sum(config.branch_channels(4))
    if config.form == "pose":
        return c * outputs + outputs, c * outputs
    return c * c + 3 * c + c * outputs + outputs, c * c + c * outputs


@pytest.mark.parametrize(
    ("arch", "form", "size", "outputs", "gibi", "millions"),
    [
        ("w18s1", "segmentation", (1024, 2048), 19, 31.1, 1.5),
        ("w18s2", "segmentation", (1024, 2048), 19, 71.579, 3.9),
        # Of the whole system in tests/configs/test_pose_configs.py, too.
        pytest.param("w32", "pose", (256, 256), 16, 9.493, 28.5, marks=pytest.mark.slow),
        pytest.param("w32", "pose", (256, 192), 17, 7.120, 28.5, marks=pytest.mark.slow),
        pytest.param("w18", "segmentation", (1024, 2048), 19, 137.278, 9.6, marks=pytest.mark.slow),
        pytest.param("w48", "segmentation", (1024, 2048), 19, 696.176, 65.8, marks=pytest.mark.slow),
    ],
)
def test_macs_and_parameters_as_published(arch, form, size, outputs, gibi, millions):
    config = HRNetConfig(arch, form=form)
    variables = shapes_of(config)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    report = count_macs(HRNet(config).apply, variables, image).without_resizing()
    parameters, macs = heads(config, outputs)
    positions = size[0] * size[1] // 16
    assert (report.total + positions * macs) / 2**30 == pytest.approx(gibi, abs=0.02 if gibi > 31.1 else 0.1)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert (count + parameters) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("arch", ["w18s1", "w18s2"])
@pytest.mark.parametrize("form", ["segmentation", "pose"])
def test_stages_tell_what_they_give(arch, form):
    config = HRNetConfig(arch, form=form)
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    features = jax.eval_shape(HRNet(config).apply, shapes_of(config), image)
    expected = {s.name: (2, 64 // s.stride, 96 // s.stride, s.channels) for s in config.stages}
    assert {name: x.shape for name, x in features.items()} == expected


def test_odd_sides_are_rounded_up():
    config = HRNetConfig("w18s1", width=4, blocks=1)
    image = jax.ShapeDtypeStruct((1, 61, 90, 3), jnp.float32)
    features = jax.eval_shape(HRNet(config).apply, shapes_of(config), image)
    assert [features[f"stage4/{i}"].shape[1:3] for i in range(4)] == [(16, 23), (8, 12), (4, 6), (2, 3)]


def torch_names(config: HRNetConfig) -> list[str]:
    """Names of all tensors in the released code's order of modules, written down from its code."""
    names = []

    def norm(module):
        names.extend(f"{module}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var"))

    def unit(module):
        names.append(f"{module}.0.weight")
        norm(f"{module}.1")

    shape = config.shape
    for k in (1, 2):
        names.append(f"conv{k}.weight")
        norm(f"bn{k}")
    for b in range(shape.layer1[0]):
        for k in (1, 2, 3):
            names.append(f"layer1.{b}.conv{k}.weight")
            norm(f"layer1.{b}.bn{k}")
    unit("layer1.0.downsample")
    unit("transition1.0")
    for transition in ("transition1.1.0", "transition2.2.0", "transition3.3.0"):
        unit(transition)
    for stage in (2, 3, 4):
        for m in range(shape.modules[stage - 2]):
            last = stage == 4 and m == shape.modules[2] - 1 and config.form == "pose"
            for r in range(stage):
                for b in range(shape.blocks):
                    for k in (1, 2):
                        names.append(f"stage{stage}.{m}.branches.{r}.{b}.conv{k}.weight")
                        norm(f"stage{stage}.{m}.branches.{r}.{b}.bn{k}")
            for i in range(1 if last else stage):
                for j in range(stage):
                    fuse = f"stage{stage}.{m}.fuse_layers.{i}.{j}"
                    for k in range(i - j):
                        unit(f"{fuse}.{k}")
                    if j > i:
                        unit(fuse)
    return names


@pytest.mark.parametrize("form", ["segmentation", "pose"])
@pytest.mark.parametrize("arch", ["w18s1", "w18s2"])
def test_every_released_name_has_one_place(arch, form):
    config = HRNetConfig(arch, form=form)
    places = [weight_names.translate(name) for name in torch_names(config)]
    assert None not in places
    found = [place.name for place in places]
    expected = traverse_util.flatten_dict(shapes_of(config), sep="/")
    assert sorted(found) == sorted(name.replace("/", "/backbone/", 1) for name in expected)


def test_other_heads_and_wrappers():
    assert weight_names.is_dropped("incre_modules.0.0.conv1.weight")
    assert weight_names.is_dropped("stage2.0.branches.0.0.conv1.square_dis")
    assert not weight_names.is_dropped("final_layer.weight")
    assert weight_names.translate("exit2.13.weight").name == "params/exit2/classify/conv/kernel"
    assert weight_names.translate("exit1.13.bias").name == "params/exit1/up_0/conv/conv/bias"
    assert weight_names.translate("exit3.2.running_var").name == "batch_stats/exit3/down_0/bn/var"
    assert weight_names.translate("exit3.9.weight") is None
    lam = weight_names.translate("stage3.1.fuse_layers.2.0.1.0.Lambda")
    assert lam.name == "params/backbone/stage3_1/fuse_2_0_1/conv/lam"
    assert lam.convert(np.array([2.5])) == np.float64(2.5)
    assert list(pretrained.without_wrappers({"module.model.conv1.weight": np.zeros(1)})) == ["conv1.weight"]


@pytest.mark.parametrize(("form", "arch"), [("pose", "w18s1"), ("segmentation", "w18s2")])
def test_forward_pass_of_numpy(form, arch):
    """The architecture of the released code, one block a branch, by official names."""
    config = HRNetConfig(arch, width=6, blocks=1, form=form)
    shape = config.shape
    reference = Reference(shape.width, shape.layer1, shape.modules, shape.blocks, pose=form == "pose")
    image = np.random.default_rng(1).normal(size=(3, 64, 96)).astype(np.float32)
    expected = reference(image)
    variables = {}
    for name, tensor in reference.tensors.items():
        target = weight_names.translate(name)
        variables[target.name.replace("backbone/", "")] = target.convert(tensor)
    wanted = traverse_util.flatten_dict(shapes_of(config), sep="/")
    assert {name: leaf.shape for name, leaf in wanted.items()} == {
        name: np.shape(value) for name, value in variables.items()
    }
    nested = traverse_util.unflatten_dict(variables, sep="/")
    features = jax.jit(HRNet(config).apply)(nested, image.transpose(1, 2, 0)[None])
    found = [x for name, x in features.items() if name.startswith("stage4/")]
    assert len(found) == len(expected) == (1 if form == "pose" else 4)
    for ours, theirs in zip(found, expected, strict=True):
        assert float(theirs.max()) > 0.5
        assert np.abs(ours[0] - theirs.transpose(1, 2, 0)).max() <= 1e-5 * theirs.max()


@pytest.mark.parametrize("form", ["pose", "segmentation"])
def test_forward_pass_of_timm(form):
    """timm's HRNet-W18-Small-v1 with random weights, enlarging by repetition as it does, or bilinearly."""
    torch = pytest.importorskip("torch", reason="the comparison needs PyTorch and timm")
    timm = pytest.importorskip("timm", reason="the comparison needs PyTorch and timm")
    model = timm.create_model("hrnet_w18_small", pretrained=False).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.ndim == 1:
                value.uniform_(-0.5, 0.5, generator=generator)
                value += 1.0 if name.endswith("weight") else 0.0
    if form == "segmentation":
        for module in model.modules():
            if isinstance(module, torch.nn.Upsample):
                module.mode, module.align_corners = "bilinear", False
    image = torch.rand((1, 3, 64, 96), generator=generator)
    with torch.no_grad():
        x = model.act2(model.bn2(model.conv2(model.act1(model.bn1(model.conv1(image))))))
        expected = [y.numpy().transpose(0, 2, 3, 1) for y in model.stages(x)]

    config = HRNetConfig("w18s1", form=form)
    variables: dict[str, np.ndarray] = {}
    for name, value in model.state_dict().items():
        target = weight_names.translate(name)
        if target is not None and not weight_names.is_dropped(name) and "num_batches" not in name:
            variables[target.name.replace("backbone/", "")] = target.convert(value.numpy())
    wanted = traverse_util.flatten_dict(shapes_of(config), sep="/")
    nested = traverse_util.unflatten_dict({name: variables[name] for name in wanted}, sep="/")
    features = jax.jit(HRNet(config).apply)(nested, image.numpy().transpose(0, 2, 3, 1))
    found = [x for name, x in features.items() if name.startswith("stage4/")]
    for ours, theirs in zip(found, expected, strict=False):
        assert float(np.abs(theirs).max()) > 0.1
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=1e-4)


def test_architectures_are_told_apart():
    assert len({HRNetConfig(arch).shape for arch in ARCHITECTURES}) == len(ARCHITECTURES)

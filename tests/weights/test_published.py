"""Files of the papers' authors: all that they hold gets a place, and computes here what it computes there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy.ndimage import map_coordinates

from dynpix_jax.backbones import hrnet, resnet
from dynpix_jax.core.errors import UserError
from dynpix_jax.papers.astmt import weight_names
from dynpix_jax.weights import import_weights, importer
from dynpix_jax.weights.network_file import Convention, NetworkFile
from tests.papers.astmt.reference import Weights, deeplab, se_resnet
from tests.papers.mdeq.reference import random_tensors
from tests.weights import caffe_net as cn
from tests.weights import matconvnet_graphs as graphs
from tests.weights import official
from tests.weights.bringing import IMAGE, TINY_HRNET, all_loaded, anytime, bring, pixelnet, torch_file

EXITS = {"_ee": ("original", False), "_rh": ("flex", False), "_ca": ("original", True), "": ("flex", True)}


# --- HRNet, anytime, pose


def in_memory(monkeypatch, shapes) -> int:
    """The file that `importer` reads next holds zeros of these shapes, which take no memory."""
    tensors = {f"model.{name}": np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    file = NetworkFile(tensors, Convention("OIHW"), format="torch")
    monkeypatch.setattr(importer, "read_network", lambda path: file)
    return len(tensors)


@pytest.mark.parametrize(
    ("arch", "form"),
    [
        *(("w18s2", form) for form in EXITS),
        ("w48", ""),
        *(pytest.param("w48", form, marks=pytest.mark.slow) for form in ("_ee", "_rh", "_ca")),
    ],
)
def test_all_of_the_official_anytime_networks_is_loaded(monkeypatch, arch, form):
    """With the names and shapes of the real files; the form is the file's."""
    exits, adaptive = EXITS[form]
    shapes = official.hrnet(
        *hrnet.ARCHITECTURES[arch],
        exits=exits,
        adaptive=adaptive,
        features=128 if arch == "w48" else 64,
    )
    monkeypatch.setattr(np, "isfinite", lambda array: np.True_)  # of 66 million zeros
    counted = in_memory(monkeypatch, shapes)
    _, report = import_weights(f"anytime_{arch}", "final_state.pth")
    assert report.architecture == f"anytime_{arch}{form}"
    all_loaded(report, counted)
    lam = [name for name in report.loaded if name.endswith("/lam")]
    assert len(lam) == sum(name.endswith(".Lambda") for name in shapes)


def test_all_of_the_official_pose_network_is_loaded(monkeypatch):
    counted = in_memory(monkeypatch, official.hrnet(*hrnet.ARCHITECTURES["w32"], pose=16))
    all_loaded(import_weights("hrnet_w32_pose", "pose_hrnet_w32_256x256.pth")[1], counted)


@pytest.fixture
def tiny_hrnet(monkeypatch):
    monkeypatch.setitem(hrnet.ARCHITECTURES, "w18s1", TINY_HRNET)


@pytest.mark.parametrize(("form", "old"), [("_ee", True), ("_rh", False), ("_ca", False), ("", True)])
def test_anytime_files_of_every_form(tmp_path, tiny_hrnet, form, old):
    """A width of interpolation is a single number, and stays one."""
    exits, adaptive = EXITS[form]
    tensors = official.filled(official.hrnet(*TINY_HRNET, exits=exits, adaptive=adaptive, classes=5))
    path = torch_file(tmp_path / "final_state.pth.tar", tensors, old=old)
    _, variables, report = bring(anytime(exits, adaptive=adaptive), path)
    all_loaded(report, len(tensors))
    flat = traverse_util.flatten_dict(variables, sep="/")
    np.testing.assert_array_equal(
        flat["params/exit4/classify/conv/kernel"][0, 0], tensors["last_layer.3.weight"][..., 0, 0].T
    )
    if adaptive:
        lam = flat["params/backbone/stage4_0/branch3_0/conv2/conv/lam"]
        assert lam.shape == ()
        assert lam == tensors["stage4.0.branches.3.0.conv2.Lambda"]


def test_a_file_of_another_form_says_which(tmp_path, tiny_hrnet):
    tensors = official.filled(official.hrnet(*TINY_HRNET, exits="flex", adaptive=True, classes=5))
    path = torch_file(tmp_path / "ca.pth", tensors, old=False)
    with pytest.raises(UserError, match=r"ca\.pth: .* redesigned exits \(RH\) and an interpolation's Lambda"):
        bring(anytime("original", adaptive=False), path)
    with pytest.raises(UserError, match=r"with an interpolation's Lambda .* this one has no Lambda"):
        bring(anytime("flex", adaptive=False), path)


def test_a_head_is_skipped_on_request(tmp_path, tiny_hrnet):
    """Cityscapes' 19 classes into a network for 5: only what is named is left out, and listed."""
    tensors = official.filled(official.hrnet(*TINY_HRNET, exits="original"))
    path = torch_file(tmp_path / "ee.pth", tensors, old=False)
    section = anytime("original", adaptive=False)
    with pytest.raises(UserError, match=r"exit1\.3\.weight has shape .* --skip exit1/classify/conv would"):
        bring(section, path)
    _, variables, report = bring(
        section, path, skip=[r"exit[12]/classify", "exit3/classify", "exit4/classify"]
    )
    assert report.missing == report.unexpected == ()
    assert len(report.skipped) == 8
    assert "last_layer.3.bias -> params/exit4/classify/conv/bias" in report.skipped
    assert "classify" not in variables["params"]["exit4"]
    with pytest.raises(UserError, match=r"--skip exit5: no tensor of .*; places begin with backbone, exit1"):
        bring(section, path, skip=[r"exit\d/classify", "exit5"])
    with pytest.raises(UserError, match=r"--skip \(: not a regular expression"):
        bring(section, path, skip=["("])


@pytest.mark.parametrize("channels", [(24, 48, 96, 192), (88, 176, 352, 704)])
def test_all_of_an_mdeq_checkpoint_is_loaded(monkeypatch, channels):
    """small and XL; f four times, of which one is read."""
    expansion = 5 if channels[0] == 24 else 6
    tensors = random_tensors(channels, expansion, classes=19)
    shapes = {name: array.shape for name, array in tensors.items()}
    for copy in ("fullstage_copy", "deq.func", "deq.func_copy"):
        inner = {name: shape for name, shape in shapes.items() if name.startswith("fullstage.")}
        shapes |= {name.replace("fullstage", copy, 1): shape for name, shape in inner.items()}
    counted = in_memory(monkeypatch, shapes)
    section = dict(
        system="mdeq", task_options=dict(classes=19), cell=dict(channels=channels, expansion=expansion)
    )
    all_loaded(bring(section, "MDEQ_Cls.pkl")[2], counted)


# --- ASTMT

TASKS = {"edge": 1, "semseg": 4, "depth": 1}
OWN = dict(se=True, norm=True, adapters=True)


def astmt(**changes: Any) -> dict[str, Any]:
    sections = dict(
        system="astmt",
        tasks=("boundaries", "segmentation", "depth"),
        task_options=dict(segmentation=dict(classes=4)),
        backbone=dict(se=True, depth=26, width=4, output_stride=16, preprocessing="none"),
        encoder=OWN,
        decoder=dict(OWN, features=16),
    )
    return sections | changes


@pytest.fixture
def small_resnet(monkeypatch):
    monkeypatch.setitem(resnet._BLOCKS, 26, (1, 1, 1, 1))


def test_astmt_computes_what_its_file_computes(tmp_path, small_resnet):
    """SE, norms and adapters of each task, discriminator; in the format that ASTMT's own torch wrote."""
    tensors = official.filled(official.astmt(4, (1, 1, 1, 1), TASKS, decoder=16, discriminator=1))
    path = torch_file(tmp_path / "model_epoch-59.pth", tensors, old=True, prefix="")
    system, variables, report = bring(astmt(adversarial={}), path)
    all_loaded(report, len(tensors))
    assert report.settings == {"stride_in_1x1": True, "preprocessing": "none"}
    found = jax.jit(system.network.apply)(variables, jnp.asarray(IMAGE))
    for theirs, ours in {"edge": "boundaries", "semseg": "segmentation", "depth": "depth"}.items():
        weights = Weights(tensors, theirs)
        maps = se_resnet(weights, IMAGE[0].transpose(2, 0, 1).astype(np.float64), 1)
        expected = deeplab(weights, *maps, IMAGE.shape[1:3])
        np.testing.assert_allclose(
            found[ours][0], expected.transpose(1, 2, 0), atol=1e-4 * np.abs(expected).max()
        )


def test_shared_modules_of_astmt(tmp_path, small_resnet):
    tensors = official.filled(official.astmt(4, (1, 1, 1, 1), TASKS, decoder=16, own=False))
    path = torch_file(tmp_path / "a.pth", tensors, old=False, prefix="module.")
    _, _, report = bring(astmt(encoder={}, decoder=dict(features=16)), path)
    all_loaded(report, len(tensors))
    with pytest.raises(
        UserError, match=r"--set model\.encoder\.norm=False model\.encoder\.se=False .*decoder"
    ):
        bring(astmt(), path)
    with pytest.raises(
        UserError, match="for boundaries, depth, segmentation; this one is for depth, segmentation"
    ):
        bring(astmt(tasks=("depth", "segmentation")), path)
    section = astmt(encoder={}, decoder=dict(features=16))
    section["backbone"] = section["backbone"] | dict(preprocessing="torch")
    with pytest.raises(UserError, match=r"Change the config: --set model\.backbone\.preprocessing=none$"):
        bring(section, path)


def test_all_of_the_official_astmt_network_is_loaded(monkeypatch):
    """SE-ResNet-26 with PASCAL's five tasks, as released."""
    tasks = {"edge": 1, "semseg": 21, "human_parts": 7, "normals": 3, "sal": 1}
    counted = in_memory(monkeypatch, official.astmt(64, (2, 2, 2, 2), tasks, decoder=64))
    section = astmt(
        tasks=("boundaries", "segmentation", "parts", "normals", "saliency"),
        task_options=dict(segmentation=dict(classes=21), parts=dict(classes=7)),
        backbone=dict(se=True, depth=26, output_stride=16, preprocessing="none"),
        decoder=dict(OWN, features=64),
    )
    all_loaded(bring(section, "pascal_resnet.pth")[2], counted)


def test_names_of_astmts_mobilenet():
    for theirs, ours in {
        "features.0.conv.0.weight": "params/backbone/stem_conv/kernel",
        "features.1.conv.conv1.weight": "params/backbone/block_1/depthwise/kernel",
        "features.1.conv.bn2.edge.running_var": "batch_stats/backbone/block_1/project_bn/boundaries/var",
        "features.3.conv.conv1.weight": "params/backbone/block_3/expand/kernel",
        "features.17.conv.bn3.bias": "params/backbone/block_17/project_bn/bias",
        "features.4.se.fc.sal.2.bias": "params/backbone/block_4/se/saliency/expand/bias",
    }.items():
        assert weight_names.translate(theirs).name == ours
    assert weight_names.translate("features.1.conv.bn2.edge.running_var", single=True).name.endswith("bn/var")
    assert weight_names.translate("features.18.0.weight") is None


# --- PixelNet


def caffe_file(
    path, shapes: official.Shapes, mean=()
) -> tuple[Any, dict[str, tuple[np.ndarray, np.ndarray]]]:
    rng = np.random.default_rng(0)
    layers, blobs = [cn.layer("data", "Data", mean=mean)] if mean else [], {}
    for name, shape in shapes.items():
        kernel = (rng.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5).astype("f4")
        blobs[name] = kernel, (0.1 * rng.normal(size=shape[0])).astype("f4")
        kind = "Convolution" if len(shape) == 4 else "InnerProduct"
        layers.append(cn.layer(name, kind, [cn.blob(blob) for blob in blobs[name]]))
    return cn.save(path, *layers), blobs


@pytest.mark.parametrize("boundaries", [False, True])
def test_pixelnet_computes_what_its_file_computes(tmp_path, boundaries):
    shapes = official.pixelnet(4, 6, 8, 5, boundaries=boundaries)
    path, blobs = caffe_file(tmp_path / "vgg.caffemodel", shapes, (103.939, 116.77, 123.68))
    system, variables, report = bring(pixelnet(), path)
    all_loaded(report, 2 * len(shapes))
    assert (report.settings, report.notes) == ({"preprocessing": "caffe"}, ())
    if boundaries:
        return
    image = IMAGE[:, :32, :32]
    found = jax.jit(system.network.apply)(variables, jnp.asarray(image))[0]
    centred = image[0].astype(np.float64) - graphs.MEAN
    # Layer by layer, in BGR; a pixel's column by interpolation between cells that lie at (s - 1) / 2 + s i.
    x, stride, columns = centred[..., ::-1], 1, []
    for name in list(shapes)[:-3]:
        if (name.endswith("_1") and name != "conv1_1") or name.startswith("fc6"):
            x = x.reshape(len(x) // 2, 2, len(x) // 2, 2, -1).max((1, 3))
            stride *= 2
        kernel, bias = blobs[name]
        x = np.maximum(graphs.convolved(x, kernel.transpose(2, 3, 1, 0)) + bias, 0)
        if name in ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3", "fc7_conv"):
            at = (np.arange(32) - (stride - 1) / 2) / stride
            grid = np.meshgrid(at, at, indexing="ij")
            columns += [map_coordinates(x[..., c], grid, order=1, mode="nearest") for c in range(x.shape[-1])]
    y = np.stack(columns, -1)
    for index, name in enumerate(list(shapes)[-3:]):
        kernel, bias = blobs[name]
        y = (np.maximum(y, 0) if index else y) @ kernel.T + bias
    np.testing.assert_allclose(found, y, atol=2e-4 * np.abs(y).max())


def test_a_fixed_order_of_colours(tmp_path):
    """A file with an RGB mean reads RGB: its stem is turned, as our caffe images are BGR."""
    shapes = official.pixelnet(4, 6, 8, 5)
    path, blobs = caffe_file(tmp_path / "rgb.caffemodel", shapes, (122.7717, 115.9465, 102.9801))
    _, variables, report = bring(pixelnet(), path)
    np.testing.assert_array_equal(
        variables["params"]["backbone"]["conv1_1"]["kernel"],
        blobs["conv1_1"][0].transpose(2, 3, 1, 0)[:, :, ::-1],
    )
    assert "reversed" in report.notes[0]
    assert "its mean is (122.7717, 115.9465, 102.9801)" in report.notes[1]
    with pytest.raises(
        UserError, match=r"BGR in 0\.\.255 less the mean; the config has RGB / 255, .*=caffe$"
    ):
        bring(pixelnet(backbone=dict(width=4, fc_features=6, preprocessing="torch")), path)

"""MatConvNet files of PAG and recurrent parsing: all that they hold gets a place and computes what it did."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.backbones import resnet
from dynpix_jax.core.errors import UserError
from dynpix_jax.flops import variable_shapes
from dynpix_jax.weights import import_weights
from tests.weights import matconvnet_graphs as graphs
from tests.weights import matlab_net as mn
from tests.weights.bringing import IMAGE, bring


@pytest.fixture
def kong_resnet(monkeypatch):
    monkeypatch.setitem(resnet._BLOCKS, 26, graphs.BLOCKS)


def pag(**changes: Any) -> dict[str, Any]:
    sections = dict(
        system="pag",
        task="normals",
        backbone=dict(depth=26, width=4, output_stride=32),
        gate=dict(kind="pixel", scope="conv3x3", rho=0.7),
        multipool=dict(blocks=("res5_2",)),
        head_features=4,
    )
    return sections | changes


@pytest.mark.parametrize("version", ["7", "7.3"])
def test_pag_computes_what_its_file_computes(tmp_path, kong_resnet, version):
    """Gates of all blocks, and the choices of the MultiPool, which depend on everything below them."""
    graph = graphs.Graph()
    graphs.backbone(graph, 4, stride=32, gates=True, pool=True)
    path = mn.save(tmp_path / "softmax_net-epoch-140.mat", {"netbasemodel": graph.struct()}, version)
    system, variables, report = bring(pag(), path)
    assert (report.unexpected, report.left_out) == ((), ())
    assert {name.split("/")[1] for name in report.missing} == {"head"}
    moments = 2 * sum(layer["type"] == "attentionChannel" for layer in graph.layers)
    norms = sum(layer["type"] == "dagnn.BatchNorm" for layer in graph.layers)  # two moments in one tensor
    assert len(report.loaded) == len(graph.params) + moments + norms
    assert report.settings == {"stride_in_1x1": True, "preprocessing": "caffe"}
    if version == "7":
        return
    shapes = variable_shapes(system)["params"]["head"]
    variables["params"]["head"] = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    known = graphs.run(graph.struct(), IMAGE[0].astype(np.float64), hard=True)
    outputs = jax.jit(system.apply)(variables, jnp.asarray(IMAGE))
    assert len(outputs.gates) == 4
    for block, mask in outputs.gates.items():
        weights = known[f"{block}_attentionProb"]
        sure = np.abs(weights[..., 1] - 0.5) > 1e-4
        np.testing.assert_array_equal(mask[0][sure], (weights[..., 1] > 0.5)[sure])
    # Theirs: 10, 8, 6, 4, 2, the 3x3 that was there, the copy; ours: from the copy to 10.
    chosen = outputs.selections["res5_2"][0].argmax(-1)
    np.testing.assert_array_equal(chosen, 6 - known["res5_AttentionSoftmax"].argmax(-1))


def test_gates_of_another_scope(tmp_path, kong_resnet):
    """The same tensors would compute another function: what is skipped differs."""
    graph = graphs.Graph()
    graphs.backbone(graph, 4, stride=32, gates=True, pool=True)
    path = mn.save(tmp_path / "net.mat", graph.struct(), "7")
    with pytest.raises(UserError, match=r"--set model\.gate\.scope=conv3x3"):
        bring(pag(gate=dict(kind="pixel", scope="residual", rho=0.7)), path)


def test_a_multipool_that_keeps_another_dilation(tmp_path, kong_resnet):
    """At output stride 8 the 3x3 that stays has dilation 4, and there is no branch of dilation 1."""
    graph = graphs.Graph()
    graphs.backbone(graph, 4, stride=8, gates=True, pool=True)
    path = mn.save(tmp_path / "net.mat", graph.struct(), "7")
    _, variables, report = bring(pag(), path)
    why = "(a MultiPool of dilations 0/2/4/4/6/8/10, the 3x3 that it keeps has 4; model.multipool.dilations: "
    assert f"res5_pyramid_pool2_conv.weight {why}0/1/2/4/6/8/10)" in report.unexpected
    assert {name.partition(" ")[2].startswith(why) for name in report.unexpected} == {True}
    assert {name.split("/")[3] for name in report.missing if "/backbone/" in name} == {"multipool"}
    assert "conv3" in variables["params"]["backbone"]["res5_2"]
    with pytest.raises(UserError, match=r"a MultiPool at res5_2; set model\.multipool\.blocks"):
        bring(pag(multipool={}), path)


def test_recurrent_parsing_computes_what_its_file_computes(tmp_path, kong_resnet):
    """All passes, with shared parameters; bins from the nearest (NYUv2), depth in millimetres."""
    graph = graphs.Graph()
    top = graphs.backbone(graph, 4, stride=8)
    graphs.recurrent(graph, top, 128, 6, 3, loops=2)
    path = mn.save(tmp_path / "NYUv2_softmax_net-epoch-26.mat", {"net": graph.struct()}, "7")
    section = dict(
        system="perspective",
        segmentation=dict(classes=3),
        depth=dict(),
        backbone=dict(depth=26, width=4),
        features=6,
        depth_features=(6, 4),
        loops=2,
    )
    system, variables, report = bring(section, path)
    assert (report.missing, report.unexpected) == ((), ())
    assert report.left_out == ("res7_interp_f",)
    known = graphs.run(graph.struct(), IMAGE[0].astype(np.float64), hard=False)
    steps = jax.jit(system.network.apply)(variables, jnp.asarray(IMAGE))
    assert len(steps) == 3
    for loop, step in enumerate(steps):
        prefix = f"recurrentModule{loop}_" if loop else ""
        for found, name in (
            (step.classes, "cls"),
            (step.log_depth, "depthReg"),
            (step.weights, "depthSoftmax"),
        ):
            expected = known[f"{prefix}{name}"]
            expected = expected - np.log(1000) if name == "depthReg" else expected
            expected = expected[..., ::-1] if name == "depthSoftmax" else expected
            np.testing.assert_allclose(found[0], expected, atol=2e-4 * np.abs(expected).max())


def test_a_stem_of_three_convolutions(tmp_path, kong_resnet):
    """PSPNet's, which has 7 % more to compute: conv1_1, conv1_2, conv1_3."""
    graph, x, into = graphs.Graph(), "data", 3
    for index, width in enumerate((4, 4, 8), 1):
        x = graph.conv(f"conv1_{index}", x, (3, into, width), 2 if index == 1 else 1)
        x, into = graph.attention(f"conv1_{index}_ChaAtten", x, width), width
    path = mn.save(tmp_path / "net.mat", graph.struct(), "7")
    with pytest.raises(UserError, match=r"three convolutions; .* --set model\.backbone\.deep_stem=True"):
        bring(pag(gate={}, multipool={}), path)
    backbone = dict(depth=26, width=4, output_stride=32, deep_stem=True)
    _, variables, report = bring(pag(gate={}, multipool={}, backbone=backbone), path)
    assert len(report.loaded) == 3 * 5
    assert variables["params"]["backbone"]["stem_conv3"]["kernel"].shape == (3, 3, 4, 8)


def test_a_norm_that_was_never_trained(tmp_path, kong_resnet):
    graph = graphs.Graph()
    graph.norm("bn", graph.conv("conv1_1", "data", (7, 3, 4), 2), 4)
    graph.params[-1]["value"][:] = 0
    path = mn.save(tmp_path / "net.mat", graph.struct(), "7")
    with pytest.raises(UserError, match=r"net\.mat: layer 'bn' has a standard deviation of 0"):
        import_weights("resnet50", path)

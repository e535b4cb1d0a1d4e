"""dynpix_jax.load: a workdir, a file, a name give a predictor; images, batches, the network's file."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import dynpix_jax
from dynpix_jax.cli.main import main
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Routing
from dynpix_jax.evaluation import tiles
from dynpix_jax.evaluation.runner import ponder_maps
from dynpix_jax.serving import network_file
from dynpix_jax.serving.predictor import Predictor
from dynpix_jax.serving.trained import open_weights

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def predictor(tiny_run) -> Predictor:
    return dynpix_jax.load(tiny_run.workdir)


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("networks") / "tiny.safetensors"
    arguments = ["export", f"--workdir={tiny_run.workdir}", "--to=safetensors", f"--out={file}"]
    card = ["--title=Boundaries of nothing", "--limits=Untrained.", "--command-line=make it"]
    assert main([*arguments, *card]) == 0
    return file


def test_an_image_gives_what_its_system_predicts(predictor):
    found = predictor(IMAGES[0])
    outputs = predictor.system.apply(
        predictor.variables, jnp.asarray(IMAGES[:1]), routing=Routing(mode="dense")
    )
    expected = 1 / (1 + np.exp(-np.asarray(outputs.predictions["boundaries"], np.float64)[0, :, :, 0]))
    assert found["boundaries"].shape == (32, 40)
    np.testing.assert_allclose(found["boundaries"], expected, atol=1e-5)
    np.testing.assert_allclose(predictor(IMAGES[0], mode="dense")["boundaries"], expected, atol=1e-5)
    labelled = predictor.label(IMAGES[0])
    np.testing.assert_array_equal(labelled.predictions["boundaries"], found["boundaries"])
    assert 0 < labelled.macs <= labelled.macs_open
    assert labelled.ponder["total"].shape == (32, 40)
    assert 0 <= labelled.density <= 1


def test_a_large_image_is_labelled_in_tiles_as_by_a_call(predictor, monkeypatch):
    image = np.random.default_rng(1).integers(0, 256, (400, 500, 3), np.uint8)
    monkeypatch.setattr(tiles, "LARGEST", 300 * 300)
    monkeypatch.setattr(tiles, "TILE", 320)
    found = predictor.label(image, mode="dense")
    np.testing.assert_array_equal(
        found.predictions["boundaries"], predictor(image, mode="dense")["boundaries"]
    )
    # The same by hand: each tile on its own, of which the middle is kept.
    parts = list(tiles.tiles((400, 500), 320))
    alone = [predictor.runner(np.ascontiguousarray(image[part.seen]), "dense") for part in parts]
    assert len(parts) > 3
    assert found.macs == pytest.approx(sum(one.macs for one in alone))
    assert found.macs_open == pytest.approx(sum(one.macs_open for one in alone))
    assert found.ponder["total"].shape == (400, 500)
    for part, one in zip(parts, alone, strict=True):
        logits = np.asarray(one.outputs.predictions["boundaries"], np.float64)[0, *part.inner, 0]
        np.testing.assert_allclose(
            found.predictions["boundaries"][part.kept], 1 / (1 + np.exp(-logits)), atol=1e-5
        )
        ponder = ponder_maps(predictor.system, one, part.size)["total"][part.inner]
        np.testing.assert_array_equal(found.ponder["total"][part.kept], ponder)
    monkeypatch.setattr(tiles, "LARGEST", 400 * 500)
    assert predictor.label(image, mode="dense").macs_open < found.macs_open  # no pixel is seen twice


def test_batches_files_and_pillow(predictor, tmp_path):
    batch = predictor(IMAGES)["boundaries"]
    assert batch.shape == (2, 32, 40)
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), IMAGES[1][..., ::-1])
    for image in (IMAGES[1], path, Image.fromarray(IMAGES[1])):
        np.testing.assert_allclose(predictor(image)["boundaries"], batch[1], atol=1e-5)


@pytest.mark.parametrize("form", [jnp.asarray, list], ids=["jax", "list"])
def test_a_batch_is_one_in_any_form(predictor, form):
    expected = predictor(IMAGES)["boundaries"]
    np.testing.assert_array_equal(predictor(form(IMAGES))["boundaries"], expected)
    alone = predictor(form(IMAGES[0]))["boundaries"]
    np.testing.assert_allclose(alone, expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (IMAGES[0].astype(np.float32), {}, ValueError, r"expected uint8 RGB .* got float32 \(32, 40, 3\)"),
        (IMAGES[0, :, :, 0], {}, ValueError, r"got uint8 \(32, 40\)"),
        (
            [IMAGES[0], IMAGES[1, :20]],
            {},
            ValueError,
            r"expected uint8 RGB \(H, W, 3\) or \(B, H, W, 3\), got a list of images of different sizes",
        ),
        ("nowhere.jpg", {}, UserError, "image not found: nowhere.jpg"),
        (IMAGES[0], {"budget_ms": 5.0}, UserError, "networks of the system 'pag' predict once"),
        (IMAGES[0], {"budget_ms": 0.0}, ValueError, "budget_ms: 0.0; expected a number above 0"),
        (IMAGES[0], {"depth": IMAGES[0, :, :, 0]}, ValueError, "depth: the network does not take it"),
    ],
)
def test_mistakes(predictor, images, options, error, message):
    with pytest.raises(error, match=message):
        predictor(images, **options)


@pytest.mark.parametrize("images", [IMAGES, IMAGES[:1], list(IMAGES)])
def test_costs_are_of_one_image(predictor, images):
    with pytest.raises(
        ValueError, match=r"image: expected one image \(H, W, 3\), got a batch \([12], 32, 40, 3\)"
    ):
        predictor.label(images)


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(network_file, "SHIPPED", tmp_path)
    (tmp_path / "scenes.safetensors").touch()
    with pytest.raises(UserError, match=r"scnes: no network of this name ships.*did you mean 'scenes'"):
        dynpix_jax.load("scnes")
    with pytest.raises(AttributeError, match="lod"):
        dynpix_jax.lod  # noqa: B018


def test_a_file_holds_all(predictor, exported, monkeypatch):
    """Its kernels are rounded to halves, and nothing else is."""
    found, tensors = dynpix_jax.load(exported), load_file(exported)
    assert found.run == predictor.run
    assert found.stage == predictor.stage == "gates"
    kernels = {name for name, values in tensors.items() if values.dtype == np.float16}
    assert kernels == {name for name, values in tensors.items() if values.ndim >= 2} != set()
    np.testing.assert_allclose(found(IMAGES[0])["boundaries"], predictor(IMAGES[0])["boundaries"], atol=2e-2)
    # By a name, from the folder of those that ship.
    monkeypatch.setattr(network_file, "SHIPPED", exported.parent)
    assert dynpix_jax.load("tiny").stage == "gates"
    with pytest.raises(UserError, match="stage= is for workdirs"):
        dynpix_jax.load("tiny", stage="base")


def test_a_file_of_8_bits(predictor, tiny_run, tmp_path):
    """Export, load: it is smaller, and predicts nearly the same."""
    sizes = {}
    for precision in ("float32", "int8"):
        file = tmp_path / f"{precision}.safetensors"
        export = ["export", f"--workdir={tiny_run.workdir}", "--to=safetensors", f"--out={file}"]
        assert main([*export, f"--precision={precision}"]) == 0
        sizes[precision] = sum(values.nbytes for values in load_file(file).values())
    assert sizes["int8"] < 0.4 * sizes["float32"]
    found = dynpix_jax.load(tmp_path / "int8.safetensors")(IMAGES[0], mode="dense")["boundaries"]
    expected = predictor(IMAGES[0], mode="dense")["boundaries"]
    assert 0 < np.abs(found - expected).mean() < 2e-2


def test_the_card(exported, capsys, monkeypatch):
    text = exported.with_suffix(".md").read_text()
    assert text.startswith("# tiny\n\nBoundaries of nothing\n")
    assert "- **Limits**: Untrained." in text
    assert "- **Command of its training**: `make it`" in text
    assert "- **Seed**: 0" in text
    assert "- **Licence of the data**: none: generated" in text
    monkeypatch.setattr(network_file, "SHIPPED", exported.parent)
    assert main(["models"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "tiny"
    assert main(["models", "tiny"]) == 0
    assert capsys.readouterr().out == text
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tiny"]["title"] == "Boundaries of nothing"


def test_scores_of_a_run_that_held_images_back(tiny_run, tmp_path, capsys):
    """The card of a network that was trained on all images has those of another run."""
    file, other = tmp_path / "tiny.safetensors", tmp_path / "held_back"
    export = ["export", f"--workdir={tiny_run.workdir}", "--to=safetensors", f"--out={file}"]
    shutil.copytree(tiny_run.workdir, other, ignore=shutil.ignore_patterns("eval.json"))
    assert main([*export, f"--scores-from={other}"]) == 2
    assert f"--scores-from {other}: no eval.json with a row for the stage 'gates'" in capsys.readouterr().err
    limits = ["evaluation.limit=1", "evaluation.thresholds=3", "evaluation.pictures=0"]
    assert main(["eval", f"--workdir={other}", "--set", *limits]) == 0
    capsys.readouterr()
    assert main([*export, f"--scores-from={other}"]) == 0
    card = network_file.read_card(file)
    measured = json.loads((other / "eval.json").read_text())["rows"][-1]
    assert card["scores"].startswith(f"F (ODS) {measured['modes']['sparse']['ods']:.4f}")
    assert card["scores"].endswith("(scenes val, 1 images), trained on split train alone")
    assert {"macs", "milliseconds"} < set(card)
    evaluated = json.loads((other / "eval.json").read_text())
    evaluated["config"]["model"]["head_features"] = 5
    (other / "eval.json").write_text(json.dumps(evaluated))
    assert main([*export, f"--scores-from={other}"]) == 2
    assert f"--scores-from {other}: another network: model." in capsys.readouterr().err


def test_scores_of_another_checkpoint_are_none_of_the_card(tiny_run, tmp_path, capsys):
    """A run that was evaluated on its way, and went on: eval.json is of an earlier step."""
    file, workdir = tmp_path / "tiny.safetensors", tmp_path / "run"
    shutil.copytree(tiny_run.workdir, workdir, ignore=shutil.ignore_patterns("eval.json"))
    export = ["export", f"--workdir={workdir}", "--to=safetensors", f"--out={file}"]
    limits = ["evaluation.limit=1", "evaluation.thresholds=3", "evaluation.pictures=0"]
    assert main(["eval", f"--workdir={workdir}", "--set", *limits]) == 0
    capsys.readouterr()
    assert main(export) == 0
    assert capsys.readouterr().err == ""
    assert {"scores", "macs", "milliseconds"} < set(network_file.read_card(file))
    evaluated = json.loads((workdir / "eval.json").read_text())
    last = evaluated["rows"][-1]["step"]
    evaluated["rows"][-1]["step"] = last - 1
    (workdir / "eval.json").write_text(json.dumps(evaluated))
    assert main(export) == 0
    assert f"eval.json is of step {last - 1}, the network of step {last}" in capsys.readouterr().err
    assert not {"scores", "macs", "milliseconds"} & set(network_file.read_card(file))


def test_the_file_of_a_network_holds_no_paths(exported, tmp_path):
    """Of parts of a joint source, of labels in another folder, of what was packed, of a reference."""
    run, home = network_file.network_run(exported), "/home/somebody"
    context = {"name": "pascal_context", "root": f"{home}/VOC", "label_root": f"{home}/labels"}
    joint = {"sources": [{"name": "bsds500", "root": f"{home}/BSDS500/"}, context]}
    packed = {"name": "packed", "of": "pascal_context", "options": {"label_root": f"{home}/labels"}}
    given = {
        **run.given,
        "data": {
            "train": {"source": {"name": "joint", "split": "train", **joint}},
            "eval": {"source": {**packed, "split": "val", "root": f"{home}/packed"}},
        },
        "training": {**run.given["training"], "init_from": f"{home}/weights.safetensors"},
        "evaluation": {"reference": f"{home}/single.json"},
    }
    file = tmp_path / "joint.safetensors"
    trained = open_weights(run, exported, None)
    network_file.write_network(file, dataclasses.replace(run, given=given), trained, {})
    header = network_file.read_metadata(file)
    assert home not in "".join(header.values())
    sources = json.loads(header["config"])["data"]["train"]["source"]["sources"]
    assert [part["root"] for part in sources] == ["BSDS500", "VOC"]
    assert given["data"]["eval"]["source"]["root"] == f"{home}/packed"  # the run's own stays as it is


def test_predict_by_a_model(exported, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.jpg", IMAGES[0])
    assert main(["predict", f"--model={exported}", "photo.jpg"]) == 0
    assert {file.name for file in Path("labelled").iterdir()} == {
        "photo_map.png",
        "photo_overlay.png",
        "photo_ponder.png",
    }
    capsys.readouterr()
    assert main(["predict", "--model=boundries", "photo.jpg"]) == 2
    assert "boundries: no network of this name ships" in capsys.readouterr().err


@pytest.mark.slow
def test_budgets_of_a_network_that_ships(tmp_path, capsys):
    """A prediction costs no more than its budget, and a higher budget gives a later exit's."""
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), np.random.default_rng(0).integers(0, 256, (128, 192, 3), np.uint8))

    def within(budget: float) -> dict[str, Any]:
        options = ["--model=street", "--json", f"--budget-macs={budget}", f"--out={tmp_path}"]
        assert main(["predict", *options, str(photo)]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert found["density"] is None
        return found

    whole, first = within(1e15), within(1.0)  # the first prediction is always made
    assert first["prediction"] == [1, 4]
    assert whole["prediction"] == [4, 4]
    budget = (first["macs"] + whole["macs"]) / 2
    between = within(budget)
    assert first["prediction"] < between["prediction"] < whole["prediction"]
    assert first["macs"] < between["macs"] <= budget < whole["macs"]


SHIPPED = {"boundaries": {"boundaries": 1}, "scenes": {"boundaries": 1}, "street": {"segmentation": 11}}
"""Network -> its tasks, with their channels."""


@pytest.mark.parametrize("name", SHIPPED)
def test_networks_that_ship(name):
    """Each opens, predicts every pixel and has a whole card; all of them fit into the wheel."""
    assert set(network_file.shipped_networks()) == set(SHIPPED)
    path = network_file.shipped_networks()[name]
    card = network_file.read_card(path)
    steps = {"exits"} if name == "street" else set()
    assert set(card) == set(network_file.CARD) - {"exits"} | steps
    assert card.get("exits", "").count(" MACs") == 4 * len(steps)
    assert path.with_suffix(".md").read_text() == network_file.card_text(name, card)
    assert sum(file.stat().st_size for file in network_file.shipped_networks().values()) < 12e6
    found = dynpix_jax.load(name)
    shapes = jax.eval_shape(found.system.apply, found.variables, IMAGES[:1]).predictions
    assert {task: value.shape for task, value in shapes.items()} == {
        task: (1, 32, 40, channels) for task, channels in SHIPPED[name].items()
    }
    leaves = jax.tree.leaves(found.variables)
    assert leaves
    assert all(np.isfinite(leaf).all() for leaf in leaves)

"""eval.py and `dynpix predict` with --weights: imported networks without a training run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from dynpix_jax.backbones import hrnet, resnet
from dynpix_jax.cli import eval as eval_program
from dynpix_jax.cli import main
from dynpix_jax.core.errors import UserError
from dynpix_jax.weights import check_complete
from tests.data.multitask_files import write_nyud
from tests.data.test_mpii import write as write_mpii
from tests.papers.mdeq.reference import random_tensors
from tests.weights import caffe_net as cn
from tests.weights import official, torch_old
from tests.weights import torch_zip as tz
from tests.weights.bringing import TINY_HRNET, anytime, pixelnet, torch_file

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
import ml_collections

def get_config(arg=""):
    scenes = {{"name": "scenes", "size": (64, 64), "length": 2, "fields": ("segmentation",)}}
    return ml_collections.ConfigDict({{
        "name": "tiny", "seed": 0, "model": {model},
        "data": {{
            "train": {{"source": {{**scenes, "split": "train"}}}},
            "eval": {{"source": {{**scenes, "split": "val"}}}},
        }},
        "training": {{"batch_size": 1, "stages": ({{"name": "train", "steps": 1, "learning_rate": 1e-5}},)}},
        "evaluation": {{"mode": "dense", "pictures": 1, "limit": 1, "batch_size": 1,
                       "every_stage": True, "inference": {{"flip": False}}}},
    }})
"""
ANYTIME, PIXELNET = anytime("flex", adaptive=True, classes=8), pixelnet(8)


def anytime_file(folder: Path) -> Path:
    """Of an adaptive network, as torch 1.1 wrote it."""
    tensors = official.filled(official.hrnet(*TINY_HRNET, exits="flex", adaptive=True, classes=8))
    state = {f"model.{name}": tz.tensor(array) for name, array in tensors.items()}
    return torch_old.save(folder / "final_state.pth", state)


def pixelnet_file(folder: Path) -> Path:
    layers = []
    for name, tensor in official.filled(official.pixelnet(4, 6, 8, 8)).items():
        kind = "Convolution" if tensor.ndim == 4 else "InnerProduct"
        layers.append(cn.layer(name, kind, [cn.blob(tensor), cn.blob(np.zeros(len(tensor)))]))
    return cn.save(folder / "vgg16_segmentation.caffemodel", *layers)


@pytest.mark.parametrize(
    ("model", "write"),
    [(PIXELNET, pixelnet_file), pytest.param(ANYTIME, anytime_file, marks=pytest.mark.slow)],
)
def test_an_official_file_is_scored_and_labels_a_photo(tmp_path, monkeypatch, capsys, model, write):
    monkeypatch.setitem(hrnet.ARCHITECTURES, "w18s1", TINY_HRNET)
    config, weights = tmp_path / "tiny.py", tmp_path / "w.safetensors"
    config.write_text(CONFIG.format(model=model))
    of = [f"--config={config}", f"--weights={weights}"]
    assert main.main(["import-weights", of[0], f"--source={write(tmp_path)}", f"--out={weights}"]) == 0
    assert "skipped: 0\nmissing: 0\nunexpected: 0\n" in capsys.readouterr().out
    assert eval_program.main([*of, f"--out={tmp_path / 'scores'}"]) == 0
    numbers = json.loads((tmp_path / "scores" / "eval.json").read_text())
    assert numbers["checkpoints"] == f"train ({weights})"
    (row,) = numbers["rows"]
    assert 0 <= row["modes"]["dense"]["miou"] <= 1
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(photo)
    assert main.main(["predict", *of, f"--out={tmp_path / 'out'}", "--mode=dense", str(photo)]) == 0
    assert (tmp_path / "out" / "photo_map.png").is_file()


def small_astmt(root: Path) -> tuple[dict[str, Any], list[str]]:
    """Tensors of the released network for NYUD's tasks, and the settings that make ours as small."""
    write_nyud(root)
    tasks = {"edge": 1, "semseg": 41, "normals": 3, "depth": 1}
    tensors = official.filled(official.astmt(4, (1, 1, 1, 1), tasks, decoder=16, discriminator=3))
    return tensors, ["model.backbone.width=4", "model.decoder.features=16"]


def small_mdeq(root: Path) -> tuple[dict[str, Any], list[str]]:
    """Likewise of MDEQ, with an image of Cityscapes whose sides halve evenly."""
    rng = np.random.default_rng(0)
    for package, end, shape, dtype in (
        ("leftImg8bit", "leftImg8bit", (32, 48, 3), np.uint8),
        ("gtFine", "gtFine_labelIds", (32, 48), np.uint8),
        ("gtFine", "gtFine_instanceIds", (32, 48), np.uint16),
    ):
        folder = root / package / "val" / "ulm"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 34, shape).astype(dtype)).save(
            folder / f"ulm_000000_000019_{end}.png"
        )
    settings = ["cell.channels=(8,16)", "cell.expansion=1", "forward.iterations=2"]
    return random_tensors((8, 16), 1, 19), ["evaluation.also=()", *(f"model.{one}" for one in settings)]


def small_pose(root: Path) -> tuple[dict[str, Any], list[str]]:
    """Likewise of the pose network, with MPII's people."""
    write_mpii(root)
    return official.filled(official.hrnet(*TINY_HRNET, pose=16)), ["data.eval.source.crop=(32,32)"]


@pytest.mark.parametrize(
    ("config", "make", "prefix", "scores"),
    [
        (
            "astmt/nyud.py:backbone=r26,variant=released",
            small_astmt,
            "module.",
            {"ods", "segmentation/miou", "normals/mean", "depth/rmse"},
        ),
        ("mdeq/cityscapes.py:variant=small,budget=gpu", small_mdeq, "model.", {"miou"}),
        ("anytime/mpii.py:variant=hrnet,flip=False", small_pose, "", {"pckh"}),
    ],
    ids=["astmt", "mdeq", "pose"],
)
def test_released_networks_are_scored(tmp_path, monkeypatch, capsys, config, make, prefix, scores):
    """By the configs that docs/weights.md names, on files in the data sets' layouts."""
    monkeypatch.setitem(hrnet.ARCHITECTURES, "w32", TINY_HRNET)
    monkeypatch.setitem(resnet._BLOCKS, 26, (1, 1, 1, 1))
    tensors, settings = make(tmp_path / "data")
    source = torch_file(tmp_path / "released.pth", tensors, old=True, prefix=prefix)
    weights = tmp_path / "w.safetensors"
    of = [f"--config={ROOT / 'configs' / config},root={tmp_path / 'data'}", "--set", *settings]
    assert main.main(["import-weights", *of, f"--source={source}", f"--out={weights}"]) == 0
    assert "skipped: 0\nmissing: 0\nunexpected: 0\n" in capsys.readouterr().out
    run = ["evaluation.mode=dense", "evaluation.pictures=0", "evaluation.limit=1"]
    assert eval_program.main([*of, *run, f"--weights={weights}", f"--out={tmp_path / 'out'}"]) == 0
    (*_, row) = json.loads((tmp_path / "out" / "eval.json").read_text())["rows"]
    assert scores <= row["modes"]["dense"].keys()
    assert all(np.isfinite(row["modes"]["dense"][name]) for name in scores)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"params/head/kernel": np.ones((2, 19))},
            r"kernel has shape \(2, 19\), the config's network \(2, 5\)",
        ),
        ({"params/head/bias": None}, "lacks 1 tensors, the first params/head/bias; it is of another variant"),
        (
            {"params/head/lam": np.ones(())},
            "has, beside .* network, 1 tensors, the first params/head/lam; it is",
        ),
    ],
)
def test_weights_of_another_network(change, said):
    network = {"params/head/kernel": np.ones((2, 5)), "params/head/bias": np.ones(5)}
    given = {name: leaf for name, leaf in (network | change).items() if leaf is not None}
    nested = [traverse_util.unflatten_dict(leaves, sep="/") for leaves in (given, network)]
    with pytest.raises(UserError, match=rf"w\.safetensors: .*{said}"):
        check_complete("w.safetensors", *nested)
    check_complete("w.safetensors", nested[1], nested[1])


def test_mistakes_are_one_line(tmp_path, capsys):
    config, photo, weights = tmp_path / "tiny.py", tmp_path / "photo.png", tmp_path / "w.npz"
    config.write_text(CONFIG.format(model=PIXELNET))
    np.savez(weights, **{"conv1.weight": np.ones(1)})

    def refusal(*arguments: object) -> str:
        assert main.main(["predict", f"--out={tmp_path / 'o'}", str(photo), *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    of = [f"--config={config}", f"--weights={weights}"]
    assert "give the --config of its network" in refusal(of[1])
    assert "the config has no such stage; did you mean 'train'" in refusal(*of, "--stage=trian")
    assert "conv1.weight is not a name of ours" in refusal(*of)
    assert "no such file" in refusal(of[0], f"--weights={tmp_path / 'none.npz'}")
    with pytest.raises(UserError, match="give --out, the folder for"):
        eval_program.main(of)
    with pytest.raises(SystemExit):
        eval_program.main([*of, f"--workdir={tmp_path}"])

"""docs/own-data.md, followed literally with a folder of 20 images."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from dynpix_jax.cli.main import main
from dynpix_jax.data.scenes import Scenes, ScenesConfig

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/own-data.md").read_text()
BLOCK = re.compile(r"(<!-- needs data: [^>]*-->\n\n)?```(sh|python|json)\n(.*?)```\n", re.DOTALL)


def make(folder: Path) -> None:
    """Rooms, with three of the scenes' classes."""
    scenes = Scenes(ScenesConfig(size=(64, 80), length=20, fields=("segmentation",)), "train")
    for sub in ("images", "labels"):
        (folder / sub).mkdir(parents=True)
    for index in range(20):
        element = scenes[index]
        ids = np.minimum(element["segmentation"], 2).astype(np.uint8)
        cv2.imwrite(str(folder / f"images/{index + 1:04d}.jpg"), element["image"][..., ::-1])
        cv2.imwrite(str(folder / f"labels/{index + 1:04d}.png"), ids)


@pytest.mark.slow
def test_followed_literally(tmp_path):
    make(tmp_path / "my")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/dynpix").write_text(f'#!/bin/sh\nexec {sys.executable} -m dynpix_jax.cli.main "$@"\n')
    (tmp_path / "bin/dynpix").chmod(0o755)
    path = os.pathsep.join((str(tmp_path / "bin"), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    ran = 0
    for needs, language, text in BLOCK.findall(PAGE):
        if language == "json":
            (tmp_path / "my/classes.json").write_text(text)
            continue
        if needs:
            continue
        command = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        ran += 1
    assert ran == 4
    assert "floor" in (tmp_path / "runs/try/report.html").read_text()
    for out in ("labelled", "again"):
        ids = cv2.imread(str(tmp_path / out / "0001_map.png"), cv2.IMREAD_UNCHANGED)
        assert ids.shape == (64, 80)
        assert ids.max() <= 2


def test_a_mistake_ends_the_training_with_one_line(tmp_path, capsys, monkeypatch):
    make(tmp_path / "my")
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "my/labels/0003.png"
    cv2.imwrite(str(bad), np.full((64, 80), 7, np.uint8))
    Path("my/train.txt").write_text("0003\n")
    Path("my/val.txt").write_text("0001\n")
    arguments = ["prepare", "folder", "--source=my", "--out=packed", "--workers=0", "--set", "classes=3"]
    assert main(arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("dynpix prepare: ")
    assert "0003.png has the id 7; expected 0 to 2 or 255" in line
    assert json.loads(BLOCK.findall(PAGE)[0][2])["classes"] == ["floor", "wall", "thing"]

"""`dynpix prepare`: what it writes and says, and that it survives being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from dynpix_jax.cli.main import main
from dynpix_jax.data.packed import verify
from dynpix_jax.data.sources import build_source


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Train and val, but no test."""
    root = tmp_path / "camvid"
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            cv2.imwrite(str(root / split / f"{number}.png"), image)
            labels = rng.integers(0, 12, (6, 8), dtype=np.uint8)
            cv2.imwrite(str(root / f"{split}annot" / f"{number}.png"), labels)
    return root


def test_packs_the_splits_that_there_are(
    camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    call = ["prepare", "camvid", "--source", str(camvid), "--out", str(out), "--workers", "0"]
    assert main(call) == 0
    printed = capsys.readouterr()
    assert "train: 3 elements in 1 shards" in printed.out
    assert "val: 1 elements" in printed.out
    assert "left out: camvid: folder not found" in printed.err
    for split in ("train", "val"):
        source = build_source({"name": "camvid", "root": str(camvid)}, split)
        packed = build_source({"name": "packed", "root": str(out)}, split)
        assert [packed.name(i) for i in range(len(packed))] == [source.name(i) for i in range(len(source))]
        for index in range(len(source)):
            for name, value in source[index].items():
                np.testing.assert_array_equal(packed[index][name], value)
    assert main([*call, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [(row["split"], row["elements"]) for row in summary["splits"]] == [("train", 3), ("val", 1)]
    assert main(["prepare", "camvid", "--out", str(out), "--verify"]) == 0
    assert "train: 3 elements in 1 shards, 0.1 MB, verified" in capsys.readouterr().out
    shard = out / "val" / "shard-00000.array_record"
    content = bytearray(shard.read_bytes())
    content[100] ^= 4
    shard.write_bytes(content)
    assert main(["prepare", "camvid", "--out", str(out), "--verify"]) == 2
    assert "val/shard-00000.array_record is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["camvid", "--source", "{}/none"], "folder not found"),
        (["camvid"], "--source: missing; expected the folder of camvid"),
        (["canvid", "--source", "{}"], "did you mean 'camvid'"),
        (["scenes", "--source", "{}"], "--source: scenes reads no files"),
        (["camvid", "--source", "{}", "--split", "test"], "folder not found"),
        (["camvid", "--source", "{}", "--set", "rooot=3"], "did you mean 'root'"),
        (["nyuv2", "--source", "{}", "--set", "fields=('dpeth',)"], "did you mean 'depth'"),
        (["camvid", "--source", "{}", "--workers", "-1"], "--workers: expected 0 to 1024"),
        (["camvid", "--verify"], "no folder train, trainaug, val, trainval, test in"),
    ],
)
def test_mistakes_end_with_one_line(
    arguments: list[str], message: str, camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [argument.format(camvid) for argument in arguments]
    assert main(["prepare", *arguments, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def running(pids: list[int]) -> list[int]:
    """Those of the processes that are there and no zombies."""
    states = []
    for pid in pids:
        try:
            states.append(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0])
        except FileNotFoundError:
            states.append("Z")
    return [pid for pid, state in zip(pids, states, strict=True) if state != "Z"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
def test_kill_9_and_again(tmp_path: Path) -> None:
    section = {"name": "scenes", "size": (48, 64), "length": 40}
    options = ["--set", "size=(48,64)", "length=40", "--split", "train", "--shard-mb", "1", "--workers", "2"]
    command = [
        sys.executable,
        "-m",
        "dynpix_jax.cli.main",
        "prepare",
        "scenes",
        "--out",
        str(tmp_path),
        *options,
    ]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    partial = tmp_path / "train" / "manifest.partial.json"
    deadline = time.monotonic() + 120
    while not partial.is_file() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert partial.is_file()
    finished = len(json.loads(partial.read_text())["shards"])
    # Workers end with it, soon.
    while (left := running([int(pid) for pid in children])) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left
    assert main(["prepare", "scenes", "--out", str(tmp_path), *options[:-1], "0"]) == 0
    manifest = verify(tmp_path / "train")
    assert 0 < finished < len(manifest.shards)
    source, packed = (
        build_source(section, "train"),
        build_source({"name": "packed", "root": str(tmp_path)}, "train"),
    )
    assert len(packed) == 40
    for index in (0, 13, 39):
        for name, value in source[index].items():
            assert packed[index][name].tobytes() == value.tobytes()

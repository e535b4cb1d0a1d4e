"""What each writer makes of numbers, names and pictures."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from dynpix_jax.training.writers import ConsoleWriter, JsonlWriter, TensorBoardWriter, Writers

PICTURE = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
VALUES = {"stage": "base", "miou": 0.5, "segmentation/frame0": PICTURE}


def events(folder: Path) -> Iterator[Event]:
    """Of the event files, by their format: length, its checksum, the event, its checksum."""
    for file in folder.iterdir():
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_pictures_go_to_tensorboard_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "metrics.jsonl"
    writers = Writers([JsonlWriter(file), TensorBoardWriter(tmp_path / "board"), ConsoleWriter(10)])
    writers.write(4, "eval", VALUES)
    writers.close()
    assert json.loads(file.read_text()) == {"step": 4, "kind": "eval", "stage": "base", "miou": 0.5}
    assert capsys.readouterr().out == "eval 4/10 stage=base miou=0.5\n"
    found = {
        value.tag: (event.step, value)
        for event in events(tmp_path / "board")
        for value in event.summary.value
    }
    assert set(found) == {"eval/miou", "eval/segmentation/frame0"}
    step, scalar = found["eval/miou"]
    assert (step, scalar.simple_value) == (4, 0.5)
    step, picture = found["eval/segmentation/frame0"]
    shown = Image.open(io.BytesIO(picture.image.encoded_image_string))
    assert step == 4
    np.testing.assert_array_equal(np.asarray(shown), PICTURE)

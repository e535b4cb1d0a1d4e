"""Runs many commands in one process, each with its own streams, and the files that bad commands name."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shlex
import struct
import time
import tomllib
import traceback
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from dynpix_jax.cli import main
from tests.tiny import SHORT_CONFIG

TABLE = Path(__file__).with_name("bad_inputs.toml")


@dataclasses.dataclass(frozen=True)
class Command:
    """A row of the table: what is typed after `dynpix`, its exit status, and a word of its last line."""

    line: str
    status: int
    word: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command did; megabytes: what it took at its highest beside what was there before."""

    status: int
    out: str
    err: str
    seconds: float
    megabytes: float


def commands() -> list[Command]:
    """All rows. A group's ``base`` stands before the arguments of each of its rows."""
    groups = tomllib.loads(TABLE.read_text(encoding="utf-8"))["group"]
    return [
        Command(f"{group['base']} {arguments}".strip(), status, word)
        for group in groups
        for arguments, status, word in group["rows"]
    ]


def run(line: str, places: Mapping[str, Path]) -> Outcome:
    """Runs `dynpix LINE`, in which {NAME} is one of ``places``."""
    for name, path in places.items():
        line = line.replace(f"{{{name}}}", shlex.quote(str(path)))
    out, err = io.StringIO(), io.StringIO()
    before, began = _memory("VmRSS"), time.monotonic()
    _forget_peak()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main.main(shlex.split(line))
        except SystemExit as end:  # argparse's
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
            status = 1
    seconds = time.monotonic() - began
    return Outcome(status, out.getvalue(), err.getvalue(), seconds, _memory("VmHWM") - before)


def faults(command: Command, outcome: Outcome) -> Iterator[str]:
    """What is wrong with how a command ended."""
    lines = outcome.err.splitlines()
    if outcome.status != command.status:
        yield f"status {outcome.status}, expected {command.status}"
    if "Traceback" in outcome.err:
        yield "a traceback"
    # argparse's usage has several lines.
    if command.status == 2 and not outcome.err.startswith("usage:") and len(lines) != 1:
        yield f"{len(lines)} lines"
    if command.word not in (lines[-1] if lines else outcome.out):
        yield f"no {command.word!r} in the line"
    if outcome.seconds > 20:
        yield f"{outcome.seconds:.0f} s"
    if outcome.megabytes > 1024:
        yield f"{outcome.megabytes:.0f} MB"


def make_places(folder: Path) -> dict[str, Path]:
    """The files that the table names, but for {run}, the workdir of the trained tiny network."""
    places = {"tiny": folder / "tiny.py", "new": folder / "new", "out": folder / "out"}
    places["tiny"].write_text(SHORT_CONFIG)
    _make_files(folder, places)
    _make_photos(folder, places)
    _make_configs(folder, places)
    _make_boundaries(folder, places)
    places["dir"] = folder
    return places


def _make_files(folder: Path, places: dict[str, Path]) -> None:
    contents = {
        "empty": b"",
        "text": b"hello\n",
        "binary": bytes(range(256)) * 8,
        "json": b'{"a": 1}',
        "brackets": b"[" * 100_000,
        "nan": b'{"a": NaN}',
        "zip": b"PK\x03\x04" + bytes(60),
        "pickle": b"cos\nsystem\n(S'true'\ntR.",
    }
    for name, content in contents.items():
        places[name] = folder / f"{name}.bin"
        places[name].write_bytes(content)
    places["folder"] = folder / "a folder"
    places["folder"].mkdir()
    places["below_file"] = places["text"] / "below"
    places["missing"] = folder / "missing"
    places["fifo"] = folder / "fifo.jpg"
    os.mkfifo(places["fifo"])
    places["loop"] = folder / "loop.jpg"
    places["loop"].symlink_to(places["loop"])
    places["dangling"] = folder / "dangling.jpg"
    places["dangling"].symlink_to(folder / "nowhere.jpg")
    for name, file in (("busy_metrics", "metrics.jsonl"), ("busy_config", "config.json")):
        places[name] = folder / name
        (places[name] / file).mkdir(parents=True)
    for name, file in (("busy_board", "tensorboard"), ("busy_checkpoints", "checkpoints")):
        places[name] = folder / name
        places[name].mkdir()
        (places[name] / file).write_text("")


def _make_photos(folder: Path, places: dict[str, Path]) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 64, 3), np.uint8)
    photo = Image.fromarray(pixels)
    for name, kind in (("photo", "jpg"), ("png", "png"), ("gif", "gif"), ("webp", "webp"), ("bmp", "bmp")):
        places[name] = folder / f"{name}.{kind}"
        photo.save(places[name])
    places["cut"] = folder / "cut.jpg"
    places["cut"].write_bytes(places["photo"].read_bytes()[:300])
    places["flipped"] = folder / "flipped.png"
    content = bytearray(places["png"].read_bytes())
    content[len(content) // 2] ^= 0xFF
    places["flipped"].write_bytes(content)
    places["float"] = folder / "float.tif"
    Image.fromarray(np.ones((48, 64), np.float32)).save(places["float"])
    places["int32"] = folder / "int32.tif"
    Image.fromarray(np.ones((48, 64), np.int32)).save(places["int32"])
    places["wide"] = folder / "wide.png"
    content = bytearray(places["png"].read_bytes())
    content[16:24] = struct.pack(">II", 30_000, 20_000)  # in its header
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    places["wide"].write_bytes(content)
    places["named_png"] = folder / "not a picture.png"
    places["named_png"].write_text("hello")
    raw = os.fsencode(folder) + b"/caf\xe9.jpg"
    photo.save(io.BytesIO(), "jpeg")
    with open(raw, "wb") as file:
        photo.save(file, "jpeg")
    places["not_utf8"] = Path(os.fsdecode(raw))


ERRORS = ("ValueError", "RuntimeError", "ZeroDivisionError", "IndexError", "AssertionError", "OSError",
          "RecursionError", "KeyError", "TypeError", "NameError", "ImportError", "MemoryError",
          "StopIteration", "UnicodeError", "NotImplementedError", "EOFError", "SystemExit")  # fmt: skip


def _make_configs(folder: Path, places: dict[str, Path]) -> None:
    texts = {f"raises_{name}": f"def get_config():\n    raise {name}('oh')\n" for name in ERRORS}
    texts |= {f"top_{name}": f"raise {name}('oh')\n" for name in ERRORS}
    start = "import ml_collections\n"
    texts |= {
        "syntax": "def get_config(:\n",
        "nothing": "",
        "no_function": "get_config = 3\n",
        "two_arguments": "def get_config(a, b):\n    pass\n",
        "returns_none": "def get_config():\n    return None\n",
        "returns_dict": "def get_config():\n    return {}\n",
        "no_keys": f"{start}def get_config():\n    return ml_collections.ConfigDict()\n",
        "no_argument": SHORT_CONFIG.replace('get_config(arg=""):', "get_config():\n    arg = ''"),
        "holds_itself": (
            f"{start}def get_config():\n    c = ml_collections.ConfigDict()\n    c.model = {{}}\n"
            "    c.model.own = c.model\n    return c\n"
        ),
        "numbers": f"{start}def get_config():\n    return ml_collections.ConfigDict({{'model': 3}})\n",
        "import_gone": "import package_that_is_not_there\n",
    }
    for name, text in texts.items():
        places[name] = folder / f"{name}.py"
        places[name].write_text(text)
    places["config_txt"] = folder / "config.txt"
    places["config_txt"].write_text(SHORT_CONFIG)
    places["not_utf8_config"] = folder / "latin.py"
    places["not_utf8_config"].write_bytes(b"# caf\xe9\n")
    places["nul_config"] = folder / "nul.py"
    places["nul_config"].write_bytes(b"a = 1\0\n")


def _make_boundaries(folder: Path, places: dict[str, Path]) -> None:
    def truth(name: str, map_: object) -> None:
        places[name] = folder / name
        places[name].mkdir()
        cells = np.empty((1, 1), object)
        cells[0, 0] = {"Boundaries": map_}
        savemat(places[name] / "a.mat", {"groundTruth": cells})

    edge = np.eye(16, 20, dtype=np.uint8)
    truth("gt", edge)
    truth("gt_nan", np.full((16, 20), np.nan))
    truth("gt_small", edge[:8])
    truth("gt_text", "hello")
    truth("gt_flat", np.zeros(3))
    places["gt_cut"] = folder / "gt_cut"
    places["gt_cut"].mkdir()
    (places["gt_cut"] / "a.mat").write_bytes((places["gt"] / "a.mat").read_bytes()[:150])
    maps = {"maps": edge * 255, "maps_colour": np.dstack([edge * 255, edge, edge])}
    for name, map_ in maps.items():
        places[name] = folder / name
        places[name].mkdir()
        Image.fromarray(map_).save(places[name] / "a.png")
    places["maps_float"] = folder / "maps_float"
    places["maps_float"].mkdir()
    Image.fromarray(edge.astype(np.float32)).save(places["maps_float"] / "a.tif")
    (places["maps_float"] / "a.tif").rename(places["maps_float"] / "a.png")
    places["curve"] = folder / "curve.json"
    places["curve"].write_text(json.dumps({"per_threshold": []}))


def _memory(name: str) -> float:
    """Megabytes of /proc/self/status."""
    found = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(found.split()[1]) / 1024


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")

"""`dynpix bench curves`: the points of an eval.json, and the picture."""

from __future__ import annotations

import json

import pytest

from dynpix_jax.bench import curves
from dynpix_jax.cli.main import main


def evaluated(rows, data: str = "scenes val, 40 images"):
    return {"data": data, "rows": [{"stage": "last", **row} for row in rows]}


def row(macs: float, miou: float, **more):
    return dict(macs_per_image=macs, modes={"dense": {"miou": miou}}, **more)


ON_THE_WAY = [dict(macs_per_image=1e8, miou=0.3), dict(macs_per_image=3e8, miou=0.5)]
ALONE = [row(0.9e8, 0.3, alternative="iterations_1"), row(2e8, 0.5, alternative="iterations_4")]


@pytest.mark.parametrize(
    ("rows", "points"),
    [
        ([row(3e8, 0.5, exits=ON_THE_WAY)], [("exit 1", 1e8, 0.3), ("exit 2", 3e8, 0.5)]),
        (
            [row(3e8, 0.5, exits=ON_THE_WAY), *ALONE],
            [("iterations 1", 1e8, 0.3), ("iterations 4", 3e8, 0.5)],
        ),
        (
            [row(3e8, 0.5, exits=[]), *ALONE[::-1]],
            [("iterations 1", 0.9e8, 0.3), ("iterations 4", 2e8, 0.5)],
        ),
        ([row(3e8, 0.5), row(4e8, 0.6, alternative="argmax")], [("", 3e8, 0.5)]),
    ],
)
def test_points(rows, points):
    found = curves.points(evaluated(rows), "miou")
    assert [(point.name, point.macs, point.accuracy) for point in found] == points
    assert curves.points(evaluated(rows), "ods") == []


def test_picture(tmp_path, capsys):
    def curve(name: str, rows, **options) -> str:
        (tmp_path / name).write_text(json.dumps(evaluated(rows, **options)))
        return f"{name}={tmp_path / name}"

    out = tmp_path / "curves.png"
    both = [curve("a", [row(3e8, 0.5, exits=ON_THE_WAY)]), curve("b", [row(3e8, 0.5), *ALONE])]
    assert main(["bench", "curves", *both, f"--out={out}", "--json"]) == 0
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert set(json.loads(capsys.readouterr().out)) == {"a", "b"}
    other = curve("c", [row(3e8, 0.5)], data="camvid val, 101 images")
    (tmp_path / "d").write_text("{}")
    for arguments, message in (
        ([both[0], other], "different images"),
        (["a"], "expected LABEL"),
        ([f"a={tmp_path / 'none.json'}"], "expected an eval.json"),
        ([f"a={tmp_path / 'd'}"], "KeyError: 'data'"),
    ):
        assert main(["bench", "curves", *arguments, f"--out={out}"]) == 2
        assert message in capsys.readouterr().err
    for arguments, message in (
        ([both[0], f"a={tmp_path / 'b'}"], "another curve has the label 'a'"),
        ([*both, f"--out={tmp_path / 'curves.pgn'}"], "curves.pgn: cannot be written: "),
        ([*both, f"--out={tmp_path / 'a' / 'curves.png'}"], "cannot be written: "),
    ):
        assert main(["bench", "curves", f"--out={out}", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line

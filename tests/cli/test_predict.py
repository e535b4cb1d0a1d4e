from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dynpix_jax import tasks
from dynpix_jax.cli import main
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.system import Outputs
from dynpix_jax.evaluation import tiles
from dynpix_jax.evaluation.runner import ImageResult
from dynpix_jax.serving.labelling import label, label_ids
from dynpix_jax.serving.photos import Photo, check_names, result_names
from dynpix_jax.visualization.steps import choice_colours


def write_photo(path: Path, size: tuple[int, int], **options) -> Path:
    """A photo of (H, W) pixels with a bright square in the middle."""
    height, width = size
    picture = np.full((height, width, 3), 40, np.uint8)
    picture[height // 4 : height // 2, width // 4 : width // 2] = (250, 200, 30)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture).save(path, **options)
    return path


def command(run, out: Path, *arguments: object) -> list[str]:
    options = ["predict", f"--config={run.config}", f"--workdir={run.workdir}", f"--out={out}"]
    return [*options, *map(str, arguments)]


def picture(path: str | Path) -> np.ndarray:
    with Image.open(path) as stored:
        return np.asarray(stored)


def test_photos_of_several_sizes(tiny_run, tmp_path, capsys):
    """A turned photo, one that is too large, one with two colours and an odd size; sparse equals dense."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown 48 high and 33 wide
    photos = [
        write_photo(tmp_path / "a" / "1.jpg", (33, 48), exif=exif),
        write_photo(tmp_path / "b" / "1.jpg", (96, 33)),
    ]
    arguments = [*photos, "--max-side=48", "--json"]
    assert main.main(command(tiny_run, tmp_path / "sparse", *arguments)) == 0
    turned, large = json.loads(capsys.readouterr().out)
    assert (turned["size"], turned["computed_size"]) == ([48, 33], [48, 33])
    assert (large["size"], large["computed_size"]) == ([96, 33], [48, 16])
    for numbers in (turned, large):
        assert numbers["stage"] == "gates"
        assert 0 < numbers["macs"] <= numbers["macs_gates_open"]
        assert 0 <= numbers["density"] <= 1
        assert numbers["milliseconds"] > 0
        assert picture(numbers["files"]["map"]).shape == tuple(numbers["size"])
        assert picture(numbers["files"]["overlay"]).shape == (*numbers["size"], 3)
        assert picture(numbers["files"]["ponder"]).shape[1] > 200
    names = sorted(path.name for path in (tmp_path / "sparse").iterdir())
    assert names == [f"{folder}_1_{kind}.png" for folder in "ab" for kind in ("map", "overlay", "ponder")]

    assert main.main(command(tiny_run, tmp_path / "dense", photos[0], "--mode=dense")) == 0
    difference = picture(tmp_path / "dense" / "1_map.png").astype(int) - picture(turned["files"]["map"])
    assert np.abs(difference).max() <= 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{photos[0]}: 48x33, ")
    assert "MACs" in line
    assert "ms dense" in line
    assert "density" in line


def test_a_bad_photo_is_named_and_the_others_stay(tiny_run, tmp_path, capsys):
    good = write_photo(tmp_path / "good.png", (33, 48))
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(write_photo(tmp_path / "whole.jpg", (64, 64)).read_bytes()[:300])
    out = tmp_path / "out"
    arguments = ["--stage=base", "--mode=dense", "--json"]
    assert main.main(command(tiny_run, out, good, bad, *arguments)) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert str(bad) in line
    (numbers,) = json.loads(captured.out)
    assert (numbers["photo"], numbers["density"], numbers["stage"]) == (str(good), None, "base")
    # Without gates there is no ponder map.
    assert sorted(path.name for path in out.iterdir()) == ["good_map.png", "good_overlay.png"]

    assert main.main(command(tiny_run, out, tmp_path / "no.jpg", *arguments)) == 2
    assert f"image not found: {tmp_path / 'no.jpg'}" in capsys.readouterr().err


def test_a_network_that_diverged_is_named(tmp_path):
    outputs = SimpleNamespace(predictions={"boundaries": np.full((1, 4, 6, 1), np.nan, np.float32)})
    photo = Photo(Path("x.jpg"), "x", *[np.zeros((4, 6, 3), np.uint8)] * 2)
    system = SimpleNamespace(tasks={"boundaries": tasks.build("boundaries", {}, "")})
    trained = SimpleNamespace(stage="gates", step=4, system=system)
    with pytest.raises(UserError, match=r"x.jpg: .*'gates' \(step 4\) .*not finite"):
        label(photo, lambda image, mode: SimpleNamespace(outputs=outputs), trained, "sparse", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_choices_are_drawn(tmp_path, capsys):
    """Of a MultiPool: a picture for each of its blocks, with the pooling sizes' colours."""
    logits, size = np.zeros((1, 16, 24, 1), np.float32), (16, 24)
    outputs = Outputs({"boundaries": logits}, selections={"res5_2": np.eye(2, dtype=np.float32)[None, :1]})
    chosen = np.repeat([[0, 1]], 12, axis=1)[None].repeat(16, axis=1)
    system = SimpleNamespace(
        tasks={"boundaries": tasks.build("boundaries", {}, "")},
        choices=("copy", "dilation 4"),
        choice_maps=lambda outputs, size: {"res5_2": chosen.astype(np.int32)},
        true_choices=lambda labels: None,
    )
    trained = SimpleNamespace(stage="multipool", step=4, system=system, rho=1.0)
    result = ImageResult(outputs, {}, 1.0, 1.0, 1.0, size)
    photo = Photo(Path("x.jpg"), "x", *[np.zeros((*size, 3), np.uint8)] * 2)
    files = label(photo, lambda image, mode: result, trained, "sparse", tmp_path)["files"]
    assert files["choices"] == str(tmp_path / "x_choices.png")
    drawn = picture(files["choices"])[..., :3]
    for colour in choice_colours(2):
        assert (drawn == colour).all(-1).mean() > 0.05


def test_mistakes_are_one_line_and_2(tiny_run, tmp_path, capsys):
    photo = write_photo(tmp_path / "x_map.png", (33, 48))
    other = write_photo(tmp_path / "x.png", (33, 48))
    for arguments, message in (
        ((photo, "--stage=gate"), "did you mean 'gates'"),
        ((photo, "--max-side=3"), "--max-side 3"),
        ((photo, "--budget-macs=0"), "--budget-macs 0: expected a number above 0"),
        (
            (photo, "--label-ids=cityscapes"),
            "--label-ids cityscapes: the network has no segmentation of its 19",
        ),
        ((photo, "--budget-ms=5"), "networks of the system 'pag' predict once"),
        ((photo, "--set", "model.head_features=8"), "config.model.head_features is 4 there and 8 here"),
        ((photo, other, f"--out={tmp_path}"), "would be overwritten"),
        ((photo, f"--out={photo}"), "is not a folder"),
    ):
        assert main.main(command(tiny_run, tmp_path / "out", *arguments)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("dynpix predict: ")
        assert message in line


@pytest.mark.parametrize(
    ("photos", "names"),
    [
        (["x/1.jpg", "x/2.jpg"], ["1", "2"]),
        (["x/1.jpg", "x/1.png"], ["1_jpg", "1_png"]),
        (["x/1.jpg", "y/1.jpg", "y/2.jpg"], ["x_1", "y_1", "2"]),
        (["x/1.JPG", "x/1.jpg"], ["root_x_1_JPG", "root_x_1_jpg"]),
        (["x/y/1.jpg", "z/y/1.jpg"], ["root_x_y_1_jpg", "root_z_y_1_jpg"]),
    ],
)
def test_result_names(photos, names):
    paths = [Path("/root") / photo for photo in photos]
    if names[0].casefold() == names[1].casefold():  # some file systems could not keep both
        with pytest.raises(UserError, match="would share the results"):
            result_names(paths)
    else:
        assert list(result_names(paths).values()) == names


def test_results_of_a_task_are_those_of_no_other_photo():
    """Depth of room.jpg and boundaries of room_depth.png, both room_depth_map.png: one was lost."""
    names = result_names([Path("photos/room.jpg"), Path("photos/Room_depth.png")])
    check_names(names, ("boundaries", "normals"))
    check_names(names, ("depth", "boundaries"))
    with pytest.raises(UserError, match=r"room\.jpg and .*Room_depth\.png would share .* 'room_depth'"):
        check_names(names, ("boundaries", "depth"))


def test_label_ids_are_those_of_the_servers_files(tmp_path):
    """Cityscapes' 19 classes have ids 7 (road) to 33 (bicycle) in its files."""
    nineteen = {"segmentation": tasks.build("segmentation", {"classes": 19}, "")}
    (table,) = label_ids("cityscapes", nineteen).values()
    assert table[[0, 1, 11, 18, 19, 255]].tolist() == [7, 8, 24, 33, 255, 255]
    for source, known, message in (
        (
            "cityscapes",
            {"segmentation": tasks.build("segmentation", {"classes": 11}, "")},
            "of its 19 classes",
        ),
        ("camvid", nineteen, "no ids beside the classes'"),
        ("cityscape", nineteen, "did you mean 'cityscapes'"),
    ):
        with pytest.raises(UserError, match=message):
            label_ids(source, known)
    logits = np.zeros((1, 4, 6, 19), np.float32)
    logits[0, :, :3, 18] = 1.0  # a bicycle on the left, road on the right
    result = SimpleNamespace(
        outputs=SimpleNamespace(predictions={"segmentation": logits}),
        **dict(seen=(4, 6), macs=0, macs_open=0, milliseconds=1.0, prediction=None, shares={}),
    )
    photo = Photo(Path("x.jpg"), "x", *[np.zeros((4, 6, 3), np.uint8)] * 2)
    trained = SimpleNamespace(stage="base", step=1, rho=1.0, system=SimpleNamespace(tasks=nineteen))
    for ids, left, right in (({}, 18, 0), ({"segmentation": table}, 33, 7)):
        numbers = label(photo, lambda image, mode: result, trained, "dense", tmp_path, ids)
        assert picture(numbers["files"]["map"]).tolist() == [[left] * 3 + [right] * 3] * 4


def test_label_ids_of_a_task_of_any_name():
    """A task of the user's own has the data set's classes by their number."""
    of_edges, streets = tasks.build("boundaries", {}, ""), tasks.build("segmentation", {"classes": 19}, "")
    assert set(label_ids("cityscapes", {"segmentation": of_edges, "streets": streets})) == {"streets"}


def test_a_large_photo_in_tiles_and_bands_is_that_of_a_whole(tmp_path, monkeypatch):
    """By a network that looks at single pixels: two tasks, ids of Cityscapes, choices; costs add up."""
    options = {"boundaries": {}, "segmentation": {"classes": 19}}
    system = SimpleNamespace(
        tasks={name: tasks.build(name, given, "") for name, given in options.items()},
        choices=("copy", "dilation 4"),
        choice_maps=lambda outputs, size: outputs.selections,
        true_choices=lambda labels: None,
    )
    trained = SimpleNamespace(stage="multipool", step=1, rho=1.0, system=system)
    image = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
    seen = []

    def look(image, mode):
        seen.append(image.shape[:2])
        sums = image.sum(-1, dtype=np.int32)
        classes = np.eye(19, dtype=np.float32)[sums % 19]
        boundaries = sums[..., None].astype(np.float32) / 100 - 4
        outputs = Outputs(
            {"boundaries": boundaries[None], "segmentation": classes[None]},
            selections={"res5_2": sums[None] % 2},
        )
        pixels = float(sums.size)
        return ImageResult(outputs, {}, pixels, 2 * pixels, 1.0, image.shape[:2])

    ids = label_ids("cityscapes", system.tasks)
    photos = [Photo(Path(f"{name}.jpg"), name, image, image) for name in ("whole", "parts")]
    whole = label(photos[0], look, trained, "dense", tmp_path, ids)
    assert seen == [(400, 500)]
    monkeypatch.setattr(tiles, "LARGEST", 300 * 300)
    monkeypatch.setattr(tiles, "TILE", 320)
    parts = label(photos[1], look, trained, "dense", tmp_path, ids)
    assert len(seen) > 5
    assert all(max(size) < 320 + 64 for size in seen[1:])
    assert parts["macs"] == parts["macs_gates_open"] / 2 == sum(height * width for height, width in seen[1:])
    assert parts["computed_size"] == [400, 500]
    kinds = {"map", "overlay", "segmentation_map", "segmentation_overlay", "choices"}
    assert set(parts["files"]) == set(whole["files"]) == kinds
    for kind, file in parts["files"].items():
        difference = picture(file).astype(int) - picture(whole["files"][kind])
        assert np.abs(difference).max() <= (4 if kind == "overlay" else 0)  # a step of a colour map
    classes = image.sum(-1, dtype=np.int32) % 19
    np.testing.assert_array_equal(picture(parts["files"]["segmentation_map"]), ids["segmentation"][classes])


def test_a_budget_is_for_one_image(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tiles, "LARGEST", 1000)
    photo = write_photo(tmp_path / "x.png", (33, 48))
    arguments = command(tiny_run, tmp_path / "out", photo, "--budget-macs=1e9")
    for options, message in (
        ([], "x.png: is predicted in tiles, and a budget is for one image; give --max-side"),
        (["--max-side=24"], "networks of the system 'pag' predict once"),
    ):
        assert main.main([*arguments, *options]) == 2
        assert message in capsys.readouterr().err

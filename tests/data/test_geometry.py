"""Geometry against coordinates computed by hand: ramps, right angles, vectors turned by known angles."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynpix_jax.core.augmentation import GeometryRanges
from dynpix_jax.core.source import IMAGE, INDEX, Element, FieldSpec, SourceSpec
from dynpix_jax.data.geometry import FILL, Geometry

HEIGHT, WIDTH = 24, 36
SPEC = SourceSpec(
    "ramps",
    {
        "image": IMAGE,
        "label": FieldSpec("label", (None, None), "int32", ignore=255, pairs=((1, 2),)),
        "boundaries": FieldSpec("boundary", (None, None), "float32", ignore=-1),
        "depth": FieldSpec("depth", (None, None), "float32", ignore=0),
        "normals": FieldSpec("normals", (None, None, 3), "float32", ignore=0),
        "ramp": FieldSpec("dense", (None, None, 2), "float32", ignore=-99),
        "keypoints": FieldSpec("keypoints", (3, 3), "float32", pairs=((0, 2),)),
        "index": INDEX,
    },
)


def ramps() -> Element:
    """Pixels that hold their own coordinates."""
    y, x = np.indices((HEIGHT, WIDTH))
    normal = np.array([0.6, 0.0, -0.8], np.float32)
    boundaries = np.zeros((HEIGHT, WIDTH), np.float32)
    boundaries[:, 10], boundaries[:, 11] = 1, -1
    return {
        "image": np.stack([5 * x, 8 * y, 0 * x], axis=-1).astype(np.uint8),
        "label": (x + WIDTH * y + 1000).astype(np.int32),
        "boundaries": boundaries,
        "depth": np.full((HEIGHT, WIDTH), 3.0, np.float32),
        "normals": np.broadcast_to(normal, (HEIGHT, WIDTH, 3)).copy(),
        "ramp": np.stack([x, y], axis=-1).astype(np.float32),
        "keypoints": np.array([[4, 5, 2], [17.5, 11.5, 1], [30, 20, 2]], np.float32),
        "index": np.array(7),
    }


def test_identity_copies() -> None:
    element = ramps()
    for name, value in Geometry().apply(element, SPEC).items():
        np.testing.assert_array_equal(value, element[name], err_msg=name)


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_right_angles_are_exact(quarter: int, flip: bool) -> None:
    """Counter-clockwise quarter turns after mirroring are NumPy's rot90 of the mirrored array."""
    element = ramps()
    out = Geometry(rotation=90.0 * quarter, flip=flip).apply(element, SPEC)
    for name in ("image", "label", "boundaries", "depth", "ramp"):
        mirrored = element[name][:, ::-1] if flip else element[name]
        np.testing.assert_array_equal(out[name], np.rot90(mirrored, quarter), err_msg=name)


def test_flip_swaps_sides() -> None:
    element = ramps()
    element["label"] = np.ones((HEIGHT, WIDTH), np.int32)
    element["label"][:, WIDTH // 2 :] = 2
    out = Geometry(flip=True).apply(element, SPEC)
    # Left and right change places, and so do their names: the picture of labels is as before.
    np.testing.assert_array_equal(out["label"], element["label"])
    np.testing.assert_allclose(out["keypoints"], [[35 - 30, 20, 2], [17.5, 11.5, 1], [35 - 4, 5, 2]])
    np.testing.assert_allclose(out["normals"][0, 0], [-0.6, 0, -0.8], atol=1e-6)


@pytest.mark.parametrize("degrees", [22.5, 90.0, 200.0])
def test_normals_turn_with_the_image(degrees: float) -> None:
    out = Geometry(rotation=degrees).apply(ramps(), SPEC)
    angle = math.radians(degrees)
    # Counter-clockwise as seen, y down: the vector to the right turns upwards.
    expected = [0.6 * math.cos(angle), -0.6 * math.sin(angle), -0.8]
    middle = out["normals"][out["normals"].shape[0] // 2, out["normals"].shape[1] // 2]
    np.testing.assert_allclose(middle, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(out["normals"], axis=-1), 1, atol=1e-5)


def test_scale_divides_depth() -> None:
    for scale in (0.5, 2.0):
        out = Geometry(scale=scale).apply(ramps(), SPEC)
        assert out["depth"].shape == (HEIGHT * scale, WIDTH * scale)
        np.testing.assert_allclose(out["depth"], 3.0 / scale)
        assert out["depth"].dtype == np.float32


@pytest.mark.parametrize(("rotation", "scale"), [(22.5, 1.0), (0.0, 0.6), (-30.0, 0.7), (10.0, 1.4)])
def test_ignored_pixels_are_not_mixed_into_dense_labels(rotation: float, scale: float) -> None:
    """A disparity of 40 beside none (0), an albedo of .5 beside none (-1): nothing between them comes out."""
    y, x = np.indices((HEIGHT, WIDTH))
    known = (x + y) % 17 < 9
    fields = {
        "image": IMAGE,
        "disparity": FieldSpec("dense", (None, None), "float32", ignore=0),
        "albedo": FieldSpec("dense", (None, None, 3), "float32", ignore=-1),
        "where": FieldSpec("label", (None, None), "int32", ignore=255),
    }
    element = {
        "image": np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        "disparity": np.where(known, 40, 0).astype(np.float32),
        "albedo": np.repeat(np.where(known, 0.5, -1)[..., None], 3, -1).astype(np.float32),
        "where": known.astype(np.int32),
    }
    moved = Geometry(scale, rotation, canvas="bounding").apply(element, SourceSpec("holes", fields))
    labelled = moved["where"] == 1  # the nearest pixel's
    assert 0 < labelled.mean() < 1
    np.testing.assert_allclose(moved["disparity"], np.where(labelled, 40, 0), rtol=1e-5)
    expected = np.repeat(np.where(labelled, 0.5, -1)[..., None], 3, -1)
    np.testing.assert_allclose(moved["albedo"], expected, rtol=1e-5)


def test_everything_moves_together() -> None:
    """The coordinates that a pixel shows, the nearest label and the keypoints tell the same place."""
    element = ramps()
    rng = np.random.default_rng(0)
    ranges = GeometryRanges((0.7, 1.6), (0, 22.5, 100.0), True, (20, 20), scale_between=True)
    for _ in range(20):
        geometry = Geometry.sample(rng, ranges, (HEIGHT, WIDTH))
        out = geometry.apply(element, SPEC)
        inside = out["label"] != 255
        label_y, label_x = np.divmod(np.maximum(out["label"] - 1000, 0), WIDTH)
        # Interior only: at the border the ramp is clamped.
        inner = inside & (label_x > 2) & (label_x < WIDTH - 3) & (label_y > 2) & (label_y < HEIGHT - 3)
        assert np.abs(out["ramp"][..., 0] - label_x)[inner].max(initial=0) < 0.6
        assert np.abs(out["ramp"][..., 1] - label_y)[inner].max(initial=0) < 0.6
        assert (out["image"][~inside] == FILL["mean"]).all()
        assert (out["boundaries"][~inside] == -1).all()
        assert (out["depth"][~inside] == 0).all()
        assert out["index"] == 7
        order = [2, 1, 0] if geometry.flip else [0, 1, 2]
        for (x, y, visible), source in zip(out["keypoints"], element["keypoints"][order], strict=True):
            if visible:
                column, row = math.floor(x + 0.5), math.floor(y + 0.5)
                if inner[row, column]:
                    np.testing.assert_allclose(
                        out["ramp"][row, column], source[:2], atol=0.8 / geometry.scale
                    )
                assert visible == source[2]


@given(st.floats(0, 360), st.sampled_from([0.5, 1.0, 1.5]), st.booleans())
def test_inscribed_canvas_is_inside(rotation: float, scale: float, flip: bool) -> None:
    out = Geometry(scale, rotation, flip).apply(ramps(), SPEC)
    assert (out["depth"] > 0).all()


@given(st.floats(0, 180))
def test_bounding_canvas_holds_everything(rotation: float) -> None:
    geometry = Geometry(rotation=rotation, canvas="bounding")
    corners = np.array([[0, 0], [WIDTH - 1, 0], [0, HEIGHT - 1], [WIDTH - 1, HEIGHT - 1]])
    matrix = geometry.matrix((HEIGHT, WIDTH))
    x, y = (corners @ matrix[:, :2].T + matrix[:, 2]).T
    height, width = geometry.canvas_size((HEIGHT, WIDTH))
    assert min(x.min(), y.min()) >= -1
    assert x.max() <= width
    assert y.max() <= height


def test_crop_larger_than_the_image_is_ignored_outside() -> None:
    ranges = GeometryRanges(crop=(HEIGHT + 10, WIDTH + 4))
    geometry = Geometry.sample(np.random.default_rng(0), ranges, (HEIGHT, WIDTH))
    out = geometry.apply(ramps(), SPEC)
    np.testing.assert_array_equal(out["label"][5:-5, 2:-2], ramps()["label"])
    assert (out["label"] == 255).sum() == out["label"].size - HEIGHT * WIDTH


def test_images_as_the_releases_prepare_them() -> None:
    """cv2.resize without a blur, then padding with 0 (HRNet, MDEQ; there at the bottom right)."""
    image = np.random.default_rng(0).integers(1, 256, (HEIGHT, WIDTH, 3), np.uint8)
    ranges = GeometryRanges((0.5,), crop=(16, 18), resampling="linear", outside="black")
    geometry = Geometry.sample(np.random.default_rng(0), ranges, (HEIGHT, WIDTH))
    out = geometry.apply({"image": image}, SPEC)["image"]
    small = cv2.resize(image, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_LINEAR)
    assert np.abs(out[2:14].astype(int) - small).max() <= 1
    assert not out[:2].any()
    assert not out[14:].any()
    smooth = dataclasses.replace(geometry, resampling="antialiased").apply({"image": image}, SPEC)["image"]
    assert np.abs(smooth[2:14].astype(int) - small).max() > 20


def line(angle: float) -> Element:
    """A line one pixel wide through the middle of a square, and nothing else."""
    y, x = np.indices((61, 61)) - 30
    distance = np.abs(x * math.sin(angle) - y * math.cos(angle))
    steep = max(abs(math.sin(angle)), abs(math.cos(angle)))
    return {
        "image": np.zeros((61, 61, 3), np.uint8),
        "boundaries": (distance < steep / 2 + 1e-9).astype(np.float32),
    }


@pytest.mark.parametrize("scale", [0.4, 0.5, 0.8, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("rotation", [0.0, 22.5, 45.0, 67.5])
@pytest.mark.parametrize("tilt", [0.0, 0.3, math.pi / 4])
def test_lines_stay_whole_and_thin(scale: float, rotation: float, tilt: float) -> None:
    """Every row or column that a thin line crosses still shows it, few pixels wide."""
    out = Geometry(scale, rotation).apply(line(tilt), SPEC)["boundaries"]
    direction = tilt - math.radians(rotation)
    along = 1 if abs(math.cos(direction)) > abs(math.sin(direction)) else 0
    crossed = (out == 1).sum(axis=1 - along)
    middle = crossed[len(crossed) // 4 : -(len(crossed) // 4)]
    assert middle.min() >= 1
    assert middle.max() <= math.ceil(2 * max(scale, 1.0)) + 2
    assert set(np.unique(out)) <= {-1.0, 0.0, 1.0}


def test_soft_boundaries_commute_with_thresholds() -> None:
    rng = np.random.default_rng(0)
    element = line(0.3)
    element["boundaries"] *= rng.choice([0.2, 0.4, 0.8, 1.0], (61, 61)).astype(np.float32)
    for scale in (0.5, 0.8, 1.0, 1.5):
        geometry = Geometry(scale, 22.5, True)
        soft = geometry.apply(element, SPEC)["boundaries"]
        hard = dict(element, boundaries=(element["boundaries"] >= 0.5).astype(np.float32))
        np.testing.assert_array_equal(geometry.apply(hard, SPEC)["boundaries"] == 1, soft >= 0.5)


def test_sampling_covers_heds_augmentation() -> None:
    rng = np.random.default_rng(0)
    rotations = tuple(22.5 * k for k in range(16))
    ranges = GeometryRanges(scales=(0.5, 1.0, 1.5), rotations=rotations, flip=True, crop=(20, 20))
    drawn = [Geometry.sample(rng, ranges, (321, 481)) for _ in range(600)]
    assert {g.scale for g in drawn} == {0.5, 1.0, 1.5}
    assert {g.rotation for g in drawn} == {22.5 * k for k in range(16)}
    assert {g.flip for g in drawn} == {False, True}
    assert len({g.origin for g in drawn}) > 500
    assert all(g.size == (20, 20) for g in drawn)


def test_crops_with_a_margin() -> None:
    """Kong and Fowlkes: 20 pixels smaller than the image, sides divisible by 8, anywhere within."""
    ranges = GeometryRanges(margin=20)
    drawn = [Geometry.sample(np.random.default_rng(seed), ranges, (425, 560)) for seed in range(300)]
    assert {one.size for one in drawn} == {(400, 536)}
    rows, columns = ({one.origin[axis] for one in drawn} for axis in (0, 1))
    assert (min(rows), max(rows), min(columns), max(columns)) == (0, 25, 0, 24)
    half = Geometry.sample(np.random.default_rng(0), GeometryRanges(margin=20, scales=(0.5,)), (425, 560))
    assert half.size == (192, 256)  # of 212 x 280


def test_bad_ranges() -> None:
    for options, word in (
        ({"scales": ()}, "scales"),
        ({"scales": (0.0,)}, "scales"),
        ({"rotations": ()}, "rotations"),
        ({"crop": (0, 5)}, "crop"),
        ({"margin": -1}, "margin"),
        ({"crop": (8, 8), "margin": 20}, "margin"),
    ):
        with pytest.raises(ValueError, match=f"^{word}: "):
            GeometryRanges(**options)  # type: ignore[arg-type]

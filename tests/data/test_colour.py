"""Colour jitter against values worked out by hand, and its independence of the geometry."""

from __future__ import annotations

import dataclasses
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynpix_jax.core.augmentation import ColourRanges, GeometryRanges
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.sections import from_config
from dynpix_jax.core.source import IMAGE, NORMALS, SourceSpec, segmentation
from dynpix_jax.data.colour import Colour
from dynpix_jax.data.geometry import FILL, Geometry, augment
from dynpix_jax.data.loader import make_loader
from tests.data.test_loader import Noise

JITTER = ColourRanges(0.4, 0.3, 0.5, 20.0, (0.7, 1.5))


def pixels(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.array([colours], np.uint8)


def luma(image: np.ndarray) -> np.ndarray:
    return image @ np.array([0.299, 0.587, 0.114])


def test_nothing_by_default() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(Colour.sample(np.random.default_rng(1), ColourRanges()).apply(image), image)


def test_each_change_by_hand() -> None:
    image = pixels((100, 60, 20), (200, 200, 200))
    np.testing.assert_array_equal(Colour(brightness=0.5).apply(image), pixels((50, 30, 10), (100, 100, 100)))
    np.testing.assert_array_equal(Colour(brightness=2).apply(image), pixels((200, 120, 40), (255, 255, 255)))
    # The lumas are 67.4 and 200, their mean 133.7: half of the contrast goes half-way there.
    np.testing.assert_allclose(
        Colour(contrast=0.5).apply(image), pixels((117, 97, 77), (167, 167, 167)), atol=1
    )
    np.testing.assert_allclose(Colour(saturation=0).apply(image), pixels((67,) * 3, (200,) * 3), atol=1)
    # 255 (60 / 255)^2 = 14.1.
    np.testing.assert_array_equal(Colour(gamma=2).apply(image), pixels((39, 14, 2), (157, 157, 157)))


@given(st.floats(-180, 180))
def test_hue_keeps_luma_and_grey_and_can_be_undone(degrees: float) -> None:
    image = pixels((120, 100, 110), (90, 130, 110), (77, 77, 77))
    turned = Colour(hue=degrees).apply(image)
    np.testing.assert_allclose(luma(turned), luma(image), atol=1)
    np.testing.assert_allclose(turned[0, 2], image[0, 2], atol=1)
    np.testing.assert_allclose(Colour(hue=-degrees).apply(turned).astype(int), image, atol=2)


def test_hue_turns_red_towards_green() -> None:
    turned = Colour(hue=-110.0).apply(pixels((150, 90, 90)))
    assert turned[0, 0].argmax() == 1


def test_draws_stay_in_range_and_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(0)
    drawn = [Colour.sample(rng, JITTER) for _ in range(300)]
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.7, 1.3),
        ("saturation", 0.5, 1.5),
        ("hue", -20, 20),
        ("gamma", 0.7, 1.5),
    ):
        values = np.array([getattr(colour, name) for colour in drawn])
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() <= high
    alone = Colour.sample(np.random.default_rng(5), ColourRanges(gamma=(0.7, 1.5)))
    assert alone.gamma == Colour.sample(np.random.default_rng(5), JITTER).gamma


def test_augment_moves_labels_as_without_colours() -> None:
    spec = SourceSpec("x", {"image": IMAGE, "segmentation": segmentation(("a",)), "normals": NORMALS})
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(30, 40, 3)).astype(np.float32)
    element = {
        "image": rng.integers(60, 200, (30, 40, 3), dtype=np.uint8),
        "segmentation": rng.integers(0, 9, (30, 40), dtype=np.int32),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
    }
    plain = GeometryRanges(
        scales=(0.7, 1.4),
        rotations=(-10.0, 10.0),
        flip=True,
        crop=(32, 32),
        scale_between=True,
        canvas="bounding",
        rotation_between=True,
    )
    coloured = dataclasses.replace(plain, colour=JITTER)
    changed = 0
    for seed in range(8):
        one = augment(np.random.default_rng(seed), plain, element, spec)
        two = augment(np.random.default_rng(seed), coloured, element, spec)
        np.testing.assert_array_equal(one["segmentation"], two["segmentation"])
        np.testing.assert_array_equal(one["normals"], two["normals"])
        outside = one["segmentation"] == 255
        assert (two["image"][outside] == FILL["mean"]).all()
        changed += not np.array_equal(one["image"], two["image"])
    assert changed == 8


def test_rotations_between() -> None:
    ranges = GeometryRanges(rotations=(-10.0, 10.0), rotation_between=True)
    rng = np.random.default_rng(0)
    drawn = [Geometry.sample(rng, ranges, (30, 40)).rotation for _ in range(200)]
    assert -10 <= min(drawn) < -9
    assert 9 < max(drawn) <= 10
    assert len(set(drawn)) == 200


def test_loader_draws_by_seed_epoch_and_index() -> None:
    ranges = GeometryRanges(crop=(8, 8), colour=JITTER)
    batches = [
        [batch["image"] for batch in islice(loader, 5)]
        for loader in (
            make_loader(Noise(), batch_size=4, seed=3, train=True, augment=ranges, threads=threads)
            for threads in (1, 2)
        )
    ]
    np.testing.assert_array_equal(*batches)


def test_bad_ranges_are_named() -> None:
    for options, message in (
        ({"brightness": 1.5}, r"colour\.brightness: 1\.5; expected 0 to 1"),
        ({"hue": -3}, r"colour\.hue: -3"),
        ({"gamma": (0.0, 1.0)}, r"colour\.gamma: \(0\.0, 1\.0\)"),
        ({"gama": (1.0, 1.0)}, r"colour\.gama: unknown key; did you mean 'gamma'"),
    ):
        with pytest.raises(UserError, match=message):
            from_config(GeometryRanges, {"colour": options}, "config.data.train.augment")

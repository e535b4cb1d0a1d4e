"""Windows, scales and mirror images of a toy that is equivariant to all of them: the plain prediction."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.core.sections import unread
from dynpix_jax.core.settings import InferenceConfig
from dynpix_jax.evaluation.inference import all_views, flipped, multi_scale, sliding_window, starts
from dynpix_jax.tasks import TASKS, Task, build

TOY = {
    "boundaries": build("boundaries", {}, ""),
    "segmentation": build("segmentation", {"classes": 3}, ""),
    "depth": build("depth", {}, ""),
    "normals": build("normals", {}, ""),
    "saliency": build("saliency", {}, ""),
    "parts": build("parts", {}, ""),
    "albedo": build("albedo", {}, ""),
}
"""Every task with a value at each pixel, on one toy; pose has a test of its own."""


def toy(images: jax.Array) -> tuple[Mapping[str, jax.Array], Mapping[str, jax.Array]]:
    """Looks at single pixels only, so windows change nothing; the costs are the number of pixels.

    Its normals lean to the side on which the image gets brighter, so they mirror as vectors do.
    """
    x = images.astype(jnp.float32) / 255.0
    slope = jnp.pad(x[:, :, 2:, :1] - x[:, :, :-2, :1], ((0, 0), (0, 0), (1, 1), (0, 0)))
    normals = jnp.concatenate([slope, x[..., 1:2], -1.0 - x[..., 2:]], axis=-1)
    logits = {
        "boundaries": 4 * x[..., :1] - 2,
        "segmentation": 3 * x,
        "depth": x[..., :1],
        "normals": normals,
        "saliency": 2 - 4 * x[..., 2:],
        "parts": 3 * x[..., np.arange(7) % 3],
        "albedo": x,
    }
    return logits, {"pixels": jnp.full(len(images), 1.0 * x.shape[1] * x.shape[2])}


def images(size: tuple[int, int] = (12, 20), *, smooth: bool = False) -> jax.Array:
    rng = np.random.default_rng(0)
    if smooth:
        y, x = np.mgrid[0 : size[0], 0 : size[1]] / max(size)
        waves = [np.sin(3 * x + 2 * y + phase) for phase in range(3)]
        return jnp.asarray(127.5 + 120 * np.stack(waves, -1)[None], jnp.float32)
    return jnp.asarray(rng.integers(0, 256, (2, *size, 3), np.uint8))


@jax.jit
def mixed(logits: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: task.mix(logits[name]) for name, task in TOY.items()}


plain_toy = jax.jit(toy)


def assert_same(found: Mapping[str, jax.Array], expected: Mapping[str, jax.Array], tolerance: float = 1e-5):
    assert set(found) == set(expected) == set(TOY)
    for name in TOY:
        assert found[name].shape == expected[name].shape
        np.testing.assert_allclose(mixed(found)[name], mixed(expected)[name], atol=tolerance, err_msg=name)


def test_flip_of_an_equivariant_toy_is_the_plain_prediction():
    logits, costs = jax.jit(flipped(toy, TOY))(images())
    assert_same(logits, plain_toy(images())[0])
    np.testing.assert_array_equal(costs["pixels"], [480.0, 480.0])


def test_flip_mirrors_normals_as_vectors():
    """A toy whose normals always lean to the right of the picture: mirrored back, they lean to the left."""

    def leaning(x: jax.Array):
        return {"normals": jnp.zeros(x.shape).at[..., 0].set(3.0).at[..., 2].set(-4.0)}, {}

    logits = jax.jit(flipped(leaning, TOY))(images())[0]["normals"][0, 0, 0]
    np.testing.assert_allclose(logits, [0.0, 0.0, -0.8], atol=1e-6)


@pytest.mark.parametrize(("window", "stride"), [((12, 8), None), ((5, 7), (2, 6)), ((99, 99), None)])
def test_windows_of_a_pixelwise_toy_are_the_plain_prediction(window, stride):
    def pixelwise(x: jax.Array):
        logits, costs = toy(x)
        assert x.shape[1] <= window[0]
        assert x.shape[2] <= window[1]
        return {**logits, "normals": x.astype(jnp.float32) - 300.0}, costs

    logits, costs = jax.jit(sliding_window(pixelwise, TOY, window, stride))(images())
    expected = {**plain_toy(images())[0], "normals": images().astype(jnp.float32) - 300.0}
    assert_same(logits, expected)
    assert float(costs["pixels"][0]) >= 12 * 20


def test_windows_overlap_in_their_mean():
    """Two windows of 6 on a row of 8, each of which predicts its own place: the middle four are averaged."""

    def first_pixel(x: jax.Array):
        corner = jnp.broadcast_to(x[:, :1, :1, :1], (*x.shape[:3], 1)).astype(jnp.float32)
        return {"depth": corner}, {"windows": jnp.ones(len(x))}

    row = np.tile(np.arange(8.0, dtype=np.float32)[None, None, :, None], (1, 1, 1, 3))
    logits, costs = jax.jit(sliding_window(first_pixel, TOY, (1, 6), (1, 4)))(row)
    np.testing.assert_allclose(logits["depth"][0, 0, :, 0], [0, 0, 1, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(costs["windows"], [2.0])


@pytest.mark.parametrize(("whole", "part", "step"), [(8, 6, 4), (8, 8, 3), (100, 7, 5), (101, 33, 33)])
def test_starts_cover_everything_and_end_with_the_image(whole, part, step):
    first = starts(whole, part, step)
    assert first[0] == 0
    assert first[-1] == whole - part
    assert all(0 < b - a <= step for a, b in itertools.pairwise(first))


def test_scales_of_a_smooth_image_are_nearly_the_plain_prediction():
    """Depth grows as the logarithm of the scale where a network does not notice it: undone by `rescale`."""
    picture = images((24, 40), smooth=True)
    plain = plain_toy(picture)[0]

    def unaware(x: jax.Array):
        logits, costs = toy(x)
        scale = x.shape[1] / picture.shape[1]
        slope = logits["normals"].at[..., 0].multiply(scale)
        return {**logits, "depth": logits["depth"] - np.log(scale), "normals": slope}, costs

    logits, costs = jax.jit(multi_scale(unaware, TOY, (0.5, 1.0, 2.0)))(picture)
    assert_same(logits, plain, tolerance=0.03)
    np.testing.assert_allclose(costs["pixels"], [24 * 40 * (0.25 + 1 + 4)])
    shapes = []

    def recording(x: jax.Array):
        shapes.append(x.shape[1:3])
        return toy(x)

    jax.eval_shape(multi_scale(recording, TOY, (0.5, 1.25), multiple=8), picture)
    assert shapes == [(16, 24), (32, 48)]


def test_one_scale_of_1_is_the_plain_prediction_exactly():
    logits, _ = jax.jit(multi_scale(toy, TOY, (1.0,)))(images())
    jax.tree.map(np.testing.assert_array_equal, dict(logits), dict(plain_toy(images())[0]))


def test_all_views_together():
    config = InferenceConfig(window=(8, 12), scales=(0.5, 1.0), flip=True)
    assert not config.one_view
    assert InferenceConfig().one_view
    half = InferenceConfig(scales=(0.5,), multiple=8)
    assert half.one_view
    assert (half.seen_size((24, 40)), InferenceConfig().seen_size((24, 40))) == ((16, 24), (24, 40))
    picture = images((24, 40), smooth=True)
    logits, costs = jax.jit(all_views(toy, TOY, config))(picture)
    assert {name: value.shape for name, value in logits.items()} == {
        name: (1, 24, 40, task.channels) for name, task in TOY.items()
    }
    # 12x20: windows at rows 0, 4 and columns 0, 8; 24x40: at 4 rows and 5 columns; all of it twice.
    np.testing.assert_allclose(costs["pixels"], [2 * 8 * 12 * (2 * 2 + 4 * 5)])
    assert all_views(toy, TOY, InferenceConfig()) is toy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(window=(0, 4)), "window"),
        (dict(window=(4, 4), stride=(4, 5)), "stride: .* leaves gaps"),
        (dict(scales=()), "scales"),
        (dict(scales=(0.0,)), "scales"),
        (dict(scales=(0.5,), multiple=0), "multiple"),
        (dict(blur=-1.0), "blur: -1.0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        InferenceConfig(**options)


def test_options_that_nothing_reads():
    found = [path for path, _, _ in unread(InferenceConfig(stride=(4, 4), multiple=8))]
    assert found == ["stride", "multiple"]
    assert not list(unread(InferenceConfig(window=(8, 8), stride=(4, 4), scales=(0.5,), multiple=8)))


def test_the_toy_knows_every_task():
    assert set(TASKS) - set(TOY) == {"pose"}
    assert all(isinstance(task, Task) for task in TOY.values())

"""Training images as evaluation shows them, for systems that calibrate themselves at the end of a stage."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.typing import Array
from dynpix_jax.ops.resize import resize_images
from dynpix_jax.training.inputs import data_source


def seen_images(run: RunConfig, count: int) -> tuple[Callable[[int], Array], int]:
    """A function that reads one of ``count`` training images, and how many there are if they are fewer.

    Images are (1, H, W, 3), spread evenly over the source, whole, at the (first) scale of evaluation. They
    are not augmented: what fills the outside of a scaled or rotated image has a density of its own. Every
    process reads the same.
    """
    source, inference = data_source(run, "train"), run.evaluation.inference
    count = min(count, len(source))

    def read(index: int) -> Array:
        image = source[index * len(source) // count]["image"][None]
        return resize_images(jnp.asarray(image), inference.seen_size(image.shape[1:3]))

    return read, count

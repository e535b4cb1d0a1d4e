"""A trained network as a program of its own: StableHLO, which runs wherever jax does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dynpix_jax.core.capabilities import inputs_of
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Mode, Routing
from dynpix_jax.core.typing import Array
from dynpix_jax.evaluation.inference import resize_logits, smooth_logits
from dynpix_jax.ops.resize import resize_images
from dynpix_jax.serving.predictor import Predictor

PLATFORMS = ("cpu", "cuda", "tpu")
"""What an exported program may run on."""


def to_stablehlo(
    predictor: Predictor,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    mode: Mode = "dense",
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """The program ``images -> {task: prediction}``, weights included, as `jax.export` serializes it.

    It takes uint8 RGB (B, H, W, 3), predicts at that size, and is run by
    ``jax.export.deserialize(data).call(images)``.

    Args:
        predictor: The network.
        size: (H, W) of its images; None: any.
        batch: Number of images; None: any.
        mode: ``sparse`` computes at active positions only.
        platforms: Some of `PLATFORMS`.

    Raises:
        UserError: A network that takes more than an image, that predicts from several views, or whose program
            depends on the size, where that is left open.
    """
    # jax.export needs a package that only this function does (the extra `export`).
    from jax import export

    run, system = predictor.run, predictor.system
    inference = run.evaluation.inference
    if inputs := inputs_of(system):
        raise UserError(
            f"{run.name}: its network takes {' and '.join(inputs)} beside the image; not exported"
        )
    if not inference.one_view:
        raise UserError(
            f"{run.name}: config.evaluation.inference asks for several views; only one is exported"
        )
    routing = Routing(mode=mode, implementation=run.execution.implementation)

    def predict(images: Array) -> dict[str, Array]:
        whole: Any = images.shape[1:3]
        seen = inference.seen_size(whole)
        outputs = system.apply(predictor.variables, resize_images(images, seen), {}, routing)
        logits: Any = outputs.predictions
        if seen != whole:  # resizing asks for numbers, where a size may be left open
            logits = resize_logits(logits, system.tasks, whole)
        logits = smooth_logits(logits, system.tasks, inference.blur)
        return {name: task.decode(logits[name]) for name, task in system.tasks.items()}

    sides = ("height", "width") if size is None else map(str, size)
    shape = export.symbolic_shape(", ".join(["batch" if batch is None else str(batch), *sides, "3"]))
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    try:
        data = bytes(export.export(jax.jit(predict), platforms=platforms)(images).serialize())
    except (jax.errors.JAXTypeError, TypeError, ValueError, NotImplementedError) as error:
        if size is not None and batch is not None:
            raise
        left_open = "--size" if size is None else "--batch"
        raise UserError(
            f"{run.name}: the {mode} program depends on the size of its input; give {left_open} "
            f"({str(error).splitlines()[0][:120]})"
        ) from error
    return data

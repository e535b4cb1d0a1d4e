"""Predictions of one image from several views of it: windows that slide over it, sizes, its mirror image.

Pure functions: each turns a function that predicts a batch into one that predicts it from more views. They
can be nested and jitted. The task says what is averaged (`mix`: probabilities, log depths, unit normals),
mirrored and rescaled. Inputs beside the images (`ReadsInputs.inputs`) come by name and are transformed as the
images are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.settings import InferenceConfig, scaled_size
from dynpix_jax.core.system import Inputs
from dynpix_jax.core.typing import Array
from dynpix_jax.ops.resize import mean_scale, resize_bilinear, resize_images
from dynpix_jax.tasks import TASKS, Task

Costs = Mapping[str, Any]
"""A tree of numbers (B,) that add up over views, such as MACs."""
Predict = Callable[..., tuple[Mapping[Any, Array], Costs]]
"""(B, h, w, 3) images, `Inputs` as keyword arguments -> ({task or other key: logits (B, h, w, C)}, costs)."""


def all_views(predict: Predict, tasks: Mapping[Any, Task], config: InferenceConfig) -> Predict:
    """Windows within scales within mirror images, as `config` asks for."""
    if config.window is not None:
        predict = sliding_window(predict, tasks, config.window, config.stride)
    if config.scales != (1.0,):
        predict = multi_scale(predict, tasks, config.scales, multiple=config.multiple)
    return flipped(predict, tasks) if config.flip else predict


def flipped(predict: Predict, tasks: Mapping[Any, Task]) -> Predict:
    """Averages with the prediction of the mirrored image, mirrored back (vectors too)."""

    def both(images: Array, **inputs: Any) -> tuple[Mapping[str, Array], Costs]:
        logits, costs = predict(images, **inputs)
        turned = {name: value[:, :, ::-1] for name, value in inputs.items()}
        mirrored, more = predict(images[:, :, ::-1], **turned)
        back = {name: tasks[name].mirror(value[:, :, ::-1]) for name, value in mirrored.items()}
        return _mean([logits, back], tasks), _add([costs, more])

    return both


def multi_scale(
    predict: Predict, tasks: Mapping[Any, Task], scales: Sequence[float], *, multiple: int = 1
) -> Predict:
    """Averages the predictions of the image at several sizes, each brought back to the image's.

    Images are resized bilinearly, blurred when made smaller; logits bilinearly.

    Args:
        scales: Relative sizes. A single one, such as 0.5, runs the network at another resolution.
        multiple: Sides of resized images are rounded to multiples of it, at least one.
    """

    def at_scales(images: Array, **inputs: Any) -> tuple[Mapping[str, Array], Costs]:
        size = (images.shape[1], images.shape[2])
        views, costs = [], []
        for scale in scales:
            seen = scaled_size(size, scale, multiple)
            logits, cost = predict(resize_images(images, seen), **resize_inputs(inputs, seen))
            views.append(resize_logits(logits, tasks, size))
            costs.append(cost)
        return _mean(views, tasks), _add(costs)

    return at_scales


def resize_inputs(inputs: Inputs, size: tuple[int, int]) -> Inputs:
    """Resizes what comes beside images (labels, by the names of their tasks) with the images.

    Raises:
        UserError: An input is no task's label.
    """
    return {name: TASKS.resolve(name, "inputs").resize_label(value, size) for name, value in inputs.items()}


def resize_logits(
    logits: Mapping[str, Array], tasks: Mapping[Any, Task], size: tuple[int, int]
) -> dict[str, Array]:
    """Resizes logits of a resized image to those of the image of ``size``, at the task's stride."""
    resized = {}
    for name, value in logits.items():
        cells = tasks[name].logits_size(size)
        scale = mean_scale(cells, value.shape[1:3])
        value = tasks[name].rescale(value, scale) if scale != 1 else value
        resized[name] = resize_bilinear(value, cells)
    return resized


def smooth_logits(
    logits: Mapping[str, Array], tasks: Mapping[Any, Task], sigma: float
) -> Mapping[str, Array]:
    """Predictions smoothed over ``sigma`` pixels, each as its task does it."""
    if sigma == 0:
        return logits
    return {name: tasks[name].smooth(value, sigma) for name, value in logits.items()}


def sliding_window(
    predict: Predict,
    tasks: Mapping[Any, Task],
    window: tuple[int, int],
    stride: tuple[int, int] | None = None,
) -> Predict:
    """Predicts windows one after another and averages where they overlap.

    Args:
        window: (H, W); a side that is longer than the image's is cut to it.
        stride: Steps in y and x; None is two thirds of the window. The last window of a row or column is
            moved back so that it ends with the image.

    Raises:
        UserError: A task whose logits are not at the image's resolution.
    """
    for task in tasks.values():
        if task.stride != 1:
            raise UserError(f"evaluation.inference.window: task {task.name} is not predicted in windows")

    def over_windows(images: Array, **inputs: Any) -> tuple[Mapping[str, Array], Costs]:
        size = images.shape[1:3]
        sides = (min(window[0], size[0]), min(window[1], size[1]))
        steps = stride or (-(-2 * sides[0] // 3), -(-2 * sides[1] // 3))
        rows, columns = (
            starts(whole, part, step) for whole, part, step in zip(size, sides, steps, strict=True)
        )
        if len(rows) == len(columns) == 1:
            return predict(images, **inputs)
        corners = np.array([(row, column) for row in rows for column in columns], np.int32)
        covered = np.zeros(size, np.float32)
        for row, column in corners:
            covered[row : row + sides[0], column : column + sides[1]] += 1.0

        def mixed_window(corner: Array) -> tuple[dict[str, Array], Costs]:
            def part(x: Array) -> Array:
                rest = x.shape[3:]
                start: list[Any] = [0, corner[0], corner[1], *[0] * len(rest)]
                return lax.dynamic_slice(x, start, (x.shape[0], *sides, *rest))

            logits, costs = predict(part(images), **{name: part(value) for name, value in inputs.items()})
            return {name: tasks[name].mix(value) for name, value in logits.items()}, costs

        def add_window(sums: dict[str, Array], corner: Array) -> tuple[dict[str, Array], Costs]:
            mixed, costs = mixed_window(corner)
            start = (0, corner[0], corner[1], 0)
            for name, value in mixed.items():
                before = lax.dynamic_slice(sums[name], start, value.shape)
                sums = {**sums, name: lax.dynamic_update_slice(sums[name], before + value, start)}
            return sums, costs

        # One window at a time, in a loop: the program is as large as one, and so is its memory.
        shapes = jax.eval_shape(mixed_window, jnp.asarray(corners[0]))[0]
        zeros = {
            name: jnp.zeros((*shape.shape[:1], *size, shape.shape[3]), shape.dtype)
            for name, shape in shapes.items()
        }
        sums, costs = lax.scan(add_window, zeros, jnp.asarray(corners))
        mean = {name: value / covered[None, :, :, None] for name, value in sums.items()}
        logits = {name: tasks[name].unmix(value) for name, value in mean.items()}
        return logits, jax.tree.map(partial(jnp.sum, axis=0), costs)

    return over_windows


def starts(whole: int, part: int, step: int) -> list[int]:
    """Where windows of ``part`` begin so that steps of ``step`` cover ``whole``, the last ending with it."""
    count = max(0, -(-(whole - part) // step)) + 1
    return [min(index * step, whole - part) for index in range(count)]


def _mean(views: Sequence[Mapping[str, Array]], tasks: Mapping[Any, Task]) -> dict[str, Array]:
    if len(views) == 1:
        return dict(views[0])
    return {
        name: tasks[name].unmix(sum(tasks[name].mix(view[name]) for view in views) / len(views))  # type: ignore[arg-type]
        for name in views[0]
    }


def _add(costs: Sequence[Costs]) -> Any:
    return jax.tree.map(lambda *values: sum(values), *costs)

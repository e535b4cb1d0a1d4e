"""A prediction beside its photo and its label in one picture, as training logs it."""

from __future__ import annotations

import numpy as np

from dynpix_jax.core.source import FieldSpec
from dynpix_jax.tasks import Task
from dynpix_jax.visualization.task_pictures import task_pictures


def comparison(
    task: Task, field: FieldSpec, photo: np.ndarray, prediction: np.ndarray, label: np.ndarray
) -> np.ndarray:
    """Photo, prediction and label from left to right."""
    drawn = task_pictures(task, field.classes, field.palette)
    panels = [photo, *(drawn.picture(values, label, photo) for values in (prediction, label))]
    return np.hstack([panel if panel.ndim == 3 else np.stack([panel] * 3, axis=-1) for panel in panels])

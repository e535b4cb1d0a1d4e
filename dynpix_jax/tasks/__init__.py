"""Floor 3: one file a task, with its target, loss, metric and decoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.sections import from_config
from dynpix_jax.core.task import PixelTask, Score, Task, all_scores, check_labels, prefixes
from dynpix_jax.tasks.albedo import Albedo
from dynpix_jax.tasks.boundaries import Boundaries
from dynpix_jax.tasks.depth import Depth
from dynpix_jax.tasks.normals import Normals
from dynpix_jax.tasks.parts import Parts
from dynpix_jax.tasks.pose import Pose
from dynpix_jax.tasks.saliency import Saliency
from dynpix_jax.tasks.segmentation import Segmentation

__all__ = ["TASKS", "PixelTask", "Score", "Task", "all_scores", "build", "check_labels", "prefixes"]

TASKS: dict[str, type[Task]] = {
    "boundaries": Boundaries,
    "segmentation": Segmentation,
    "depth": Depth,
    "normals": Normals,
    "saliency": Saliency,
    "parts": Parts,
    "albedo": Albedo,
    "pose": Pose,
}
"""All tasks by name: a new one gets a file here, a line in this table, and a way to draw it in
visualization.task_pictures."""


def build(name: str, options: Mapping[str, Any], path: str) -> Task:
    """The task of that name with its options (the fields of its class).

    Args:
        name: of `TASKS`.
        options: fields of its class; those with defaults may be left out.
        path: full name of the options' section, for messages.

    Raises:
        UserError: no such task; an unknown, missing or wrong option.
    """
    if name not in TASKS:
        raise UserError(f"{path}: there is no task {name!r}; {suggest(name, TASKS)}")
    return from_config(TASKS[name], options, path)

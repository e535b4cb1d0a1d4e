"""Level 3: one file a task, with its target, loss, scores and decoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.registry import Registry
from dynpix_jax.core.sections import BESIDE, from_config
from dynpix_jax.core.task import PixelTask, Score, Task, all_scores, check_labels, prefixes
from dynpix_jax.tasks.albedo import Albedo
from dynpix_jax.tasks.boundaries import Boundaries
from dynpix_jax.tasks.depth import Depth
from dynpix_jax.tasks.normals import Normals
from dynpix_jax.tasks.parts import Parts
from dynpix_jax.tasks.pose import Pose
from dynpix_jax.tasks.saliency import Saliency
from dynpix_jax.tasks.segmentation import Segmentation

__all__ = [
    "TASKS",
    "PixelTask",
    "Score",
    "Task",
    "all_scores",
    "build",
    "check_labels",
    "prefixes",
    "task_class",
]

TASKS: Registry[type[Task]] = Registry(
    "task",
    {task.name: task for task in (Boundaries, Segmentation, Depth, Normals, Saliency, Parts, Albedo, Pose)},
)
"""All tasks by name. A new one is a file here and a name in this table; a user's: ``package.module:Name``."""


def task_class(name: str, key: str = "task") -> type[Task]:
    """The class of a task, for the checks of a config.

    Raises:
        ValueError: There is no such task; ``key`` is the config's key that names it.
    """
    try:
        return TASKS.resolve(name, key)
    except UserError as error:
        raise ValueError(str(error)) from error


def build(name: str, options: Mapping[str, Any] | Task, path: str) -> Task:
    """The task of that name with its options, or what a parsed config has made of them.

    Args:
        name: In `TASKS`, or ``package.module:Name``.
        options: Fields of its class; those with defaults may be left out.
        path: Full name of the options' section, for messages.

    Raises:
        UserError: There is no such task, or an option is unknown, missing or wrong.
    """
    if isinstance(options, Task):
        return options
    return from_config(TASKS.resolve(name, path), {} if options is BESIDE else options, path)

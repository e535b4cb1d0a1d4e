"""The systems: one folder per paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.registry import Registry
from dynpix_jax.core.sections import from_config, refuse_unread
from dynpix_jax.core.settings import ModelConfig
from dynpix_jax.core.system import LossAux, Outputs, System, SystemClass

__all__ = ["SYSTEMS", "LossAux", "Outputs", "System", "build", "parse"]


SYSTEMS: Registry[SystemClass] = Registry(
    "system",
    {
        "anytime": "dynpix_jax.papers.anytime.system:Anytime",
        "astmt": "dynpix_jax.papers.astmt.system:Astmt",
        "mdeq": "dynpix_jax.papers.mdeq.system:Mdeq",
        "pag": "dynpix_jax.papers.pag.system:Pag",
        "perspective": "dynpix_jax.papers.perspective.system:Perspective",
        "pixelnet": "dynpix_jax.papers.pixelnet.system:PixelNet",
    },
)
"""Name in ``model.system`` -> class."""

_PATH = "config.model"


def build(config: ModelConfig | Mapping[str, Any]) -> System:
    """The system of a network's settings.

    Args:
        config: The typed settings of a stage of a run, ``read_run(...).stages[0].model``; or, in a notebook,
            a section that no config holds, which is parsed here (`parse`).

    Raises:
        UserError: The system is unknown, or cannot be built with these settings.
    """
    typed = parse(config) if isinstance(config, Mapping) else config
    return SYSTEMS.resolve(typed.system, f"{_PATH}.system")(typed)


def parse(section: Mapping[str, Any]) -> ModelConfig:
    """The typed settings of a config's ``model`` section, whose class its ``system`` names.

    Raises:
        UserError: The system is unknown, or a key of its section is unknown, missing or wrong, or has a value
            that nothing reads (full path).
    """
    name = section.get("system")
    if not isinstance(name, str):
        raise UserError(f"{_PATH}.system: {name!r}; {suggest(str(name), SYSTEMS)}")
    config: ModelConfig = from_config(SYSTEMS.resolve(name, f"{_PATH}.system").Config, section, _PATH)
    refuse_unread(config, _PATH)
    return config

"""The systems: one folder per paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ml_collections import ConfigDict

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.registry import Registry
from dynpix_jax.core.sections import from_config
from dynpix_jax.core.system import LossAux, ModelConfig, Outputs, System

__all__ = ["SYSTEMS", "LossAux", "Outputs", "System", "build", "parse"]


class SystemClass(Protocol):
    """A System class of the table; it is built from an object of its ``Config``."""

    Config: type[Any]

    def __call__(self, config: Any, /) -> System: ...


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


def build(config: ModelConfig | Mapping[str, Any] | ConfigDict) -> System:
    """The system of a model section, which may be parsed (the system's ``Config``) or not (see `parse`).

    Raises:
        UserError: The system is unknown, or cannot be built with these settings.
    """
    typed = parse(config) if isinstance(config, Mapping | ConfigDict) else config
    return SYSTEMS.resolve(typed.system, f"{_PATH}.system")(typed)


def parse(section: Mapping[str, Any] | ConfigDict) -> ModelConfig:
    """The typed settings of a config's ``model`` section, whose class its ``system`` names.

    Raises:
        UserError: The system is unknown, or a key of its section is unknown, missing or wrong (full path).
    """
    name = dict(section).get("system")
    if not isinstance(name, str):
        raise UserError(f"{_PATH}.system: {name!r}; {suggest(str(name), SYSTEMS)}")
    config: ModelConfig = from_config(SYSTEMS.resolve(name, f"{_PATH}.system").Config, section, _PATH)
    return config

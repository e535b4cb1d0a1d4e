"""Networks: backbones, heads, and the systems of the papers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.system import LossAux, Outputs, System
from dynpix_jax.papers.anytime import system as anytime
from dynpix_jax.papers.astmt import system as astmt
from dynpix_jax.papers.mdeq import system as mdeq
from dynpix_jax.papers.pag import system as pag
from dynpix_jax.papers.perspective import system as perspective
from dynpix_jax.papers.pixelnet import system as pixelnet

__all__ = ["LossAux", "Outputs", "System", "build"]


def build(section: Mapping[str, Any]) -> System:
    """The system of a config's ``model`` section, by its ``system`` name.

    Raises:
        UserError: unknown system, or an unknown, missing or wrong key of its section, with the full path.
    """
    builders = {
        "anytime": anytime.build,
        "astmt": astmt.build,
        "mdeq": mdeq.build,
        "pag": pag.build,
        "perspective": perspective.build,
        "pixelnet": pixelnet.build,
    }
    name = dict(section).get("system")
    if name not in builders:
        raise UserError(f"config.model.system: {name!r}; {suggest(str(name), list(builders))}")
    return builders[name](section)

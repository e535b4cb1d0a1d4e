"""What recipes have in common: the section `training`, and what follows from the argument ``budget``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynpix_jax.core.configs import one_of

BUDGET = one_of("cpu", "gpu")
COMPUTE_DTYPE = {"cpu": "float32", "gpu": "bfloat16"}
"""Budget -> ``model.compute_dtype``: accelerators multiply bfloat16 faster, and move half the bytes."""
SGD = dict(optimizer="sgd", weight_decay=5e-4)
"""As the papers train; momentum .9 is the default."""


def section(
    args: Mapping[str, Any], batch_size: int, stages: Sequence[Mapping[str, Any]], **changes: Any
) -> dict[str, Any]:
    """Begins from ``continue_from``, else from ``weights``; with budget=gpu processes prepare the batches.

    Args:
        args: Arguments of the config.
        batch_size: Images a step.
        stages: The stages.
        **changes: Other values, of these and of all that have a default.
    """
    values = dict(
        batch_size=batch_size,
        stages=tuple(stages),
        init_from=args.get("continue_from") or args.get("weights", ""),
        workers=8 if args.get("budget") == "gpu" else 0,
    )
    return values | changes

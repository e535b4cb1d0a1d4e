"""Section ``evaluation`` of a config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dynpix_jax.core.routing import Mode
from dynpix_jax.evaluation.inference import InferenceConfig


@dataclass(frozen=True)
class EvaluationConfig:
    """What ``eval.py`` does.

    mode: ``dense``, ``sparse`` or ``both``, which scores and times them side by side.
    every_stage: evaluate what each training stage ended with (one row a budget), not only the newest
      checkpoint.
    also: other ways to run the network, a row each, by the names that its system has for them
      (``System.alternatives``): "argmax" of soft choices, "loop_0" for fewer loops.
    batch_size: images that are run together; above 1 they must be of one size.
    inference: views that each image is predicted from; the default is the image alone.
    thresholds, max_dist, nms, smooth: of the boundary benchmark (evaluation.boundary).
    workers: processes that match boundaries. pictures: images shown in the report.
    limit: images that are evaluated; 0 = all.
    reference: a file of `dynpix reference`: Δm of a network for several tasks is reported; "" for none.
    """

    mode: Literal["dense", "sparse", "both"] = "both"
    every_stage: bool = False
    also: tuple[str, ...] = ()
    thresholds: int = 99
    max_dist: float = 0.0075
    nms: bool = True
    smooth: bool = True
    workers: int = 2
    pictures: int = 8
    limit: int = 0
    batch_size: int = 1
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    reference: str = ""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: {self.batch_size}; expected at least 1")
        if self.thresholds < 1:
            raise ValueError(f"thresholds: {self.thresholds}; expected at least 1")
        if not 0.0 < self.max_dist < 1.0:
            raise ValueError(f"max_dist: {self.max_dist}; expected a share of the image diagonal in (0, 1)")
        for name in ("workers", "pictures", "limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)}; expected a number >= 0")

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes to run, the one that is reported first first."""
        return ("dense", "sparse") if self.mode == "both" else (self.mode,)

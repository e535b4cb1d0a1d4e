"""The smallest gated config: the `tiny_run` fixture trains it, the tools are tested on it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

TINY_CONFIG = """
import ml_collections
from dynpix_jax.core.configs import parse_arg

def get_config(arg=""):
    args = parse_arg(arg, rho=0.5, task="boundaries")
    scenes = {"name": "scenes", "size": (48, 64), "length": 4, "fields": (args.task,)}
    options = {"classes": 8} if args.task == "segmentation" else {}
    gate = {"kind": "pixel", "scope": "residual", "rho": args.rho}
    return ml_collections.ConfigDict({
        "name": "tiny", "seed": 0,
        "model": {
            "system": "pag", "task": args.task, "task_options": options,
            "backbone": {"depth": 26, "width": 8, "output_stride": 16},
            "head_features": 4,
        },
        "data": {
            "train": {"source": {**scenes, "split": "train"}},
            "eval": {"source": {**scenes, "split": "val"}},
        },
        # Small steps: the norms are frozen above random weights, so nothing holds the activations.
        "training": {"batch_size": 1, "keep": 1, "checkpoint_every": 0, "log_every": 1, "stages": (
            {"name": "base", "steps": 2, "learning_rate": 1e-5},
            {"name": "gates", "steps": 2, "learning_rate": 1e-5, "model": {"gate": gate}},
        )},
        "evaluation": {"mode": "both", "every_stage": False, "pictures": 1, "limit": 2, "batch_size": 1,
                       "inference": {"flip": False},
                       **({"thresholds": 5, "workers": 1} if args.task == "boundaries" else {})},
    })
"""


SHORT_CONFIG = TINY_CONFIG.replace('"head_features": 4', '"head_features": 4, "drop_blocks": 4')
"""Without Res4 and Res5: half of it to compile, where one stage more shows nothing more."""


@dataclasses.dataclass(frozen=True)
class TinyRun:
    """Where the config file and the trained run are."""

    config: Path
    workdir: Path

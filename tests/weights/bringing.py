"""Files of the papers' authors, brought into networks of a config's ``model`` section."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynpix_jax import papers
from dynpix_jax.backbones import hrnet
from dynpix_jax.flops import variable_shapes
from dynpix_jax.weights import import_network
from dynpix_jax.weights.importer import flat_shapes
from tests.weights import torch_old
from tests.weights import torch_zip as tz

TINY_HRNET = hrnet.Arch(4, (1, 4), (1, 1, 1), 1)
IMAGE = np.random.default_rng(5).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)


def bring(section: dict[str, Any], path, **options):
    """(system, variables, report) of the import of a file for a ``model`` section."""
    system = papers.build(section)
    shapes = flat_shapes(variable_shapes(system))
    variables, report = import_network(papers.parse(section), shapes, path, **options)
    return system, variables, report


def torch_file(path, tensors: dict[str, np.ndarray], *, old: bool, prefix: str = "model."):
    """A checkpoint as training programs save it: a state dict among other things."""
    state = {f"{prefix}{name}": tz.tensor(array) for name, array in tensors.items()}
    return (torch_old if old else tz).save(path, {"epoch": 484, "state_dict": state})


def all_loaded(report, counted: int) -> None:
    assert (report.missing, report.unexpected, report.skipped) == ((), (), ())
    assert len(report.loaded) + len(report.left_out) == counted


def anytime(exits: str, *, adaptive: bool, classes: int = 5) -> dict[str, Any]:
    """Section of a network with "original" (EE) or "flex" (RH) exits, on an arch that is to be TINY_HRNET."""
    return dict(
        system="anytime",
        task="segmentation",
        task_options=dict(classes=classes),
        backbone=dict(arch="w18s1"),
        heads=dict(kind="plain") if exits == "original" else dict(kind="redesigned", features=4),
        adaptivity={} if adaptive else None,
    )


def pixelnet(classes: int = 5, **changes: Any) -> dict[str, Any]:
    """Section of the network that `official.pixelnet(4, 6, 8, classes)` describes."""
    sections = dict(
        system="pixelnet",
        task="segmentation",
        task_options=dict(classes=classes),
        backbone=dict(width=4, fc_features=6),
        hypercolumn=dict(layers=("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3", "fc7")),
        mlp=dict(hidden=(8, 8)),
    )
    return sections | changes

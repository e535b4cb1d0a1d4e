"""Files of the papers' authors, brought into networks of a config's ``model`` section."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynpix_jax import papers
from dynpix_jax.flops import variable_shapes
from dynpix_jax.weights import import_network
from dynpix_jax.weights.importer import flat_shapes
from tests.weights import torch_old
from tests.weights import torch_zip as tz

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

"""Every config of the repository, with all its values written out, and what may stand in their place."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynpix_jax.core.config import RunConfig, settings
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.sections import from_config, to_json
from dynpix_jax.papers import SYSTEMS
from dynpix_jax.run_config import read_run

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "configs").rglob("*.py")
    if "def get_config" in path.read_text()
)
VARIANTS = (
    "configs/pag/scenes.py:variant=average",
    "configs/pag/scenes.py:variant=gated,task=depth",
    "configs/perspective/scenes.py:variant=attention,loops=1",
    "configs/perspective/scenes.py:variant=gt_depth,gate=argmax",
    "configs/pixelnet/nyuv2_normals.py:task=depth",
    "configs/anytime/camvid.py:variant=hrnet",
    "configs/anytime/scenes_pose.py:variant=hrnet",
    "configs/anytime/scenes.py:criterion=top_k",
    "configs/astmt/scenes.py:variant=single",
    "configs/pag/bsds500.py:variant=gated",
    "configs/pag/nyuv2.py:variant=gated,rho=0.7",
    "configs/pag/nyuv2.py:variant=layer_skip,budget=gpu",
    "configs/pag/camvid.py:variant=truncated",
    "configs/perspective/nyuv2.py:variant=pred_depth,loops=2",
    "configs/perspective/nyuv2.py:variant=average,pooling=multiscale",
    "configs/perspective/scenes.py:variant=pred_depth,regression=True",
    "configs/pixelnet/bsds500.py:fc=1,budget=gpu",
    "configs/mdeq/scenes.py:solver=anderson,jacobian=0.1",
    "configs/anytime/camvid.py:variant=ee",
    "configs/anytime/scenes_pose.py:variant=ca",
    "configs/astmt/scenes.py:variant=adversarial",
    "configs/astmt/nyud.py:decoder=uber",
    "configs/astmt/bsds_camvid.py:variant=multi",
    "configs/astmt/pascal.py:backbone=mobilenet,variant=se",
)
"""Beside the defaults of every file: one a kind of network."""


def read(config: str | dict[str, Any]) -> RunConfig:
    return read_run(str(ROOT / config) if isinstance(config, str) else config)


def written_out(run: RunConfig) -> dict[str, Any]:
    """The config of a run with every default of every section."""
    full = settings(run)
    full["model"] = base_model(run.given["model"])
    for part in ("train", "eval"):
        full["data"][part]["source"] = of_source(full["data"][part]["source"])
    for stage, given in zip(full["training"]["stages"], run.given["training"]["stages"], strict=True):
        stage["model"] = given.get("model") or {}
    return full


def of_source(settings: dict[str, Any]) -> dict[str, Any]:
    """The section of a source from its settings."""
    options = settings.pop("options")
    if settings["name"] == "joint":
        options["sources"] = [of_source(part) for part in options["sources"]]
    return {**options, **settings}


def base_model(model: dict[str, Any]) -> dict[str, Any]:
    """A config's `model` with its defaults; as it is where a stage has to say more for it to be a network."""
    try:
        kind = SYSTEMS.resolve(model["system"], "system").Config
        full: dict[str, Any] = to_json(from_config(kind, model))
    except UserError:
        return model
    return full


def change(config: dict[str, Any], path: str, value: Any, *, remove: bool = False) -> None:
    node: Any = config
    keys = [int(key) if key.isdigit() else key for key in re.findall(r"[^.\[\]]+", path)]
    for key in keys[:-1]:
        node = node[key]
    if remove:
        node.pop(keys[-1])
    else:
        node[keys[-1]] = value


def others(value: Any) -> Iterator[Any]:
    """Values that may stand in place of one."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value * 2, value - 1)
    elif isinstance(value, float):
        yield from (value * 0.5, value * 0.9 + 0.05, value + 1.0)
    elif isinstance(value, list):
        yield from (
            [*value[:-1], *changed] for last in value[-1:] for changed in ([one] for one in others(last))
        )
        yield from (value[:-1], [*value, *value[-1:]])
    elif isinstance(value, str):
        yield f"{value}x"


def changed(full: dict[str, Any], path: str, value: Any) -> Iterator[tuple[Any, RunConfig]]:
    """(other value, run) for each other value of a leaf that is not refused."""
    for other in _others_of(full, path, value):
        config = copy.deepcopy(full)
        change(config, path, other)
        try:
            yield other, read(config)
        except UserError:
            continue  # wrong, or read by nothing


def _others_of(full: dict[str, Any], path: str, value: Any) -> list[Any]:
    """Values that may stand in place of a leaf's: the message about a wrong one says which choices it has."""
    config = copy.deepcopy(full)
    change(config, path, "?")
    try:
        read(config)
        expected = ""
    except UserError as error:
        expected = (re.findall(r"expected (.*), got", str(error)) or [""])[0]
    found = [*re.findall(r"'([^']*)'", expected), *others(value)]
    found += [None] if "None" in expected else []
    found += [1] if isinstance(value, str) and "int" in expected.split() else []
    found += [0.5, 2, True, [8, 8], {}] if value is None else []
    found += [[2], [0.5], ["segmentation"]] if value == [] else []
    return [other for other in found if other != value]

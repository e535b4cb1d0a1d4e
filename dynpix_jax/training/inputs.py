"""From a config's `data` section to the batches that training and evaluation read."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import ml_collections

from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.core.sections import from_config
from dynpix_jax.core.source import Source
from dynpix_jax.data.geometry import GeometryRanges
from dynpix_jax.data.loader import Loader, make_loader
from dynpix_jax.data.sources import build_source, read_source
from dynpix_jax.training.settings import training_config

Part = Literal["train", "eval"]
PARTS: tuple[Part, ...] = ("train", "eval")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """One part (`train` or `eval`) of the `data` section.

    Attributes:
        source: `name` of the data set, its `split`, and its own options (`root`, ...).
        augment: ranges of the joint augmentation; None leaves the images as they are.
        pad_to: (H, W) that smaller images are padded to; needed for batches of images of different sizes.
        drop_labels: labels that are not handed out.
    """

    source: dict[str, Any]
    augment: GeometryRanges | None = None
    pad_to: tuple[int, int] | None = None
    drop_labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class DataSection:
    """The `data` section: what is trained on, and what is evaluated on."""

    train: DataConfig
    eval: DataConfig


def data_section(config: ml_collections.ConfigDict) -> DataSection:
    """The `data` section of a whole config, checked.

    Raises:
        UserError: section or key missing, unknown, mistyped or out of range, with its full path.
    """
    if "data" not in config:
        raise UserError(f"config.data: missing; {suggest('data', config)}")
    section = from_config(DataSection, config.data, "config.data")
    for part in PARTS:
        read_source(getattr(section, part).source, f"config.data.{part}.source")
    return section


def data_source(config: ml_collections.ConfigDict, part: Part) -> Source:
    """The source of `config.data.<part>`."""
    section = data_section(config)
    return build_source(getattr(section, part).source, path=f"config.data.{part}.source")


def train_loader(config: ml_collections.ConfigDict) -> Loader:
    """Endless shuffled and augmented batches: this process's part of `config.training.batch_size` images."""
    data, training = data_section(config).train, training_config(config)
    return make_loader(
        data_source(config, "train"),
        batch_size=training.batch_size,
        seed=config.seed,
        train=True,
        augment=data.augment,
        workers=training.workers,
        pad_to=data.pad_to,
        drop_labels=data.drop_labels,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

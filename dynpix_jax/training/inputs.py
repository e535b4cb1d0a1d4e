"""From a config's `data` section to the batches that training and evaluation read."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import ml_collections

from dynpix_jax.data.geometry import GeometryRanges
from dynpix_jax.data.loader import Loader, make_loader
from dynpix_jax.data.sources import Source, build_source
from dynpix_jax.training.settings import training_config
from dynpix_jax.utils.configs import from_config
from dynpix_jax.utils.errors import UserError, suggest


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


def data_config(config: ml_collections.ConfigDict, part: str) -> DataConfig:
    """`config.data.<part>`, checked.

    Args:
        config: whole config.
        part: "train" or "eval".
    """
    for path, section, key in (("config", config, "data"), ("config.data", config.get("data", {}), part)):
        if key not in section:
            raise UserError(f"{path}.{key}: missing; {suggest(key, section)}")
    return from_config(DataConfig, config.data[part], f"config.data.{part}")


def data_source(config: ml_collections.ConfigDict, part: str) -> Source:
    """The source of `config.data.<part>`."""
    return build_source(data_config(config, part).source)


def train_loader(config: ml_collections.ConfigDict) -> Loader:
    """Endless shuffled and augmented batches: this process's part of `config.training.batch_size` images."""
    data, training = data_config(config, "train"), training_config(config)
    return make_loader(
        build_source(data.source),
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


def eval_loader(
    config: ml_collections.ConfigDict, batch_size: int, *, source: Source | None = None
) -> Loader:
    """One pass over `config.data.eval` in order; padding elements of the last batch have `valid` False.

    Args:
        config: whole config.
        batch_size: over all processes.
        source: in place of the config's.
    """
    data = data_config(config, "eval")
    return make_loader(
        data_source(config, "eval") if source is None else source,
        batch_size=batch_size,
        seed=config.seed,
        train=False,
        augment=data.augment,
        workers=training_config(config).workers,
        pad_to=data.pad_to,
        drop_labels=data.drop_labels,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

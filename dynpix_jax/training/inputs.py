"""From the settings of a run to the sources and batches that training and evaluation read."""

from __future__ import annotations

from typing import Literal

import jax

from dynpix_jax.core.config import DataConfig, RunConfig
from dynpix_jax.core.source import Source
from dynpix_jax.data.contents import contents_of
from dynpix_jax.data.loader import Loader, make_loader
from dynpix_jax.data.sources import open_source
from dynpix_jax.training.data_record import DataRecord

Part = Literal["train", "eval"]


def data_source(run: RunConfig, part: Part) -> Source:
    """The source of `config.data.<part>`."""
    data: DataConfig = getattr(run.data, part)
    return open_source(data.source)


def train_record(run: RunConfig, *, accept_changed: bool) -> DataRecord | None:
    """What the run is trained on, which the first process compares with its workdir; None for the others."""
    if jax.process_index() != 0:
        return None
    return DataRecord(contents_of(data_source(run, "train")), accept_changed)


def train_loader(run: RunConfig) -> Loader:
    """Endless shuffled and augmented batches: this process's part of `config.training.batch_size` images."""
    data = run.data.train
    return make_loader(
        data_source(run, "train"),
        batch_size=run.training.batch_size,
        seed=run.seed,
        train=True,
        augment=data.augment,
        workers=run.training.workers,
        pad_to=data.pad_to,
        drop_labels=data.drop_labels,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )

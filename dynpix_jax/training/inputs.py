"""From the settings of a run to the sources and batches that training and evaluation read."""

from __future__ import annotations

from typing import Literal

from dynpix_jax.core.config import DataConfig, RunConfig
from dynpix_jax.core.processes import is_first
from dynpix_jax.core.source import Source
from dynpix_jax.data.contents import contents_of
from dynpix_jax.data.loader import Loader, make_loader
from dynpix_jax.data.sources import open_source
from dynpix_jax.training.data_record import DataRecord
from dynpix_jax.training.sharding import local_rows, run_mesh

Part = Literal["train", "eval"]


def data_source(run: RunConfig, part: Part) -> Source:
    """The source of `config.data.<part>`."""
    data: DataConfig = getattr(run.data, part)
    return open_source(data.source)


def train_record(run: RunConfig, *, accept_changed: bool) -> DataRecord | None:
    """What the run is trained on, which the first process compares with its workdir; None for the others."""
    if not is_first():
        return None
    return DataRecord(contents_of(data_source(run, "train")), accept_changed)


def train_loader(run: RunConfig) -> Loader:
    """Endless shuffled and augmented batches: this process's part of `config.training.batch_size` images.

    Raises:
        UserError: A mesh or a batch that does not fit the devices; see `make_mesh`, `make_loader`.
    """
    data, settings = run.data.train, run.training
    mesh = run_mesh(run)
    return make_loader(
        data_source(run, "train"),
        batch_size=settings.batch_size,
        seed=run.seed,
        train=True,
        augment=data.augment,
        workers=settings.workers,
        pad_to=data.pad_to,
        drop_labels=data.drop_labels,
        rows=local_rows(mesh, settings.batch_size),
    )

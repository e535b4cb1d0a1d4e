"""A training step compiled ahead of time for a slice that need not be there, and what its compiler says."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dynpix_jax.core.capabilities import ReadsInputs
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.source import FieldSpec
from dynpix_jax.core.system import NetworkConfig, System
from dynpix_jax.data.sources import declared_fields
from dynpix_jax.flops import UnknownPrimitiveError, jaxpr_macs
from dynpix_jax.ops.platform import compiled_for
from dynpix_jax.training.checks import check_stages
from dynpix_jax.training.program import Collective, collectives, estimated_cycles, repetition
from dynpix_jax.training.sharding import batch_sharding, run_mesh
from dynpix_jax.training.slices import Chip, Slice, slice_devices
from dynpix_jax.training.stages import make_stage

_QUICK = {"exec_time_optimization_effort": -1.0}
_USED = re.compile(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm")


@dataclass(frozen=True)
class Plan:
    """A step on one chip of a slice.

    Attributes:
        images: Images a chip.
        fits: Whether it has enough memory.
        peak: Greatest number of bytes in use at a time, by the compiler.
        state: Bytes of its arguments: parameters, optimizer, batch.
        flops: Floating-point operations: of products, as the step says them, all turns taken; where solvers
            decide how often they run, XLA's count, which takes the body of a loop once.
        bytes: Bytes that are read and written: XLA's count, with the results in loops as often as they run.
        collectives: By kind.
        cpu_seconds: Processor time of compiling.
        code: Bytes of the program.
        cycles: What the compiler expects it to take, without waiting for other chips; 0 where it tells none.
    """

    images: int
    fits: bool
    peak: int
    state: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    collectives: Mapping[str, Collective] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    code: int = 0
    cycles: int = 0

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    def seconds(self, chip: Chip, shares: int = 1) -> float:
        """Seconds that the step takes at best: its arithmetic or its memory traffic, whichever is longer.

        Args:
            chip: What runs it.
            shares: How many chips of the slice it stands for: it does the work of all of them.
        """
        return shares * max(self.flops / chip.flops, self.bytes / chip.bandwidth)


def plan_step(
    run: RunConfig, index: int, of: Slice, size: tuple[int, int] | None = None, *, quick: bool = False
) -> Plan:
    """Compiles the step of a stage.

    Args:
        run: All settings.
        index: The stage.
        of: What it is compiled for.
        size: (H, W) of the images; None: those of the config.
        quick: Compile with the least effort: another program, of about the same memory and traffic.

    Raises:
        UserError: The compiler is missing, the batch does not divide, the config does not tell the size, or
            what `check_stages` refuses.
    """
    settings = run.training
    devices = slice_devices(of)
    mesh = run_mesh(run, devices)
    check_stages(run, elsewhere=True)
    size = size or image_size(run)
    stage = make_stage(run, index, mesh, (*size, 3))
    batch = abstract_batch(run, stage.system, size, mesh)
    images = settings.batch_size // mesh.size
    step: Any = stage.step  # what jax.jit gives
    with compiled_for("tpu"):
        traced = step.trace(stage.abstract, batch)
        lowered = traced.lower()
    start = time.process_time()
    try:
        compiled = lowered.compile(compiler_options=_QUICK if quick else None)
    except jax.errors.JaxRuntimeError as error:
        used = _USED.search(str(error))
        if used is None:
            raise
        return Plan(images, fits=False, peak=int(float(used[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[used[2]]))
    seconds, memory, cost = time.process_time() - start, compiled.memory_analysis(), compiled.cost_analysis()
    text = compiled.as_text()
    return Plan(
        images,
        fits=True,
        peak=memory.peak_memory_in_bytes,
        state=memory.argument_size_in_bytes,
        flops=_flops(traced.jaxpr.jaxpr) / mesh.size or cost["flops"],
        bytes=cost["bytes accessed"] * repetition(text),
        collectives=collectives(text),
        cpu_seconds=seconds,
        code=memory.generated_code_size_in_bytes,
        cycles=estimated_cycles(text),
    )


def _flops(jaxpr: Any) -> float:
    """Operations of all devices; 0 where they are only known when the program runs."""
    try:
        return 2 * jaxpr_macs(jaxpr, at_most=True)
    except UnknownPrimitiveError:
        return 0.0


def image_size(run: RunConfig) -> tuple[int, int]:
    """(H, W) of the training images, where the config tells it.

    Raises:
        UserError: It does not; the images have the sizes of their files.
    """
    data = run.data.train
    own: tuple[int, int] | None = getattr(data.source.options, "size", None)
    crop = data.augment.crop if data.augment else None
    for size in (crop, data.pad_to, data.source.crop, own):
        if size is not None:
            return size
    raise UserError(f"{run.name}: images have the sizes of their files; give --size HxW")


def abstract_batch(
    run: RunConfig, system: System, size: tuple[int, int], mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the batch that a system's loss reads, split over the mesh."""
    fields: Mapping[str, FieldSpec] = declared_fields(run.data.train.source)
    wanted = ["image", *(label for task in system.tasks.values() for label in task.labels)]
    if isinstance(system, ReadsInputs):
        wanted += [*system.inputs, *system.supervision]
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "valid": ((), np.bool_),
        "index": ((), np.int64),
        "size": ((2,), np.int32),
    }
    for name in wanted:
        sides = iter(size)
        shape = tuple(next(sides) if side is None else side for side in fields[name].shape)
        shapes[name] = shape, np.dtype(fields[name].dtype)
    split = batch_sharding(mesh)
    count = run.training.batch_size
    return {
        name: jax.ShapeDtypeStruct((count, *shape), jax.dtypes.canonicalize_dtype(dtype), sharding=split)
        for name, (shape, dtype) in shapes.items()
    }


def smaller(run: RunConfig, index: int, of: Slice) -> Sequence[str]:
    """Settings that make the step of a stage smaller on a chip and are not set yet, one each."""
    settings, model = run.training, run.stages[index].model
    images = settings.batch_size // of.chips
    found = []
    if settings.remat == "none":
        found += ["training.remat=blocks", "training.remat=stages"]
    if settings.sharding == "replicated" and of.chips > settings.mesh.model:
        found.append("training.sharding=fsdp")
    if images % (2 * settings.microbatches) == 0:
        found.append(f"training.microbatches={2 * settings.microbatches}")
    if isinstance(model, NetworkConfig) and model.compute_dtype == "float32":
        found.append("model.compute_dtype=bfloat16")
    return found

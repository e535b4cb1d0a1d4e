"""PixelNet's table 4 on this machine: sparse sampling against dense hypercolumns.

A training step (loss, gradients, SGD with momentum) on one 224 x 224 image with 21 classes; its 12 rows are
those of the table in papers/pixelnet/tables.toml. Of each kind, with the layers and the MLP that the row has:

- fcn: one layer on each feature map at its own size, whose scores are upsampled and summed (Long et al., with
  bilinear interpolation in one step, and pool3 and pool4 in FCN-8s);
- dense: hypercolumns at all 50,176 pixels, the MLP and the loss at all of them;
- sampled: hypercolumns at all pixels, of which 2,000 go through the MLP;
- ours: hypercolumns at 2,000 pixels alone.

Memory is what the compiled program needs (XLA's analysis: arguments, results and the largest sum of
temporaries; donated state counts once), size that of the parameters in float32, speed the updates per second,
the median of `--runs`. Before it a dense prediction of a 500 x 375 image at the default chunk: memory and,
with `--runs`, seconds. `--small` does a little of each in seconds: a test of this program.

The paper's numbers, Caffe on a Titan X, stand beside. It prints 1,056 and 5,152 dimensions where these layers
have 832 and 4,928; its model sizes are those of the latter. Its dense and fcn rows hold the kernels of
deconvolution layers besides, ours interpolate.

example:
  dynpix bench pixelnet-sampling --runs 2 --rows "dense, fc-3" "ours, fc-3"
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from dynpix_jax import papers
from dynpix_jax.backbones.base import Stage
from dynpix_jax.bench.arguments import check_counts, make_folder
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.text import a_path, write_text
from dynpix_jax.core.typing import Array, Params
from dynpix_jax.evaluation.table_files import read_tables
from dynpix_jax.evaluation.timing import interleaved_medians
from dynpix_jax.flops import variable_shapes
from dynpix_jax.papers.pixelnet.sampling import hypercolumns
from dynpix_jax.papers.pixelnet.system import PixelNet, at_points

CLASSES = 21
POOLED = ("conv3_3", "conv4_3")
"""Layers that FCN-8s reads behind their pooling."""


@dataclass(frozen=True)
class SampledRow:
    """A row of the table."""

    label: str
    kind: str
    taps: tuple[str, ...]
    layers: int
    paper: tuple[float, ...]


def read_rows() -> tuple[SampledRow, ...]:
    """The rows of the paper's table."""
    program = "dynpix bench pixelnet-sampling"
    (table,) = (one for one in read_tables("pixelnet").benchmarks if one.program == program)
    rows = []
    for cells in table.rows:
        row: dict[str, Any] = dict(zip(table.columns, cells, strict=True))
        paper = tuple(row[name] for name in ("memory, MB", "size, MB", "updates/s"))
        rows.append(
            SampledRow(row["network"], row["kind"], tuple(row["layers"].split("+")), int(row["fc"]), paper)
        )
    return tuple(rows)


@dataclass(frozen=True)
class Case:
    """Settings of all rows."""

    size: tuple[int, int] = (224, 224)
    pixels: int = 2000
    width: int = 4096
    vgg_width: int = 64


@dataclass(frozen=True)
class SampledResult:
    """Measurements of a row."""

    label: str
    features: int
    pixels: int
    memory: int
    size: int
    updates: float | None


def make_system(row: SampledRow, case: Case) -> PixelNet:
    """The row's network."""
    fc = dict(fc_features=64 * case.vgg_width) if "fc7" in row.taps else {}
    system = papers.build(
        dict(
            system="pixelnet",
            task="segmentation",
            task_options=dict(classes=CLASSES),
            backbone=dict(width=case.vgg_width, **fc),
            hypercolumn=dict(layers=row.taps),
            mlp=dict(hidden=(case.width,) * (row.layers - 1)),
            sampling=dict(pixels=case.pixels),
        )
    )
    assert isinstance(system, PixelNet)
    return system


def loss_of(system: PixelNet, kind: str) -> Callable[[Params, dict[str, Array], Array], Array]:
    """(params, batch, key) -> the loss of a training step."""

    def fcn(params: Params, batch: dict[str, Array], key: Array) -> Array:
        target = batch["segmentation"]
        maps: Any = system.network.apply({"params": params}, batch["image"], method="maps")
        layer, first = params["mlp1"], 0
        scores: list[Array] = []
        strides: list[int] = []
        for info, features in zip(infos(system), maps, strict=True):
            pooled = info.name in POOLED
            x = nn.max_pool(features, (2, 2), (2, 2)) if pooled else features
            scores.append(x @ layer["kernel"][0, 0, first : first + info.channels])
            strides.append(info.stride * (2 if pooled else 1))
            first += info.channels
        upsampled = hypercolumns(scores, strides=strides, size=(target.shape[1], target.shape[2]))
        logits = upsampled.reshape(*target.shape, len(scores), CLASSES).sum(-2) + layer["bias"]
        return system.task.loss(logits, target, batch["valid"])

    def dense(params: Params, batch: dict[str, Array], key: Array) -> Array:
        points_key, dropout = jax.random.split(key)
        target, valid = batch["segmentation"], batch["valid"]
        maps: Any = system.network.apply({"params": params}, batch["image"], method="maps")
        size = (target.shape[1], target.shape[2])
        strides = [info.stride for info in infos(system)]
        # A barrier, because these rows measure columns that exist at every pixel.
        columns = jax.lax.optimization_barrier(hypercolumns(maps, strides=strides, size=size))
        if kind == "dense":
            return system.task.loss(mlp(params, columns, dropout), target, valid)
        points = system.draw(points_key, target, valid)
        logits = mlp(params, at_points(columns, points), dropout)
        return system.task.loss(logits[:, :, None], at_points(target, points)[:, :, None], valid)

    def sparse(params: Params, batch: dict[str, Array], key: Array) -> Array:
        points, dropout = jax.random.split(key)
        rngs = {"points": points, "dropout": dropout}
        return system.loss({"params": params}, batch, rngs=rngs, controls={})[0]

    return {"fcn": fcn, "ours": sparse}.get(kind, dense)


def infos(system: PixelNet) -> list[Stage]:
    """The layers of the hypercolumn."""
    config = system.config
    return [info for info in config.backbone.stages if info.name in config.hypercolumn.layers]


def mlp(params: Params, x: Array, key: Array) -> Array:
    """The MLP of joined hypercolumns (..., C) in training: half of the hidden values are dropped."""
    for index in range(1, 1 + sum(name.startswith("mlp") for name in params)):
        if index > 1:
            keep = jax.random.bernoulli(jax.random.fold_in(key, index), 0.5, x.shape)
            x = jnp.where(keep, 2 * jax.nn.relu(x), 0.0)
        layer = params[f"mlp{index}"]
        x = x @ layer["kernel"][0, 0] + layer["bias"]
    return x


def measure(row: SampledRow, case: Case, runs: int) -> SampledResult:
    """Compiles the row's training step, and runs it ``runs`` times (0: not at all)."""
    system = make_system(row, case)
    loss = loss_of(system, row.kind)
    optimizer = optax.sgd(1e-3, momentum=0.9)

    def step(state: Any, batch: dict[str, Array], key: Array) -> Any:
        params, momentum = state
        gradients = jax.grad(loss)(params, batch, key)
        updates, momentum = optimizer.update(gradients, momentum, params)
        return optax.apply_updates(params, updates), momentum

    shapes = variable_shapes(system)["params"]
    state = jax.eval_shape(lambda params: (params, optimizer.init(params)), shapes)
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.integers(0, 256, (1, *case.size, 3)), jnp.uint8),
        "segmentation": jnp.asarray(rng.integers(0, CLASSES, (1, *case.size)), jnp.int32),
        "valid": jnp.ones(1, bool),
    }
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch, jax.random.key(0)).compile()
    updates = None
    if runs:
        values = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-3, leaf.dtype), state)

        def call() -> Any:
            nonlocal values
            values = compiled(values, batch, jax.random.key(0))
            return values

        updates = 1e3 / interleaved_medians([call], runs)[0].median
    return SampledResult(
        row.label,
        sum(info.channels for info in infos(system)),
        case.pixels if row.kind in ("sampled", "ours") else case.size[0] * case.size[1],
        program_memory(compiled),
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)),
        updates,
    )


def measure_prediction(case: Case, size: tuple[int, int], runs: int) -> tuple[int, float | None]:
    """(bytes, seconds or None) of a dense prediction with fc-3, at the default chunk."""
    system = make_system(next(row for row in read_rows() if row.label == "ours, fc-3"), case)
    images = jnp.zeros((1, *size, 3), jnp.uint8)
    shapes = variable_shapes(system)

    def predict(variables: Any, images: Array) -> Array:
        return system.apply(variables, images).predictions["segmentation"]

    compiled = jax.jit(predict).lower(shapes, images).compile()
    seconds = None
    if runs:
        variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-3, leaf.dtype), shapes)
        seconds = interleaved_medians([lambda: compiled(variables, images)], runs)[0].median / 1e3
    return program_memory(compiled), seconds


def program_memory(compiled: Any) -> int:
    """Bytes of a compiled program: arguments, results, temporaries; what is donated once."""
    stats = compiled.memory_analysis()
    whole = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return int(whole - stats.alias_size_in_bytes)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    parser.add_argument("--out", type=a_path, metavar="FILE", help="write the numbers as JSON")
    parser.add_argument("--rows", nargs="+", metavar="PART", help="rows whose label holds one of these")
    parser.add_argument("--runs", type=int, default=3, help="updates that are timed; 0: memory and size only")
    parser.add_argument("--width", type=int, default=4096, help="of the MLP's hidden layers")
    parser.add_argument("--small", action="store_true", help="a tiny network on a tiny image")


def run(args: argparse.Namespace) -> int:
    """Prints the table; gives the exit status."""
    check_counts(args, "runs", least=0)
    check_counts(args, "width")
    if args.out is not None:
        if args.out.is_dir():
            raise UserError(f"--out {args.out}: is a folder; expected a file")
        make_folder(args.out.parent)
    case = Case((32, 48), 50, 24, 4) if args.small else Case(width=args.width)
    rows = [row for row in read_rows() if not args.rows or any(part in row.label for part in args.rows)]
    if not rows:
        raise UserError(f"--rows: no row holds any of {', '.join(args.rows)}")

    size = (48, 40) if args.small else (500, 375)
    memory, seconds = measure_prediction(case, size, args.runs)
    took = "" if seconds is None else f", {seconds:.1f} s"
    print(f"dense prediction of {size[0]}x{size[1]} with fc-3: {memory / 2**20:.0f} MiB{took}\n")
    heads: tuple[str, ...] = ("training step", "features", "pixels", "memory, MB", "size, MB", "updates/s")
    heads += ("paper: memory", "size", "updates/s")
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    results = []
    for row in rows:
        result = measure(row, case, args.runs)
        results.append(result)
        cells = [row.label, f"{result.features}", f"{result.pixels}", f"{result.memory / 1e6:.0f}"]
        cells += [f"{result.size / 1e6:.1f}", "-" if result.updates is None else f"{result.updates:.3g}"]
        cells += [f"{value:g}" for value in row.paper]
        print("| " + " | ".join(cells) + " |", flush=True)
    for line in ratios(results):
        print(line)
    if args.out is not None:
        content = {
            "device": jax.devices()[0].device_kind,
            "prediction": {"size": size, "memory": memory, "seconds": seconds},
            "rows": [asdict(result) for result in results],
        }
        write_text(args.out, json.dumps(content, indent=2))
    return 0


def ratios(results: list[SampledResult]) -> list[str]:
    """Our share of the dense step's memory and time, where both rows are there."""
    found = {result.label: result for result in results}
    lines = []
    for layers in (1, 2, 3):
        dense, ours = found.get(f"dense, fc-{layers}"), found.get(f"ours, fc-{layers}")
        if dense is None or ours is None:
            continue
        line = f"fc-{layers}: ours needs {ours.memory / dense.memory:.1%} of the dense step's memory"
        if dense.updates and ours.updates:
            line += f" and {dense.updates / ours.updates:.1%} of its time"
        lines.append(line)
    return lines

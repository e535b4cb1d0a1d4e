"""Everything that needs an accelerator, in one command: are all implementations right, and how fast are they?

Needs jax for the device, numpy and this repository; with matplotlib it draws a picture, too. Where only these
are installed, run it in a clone as ``python -m dynpix_jax.bench.device``. It writes FOLDER/device.json as it
goes, so that a run that is cut short leaves what it measured, and device_NAME.png. The exit status is 1 if a
result is wrong.

Correctness: each implementation that can run here, convolutions against sums in float64 (NumPy), the forms of
`dynpix bench roofline` with their gradients against their definition in float32; errors over the largest
result. Speed: medians of interleaved runs beside the dense convolution of the platform, on NVIDIA GPUs cuDNN.
In float32 that one multiplies in TF32 there, unlike the implementations here: "dense_float32" does not.
Predictions: the layers of `dynpix bench roofline`, and whether the kernel wins where it says.

`--small` runs a little of each in seconds, on any machine: a test of this program, not a measurement.

example:
  JAX_PLATFORMS=cuda dynpix bench device --minutes 9
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynpix_jax.bench import arg_specs, roofline
from dynpix_jax.bench import conv as bench
from dynpix_jax.bench.arg_specs import ConvSpec
from dynpix_jax.bench.arguments import check_counts, make_folder
from dynpix_jax.bench.masks import KINDS, Kind, make_mask
from dynpix_jax.bench.timed import Program, Settings, measure
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.text import a_path
from dynpix_jax.core.typing import Array
from dynpix_jax.ops import active_set, conv, perforated_conv
from dynpix_jax.ops.conv import torch_padding
from dynpix_jax.ops.sparse import (
    ImplementationUnavailable,
    implementations,
    sparse_block,
    sparse_block_reference,
)

DENSITIES = (0.1, 0.3, 0.5, 0.7, 1.0)
LAYERS = (*reversed(arg_specs.PAG_RESNET50_NYU), *reversed(arg_specs.HRNET_W48))
"""Measured, most channels first: where skipping should pay most."""

# Further shapes to check for correctness: strides, a 1x1, few and odd channels, odd sizes.
ODD_LAYERS = (
    *arg_specs.HRNET_W18[::2],
    arg_specs.HRNET_W18[-1],
    ConvSpec("1x1_512_384", (41, 61), 512, 384, kernel_size=(1, 1)),
    ConvSpec("5x5_3_to_19", (61, 47), 3, 19, strides=(2, 1), dilation=(1, 3), kernel_size=(5, 5)),
)

BOUNDS = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}
"""Errors over the largest result: float32 without TF32, the others by the rounding of their results."""
FORM_BOUNDS = {"float32": 3e-5, "bfloat16": 3e-2, "float16": 5e-3}
"""The same of a chain: its products follow each other, and its definition rounds nothing between layers."""
GRADIENT_BOUNDS = {"float32": 1e-2, "bfloat16": 0.2, "float16": 0.1}
"""Norm of a gradient's error over its own: a ReLU near 0 may open by a rounding, which changes its position
wholly."""


def reference(x: np.ndarray, kernel: np.ndarray, spec: ConvSpec) -> np.ndarray:
    """The convolution in float64, everywhere: a matrix product for each tap."""
    pad = torch_padding(spec.kernel_size, spec.dilation)
    padded = np.pad(x.astype(np.float64), ((0, 0), (pad[0], pad[0]), (pad[1], pad[1]), (0, 0)))
    height, width = spec.output_size
    total = np.zeros((len(x), height, width, spec.features))
    for i, j in np.ndindex(spec.kernel_size):
        top, left = i * spec.dilation[0], j * spec.dilation[1]
        rows = slice(top, top + (height - 1) * spec.strides[0] + 1, spec.strides[0])
        cols = slice(left, left + (width - 1) * spec.strides[1] + 1, spec.strides[1])
        total += padded[:, rows, cols] @ kernel[i, j].astype(np.float64)
    return total


def check(spec: ConvSpec, dtype: str, batch: int, names: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """A record for each implementation (of ``names``, or all) and mask: its error, or why it does not run."""
    settings = Settings(densities=(), batch=batch, dtype=dtype)
    rng = np.random.default_rng(0)
    shapes = [(batch, *spec.size, spec.channels), (*spec.kernel_size, spec.channels, spec.features)]
    x, kernel = (jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for shape in shapes)
    everywhere = reference(np.asarray(x, np.float64), np.asarray(kernel, np.float64), spec)
    masks = make_masks((batch, *spec.output_size))
    for name in names or implementations():
        record = {"layer": spec.name, "dtype": dtype, "batch": batch, "implementation": name}
        if reason := bench.unavailable(spec, name, settings):
            yield record | {"skipped": reason}
            continue
        run = jax.jit(
            partial(perforated_conv, strides=spec.strides, dilation=spec.dilation, implementation=name)
        )
        for kind, mask in masks.items():
            # Without it XLA multiplies float32 in TF32 on GPUs and in bfloat16 on TPUs.
            with jax.default_matmul_precision("highest"):
                got = np.asarray(run(x, kernel, mask), np.float64)
            active = np.asarray(mask)[..., None]
            error = np.abs(got - np.where(active, everywhere, 0)).max() / np.abs(everywhere).max()
            outside = bool((got * ~active).any())
            # Not `error <= bound`: nan is wrong too.
            wrong = outside or not error <= BOUNDS[dtype]
            yield record | {"mask": kind, "error": float(error), "wrong": wrong}


def check_form(
    form: str, spec: ConvSpec, dtype: str, batch: int, names: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """The same of a chain: errors of values and gradients."""
    call = roofline.drawn(roofline.FORMS[form](spec, dtype, batch))
    weights = jax.random.normal(jax.random.key(2), (*call.mask.shape, call.features))
    arrays = (call.x, call.layers, call.init)

    def with_gradients(block: Callable[..., Array]) -> Callable[..., Any]:
        def weighed(arrays: Any, mask: Array) -> tuple[Array, Array]:
            x, layers, init = arrays
            y = block(x, mask, layers, combine=call.combine, init=init)
            return (y.astype(jnp.float32) * weights).sum(), y

        return jax.jit(jax.value_and_grad(weighed, has_aux=True))

    definition = with_gradients(sparse_block_reference)
    for name in names or implementations():
        record = {"form": form, "layer": spec.name, "dtype": dtype, "batch": batch, "implementation": name}
        run = with_gradients(partial(sparse_block, implementation=name))
        try:
            jax.eval_shape(run, arrays, call.mask)
        except ImplementationUnavailable as reason:
            yield record | {"skipped": str(reason)}
            continue
        for kind, mask in make_masks(call.mask.shape).items():
            with jax.default_matmul_precision("highest"):
                (_, got), gradients = run(arrays, mask)
                (_, expected), true = definition(arrays, mask)
            error = _error(got, expected, lambda value: np.abs(value).max())
            pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(true), strict=True)
            worst = max(_error(one, other, np.linalg.norm) for one, other in pairs)
            wrong = not (error <= FORM_BOUNDS[dtype] and worst <= GRADIENT_BOUNDS[dtype])
            yield record | {"mask": kind, "error": error, "gradient_error": worst, "wrong": wrong}


def _error(got: Array, expected: Array, size: Callable[[np.ndarray], Any]) -> float:
    """Size of the difference over that of the expected values; infinite where there is no number."""
    found, true = (np.asarray(value, np.float64).reshape(-1) for value in (got, expected))
    error = float(size(found - true) / (size(true) or 1.0))
    return error if np.isfinite(error) else np.inf


@partial(jax.jit, static_argnums=0)
def make_masks(shape: tuple[int, int, int]) -> dict[str, jax.Array]:
    """Masks to check with: some of the usual kinds, and rare cases."""
    nowhere = jnp.zeros(shape, bool)
    rare = {"empty": nowhere, "one": nowhere.at[-1, -1, -1].set(True), "full": ~nowhere}
    return rare | {kind: make_mask(kind, jax.random.key(0), shape, 0.4) for kind in KINDS}


def speed(spec: ConvSpec, settings: Settings, names: Sequence[str]) -> list[dict[str, Any]]:
    """A record for the dense convolution, and for each implementation at each density."""
    able = [name for name in names if not bench.unavailable(spec, name, settings)]
    # Active sets are made once for the layers that share a mask; what that takes has a record of its own.
    programs = bench.programs(spec, able, settings, shared_active=True)
    mask = make_masks((settings.batch, *spec.output_size))[settings.mask]
    programs.append(Program("active_set", partial(jax.jit(active_set), mask), 0.4, 0.0))
    if settings.dtype == "float32":
        x, kernel = bench.arrays(spec, settings)
        dense = jax.jit(partial(conv, strides=spec.strides, dilation=spec.dilation))

        def at_full_precision() -> jax.Array:
            with jax.default_matmul_precision("highest"):
                return dense(x, kernel)

        programs.append(Program("dense_float32", at_full_precision))
    rows = measure(spec.name, programs, settings.runs)
    where = {"dtype": settings.dtype, "batch": settings.batch, "mask": settings.mask, "macs": spec.macs}
    return [row.to_json() | where | {"channels": spec.channels} for row in rows]


def small(spec: ConvSpec) -> ConvSpec:
    """A small layer of the same kind."""
    size = (min(spec.size[0], 13), min(spec.size[1], 18))
    channels, features = min(spec.channels, 20), min(spec.features, 12)
    return dataclasses.replace(spec, size=size, channels=channels, features=features)


def draw(records: Sequence[dict[str, Any]], name: str, title: str, file: Path) -> None:
    """Time of `name` over that of the dense convolution by density: a panel for each dtype and batch size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = sorted({(r["dtype"], r["batch"]) for r in records})
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.5 * len(panels), 4.5), sharey=True, squeeze=False
    )
    layers = {layer: f"C{i}" for i, layer in enumerate(dict.fromkeys(r["layer"] for r in records))}
    for axis, panel in zip(axes[0], panels, strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", label="density")
        axis.plot([0, 1], [0.15, 1.15], color="0.7", linestyle=":", label="density + 0.15")
        for (layer, colour), (mask, line) in itertools.product(
            layers.items(), zip(KINDS, ("-", "--"), strict=True)
        ):
            at = (layer, *panel, mask, name)
            chosen = [r for r in records if (r["layer"], r["dtype"], r["batch"], r["mask"], r["label"]) == at]
            label = layer if mask == KINDS[0] else None
            densities, ratios = [r["density"] for r in chosen], [r["time_ratio"] for r in chosen]
            axis.plot(densities, ratios, line, color=colour, marker=".", label=label)
        axis.set(xlabel="density", title=f"{panel[0]}, batch {panel[1]}", ylim=(0, 2))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel(f"time of {name} / time of the dense convolution")
    axes[0][-1].legend(fontsize=7)
    figure.suptitle(f"{title}; {KINDS[0]} masks solid, {KINDS[1]} dashed")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


class Report:
    """The findings, written to a file at every step."""

    def __init__(self, file: Path, *, small: bool) -> None:
        device = jax.devices()[0]
        self.file = file
        self.found: dict[str, Any] = {
            "device": device.device_kind,
            "compute_capability": getattr(device, "compute_capability", None),
            "jax": jax.__version__,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "small": small,
            "correctness": [],
            "speed": [],
            "predictions": [],
            "not_reached": [],
        }

    def add(self, part: str, records: Sequence[Any]) -> None:
        """Adds records and writes the file."""
        self.found[part] += records
        self.file.write_text(json.dumps(self.found, indent=1))


def correctness(report: Report, names: Sequence[str], deadline: float, *, is_small: bool) -> bool:
    """Checks all layers by the implementations of ``names``, or all; whether all results were right."""
    layers = ODD_LAYERS[-1:] if is_small else (*LAYERS, *ODD_LAYERS)
    chained = roofline.LAYERS[:1] if is_small else roofline.LAYERS[:4]
    checks: dict[str, tuple[Callable[..., Iterator[dict[str, Any]]], Sequence[ConvSpec]]] = {
        "convolution": (check, layers),
        **{form: (partial(check_form, form), chained) for form in roofline.FORMS if form != "convolution"},
    }
    todo = [(form, run, spec) for form, (run, specs) in checks.items() for spec in specs]
    right = True
    for (form, run, full), dtype in itertools.product(todo, BOUNDS):
        spec = small(full) if is_small else full
        if time.monotonic() > deadline:
            report.add("not_reached", [f"correctness {form} {spec.name} {dtype}"])
            continue
        records = list(run(spec, dtype, batch=2, names=names))
        report.add("correctness", records)
        worst: dict[str, float] = {}
        for record in records:
            if "error" in record:
                worst[record["implementation"]] = max(
                    record["error"], worst.get(record["implementation"], 0.0)
                )
            if record.get("wrong"):
                right = False
                print(f"WRONG: {record}")
        errors = ", ".join(f"{name} {error:.1e}" for name, error in worst.items())
        print(f"{form:11} {spec.name:32} {dtype:9} {errors}", flush=True)
    for skipped in {
        (r["implementation"], r["skipped"]) for r in report.found["correctness"] if "skipped" in r
    }:
        print(f"not run: {': '.join(skipped)}")
    return right


def speeds(report: Report, names: Sequence[str], runs: int, deadline: float, *, is_small: bool) -> None:
    """Measures all layers and prints ratios by density."""
    layers = [small(LAYERS[0])] if is_small else list(LAYERS)
    densities = (0.3, 1.0) if is_small else DENSITIES
    batches, dtypes = ((1,), ("bfloat16",)) if is_small else ((1, 16), ("bfloat16", "float32"))
    for dtype, batch, spec in itertools.product(dtypes, batches, layers):
        for kind in KINDS:
            if time.monotonic() > deadline:
                report.add("not_reached", [f"speed {spec.name} {dtype} batch {batch} {kind}"])
                continue
            settings = Settings(densities, mask=_kind(kind), batch=batch, runs=runs, dtype=dtype)
            records = speed(spec, settings, names)
            report.add("speed", records)
            dense = records[0]["timing"]
            print(
                f"{spec.name:28} {dtype:8} batch {batch:2} {kind:6} dense {dense['median']:.3f} ms", end="; "
            )
            for name in names:
                ratios = [f"{r['density']:.1f}: {r['time_ratio']:.2f}" for r in records if r["label"] == name]
                print(f"{name} {', '.join(ratios) or 'cannot run'}", end="; ")
            print(flush=True)


def predictions(report: Report, runs: int, deadline: float, *, is_small: bool) -> None:
    """Measures the layers of `dynpix bench roofline` and prints which of its predictions hold."""
    chip = roofline.chip_of(report.found["device"])
    if chip is None:
        print(f"no predictions for {report.found['device']}: see dynpix bench roofline")
        return
    layers = roofline.LAYERS[:4]
    batches = (1,) if is_small else (1, 16)
    forms = ["bottleneck"] if is_small else list(roofline.FORMS)
    for batch, form, spec in itertools.product(batches, forms, layers[:1] if is_small else layers):
        if time.monotonic() > deadline:
            report.add("not_reached", [f"prediction {form} {spec.name} batch {batch}"])
            continue
        layer = small(spec) if is_small else spec
        for record in roofline.measured(form, layer, chip, batch=batch, runs=runs):
            report.add("predictions", [record])
            verdict = "holds" if record["holds"] else "DOES NOT HOLD"
            print(
                f"{form} {spec.name} batch {batch} density {record['density']:g}: "
                f"predicted {record['predicted']:.2f}, measured {record['measured']:.2f}, {verdict}"
            )


def _kind(name: str) -> Kind:
    return "random" if name == "random" else "blobs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    parser.add_argument("--out", type=a_path, default=Path("runs/device"), help="folder to write to")
    parser.add_argument(
        "--implementation",
        nargs="+",
        choices=sorted(implementations()),
        help="to check and to measure; by default all, and the kernel of the platform",
    )
    parser.add_argument("--runs", type=int, default=11, help="rounds that count")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin nothing new after so many")
    parser.add_argument("--only", choices=("correctness", "speed", "predictions"), help="one part")
    parser.add_argument("--small", action="store_true", help="a little of each: a test of this program")


def run(options: argparse.Namespace) -> int:
    """Checks and measures; gives the exit status, 1 if a result is wrong."""
    check_counts(options, "runs")
    if not options.minutes >= 0:  # nan, too
        raise UserError(f"--minutes {options.minutes:g}: expected a number from 0 on")
    if options.implementation and options.only == "predictions":
        raise UserError("--implementation: predictions are of the kernels of the platform; leave it out")
    make_folder(options.out)
    deadline = time.monotonic() + 60 * options.minutes
    platform = jax.default_backend()
    names = options.implementation or ["gather" if platform == "cpu" else f"pallas_{platform}"]
    report = Report(options.out / "device.json", small=options.small)
    title = f"{report.found['device']}, jax {jax.__version__}"
    print(title)
    right = True
    runs = 1 if options.small else options.runs
    if options.only in (None, "correctness"):
        right = correctness(report, options.implementation or (), deadline, is_small=options.small)
    if options.only in (None, "predictions"):
        predictions(report, runs, deadline, is_small=options.small)
    if options.only in (None, "speed"):
        speeds(report, names, runs, deadline, is_small=options.small)
        try:
            if report.found["speed"]:
                for name in sorted({r["label"] for r in report.found["speed"]} & set(names)):
                    draw(report.found["speed"], name, title, options.out / f"device_{name}.png")
        except ImportError:
            print("matplotlib is not installed: no picture")
    checked = any("error" in record for record in report.found["correctness"])
    verdict = "all results right" if checked else "no result was checked"
    print(f"{report.file}: {verdict if right else 'WRONG RESULTS'}")
    return 0 if right else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The program on its own: what `dynpix` itself needs may not be installed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())

"""`dynpix bench`: what computing at active positions only costs here, against computing everywhere."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from dynpix_jax import papers
from dynpix_jax.cli.flops import find_stage, parse_size
from dynpix_jax.cli.run_config import read_config
from dynpix_jax.cli.tables import print_table
from dynpix_jax.core.errors import UserError, suggest
from dynpix_jax.evaluation.bench import bottleneck, conv, model, pooling, torch_conv
from dynpix_jax.evaluation.bench.rows import Program, Row, Settings, measure
from dynpix_jax.ops.sparse import arg_specs, implementations
from dynpix_jax.ops.sparse.arg_specs import ConvSpec
from dynpix_jax.ops.sparse.masks import KINDS
from dynpix_jax.training.settings import stage_system

_EXAMPLE = """\
example:
  dynpix bench perforated-conv --spec res4_480x640 --density .1 .3 .5
  dynpix bench bottleneck --spec res4_480x640 --backward
  dynpix bench pooling --spec pooling_425x560
  dynpix bench model --config=configs/pag/bsds500.py:variant=gated,gate_scope=residual --size 480x640

Programs run in turn, so that a slow moment of the machine meets all of them: trust the ratios of one run more
than milliseconds of two. "time" is the median over that of the first line, "MACs" the multiply-accumulates
that a mask leaves over those of the first line, and "time / MACs" is 1 where skipping saves all that it
promises. No data and no weights are read.
"""
_CONV_EXAMPLE = """\
example:
  dynpix bench perforated-conv --spec res4_480x640 res5_480x640 --density .1 .3 .5 .7 --mask blobs
  dynpix bench perforated-conv --implementation auto --dtype bfloat16 --batch 16 --torch --json > conv.json
"""
_BOTTLENECK_EXAMPLE = """\
example:
  dynpix bench bottleneck --spec res4_480x640 --density .5 --backward
"""
_POOLING_EXAMPLE = """\
example:
  dynpix bench pooling --spec pooling_425x560 --mask blobs

"time" of the last line is what the five branches cost where each pixel runs its own alone, over what they
cost where all run everywhere and are mixed (the first line). All are chosen equally often.
"""
_MODEL_EXAMPLE = """\
example:
  dynpix bench model --config=configs/pag/bsds500.py:variant=gated,gate_scope=residual --size 480x640

All gates get masks of the same density; weights are random. The first line is the dense network with every
gate open; of a MultiPool it computes all branches, and its MACs are counted so.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command, with its four measurements, to the `dynpix` parser."""
    parser = subparsers.add_parser(
        "bench",
        help="time computing at active positions only",
        description="Times computing at active positions only against computing everywhere.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)

    def add(name: str, line: str, description: str, example: str) -> argparse.ArgumentParser:
        return what.add_parser(
            name,
            help=line,
            description=description,
            epilog=example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    conv_parser = add(
        "perforated-conv",
        "one convolution of the papers",
        "Times implementations of ops.perforated_conv against XLA's dense convolution.",
        _CONV_EXAMPLE,
    )
    _add_specs(conv_parser)
    conv_parser.add_argument(
        "--implementation",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join([conv.AUTO, *implementations()])} (default: {conv.AUTO}, which is what None picks, "
        "and all that can run here)",
    )
    conv_parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    conv_parser.add_argument(
        "--shared-active",
        action="store_true",
        help="make the masks' active sets beforehand, as where layers share a mask (default: in each call)",
    )
    conv_parser.add_argument("--torch", action="store_true", help="also time PyTorch's dense convolution")
    _add_common(conv_parser, (0.1, 0.3, 0.5, 0.7, 1.0), backward=True)

    bottleneck_parser = add(
        "bottleneck",
        "one gated bottleneck of PAG",
        "Times PAG's gated bottleneck, dense and sparse, against the plain one.",
        _BOTTLENECK_EXAMPLE,
    )
    _add_specs(bottleneck_parser)
    bottleneck_parser.add_argument("--scope", choices=("residual", "conv3x3"), default="residual")
    _add_common(bottleneck_parser, (0.3, 0.5, 0.7, 0.9), backward=True)

    pooling_parser = add(
        "pooling",
        "the five-branch module of recurrent scene parsing",
        "Times depth-aware pooling with arg-max gates, dense and sparse, against mixing all branches.",
        _POOLING_EXAMPLE,
    )
    _add_specs(pooling_parser)
    pooling_parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    _add_common(pooling_parser, (), backward=False)

    model_parser = add(
        "model",
        "a config's whole network",
        "Times a config's network under masks of given densities, dense and sparse, against the ungated one.",
        _MODEL_EXAMPLE,
    )
    model_parser.add_argument(
        "--config", required=True, metavar="FILE[:ARG]", help="config with its argument"
    )
    model_parser.add_argument(
        "--size", required=True, metavar="HxW", help="height x width of the image in pixels"
    )
    model_parser.add_argument("--stage", metavar="NAME", help="training stage (default: the last one)")
    model_parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change config values"
    )
    _add_common(model_parser, (0.3, 0.5, 0.7, 0.9), backward=False)


def _add_specs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spec", nargs="+", default=["all"], metavar="NAME", help="layers by name, or all (default)"
    )


def _add_common(parser: argparse.ArgumentParser, densities: Sequence[float], *, backward: bool) -> None:
    if densities:
        parser.add_argument(
            "--density",
            nargs="+",
            type=float,
            default=list(densities),
            metavar="D",
            help=f"shares of active positions (default: {' '.join(map(str, densities))})",
        )
    parser.add_argument(
        "--mask",
        choices=KINDS,
        default="random",
        help="independent pixels (default), or blobs as real gates make them",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at a time (default: 1)")
    parser.add_argument("--runs", type=int, default=11, metavar="N", help="rounds that count (default: 11)")
    if backward:
        parser.add_argument("--backward", action="store_true", help="forward and backward pass")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")


@dataclasses.dataclass(frozen=True)
class Job:
    """Programs that run in turn.

    name: of the layer or network. title: the same for people. programs: builds them, the reference first.
    calls: as in `measure`.
    """

    name: str
    title: str
    programs: Callable[[], list[Program]]
    calls: int | None = None


def run(args: argparse.Namespace) -> int:
    """Measures and prints; returns 0."""
    settings = read_settings(args)
    make = {
        "perforated-conv": conv_jobs,
        "bottleneck": bottleneck_jobs,
        "pooling": pooling_jobs,
        "model": model_jobs,
    }[args.what]
    jobs, left_out = make(args, settings)
    about = machine() | dataclasses.asdict(settings)
    if not args.json:
        print(_describe(about))
    rows: list[Row] = []
    for job in jobs:
        measured = measure(job.name, job.programs(), settings.runs, calls=job.calls)
        rows += measured
        if not args.json:
            print(f"\n{job.title}")
            print_table(*_table(measured))
    if args.json:
        about |= {"rows": [row.to_json() for row in rows], "left_out": left_out}
        print(json.dumps(about, indent=2))
    elif getattr(args, "implementation", None):  # what nobody asked for by name is not missed
        for out in left_out:
            print(f"left out: {out['layer']}, {out['label']}: {out['reason']}")
    return 0


def read_settings(args: argparse.Namespace) -> Settings:
    """What is measured, from the arguments.

    Raises:
      UserError: a density outside [0, 1], or a count below 1.
    """
    densities = tuple(getattr(args, "density", ()))
    for density in densities:
        if not 0.0 <= density <= 1.0:
            raise UserError(f"--density {density:g}: expected a share of positions in [0, 1]")
    for name in ("batch", "runs"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: expected at least 1")
    given = {name: value for name, value in vars(args).items() if name in ("dtype", "backward")}
    return Settings(densities, args.mask, args.batch, args.runs, **given)


def conv_jobs(args: argparse.Namespace, settings: Settings) -> tuple[list[Job], list[dict[str, str]]]:
    """One job a layer, and which implementations are left out of which layer, with the reasons.

    Raises:
      UserError: no such layer or implementation; a named one that can run none of the layers here; PyTorch
        that is not there.
    """
    specs = find_specs(args.spec, arg_specs.ALL)
    known = [conv.AUTO, *implementations()]
    for name in args.implementation or ():
        if name not in known:
            raise UserError(f"--implementation {name}: there is none; {suggest(name, known)}")
    if args.torch:
        torch_conv.check()
    names = list(dict.fromkeys(args.implementation or known))
    reasons = {spec: {name: conv.unavailable(spec, name, settings) for name in names} for spec in specs}
    for name in args.implementation or ():
        if all(reasons[spec][name] for spec in specs):
            raise UserError(f"{specs[0].name}: {reasons[specs[0]][name]}")
    jobs = [
        Job(
            spec.name,
            describe_spec(spec),
            partial(
                _conv_programs, args, spec, [name for name in names if not reasons[spec][name]], settings
            ),
        )
        for spec in specs
    ]
    left_out = [
        {"layer": spec.name, "label": name, "reason": reason}
        for spec in specs
        for name, reason in reasons[spec].items()
        if reason
    ]
    return jobs, left_out


def _conv_programs(
    args: argparse.Namespace, spec: ConvSpec, names: Sequence[str], settings: Settings
) -> list[Program]:
    dense, *others = conv.programs(spec, names, settings, shared_active=args.shared_active)
    return [dense, *([torch_conv.program(spec, settings)] if args.torch else []), *others]


def bottleneck_jobs(args: argparse.Namespace, settings: Settings) -> tuple[list[Job], list[dict[str, str]]]:
    """One job a layer; nothing is left out.

    Raises:
      UserError: no bottleneck has a 3x3 of that name.
    """
    jobs = [
        Job(
            spec.name,
            f"bottleneck around {describe_spec(spec)}",
            partial(bottleneck.programs, spec, settings, scope=args.scope),
        )
        for spec in find_specs(args.spec, bottleneck.SPECS)
    ]
    return jobs, []


def pooling_jobs(args: argparse.Namespace, settings: Settings) -> tuple[list[Job], list[dict[str, str]]]:
    """One job a place; nothing is left out.

    Raises:
      UserError: no such place.
    """
    jobs = [
        Job(
            spec.name,
            f"five branches, dilations 1 to 16, each {describe_spec(spec)}",
            partial(pooling.programs, spec, settings),
        )
        for spec in find_specs(args.spec, pooling.SPECS)
    ]
    return jobs, []


def model_jobs(args: argparse.Namespace, settings: Settings) -> tuple[list[Job], list[dict[str, str]]]:
    """One job, the network; nothing is left out.

    Raises:
      UserError: whatever is wrong with the config, the size or the name of the stage; a network without
        gates.
    """
    size = parse_size(args.size)
    config, run_config = read_config(args.config, args.set)
    stage = find_stage(run_config.training.stages, args.stage)
    system = stage_system(config, stage, papers.build)
    title = f"{args.config}, stage '{stage.name}', images of {size[0]}x{size[1]} pixels (height x width)"
    if not model.gate_shapes(system, size):
        raise UserError(f"{args.config}, stage '{stage.name}': its network has no gates to measure")
    # A network takes much longer than its dispatch, and its results take more memory than a layer's.
    return [Job(args.config, title, partial(model.programs, system, size, settings), calls=1)], []


def find_specs(names: Sequence[str], specs: Sequence[ConvSpec]) -> list[ConvSpec]:
    """Those of the names, each once; "all" gives all.

    Raises:
      UserError: no such layer.
    """
    if "all" in names:
        return list(specs)
    try:
        return [arg_specs.find(name, specs) for name in dict.fromkeys(names)]
    except UserError as error:
        raise UserError(f"--{error}") from None


def describe_spec(spec: ConvSpec) -> str:
    """The layer in a line: "res4_321x481: 41x61, 256 -> 256 channels, 3x3, dilation 2; 1.48e9 MACs"."""
    parts = [f"{spec.channels} -> {spec.features} channels", "x".join(map(str, spec.kernel_size))]
    parts += [f"stride {spec.strides[0]}"] if spec.strides != (1, 1) else []
    parts += [f"dilation {spec.dilation[0]}"] if spec.dilation != (1, 1) else []
    return f"{spec.name}: {spec.size[0]}x{spec.size[1]}, {', '.join(parts)}; {spec.macs / 1e9:.3g}e9 MACs"


def machine() -> dict[str, Any]:
    """What it runs on."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
    }


def _describe(about: dict[str, Any]) -> str:
    device = f"{about['cores']} CPU cores" if about["platform"] == "cpu" else about["device"]
    passes = "forward and backward" if about["backward"] else "forward"
    return (
        f"{device}, jax {about['jax']}; {passes}, {about['dtype']}, batch {about['batch']}, "
        f"masks of kind {about['mask']}, {about['runs']} runs in turn"
    )


def _table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    heads = ["program", "density", "ms (p10-p90)", "time", "MACs", "time / MACs"]
    cells = [
        [
            row.label,
            f"{row.density:.3g}",
            str(row.timing),
            f"{row.time_ratio:.3f}",
            f"{row.mac_ratio:.3f}",
            "-" if row.time_over_macs is None else f"{row.time_over_macs:.3f}",
        ]
        for row in rows
    ]
    return heads, cells

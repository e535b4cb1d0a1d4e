"""Compiles the training step of a config for a TPU slice; tells memory, work, traffic, hours at best.

example:
  dynpix plan --config=configs/pag/nyuv2.py:task=depth,budget=gpu --topology v5e-4 --set training.remat=blocks

Needs the package libtpu (the extra `tpu`), but no TPU and no data. Large networks take minutes of a CPU;
--quick takes a part of that. Where the step does not fit, and with --compare, settings that make it smaller
are compiled, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from functools import partial

from dynpix_jax.cli.common import add_overrides
from dynpix_jax.cli.tables import print_table
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.text import changes, parse_size
from dynpix_jax.run_config import read_run
from dynpix_jax.training.plan import Plan, plan_step, smaller
from dynpix_jax.training.program import SMALL
from dynpix_jax.training.slices import H100, Chip, Slice, parse_slice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="config file with its argument")
    parser.add_argument(
        "--topology", required=True, metavar="KIND-CHIPS", help="such as v5e-16, v5p-8, v6e-256, or v5e:4x4"
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="images a step on all chips (training.batch_size)"
    )
    parser.add_argument("--stage", metavar="NAME", help="training stage (default: the last)")
    parser.add_argument("--size", metavar="HxW", help="size of the images, where the config does not tell it")
    add_overrides(parser)
    parser.add_argument("--compare", action="store_true", help="compile smaller settings, even if it fits")
    parser.add_argument(
        "--quick", action="store_true", help="compile with the least effort, for near numbers"
    )
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the plan; returns 0 if the step fits, 1 if it does not."""
    of = parse_slice(args.topology)
    size = None if args.size is None else parse_size(args.size)
    if args.batch is not None and changes(args.set, "training.batch_size"):
        raise UserError("--batch and --set training.batch_size say the same; give one of them")
    given = [*args.set, *([f"training.batch_size={args.batch}"] if args.batch is not None else [])]
    config = read_run(args.config, given)
    index = config.stages.index(config.stage(args.stage))
    plan = partial(plan_step, index=index, of=of, size=size, quick=args.quick)
    first = plan(config)
    plans: dict[str, Plan | UserError] = {"as given": first}
    if args.compare or not first.fits:
        for change in smaller(config, index, of):
            try:
                plans[change] = plan(read_run(args.config, [*given, change]))
            except UserError as error:  # such as a network without such parts: it loses this row alone
                plans[change] = error
    name = config.stages[index].name
    best = hours(config, first, of) if first.fits else None  # a step that does not fit has no work to count
    if args.json:
        found = {
            change: {"refused": str(plan)} if isinstance(plan, UserError) else dataclasses.asdict(plan)
            for change, plan in plans.items()
        }
        facts = {
            "config": args.config,
            "stage": name,
            "topology": args.topology,
            "quick": args.quick,
            "batch_size": config.training.batch_size,
            "steps": config.training.total_steps,
            "hours_at_best": best,
        }
        print(json.dumps({**facts, "chip": dataclasses.asdict(of.chip), "plans": found}, indent=2))
    else:
        print(f"{args.config}, stage {name}: {first.images} images a chip of {args.topology}")
        describe(first, of)
        if best is not None:
            training = config.training
            print(
                f"  all stages, {training.total_steps:,} steps of {training.batch_size} images, each like"
                f" this one: at best {duration(best['slice'])}; on one H100, {duration(best['h100'])}"
            )
        if len(plans) > 1:
            print()
            columns = ["setting", "fits", "peak GiB", "GFLOP", "GB moved", "Mcycles"]
            print_table(columns, [row(*one) for one in plans.items()])
            for change, refused in plans.items():
                if isinstance(refused, UserError):
                    print(f"{change}: {refused}")
    return 0 if first.fits else 1


def hours(config: RunConfig, plan: Plan, of: Slice) -> dict[str, float]:
    """How long training takes at best, if every step is like the planned one.

    Args:
        config: All settings; the steps of all its stages count.
        plan: A step that fits.
        of: The slice that it was planned for.

    Returns:
        Hours if nothing but arithmetic (bfloat16) or memory traffic takes time: of the "slice", and of one
        "h100" that does the work of all its chips (parameters are then read once a chip, not once).
    """
    steps = config.training.total_steps / 3600
    return {"slice": steps * plan.seconds(of.chip), "h100": steps * plan.seconds(H100, of.chips)}


def duration(hours: float) -> str:
    """Two digits or more, in a unit that needs no exponent: "130 h", "2.4 h", "12 min" or "0.5 s"."""
    units = ((hours, "h"), (60 * hours, "min"))
    value, unit = next((one for one in units if one[0] >= 1), (3600 * hours, "s"))
    return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"


def describe(plan: Plan, of: Slice) -> None:
    """Prints the numbers of one chip."""
    chip: Chip = of.chip
    fits = "fits" if plan.fits else "DOES NOT FIT"
    print(f"  {fits}: peak {plan.peak / 2**30:.2f} of {chip.memory / 2**30:.0f} GiB", end="")
    if not plan.fits:
        print()
        return
    print(f", of which state and batch {plan.state / 2**30:.2f}, program {plan.code / 2**20:.0f} MiB")
    print(
        f"  {plan.flops / 1e9:,.1f} GFLOP, {plan.bytes / 1e9:,.2f} GB moved: {plan.intensity:.0f} FLOP a"
        f" byte; from {chip.intensity:.0f} on, {of.kind} is bound by arithmetic"
    )
    print(
        f"  at best {1e3 * plan.flops / chip.flops:.1f} ms of arithmetic (bfloat16),"
        f" {1e3 * plan.bytes / chip.bandwidth:.1f} ms of memory traffic"
    )
    if plan.cycles:
        print(f"  {plan.cycles / 1e6:,.1f} million cycles, as the compiler estimates")
    for kind, found in sorted(plan.collectives.items()):
        small = f"{found.small} of them below {SMALL // 1024} KiB"
        print(f"  {found.count} {kind}: {found.bytes / 1e6:.2f} MB, {small}")
    print(f"  compiled in {plan.cpu_seconds:.0f} s of a CPU")


def row(name: str, plan: Plan | UserError) -> list[str]:
    """The cells of a setting."""
    if isinstance(plan, UserError):
        return [name, "refused", "-", "-", "-", "-"]
    if not plan.fits:
        return [name, "no", f"{plan.peak / 2**30:.2f}", "-", "-", "-"]
    cycles = f"{plan.cycles / 1e6:,.1f}" if plan.cycles else "-"
    return [
        name,
        "yes",
        f"{plan.peak / 2**30:.2f}",
        f"{plan.flops / 1e9:,.1f}",
        f"{plan.bytes / 1e9:,.2f}",
        cycles,
    ]

"""Counts the multiply-accumulates (MACs) and parameters of a config's network.

example:
  dynpix flops --config=configs/pag/bsds500.py:variant=gated,rho=0.7 --size 321x481
  dynpix flops --table pag "Table 2" --args budget=gpu --size 424x560

Counts the dense program: one MAC is one multiplication with its addition, of convolutions and matrix
products only. Of a gated network it tells what each layer saves, and the MACs if every gate met its target
density rho. Where a paper's tables count a part of the network, that count stands beside the whole. --table
compares the rows of a paper's table whose MACs are printed with these counts. No data and no weights are
read.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dynpix_jax.backbones.base import OnBackbone
from dynpix_jax.cli.common import add_overrides
from dynpix_jax.cli.tables import print_markdown
from dynpix_jax.core.capabilities import CountedInPart, GatedLayer, gated_layers
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.progressive import STEP_SCOPE
from dynpix_jax.core.system import System
from dynpix_jax.core.text import parse_size
from dynpix_jax.core.trees import named_leaves
from dynpix_jax.evaluation.paper_tables import EACH_TASK
from dynpix_jax.evaluation.table_files import read_tables
from dynpix_jax.flops import MacReport, SystemMacs, macs_in_paper, module_path, system_macs, variable_shapes
from dynpix_jax.nn.residual import BlockSpec
from dynpix_jax.run_config import read_run
from dynpix_jax.serving.trained import target_density
from dynpix_jax.training.checks import stage_system


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE[:ARG]", help="config file with its argument")
    what.add_argument(
        "--table", nargs=2, metavar=("PAPER", "TABLE"), help='all rows of a table, such as "Table 2"'
    )
    parser.add_argument("--size", required=True, metavar="HxW", help="height x width of the image in pixels")
    parser.add_argument(
        "--args", default="", metavar="ARG", help="with --table: arguments of every row's config"
    )
    parser.add_argument("--stage", metavar="NAME", help="training stage (default: the last one)")
    add_overrides(parser)
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")


def count(spec: str, size: str, stage: str | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """MACs and parameters of the network of config `spec` in its training stage `stage` (None: the last)."""
    height, width = parse_size(size)
    settings = read_run(spec, overrides).stage(stage)
    system = stage_system(settings)
    macs = system_macs(system, (height, width))
    report, layers = macs.report, gated_layers(system)
    backbone = settings.model.backbone if isinstance(settings.model, OnBackbone) else None
    parts = parts_of(report, () if backbone is None else backbone.block_specs)
    parameters = {path: leaf.size for path, leaf in named_leaves(variable_shapes(system)["params"])}
    rho = target_density(settings)
    return {
        "config": spec,
        "stage": settings.name,
        "size": [height, width],
        "parameters": sum(parameters.values()),
        "parameters_backbone": sum(n for path, n in parameters.items() if path.startswith("backbone/")),
        "macs": report.total,
        "macs_gibi": report.gibi,
        "flops": report.flops,
        "backbone": sum(macs for part, macs in parts.items() if part.startswith("backbone/")),
        "gates": sum(macs for scope, macs in report.by_scope.items() if "/gate/" in scope),
        "parts": parts,
        "steps": list(macs.up_to_predictions({})),
        "gated": macs.gated,
        "branches": [name for name, layer in layers.items() if layer.kind == "branch"],
        "target_rho": rho,
        "macs_gates_open": macs.executed(target_shares(layers, 1.0)),
        "macs_at_target_rho": macs.executed(target_shares(layers, rho)),
        **_in_paper(system, macs, rho),
    }


def _in_paper(system: System, whole: SystemMacs, rho: float) -> dict[str, float]:
    """The same counts of what the paper's tables count; {} where that is everything."""
    if not isinstance(system, CountedInPart):
        return {}
    macs, layers = macs_in_paper(system, whole), gated_layers(system)
    return {
        "macs_in_paper_gates_open": macs.executed(target_shares(layers, 1.0)),
        "macs_in_paper": macs.executed(target_shares(layers, rho)),
    }


def count_table(paper: str, number: str, size: str, arguments: str = "") -> list[dict[str, Any]]:
    """The counts of the rows of a paper's table whose MACs it prints, each beside the printed figure."""
    tables = [table for table in read_tables(paper).all if table.number == number]
    found = [
        (table, row)
        for table in tables
        for row in table.rows
        if row.macs and not row.alternative and EACH_TASK not in row.argument
    ]
    if not found:
        raise UserError(f"--table {paper} {number!r}: no such table with MACs of whole networks")
    rows = []
    for table, row in found:
        spec = ",".join(filter(None, (table.spec(row), arguments)))
        counts = count(spec, size)
        executed = counts["macs_at_target_rho"]
        counted = counts.get("macs_in_paper", executed)
        rows.append(
            {
                "network": row.network,
                "config": spec,
                "printed": row.macs,
                "counted": counted,
                "off": counted / row.macs - 1.0,
                "executed": executed,
            }
        )
    return rows


def run(args: argparse.Namespace) -> int:
    """Prints the counts; returns 0."""
    if args.table:
        return _run_table(args)
    if args.args:
        raise UserError("--args: with --table only; give a config's argument after its file, FILE:ARG")
    counts = count(args.config, args.size, args.stage, args.set)
    print(json.dumps(counts, indent=2) if args.json else _describe(counts))
    return 0


def _run_table(args: argparse.Namespace) -> int:
    if args.stage or args.set:
        raise UserError("--stage and --set: with --config only")
    paper, number = args.table
    rows = count_table(paper, number, args.size, args.args)
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(f"MACs (1e9) of one image of {args.size} pixels, gates at their target density:\n")
    heads = ["network", "printed", "counted so", "off", "everything", "config's argument"]
    cells = [
        [
            row["network"],
            *(f"{row[name] / 1e9:.1f}" for name in ("printed", "counted")),
            f"{row['off']:+.1%}",
            f"{row['executed'] / 1e9:.1f}",
            f"`{row['config'].partition(':')[2]}`",
        ]
        for row in rows
    ]
    print_markdown(heads, cells)
    return 0


def target_shares(layers: Mapping[str, GatedLayer], rho: float) -> dict[str, float]:
    """The share of each gated layer if every gate met `rho`.

    Every pixel takes one branch of a MultiPool: together they count as one convolution. This is an upper
    bound, because the copying branch costs nothing.
    """
    branches = Counter(layer.choice for layer in layers.values() if layer.kind == "branch")
    shares = {"gate": rho, "iterations": 1.0}

    def share(layer: GatedLayer) -> float:
        if layer.kind != "branch":
            return shares[layer.kind]
        return (rho if layer.skipped else 1.0) / branches[layer.choice]

    return {name: share(layer) for name, layer in layers.items()}


def parts_of(report: MacReport, blocks: Sequence[BlockSpec] = ()) -> dict[str, float]:
    """MACs by part: "backbone/stem", "backbone/res2", ..., and what else the network has ("head", "exit1").

    From the module paths of the program. ``blocks``: those of the backbone; its other modules are the stem.
    Without blocks each is a part.
    """
    stages = {spec.name: spec.stage for spec in blocks}
    parts: dict[str, float] = {}
    for scope, macs in report.by_scope.items():
        modules = [name for name in module_path(scope).split("/") if not name.startswith(STEP_SCOPE)]
        part, *inner = [name for name in modules if name] or ["other"]  # backbone | head, block, ...
        if part == "backbone" and inner:
            part = f"{part}/{stages.get(inner[0], 'stem') if stages else inner[0]}"
        parts[part] = parts.get(part, 0.0) + macs
    return parts


def _describe(counts: Mapping[str, Any]) -> str:
    total, gated = counts["macs"], counts["gated"]
    height, width = counts["size"]
    of_backbone = f" (backbone {backbone:,})" if (backbone := counts["parameters_backbone"]) else ""
    lines = [
        f"{counts['config']}, stage '{counts['stage']}'",
        f"one image of {height}x{width} pixels (height x width)",
        "",
        f"parameters   {counts['parameters']:,}{of_backbone}",
        f"MACs         {total:.4g} = {total / 1e9:.2f} x 10^9, dense: everything computed",
        f"MACs / 2^30  {counts['macs_gibi']:.2f}",
        f"FLOPs        {counts['flops']:.4g} (2 x MACs)",
        "",
        f"{'part':<20}{'MACs, 10^9':>12}{'share':>9}",
    ]
    stages = {part: macs for part, macs in counts["parts"].items() if part.startswith("backbone/")}
    if stages:
        lines.append(_row("backbone", counts["backbone"], total))
    lines += [_row(f"  {part.split('/')[1]}", macs, total) for part, macs in stages.items()]
    lines += [_row(part, macs, total) for part, macs in counts["parts"].items() if part not in stages]
    if counts["gates"]:  # of the backbone's blocks, and of a MultiPool above it
        lines.append(_row("(gates, of these)", counts["gates"], total))
    if len(counts["steps"]) > 1:
        lines += ["", "MACs up to each prediction, / 2^30, and their mean:"]
        shown = [f"{macs / 2**30:.2f}" for macs in counts["steps"]]
        lines.append(f"  {', '.join(shown)}; {sum(counts['steps']) / len(shown) / 2**30:.2f}")
    in_paper = _describe_in_paper(counts)
    if not gated:
        return "\n".join([*lines, "", "no gated layers: every image costs the same", *in_paper])
    lines += ["", f"{'gated layer':<20}{'MACs, 10^9':>12}{'share':>9}{'one skipped % saves':>22}"]
    lines += [f"{_row(name, macs, total)}{macs / 100 / 1e6:>13.2f} x 10^6" for name, macs in gated.items()]
    at_rho, gates_open = counts["macs_at_target_rho"], counts["macs_gates_open"]
    if len(counts["branches"]) == len(gated):
        return "\n".join(
            [
                *lines,
                "",
                f"MACs with one branch a pixel: {gates_open:.4g} = {gates_open / 1e9:.2f} x 10^9",
                *in_paper,
            ]
        )
    rho = counts["target_rho"]
    lines += ["", f"MACs with every gate open:     {gates_open:.4g} = {gates_open / 1e9:.2f} x 10^9"]
    if rho < 1:
        share = f"({at_rho / gates_open:.1%} of gates open)"
        lines.append(f"MACs at target density {rho:<6g}: {at_rho:.4g} = {at_rho / 1e9:.2f} x 10^9 {share}")
    else:
        lines.append("How much of them is skipped depends on the image: eval.py measures it.")
    if counts["branches"]:
        lines.append("Counted is one branch of a MultiPool a pixel; pixels that only copy make it less.")
    return "\n".join([*lines, *in_paper])


def _describe_in_paper(counts: Mapping[str, Any]) -> list[str]:
    if "macs_in_paper" not in counts:
        return []
    at_rho, gates_open = counts["macs_in_paper"], counts["macs_in_paper_gates_open"]
    line = f"MACs as the paper's tables count (a part of the network): {gates_open / 1e9:.2f} x 10^9"
    return [f"{line}; at target density {at_rho / 1e9:.2f} x 10^9" if at_rho != gates_open else line]


def _row(name: str, macs: float, total: float) -> str:
    return f"{name:<20}{macs / 1e9:>12.3f}{macs / total:>9.1%}"

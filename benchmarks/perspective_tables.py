"""Train and evaluate the recurrent parser where its data is at hand, and print the tables of docs/results.md.

    python benchmarks/perspective_tables.py scenes --workdir runs/perspective
    python benchmarks/perspective_tables.py camvid --root data/CamVid --weights runs/camvid_base \
        --workdir runs/perspective
    python benchmarks/perspective_tables.py sevenscenes --root data/7scenes_kitchen \
        --weights weights/resnet50.safetensors --workdir runs/perspective

scenes: five branches with one kernel that are averaged, and what becomes of them, trained on for equally many
steps, as they are or gated by predicted depth (the supplement's order), three seeds each.
camvid: attention gates with 0, 1 and 2 loops, each trained on from the one before it, as the paper adds them.
sevenscenes: the depth branch. A gated network has a row for its arg-max as well.

Run it again after an interruption and it goes on where it stopped. `--steps` trains longer or shorter: it is
the length of a row that starts anew; one that is trained on takes half of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """One network. arguments: of its config. also: alternatives that are evaluated beside it. after: the row
    that it is trained on from."""

    label: str
    arguments: str
    also: tuple[str, ...] = ()
    after: str = ""


@dataclass(frozen=True)
class Part:
    """One table. scores: columns, by their names in eval.json. steps: of a row that starts anew, all stages
    together."""

    config: str
    rows: dict[str, Row]
    scores: tuple[str, ...]
    steps: int
    seeds: tuple[int, ...] = ()


PARTS = {
    "scenes": Part(
        "configs/perspective/scenes.py",
        {
            "average": Row("tied, average", "variant=average,tied=True"),
            "average_on": Row("tied, average, trained on", "variant=average,tied=True", after="average"),
            "pred_depth": Row("predicted depth", "variant=pred_depth", ("argmax",), after="average"),
        },
        ("miou", "pixel_accuracy"),
        1800,
        (0, 1, 2),
    ),
    "camvid": Part(
        "configs/perspective/camvid.py",
        {
            "loops0": Row("attention, no loop", "variant=attention", ("argmax",)),
            "loops1": Row("attention, 1 loop", "variant=attention,loops=1", ("argmax",), after="loops0"),
            "loops2": Row("attention, 2 loops", "variant=attention,loops=2", ("argmax",), after="loops1"),
        },
        ("miou", "pixel_accuracy"),
        400,
    ),
    "sevenscenes": Part(
        "configs/perspective/sevenscenes.py",
        {"loops1": Row("depth branch, 1 loop", "loops=1", ("argmax", "loop_0"))},
        ("delta1", "delta2", "delta3", "rmse", "abs_rel"),
        500,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS, help="which table")
    parser.add_argument("--workdir", required=True, type=Path, help="one folder a run is made in it")
    parser.add_argument("--root", type=Path, help="the data set's folder (not of scenes)")
    parser.add_argument(
        "--weights", type=Path, help="a weights file or a workdir to begin with (not of scenes)"
    )
    parser.add_argument("--steps", type=int, help="of a row that starts anew, all stages together")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows to do, such as loops1")
    parser.add_argument("--seeds", nargs="+", type=int, help="of scenes (default: 0 1 2)")
    parser.add_argument("--train", action=argparse.BooleanOptionalAction, default=True, help="train the rows")
    parser.add_argument("--evaluate", action=argparse.BooleanOptionalAction, default=True, help="score them")
    args = parser.parse_args(argv)
    part, seeds = PARTS[args.part], args.seeds or PARTS[args.part].seeds or (None,)
    if args.part != "scenes" and not (args.root and args.weights):
        parser.error(f"{args.part} needs --root and --weights")
    if unknown := set(args.only or ()) - part.rows.keys():
        parser.error(f"--only: no rows {sorted(unknown)}; {args.part} has {', '.join(part.rows)}")

    for seed in seeds:
        for name in args.only or part.rows:
            for program in programs(args, part, name, seed):
                print("$", " ".join(program), flush=True)
                status = subprocess.run([sys.executable, *program], cwd=REPOSITORY).returncode
                if status:
                    return status
    print(table(part, args.workdir.resolve() / args.part, seeds))
    return 0


def programs(args: argparse.Namespace, part: Part, name: str, seed: int | None) -> list[list[str]]:
    """The commands that train and evaluate a row."""
    row, run = part.rows[name], folder(args.workdir.resolve() / args.part, name, seed)
    steps = args.steps or part.steps
    arguments = [row.arguments, f"steps={steps // 2 if row.after else steps}"]
    if seed is not None:
        arguments.append(f"seed={seed}")
    if args.root:
        arguments.append(f"root={args.root.resolve()}")
    if row.after:
        arguments.append(f"continue_from={folder(args.workdir.resolve() / args.part, row.after, seed)}")
    elif args.weights:
        arguments.append(f"weights={args.weights.resolve()}")
    common = [f"--config={part.config}:{','.join(arguments)}", f"--workdir={run}"]
    settings = [f"evaluation.also={row.also!r}", "evaluation.every_stage=False"]
    train = [["train.py", *common]] if args.train else []
    return train + ([["eval.py", *common, "--set", *settings]] if args.evaluate else [])


def folder(workdir: Path, name: str, seed: int | None) -> Path:
    """Where a run is."""
    return workdir / (name if seed is None else f"{name}_seed{seed}")


def table(part: Part, workdir: Path, seeds: Iterable[int | None]) -> str:
    """The evaluated rows under `workdir` as Markdown; of several seeds the mean and the spread."""
    heads = ("network", *part.scores, "MACs/image (1e9)", "dense ms", "sparse ms")
    lines = [_line(heads), _line(["---"] * len(heads))]
    for name, row in part.rows.items():
        files = [folder(workdir, name, seed) / "eval.json" for seed in seeds]
        runs = [json.loads(file.read_text())["rows"] for file in files if file.exists()]
        for results in zip(*runs, strict=True):
            other = results[0].get("alternative", "")
            lines.append(_line(_cells(f"{row.label}, {other}" if other else row.label, results, part.scores)))
    return "\n".join(lines)


def _cells(label: str, results: Sequence[dict[str, Any]], scores: Sequence[str]) -> list[str]:
    modes = [result["modes"] for result in results]
    return [
        label,
        *(_spread([one["dense"][score] for one in modes], 4) for score in scores),
        f"{mean(result['macs_per_image'] for result in results) / 1e9:.2f}",
        *(_spread([one[mode]["milliseconds"] for one in modes], 0) for mode in ("dense", "sparse")),
    ]


def _spread(values: Sequence[float], digits: int) -> str:
    """The mean with the standard deviation of single runs and all values, where there are several."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    spread = f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"
    return f"{spread} ({', '.join(f'{value:.{digits}f}' for value in values)})" if digits else spread


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())

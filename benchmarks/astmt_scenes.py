"""Train and evaluate ASTMT's rows on synthetic scenes and print the table of docs/results.md.

    python benchmarks/astmt_scenes.py --workdir runs/astmt_scenes

A network for each of the five tasks, then all of them in one: multi, SE for each task in encoder and decoder,
and adversarial training besides; three seeds each. What a row loses against the single-task networks (Δm,
percent, positive = worse) is against their mean over seeds. Run it again after an interruption and it goes
on where it stopped. `--only ROW...` and `--seeds N...` do a part of it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from configs.astmt.scenes import TASKS  # noqa: E402
from dynpix_jax.evaluation.multitask import Reference, delta_values, make_reference  # noqa: E402
from dynpix_jax.evaluation.results import Measured, read_results  # noqa: E402

SINGLE = {f"single_{task}": f"variant=single,task={task}" for task in TASKS}
JOINT = {
    "multi": "variant=multi",
    "se": "variant=se",
    "adversarial": "variant=adversarial",
}
LABELS = {
    "multi": "multi-task, all shared",
    "se": "+ SE for each task, encoder and decoder",
    "adversarial": "+ SE, adversarial",
}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rows = SINGLE | JOINT
    parser.add_argument("--workdir", required=True, type=Path, help="a folder for each run is made in it")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the runs")
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--only", nargs="+", choices=rows, default=list(rows), help="rows to do")
    parser.add_argument("--run", action=argparse.BooleanOptionalAction, default=True, help="train, evaluate")
    args = parser.parse_args()

    workdir = args.workdir.resolve()
    # Seeds share their evaluation's programs.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(workdir / "compiled")}
    for seed in args.seeds if args.run else ():
        for name in args.only:
            run = workdir / f"{name}_{seed}"
            if (run / "eval.json").exists():
                continue
            config = f"configs/astmt/scenes.py:{rows[name]},seed={seed},steps={args.steps}"
            for program in ("train.py", "eval.py"):
                command = [program, f"--config={config}", f"--workdir={run}"]
                print("$", " ".join(command), flush=True)
                status = subprocess.run(
                    [sys.executable, *command], cwd=REPOSITORY, env={**os.environ, **cache}
                )
                if status.returncode:
                    return status.returncode
    print(table(workdir, args.seeds))
    return 0


def table(workdir: Path, seeds: Sequence[int]) -> str:
    """The evaluated rows under `workdir` as Markdown: means over seeds, of Δm the standard deviation too."""
    singles = [
        run for name in SINGLE for seed in seeds if (run := workdir / f"{name}_{seed}" / "eval.json").exists()
    ]
    if not singles:
        return "no single-task run has been evaluated"
    reference = make_reference(singles)
    heads = [f"{task} {reference.tasks[task].score}" for task in reference.tasks]
    lines = [_line(["network", "seeds", *heads, "Δm, %", "MACs/image (1e9)"])]
    lines.append(_line(["---"] * (len(heads) + 4)))
    values = [f"{entry.value:.4f}" for entry in reference.tasks.values()]
    counts = "/".join(dict.fromkeys(str(len(entry.runs)) for entry in reference.tasks.values()))
    macs = sum(read_results(run)[-1].measured.macs for run in singles) / max(len(singles), 1) * len(TASKS)
    lines.append(_line(["one for each task", counts, *values, "0", f"{macs / 1e9:.3f}"]))
    for name in JOINT:
        files = [workdir / f"{name}_{seed}" / "eval.json" for seed in seeds]
        found = [read_results(file)[-1].measured for file in files if file.exists()]
        if found:
            lines.append(_line(_cells(LABELS[name], found, reference)))
    return "\n".join(lines)


def _cells(label: str, found: Sequence[Measured], reference: Reference) -> list[str]:
    scores = [delta_values(result) for result in found]
    means = [statistics.mean(one[task] for one in scores) for task in reference.tasks]
    drops = [reference.delta_m(result) for result in found]
    spread = f" ± {statistics.stdev(drops):.2f}" if len(drops) > 1 else ""
    return [
        label,
        str(len(found)),
        *(f"{mean:.4f}" for mean in means),
        f"{statistics.mean(drops):.2f}{spread}",
        f"{found[0].macs / 1e9:.3f}",
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())

"""Train and evaluate PixelNet's comparisons and print the tables of docs/results.md.

    python benchmarks/pixelnet_runs.py bsds500 --root data/BSDS500 --weights weights/vgg16.safetensors \
        --workdir runs/pixelnet/bsds500
    python benchmarks/pixelnet_runs.py camvid --root data/CamVid --weights weights/vgg16.safetensors \
        --workdir runs/pixelnet/camvid

bsds500: uniform sampling against 25 % and 50 % of boundary pixels (the paper's table 6). camvid: pixels of
five images against as many of one (its table 2), three seeds each. Run it again after an interruption and it
goes on where it stopped. `--only ROW...` does some of the rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SCORES = {
    "bsds500": (("ods", "ODS"), ("ois", "OIS"), ("ap", "AP")),
    "camvid": (("miou", "mIoU"), ("mean_accuracy", "class acc"), ("pixel_accuracy", "pixel acc")),
}


@dataclass(frozen=True)
class Row:
    """One row: its config's arguments, and the seeds that it is trained with."""

    label: str
    arguments: str
    seeds: tuple[int, ...] = (0,)


ROWS = {
    "bsds500": {
        "uniform": Row("uniform", "rare=0"),
        "rare25": Row("25 % boundaries", "rare=0.25"),
        "rare50": Row("50 % boundaries", "rare=0.5"),
    },
    "camvid": {
        "2000x5": Row("2000 pixels of 5 images", "pixels=2000,images=5", (0, 1, 2)),
        "10000x1": Row("10000 pixels of 1 image", "pixels=10000,images=1", (0, 1, 2)),
    },
}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", choices=ROWS, help="which comparison")
    parser.add_argument("--root", required=True, type=Path, help="the data set's folder")
    parser.add_argument("--weights", required=True, type=Path, help="of dynpix import-weights --arch vgg16")
    parser.add_argument("--workdir", required=True, type=Path, help="one folder a run is made in it")
    parser.add_argument("--budget", choices=("cpu", "gpu"), default="cpu", help="how long to train")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows to do")
    parser.add_argument("--train", action=argparse.BooleanOptionalAction, default=True, help="train the rows")
    parser.add_argument("--evaluate", action=argparse.BooleanOptionalAction, default=True, help="score them")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change config values")
    args = parser.parse_args()
    rows = ROWS[args.dataset]
    if unknown := set(args.only or ()) - set(rows):
        parser.error(f"--only: {', '.join(sorted(unknown))}: expected some of {', '.join(rows)}")

    root, weights, workdir = args.root.resolve(), args.weights.resolve(), args.workdir.resolve()
    where = f"budget={args.budget},root={root},weights={weights}"
    for name in args.only or rows:
        for seed in rows[name].seeds:
            config = f"configs/pixelnet/{args.dataset}.py:{rows[name].arguments},seed={seed},{where}"
            common = [f"--config={config}", f"--workdir={workdir / name / str(seed)}"]
            common += ["--set", *args.set] if args.set else []
            programs = ["train.py"] * args.train + ["eval.py"] * args.evaluate
            for program in programs:
                print("$", program, *common, flush=True)
                status = subprocess.run([sys.executable, program, *common], cwd=REPOSITORY).returncode
                if status:
                    return status
    print(table(args.dataset, workdir))
    return 0


def table(dataset: str, workdir: Path) -> str:
    """The evaluated rows under `workdir` as Markdown; with several seeds their mean, and each of them."""
    scores = SCORES[dataset]
    heads = ["pixels of a step", *(label for _, label in scores), "MACs/image (1e9)"]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for name, row in ROWS[dataset].items():
        files = [workdir / name / str(seed) / "eval.json" for seed in row.seeds]
        results = [json.loads(file.read_text())["rows"][-1] for file in files if file.exists()]
        if results:
            found = [next(iter(result["modes"].values())) for result in results]
            cells = [_score([one[score] for one in found]) for score, _ in scores]
            lines.append(_line([row.label, *cells, f"{results[0]['macs_per_image'] / 1e9:.1f}"]))
    return "\n".join(lines)


def _score(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    each = ", ".join(f"{value:.4f}" for value in values)
    return f"{statistics.mean(values):.4f} ({each})"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())

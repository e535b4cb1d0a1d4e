"""Train and evaluate the rows of PAG on BSDS500 and print the table of docs/results.md.

    python benchmarks/pag_bsds500.py --root data/BSDS500 --weights weights/resnet50.safetensors --workdir runs

Rows share what they can: MultiPool continues from the base network, the gated networks from MultiPool. Run it
again after an interruption and it goes on where it stopped. `--only ROW...` does some of the rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """One row: its config's arguments and the row whose weights it continues from."""

    label: str
    arguments: str
    after: str = ""


ROWS = {
    "base": Row("base", "variant=base"),
    "multipool": Row("MultiPool at Res4 (PAG)", "variant=multipool", "base"),
    "average": Row("MultiPool at Res4 (softmax average)", "variant=average", "base"),
    "residual": Row("gated, residual, rho 0.7", "variant=gated,gate_scope=residual,rho=0.7", "multipool"),
    "conv3x3": Row("gated, conv3x3, rho 0.7", "variant=gated,gate_scope=conv3x3,rho=0.7", "multipool"),
}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, type=Path, help="the BSDS500 folder")
    parser.add_argument(
        "--weights", required=True, type=Path, help="ImageNet weights, as dynpix import-weights writes them"
    )
    parser.add_argument("--workdir", required=True, type=Path, help="one folder a row is made in it")
    parser.add_argument("--budget", choices=("cpu", "gpu"), default="cpu", help="how long to train")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows to do")
    parser.add_argument("--train", action=argparse.BooleanOptionalAction, default=True, help="train the rows")
    parser.add_argument("--evaluate", action=argparse.BooleanOptionalAction, default=True, help="score them")
    parser.add_argument("--thresholds", type=int, default=99, help="of the boundary benchmark")
    args = parser.parse_args()

    root, weights, workdir = args.root.resolve(), args.weights.resolve(), args.workdir.resolve()
    for name in args.only:
        row, run = ROWS[name], workdir / name
        config = f"configs/pag/bsds500.py:{row.arguments},budget={args.budget},root={root},weights={weights}"
        if row.after:
            config += f",continue_from={workdir / row.after}"
        common = [f"--config={config}", f"--workdir={run}"]
        programs = [["train.py", *common]] if args.train else []
        if args.evaluate:
            programs.append(["eval.py", *common, "--set", f"evaluation.thresholds={args.thresholds}"])
        for program in programs:
            print("$", " ".join(program), flush=True)
            status = subprocess.run([sys.executable, *program], cwd=REPOSITORY).returncode
            if status:
                return status
    print(table(workdir))
    return 0


def table(workdir: Path) -> str:
    """The evaluated rows under `workdir` as Markdown; MACs also relative to the ungated MultiPool network."""
    results = {
        name: json.loads((workdir / name / "eval.json").read_text())["rows"][-1]
        for name in ROWS
        if (workdir / name / "eval.json").exists()
    }
    reference = results.get("multipool", {}).get("macs_per_image")
    heads = ("network", "density", "MACs/image (1e9)", "of MultiPool", "ODS", "OIS", "AP", "ODS sparse")
    heads += ("dense ms", "sparse ms", "sparse / dense")
    lines = [_line(heads), _line(["---"] * len(heads))]
    lines += [_line(_cells(ROWS[name].label, result, reference)) for name, result in results.items()]
    return "\n".join(lines)


def _cells(label: str, result: dict[str, Any], reference: float | None) -> list[str]:
    dense, sparse = (result["modes"].get(mode) for mode in ("dense", "sparse"))
    gated = result["density"] is not None
    macs = result["macs_per_image"]
    low, high = dense["milliseconds_p10_p90"]
    cells = [
        label,
        f"{result['density']:.3f}" if gated else "1",
        f"{macs / 1e9:.1f}",
        f"{macs / reference:.1%}" if reference else "-",
        *(f"{dense[score]:.4f}" for score in ("ods", "ois", "ap")),
        f"{sparse['ods']:.4f}" if sparse else "-",
        f"{dense['milliseconds']:.0f} ({low:.0f}-{high:.0f})",
    ]
    if not sparse:
        return [*cells, "-", "-"]
    low, high = sparse["milliseconds_p10_p90"]
    ratio = sparse["milliseconds"] / dense["milliseconds"]
    return [*cells, f"{sparse['milliseconds']:.0f} ({low:.0f}-{high:.0f})", f"{ratio:.2f}"]


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())

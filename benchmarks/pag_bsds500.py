"""Train and evaluate the rows of PAG on BSDS500 and print docs/results.md's table.

    python benchmarks/pag_bsds500.py --root data/BSDS500 --weights weights/resnet50.safetensors --workdir runs/bsds500

Rows share what they can: MultiPool continues from the base network, the gated networks from MultiPool. Run it again
after an interruption and it goes on where it stopped. ``--only ROW...`` does some of the rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

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
    "residual": Row("gates, residual, rho 0.7", "variant=gated,gate_scope=residual,rho=0.7", "multipool"),
    "conv3x3": Row("gates, conv3x3, rho 0.7", "variant=gated,gate_scope=conv3x3,rho=0.7", "multipool"),
}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="the BSDS500 folder")
    parser.add_argument("--weights", required=True, help="ImageNet weights, as dynpix import-weights writes them")
    parser.add_argument("--workdir", required=True, type=Path, help="one folder a row is made in it")
    parser.add_argument("--budget", choices=("cpu", "gpu"), default="cpu", help="how long to train")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows to do")
    parser.add_argument("--no-eval", action="store_true", help="train only")
    args = parser.parse_args()

    for name in args.only:
        row, workdir = ROWS[name], args.workdir / name
        config = f"configs/pag/bsds500.py:{row.arguments},budget={args.budget},root={args.root},weights={args.weights}"
        if row.after:
            config += f",continue_from={args.workdir / row.after}"
        programs = ["train.py"] if args.no_eval else ["train.py", "eval.py"]
        for program in programs:
            if program == "eval.py" and (workdir / "eval.json").exists():
                continue
            command = [sys.executable, program, f"--config={config}", f"--workdir={workdir}"]
            print("$", " ".join(command), flush=True)
            status = subprocess.run(command, cwd=REPOSITORY).returncode
            if status:
                return status
    print(table(args.workdir))
    return 0


def table(workdir: Path) -> str:
    """The evaluated rows under ``workdir`` as a Markdown table; MACs relative to the same network's gates open."""
    lines = [
        "| network | density | MACs/image (1e9) | of gates open | ODS | OIS | AP | ODS sparse | dense ms | sparse ms |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in ROWS.items():
        path = workdir / name / "eval.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())["rows"][-1]
        modes = result["modes"]
        dense, sparse = modes["dense"], modes.get("sparse", {})
        density = "-" if result["density"] is None else f"{result['density']:.3f}"
        share = result["macs_per_image"] / result["macs_per_image_gates_open"]
        lines.append(
            f"| {row.label} | {density} | {result['macs_per_image'] / 1e9:.1f} | {share:.1%} | {dense['ods']:.4f} "
            f"| {dense['ois']:.4f} | {dense['ap']:.4f} | {_number(sparse.get('ods'), 4)} "
            f"| {_number(dense['milliseconds'], 0)} | {_number(sparse.get('milliseconds'), 0)} |"
        )
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())

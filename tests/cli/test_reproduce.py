"""dynpix reproduce: rows are trained once, after what they need, and go on after an interruption."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from dynpix_jax.cli import eval as evaluate
from dynpix_jax.cli import main, reproduce, train
from dynpix_jax.cli.common import call
from dynpix_jax.core.configs import load_config
from dynpix_jax.evaluation.kept import keep, kept
from dynpix_jax.evaluation.reproduce import Options, Reproduction, run_commands, select
from dynpix_jax.evaluation.table_files import PAPERS, read_tables
from tests.tiny import SHORT_CONFIG

ROOT = Path(__file__).resolve().parents[2]
TINY = SHORT_CONFIG
for _old, _new in {
    '"drop_blocks": 4': '"drop_blocks": 6',  # Res2 alone
    'task="boundaries")': 'task="boundaries", gated=False, flip=False, seed=0, continue_from="")',
    '"seed": 0': '"seed": args.seed',
    '"training": {': '"training": {"init_from": args.continue_from, ',
    '"model": {"gate": gate}},\n        )': (
        '"model": {"gate": gate}},\n        )[bool(args.continue_from): 1 + args.gated]'
    ),
    '"flip": False': '"flip": args.flip',
}.items():
    assert TINY.count(_old) == 1
    TINY = TINY.replace(_old, _new)
TABLES = """
[[tables]]
number = "Table 1"
title = "tiny"
config = "tiny.py"
source = "scenes"
task = "boundaries"
budgets = []
metrics = ["ods", "ap"]
columns = ["network", "argument", "after", "ods", "macs"]
rows = [
  ["gated",         "gated,rho=0.5", "rho=0.5", 0.7, 2],
  ["base",          "rho=0.5",       "",        "-", "-"],
  ["base, flipped", "flip=True",     "",        0.6, "-"],
]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: a tiny paper, its config, and the programs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "tables.toml").write_text(TABLES)
    return tmp_path


class Programs:
    """Runs train.py and eval.py in this process, and keeps what was run; `stop` is the command that dies."""

    def __init__(self, stop: int = -1):
        self.commands: list[str] = []
        self.stop = stop

    def __call__(self, command: Sequence[str], workdir: Path) -> int:
        if len(self.commands) == self.stop:
            raise KeyboardInterrupt
        program, config, *rest = command
        words = [
            Path(word.partition("=")[2]).name for word in rest if word.startswith(("--workdir", "--out"))
        ]
        self.commands.append(" ".join([program, config.partition("=")[2], *words]))
        return {"train": train.main, "eval": evaluate.main}[program](command[1:])


COMMANDS = [
    "train tiny.py:rho=0.5 rho_0.5",
    "train tiny.py:gated,rho=0.5,continue_from=runs/tiny/rho_0.5 gated_rho_0.5",
    "eval tiny.py:gated,rho=0.5,continue_from=runs/tiny/rho_0.5 gated_rho_0.5",
    "eval tiny.py:rho=0.5 rho_0.5",
    "eval tiny.py:flip=True rho_0.5 flip_True",
]


def test_a_tiny_paper_interrupted_and_resumed(folder, capsys, monkeypatch):
    arguments = ["reproduce", "tables.toml", "--workdir=runs", "--set", "evaluation.pictures=0"]
    first, second, third = Programs(stop=3), Programs(), Programs()
    monkeypatch.setattr(reproduce, "execute", first)
    assert call("dynpix", lambda: main.main(arguments)) == 130
    monkeypatch.setattr(reproduce, "execute", second)
    capsys.readouterr()
    assert main.main([*arguments, "--json"]) == 0
    assert (first.commands, second.commands) == (COMMANDS[:3], COMMANDS[3:])
    out, err = capsys.readouterr()
    assert "Table 1, gated: eval is done: runs/tiny/gated_rho_0.5" in err
    (table,) = json.loads(out[out.index("[\n") :])
    gated, base, flipped = table["rows"]
    assert gated["paper"] == {"ods": 0.7, "ap": None}
    assert gated["paper_macs"] == 2e9
    assert len(gated["measured"]["ap"]) == len(gated["macs"]) == 1
    assert gated["density"][0] <= 1.0
    assert base["density"] == [None]
    assert set(gated["milliseconds"][0]) == {"dense", "sparse"}
    assert flipped["macs"][0] == 2 * base["macs"][0]
    saved = json.loads(Path("runs/tiny/gated_rho_0.5/eval.json").read_text())["rows"][-1]
    assert gated["measured"]["ods"] == [saved["modes"]["dense"]["ods"]]

    monkeypatch.setattr(reproduce, "execute", third)
    assert main.main([*arguments, "--markdown"]) == 0
    assert third.commands == []
    lines = capsys.readouterr().out.splitlines()
    heads, row = ([cell.strip() for cell in lines[index].split("|")[1:-1]] for index in (2, 4))
    assert heads[:4] == ["network", "F (ODS) paper", "F (ODS)", "AP"]
    assert heads[4:] == ["MACs paper", "MACs", "density", "dense ms", "sparse ms", "runs"]
    assert row[:2] == ["gated", "0.7000"]
    assert row[4] == "2.000e9"
    assert row[-1] == "1"
    # What has been reached is kept beyond the runs.
    assert main.main([*arguments, "--report", "--keep", "kept.json"]) == 0
    capsys.readouterr()
    Path("runs").rename("elsewhere")
    assert main.main(["reproduce", "--kept", "kept.json", "--markdown"]) == 0
    kept = capsys.readouterr().out.splitlines()
    assert kept[:7] == lines[:7]
    assert any(line.startswith("device: cpu") for line in kept)
    Path("elsewhere").rename("runs")
    # Other settings of an evaluation: what was trained stays.
    listed: list[str] = []
    monkeypatch.setattr(reproduce, "execute", lambda command, workdir: listed.append(command[0]) or 1)
    assert main.main([*arguments, "evaluation.thresholds=3"]) == 1
    assert listed == ["eval"] * 3


def test_commands_are_listed(folder, capsys):
    def listed(*arguments: str) -> list[str]:
        assert main.main(["reproduce", "tables.toml", *arguments, "--workdir=runs", "--dry-run"]) == 0
        return capsys.readouterr().out.splitlines()

    def config(line: str) -> str:
        return line.split()[2].removeprefix("--config=tiny.py:")

    assert [line.split()[1] for line in listed()] == [line.split()[0] for line in COMMANDS]
    lines = listed("Table 1/scenes", "--rows", "ba*d", "--seeds", "3", "4", "--args", "rho=0.25,task=depth")
    both = "rho=0.25,task=depth"
    assert [config(line) for line in lines] == [both, f"flip=True,{both}"] * 2
    assert lines[1].endswith("--workdir=runs/tiny/rho_0.5/seed3 --out=runs/tiny/flip_True/seed3 --set seed=3")
    assert not Path("runs").exists()


def test_what_fails_leaves_the_rest(folder):
    """What continues from a failed row is not run; a program that stops early has failed, too."""
    row = '["other", "seed=1", "", "-", "-"]'
    Path("tables.toml").write_text(TABLES.replace("\n]\n", f"\n{row}]\n"))
    paper = read_tables("tables.toml")
    steps = Reproduction(paper.all, Options(Path("runs"))).commands(
        [(table, row) for table, rows in select(paper, (), ()) for row in rows]
    )
    said: list[str] = []

    def execute(command: Sequence[str]) -> int:
        said.append(" ".join(command[:2]))
        return 3 if "seed=1" not in command[1] else 0

    failures = run_commands(steps, execute, said.append)
    assert failures == [
        "Table 1, gated (continues from rho=0.5): train ended with status 3",
        "Table 1, gated: not run, because it continues from runs/tiny/rho_0.5",
        "Table 1, other: train was stopped before its end",
    ]
    ran = [line for line in said if line not in failures]
    assert ran == ["train --config=tiny.py:rho=0.5", "train --config=tiny.py:seed=1"]


def test_the_status_tells_of_a_failure(folder, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "execute", lambda command, workdir: 1)
    assert main.main(["reproduce", "tables.toml", "--workdir=runs"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[2].split() == ["gated", "0.7000", "-", "-", "2.000e9", "-", "0"]
    assert err.splitlines()[-1] == "Table 1, gated: not run, because it continues from runs/tiny/rho_0.5"


def test_mistakes(folder, capsys):
    def fails(*arguments: str, workdir: str = "runs") -> str:
        command = ["reproduce", "tables.toml", *arguments, f"--workdir={workdir}"]
        assert call("dynpix", lambda: main.main(command)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "no table 'Table 2'; did you mean 'Table 1'" in fails("Table 2")
    assert "--rows bases: no such row; did you mean 'base'" in fails("--rows", "bases")
    assert "tiny.py:gated,rho=0.5: config argument 'budget' is unknown" in fails("--args", "budget=gpu")
    assert "evaluation.limits" in fails("--set", "evaluation.limits=3")
    assert "expected a path without" in fails(workdir="a,b")
    assert "none of these rows has been evaluated" in fails("--report", "--keep", "kept.json")
    assert "--kept kept.json: it does not go with paper, workdir" in fails("--kept", "kept.json")


def test_a_signal_reaches_the_program(tmp_path, monkeypatch):
    """It may save what it has; then reproduce ends, too."""
    monkeypatch.chdir(tmp_path)
    program = """
import signal, sys, time
from pathlib import Path
def stop(*_):
    Path("saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
Path("ready").touch()
time.sleep(60)
"""
    Path("train.py").write_text(program)
    monkeypatch.setattr(reproduce, "PROGRAM", (sys.executable,))

    def signal_when_ready() -> None:
        while not Path("ready").exists():
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=signal_when_ready)
    thread.start()
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    with pytest.raises(KeyboardInterrupt):
        reproduce.execute(["train.py"], tmp_path)
    thread.join()
    assert Path("saved").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    Path("train.py").write_text("import sys; sys.exit(4)")
    assert reproduce.execute(["train.py"], tmp_path) == 4


@pytest.mark.parametrize("paper", PAPERS)
def test_every_paper_has_a_plan(paper, monkeypatch):
    """One training for each folder, after what it continues from; every row is evaluated."""
    monkeypatch.chdir(ROOT)
    tables = read_tables(paper)
    plan = Reproduction(tables.all, Options(Path("runs")))
    for table in tables.all:
        steps = plan.commands([(table, row) for row in table.rows])
        trained: list[Path] = []
        for step in steps:
            if step.out is None:
                assert step.workdir not in trained
                assert step.after is None or step.after in trained
                assert (f"continue_from={step.after}" in step.spec) == (step.after is not None)
                trained.append(step.workdir)
            else:
                assert step.workdir in trained
        for row in table.rows:
            assert {step.out for step in plan.commands([(table, row)]) if step.out} <= {
                step.out for step in steps
            }


def test_rows_share_what_they_can(monkeypatch):
    monkeypatch.chdir(ROOT)

    def steps(paper: str, *numbers: str) -> list[str]:
        tables = read_tables(paper)
        plan = Reproduction(tables.all, Options(Path("runs")))
        chosen = [(table, row) for table, rows in select(tables, numbers, ()) for row in rows]
        steps = plan.commands(chosen)
        assert all((step.out or step.workdir).parent.parent == Path("runs", paper) for step in steps)
        return [f"{step.program} {(step.out or step.workdir).name}" for step in steps]

    pooled = "variant_multipool_multipool_res4_2_train_split_trainval"  # table 1's
    gated = "variant_gated_gate_scope_residual_rho_0.5_train_split_trainval"
    assert steps("pag", "Figure 5") == [
        "train variant_base_train_split_trainval",
        *(f"{program} {pooled}" for program in ("train", "eval")),
        *(f"{program} {gated}" for program in ("train", "eval")),
    ]
    assert steps("perspective", "Table 1") == [
        "train variant_pred_depth_regression_True",
        "eval variant_pred_depth_regression_True",
        "eval variant_pred_depth_regression_True_blur_4",
    ]
    # All exits of a network are one run.
    assert len(steps("anytime", "Table 1")) == 8
    # Two networks, each of 27 iterations; no more of them are read out than the config does.
    assert len(steps("mdeq")) == 4


def test_a_run_that_the_paper_does_not_print(monkeypatch):
    """What VOC's row continues from is trained before it, and not scored."""
    monkeypatch.chdir(ROOT)
    paper = read_tables("pixelnet")
    plan = Reproduction(paper.all, Options(Path("runs"), "budget=gpu"))
    rows = [(table, row) for table, rows in select(paper, ["Section 4.1"], []) for row in rows]
    steps = plan.commands(rows)
    start = Path("runs/pixelnet/voc2012/conv7")
    assert [step.program for step in steps] == ["train", "train", "eval"]
    assert [step.workdir == start for step in steps] == [True, False, False]
    assert steps[1].spec.endswith(f"continue_from={start}@train")


def test_ways_to_run_a_network_are_evaluated_with_it(monkeypatch):
    monkeypatch.chdir(ROOT)
    tables = read_tables("perspective")
    plan = Reproduction(tables.all, Options(Path("runs"), arguments="weights=w", seeds=(0,)))
    rows = [(table, row) for table, rows in select(tables, ["sevenscenes"], ["*arg-max"]) for row in rows]
    training, evaluation = plan.commands(rows[:1])
    assert training.spec == "configs/perspective/sevenscenes.py:loops=1,steps=500,weights=w"
    assert evaluation.overrides == ("seed=0", 'evaluation.also=["argmax", "loop_0"]')


def write_result(step, config, *, data, **row):
    """The eval.json of a command, with one row."""
    row |= dict(stage=config["training"]["stages"][-1]["name"], macs_per_image=1e9)
    step.out.mkdir(parents=True)
    (step.out / "eval.json").write_text(json.dumps(dict(config=config, data=data, rows=[row])))


def test_measured_comparisons(tmp_path, monkeypatch):
    """ASTMT on scenes: means of seeds, and Δm of each seed against the mean of the single-task networks."""
    monkeypatch.chdir(ROOT)
    paper = read_tables("astmt")
    ((table, rows),) = select(paper, ["scenes"], [])
    plan = Reproduction(paper.all, Options(tmp_path))
    assert plan.seeds(table) == (0, 1, 2)
    for row in rows[:2]:
        for step in plan.commands([(table, row)]):
            if step.out is None:
                continue
            config = json.loads(json.dumps(load_config(step.spec).to_dict()))
            config["seed"] = seed = int(step.out.name.removeprefix("seed"))
            tasks = config["model"]["tasks"]
            worse = 0.9 if len(tasks) > 1 else 1.0
            shares = {"boundaries/ods": 0.5, "segmentation/miou": 0.4, "saliency/miou": 0.3}
            scores = {name: worse * (value + 0.1 * seed) for name, value in shares.items()}
            scores |= {"normals/mean": 20 / worse, "depth/rmse": 0.5 / worse}
            if len(tasks) == 1:
                (own,) = (name for name in scores if name.startswith(tasks[0]))
                scores = {own.split("/")[1]: scores[own]}
            modes = {"dense": {"milliseconds": 2.0, **scores}}
            write_result(step, config, data="scenes val, 100 images", tasks=tasks, modes=modes)
    single, multi, _, se, _ = (plan.reached(table, row) for row in rows)
    heads, lines = reproduce.cells(table, [single, multi, se])
    one = dict(zip(heads, lines[0], strict=True))
    assert one["segmentation mIoU"] == "0.5000 ± 0.1000"
    assert (one["MACs"], one["dense ms"], one["runs"]) == ("5.000e9", "10.0", "3")
    lost = 100 * (3 * 0.1 + 2 * (1 / 0.9 - 1)) / 5  # of the seed that is the mean
    assert multi.drops[1] == pytest.approx(lost)
    assert multi.drops[0] > multi.drops[1] > multi.drops[2]
    assert se.results == ()
    assert lines[2][1:] == ["-"] * (len(heads) - 2) + ["0"]

    keep(tmp_path / "kept.json", "astmt", [(table, [single, multi])])
    again = kept(tmp_path / "kept.json").found[0][1]
    assert reproduce.cells(table, [*again, se]) == (heads, lines)
    next(tmp_path.rglob("*depth*/**/eval.json")).unlink()
    assert len(plan.reached(table, rows[0]).results) == 2  # a seed without one of its tasks does not count


def test_masks_of_chance_have_columns(tmp_path, monkeypatch):
    """The quickstart's gates: the mean of three seeds beside that of the same networks with other masks."""
    monkeypatch.chdir(ROOT)
    paper = read_tables("pag")
    ((table, rows),) = select(paper, ["quickstart"], [])
    plan = Reproduction(paper.all, Options(tmp_path))
    for row in rows:
        for step in plan.commands([(table, row)]):
            if step.out is None:
                continue
            config = json.loads(json.dumps(load_config(step.spec).to_dict()))
            score = 0.6 + 0.1 * int(step.out.name.removeprefix("seed"))
            modes = {"dense": {"milliseconds": 2.0, "ods": score, "ois": score, "ap": score}}
            others = {"shuffled": {"macs_per_image": 1e9, "ods": score - 0.1}}
            chance = others if row.argument == "variant=gated" else {}
            write_result(
                step, config, data="scenes val, 24 images", tasks=["boundaries"], modes=modes, chance=chance
            )
    reached = [plan.reached(table, row) for row in rows]
    heads, lines = reproduce.cells(table, reached)
    ungated, gated = (dict(zip(heads, line, strict=True)) for line in lines)
    assert (ungated["F (ODS)"], ungated["F (ODS), shuffled masks"]) == ("0.7000 ± 0.1000", "-")
    assert (gated["F (ODS)"], gated["F (ODS), shuffled masks"]) == ("0.7000 ± 0.1000", "0.6000 ± 0.1000")
    keep(tmp_path / "kept.json", "pag", [(table, reached)])
    _, again = kept(tmp_path / "kept.json").found[0][1]
    assert reproduce.cells(table, [reached[0], again])[1] == lines

"""Tables as files: what they hold, and what is wrong with one in a line that names file, table and row."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.evaluation.paper_tables import EACH_TASK, ClassScores, Row
from dynpix_jax.evaluation.results import Identity, identity_of
from dynpix_jax.evaluation.table_files import PAPERS, read_tables
from dynpix_jax.run_config import read_run

ROOT = Path(__file__).resolve().parents[2]
GOOD = """
[[tables]]
number = "Table 1"
title = "depth and normals"
config = "configs/x.py"
source = "scenes"
metrics = ["depth/rmse", "normals/mean"]
seeds = [0, 1]
gibi = true
more = ["on the server"]
columns = ["network", "argument", "reference", "depth/rmse", "delta_m", "macs", "on the server"]
rows = [
  ["one each", "task={task}", "",         0.5, "-", 4,   "-"],
  ["both",     "",            "one each", "-", 1.5, "-", 0.3],
]
others = [["theirs", "A. Uthor [7]", 0.25, 2, 0.9]]

[[tables.classes]]
score = "iou"
columns = ["class", "both"]
rows = [["road", 0.5], ["sky", "-"]]

[[benchmarks]]
number = "Table 2"
title = "memory"
program = "dynpix bench x"
columns = ["network", "kind", "MB"]
rows = [["big", "dense", 4], ["small", "ours", "-"]]

[[comparisons]]
number = "mine"
title = "depth"
config = "configs/x.py"
source = "scenes"
task = "depth"
metrics = ["rmse"]
columns = ["network", "argument", "after"]
rows = [["longer", "steps=3", "task={task}"]]
"""


def read(tmp_path, text: str):
    file = tmp_path / "tables.toml"
    file.write_text(text)
    return read_tables(str(file))


def test_what_a_file_holds(tmp_path):
    found = read(tmp_path, GOOD)
    (table,), (mine,) = found.tables, found.comparisons
    assert found.all == (table, mine)
    each, both = table.rows
    assert (each.paper, each.macs, each.printed) == ((0.5, None), 4 * 2**30, None)
    assert (both.paper, both.macs, both.printed, both.reference) == ((None, None), None, 1.5, "one each")
    assert table.tasks == ("depth", "normals")
    assert table.seeds == (0, 1)
    assert mine.rows[0].after == "task={task}"
    assert mine.rows[0].paper == (None,)
    assert [row.more for row in table.rows] == [(None,), (0.3,)]
    assert table.others == (Row("theirs", "", (0.25, None), 2 * 2**30, more=(0.9,), by="A. Uthor [7]"),)
    assert table.classes == (ClassScores("iou", ("road", "sky"), {"both": (0.5, None)}),)
    (costs,) = found.benchmarks
    assert costs.rows == (("big", "dense", 4), ("small", "ours", None))


def test_all_papers_are_read():
    assert PAPERS == ("anytime", "astmt", "mdeq", "pag", "perspective", "pixelnet")
    read = {paper: read_tables(paper) for paper in PAPERS}
    counts = {paper: sum(len(table.rows) for table in found.tables) for paper, found in read.items()}
    assert counts == {"anytime": 38, "astmt": 34, "mdeq": 54, "pag": 101, "perspective": 52, "pixelnet": 36}
    assert {paper for paper, found in read.items() if found.note.startswith("not here: ")} == {
        "astmt",
        "mdeq",
    }
    assert {paper: [len(one.rows) for one in found.benchmarks] for paper, found in read.items()} == {
        **{paper: [] for paper in PAPERS},
        "pixelnet": [12],
    }


def test_rows_of_other_authors_are_listed():
    """As many as the papers' tables have, on each of their data sets."""
    found = {
        (paper, table.number, table.source): len(table.others)
        for paper in PAPERS
        for table in read_tables(paper).tables
        if table.others
    }
    networks = {row.network for table in read_tables("perspective").tables[2:6] for row in table.others}
    assert len(networks) == 7
    assert {key: count for key, count in found.items() if key[0] == "perspective"} == {
        ("perspective", "Table 1", "nyuv2"): 5,
        ("perspective", "Table 2", "nyuv2"): 4,
        ("perspective", "Table 2", "sun_rgbd"): 3,
        ("perspective", "Table 2", "stanford2d3d"): 2,
        ("perspective", "Table 2", "cityscapes"): 5,
    }
    assert {key: count for key, count in found.items() if key[0] != "perspective"} == {
        ("anytime", "Table 1", "cityscapes"): 5,
        ("pag", "Figure 5", "bsds500"): 1,
        ("pag", "Table 3", "nyuv2"): 3,
        ("pag", "Table 3", "stanford2d3d"): 3,
        ("pag", "Table 3", "cityscapes"): 4,
        ("pag", "Table 4", "nyuv2"): 5,
        ("pag", "Table 5", "nyuv2"): 4,
        ("pixelnet", "Table 3", "pascal_context"): 1,  # of 33 classes; of 59: the test of pixelnet
        ("pixelnet", "Section 4.1", "voc2012"): 3,
        ("pixelnet", "Table 5", "nyuv2"): 3,
        ("pixelnet", "Table 7", "bsds500"): 14,
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[tables]]", "[[tables]", r"tables\.toml: "),
        ("[[comparisons]]", "[[comparison]]", r"\.toml\.comparison: unknown key; did you mean"),
        ('title = "depth and', 'titel = "depth and', r"tables\.toml: tables\[0\]\.titel: unknown key"),
        ('task = "depth"\n', 'task = "dept"\n', r"comparisons\[0\] \(mine\): task: there is no task 'dept'"),
        ('"depth/rmse", "normals', '"depth/rms", "normals', r"tables\[0\] \(Table 1\)\.metrics: no metric"),
        ('"delta_m", "macs", ', '"delta_n", "macs", ', r"\(Table 1\)\.columns: did you mean 'delta_m'"),
        ('["network", "argument", "after"]', '["network", "after"]', r"\(mine\)\.columns: argument missing"),
        ('1.5, "-", 0.3],', "1.5],", r"\(Table 1\), row 'both': 5 cells, expected 7: network, argument"),
        ('"-", 4, ', '"none", 4, ', r"""row 'one each': delta_m: 'none'; expected a number or "-\""""),
        ("0.25, 2, 0.9]", "0.25, 2]", r"others, row 'theirs': 4 cells, expected 5: network, by, depth/rmse"),
        ('"A. Uthor [7]"', "7", r"others, row 'theirs': by: 7; expected text"),
        ('["class", "both"]', '["class", "bot"]', r"\.classes \(iou\)\.columns: no row 'bot'; did you mean"),
        ('"ours", "-"]', '"ours"]', r"\(Table 2\), row 'small': 2 cells, expected 3: network, kind, MB"),
        ('["network", "kind"', '["kind", "network"', r"\(Table 2\)\.columns: expected network first"),
        ('["both", ', "[7,", r"row 7: network: 7; expected text"),
        ('"both",     "",            "one each"', '"both", "", "one"', r"reference: no row .one."),
        ('"both",     "",            "one each"', '"one each", "", ""', r"row 'one each': there are two"),
        ('"task={task}"]]', '"task=x"]]', r"row 'longer': after: no row of configs/x.py is"),
        ('"task={task}"]]', '"steps=3"]]', r"row 'longer': after: 'steps=3': a row would"),
        ('"task={task}"]]', '"both"], ["b", "steps=3", ""]]', r"row 'b': after: '' here, 'both' in another"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(tmp_path, old, new, message):
    assert GOOD.count(old) == 1
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, GOOD.replace(old, new))
    assert "\n" not in str(error.value)


def test_runs_that_the_paper_does_not_print(tmp_path):
    """A row may continue from one; it is no row, and begins anew."""
    rows = 'rows = [["longer", "steps=3", "steps=1"]]\nstarts = ["steps=1"]'
    before = 'rows = [["longer", "steps=3", "task={task}"]]'
    assert read(tmp_path, GOOD.replace(before, rows)).comparisons[0].starts == ("steps=1",)
    with pytest.raises(UserError, match="row 'longer': after: 'steps=1' here, '' in another row of the same"):
        read(tmp_path, GOOD.replace(before, rows.replace('["steps=1"]', '["steps=3"]')))


def test_no_such_paper(tmp_path):
    with pytest.raises(UserError, match="did you mean 'pixelnet'"):
        read_tables("pixlnet")
    with pytest.raises(UserError, match=r"cannot read .*none\.toml"):
        read_tables(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("paper", PAPERS)
def test_rows_of_a_table_are_told_apart(paper, monkeypatch):
    """No run is of two rows, but where the paper has one network in two of them."""
    monkeypatch.chdir(ROOT)
    for table in read_tables(paper).tables:
        for budget in table.budgets or ("",):
            rows: dict[Identity, str] = {}
            for row in table.rows:
                arguments = [row.argument.replace(EACH_TASK, table.tasks[0]), budget and f"budget={budget}"]
                spec = f"{table.config}:{','.join(filter(None, arguments))}"
                run = read_run(spec)
                identity = identity_of(run, run.stages[-1], table.source, row.alternative)
                assert rows.setdefault(identity, row.argument) == row.argument

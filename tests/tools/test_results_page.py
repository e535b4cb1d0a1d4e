"""docs/results.md says what the files of docs/results say."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import jinja2
import pytest

from dynpix_jax.cli import main
from dynpix_jax.evaluation.table_files import PAPERS, read_tables
from tools.results_page import FOLDER, PAGE, TEMPLATE, Files, digits, filled

KEPT = FOLDER / "pag_quickstart.json"
GATED = "gated, ρ 0.5"


def test_the_page_is_what_its_files_say():
    files = Files(FOLDER)
    assert filled(TEMPLATE.read_text("utf-8"), files) == PAGE.read_text("utf-8"), (
        "run: python -m tools.results_page"
    )
    assert not list(files.unused())


def test_no_result_is_written_into_the_template():
    """Scores have three decimals or more; what a paper prints is marked."""
    assert written(TEMPLATE.read_text("utf-8")) == []


def written(template: str) -> list[str]:
    """Scores that no file and no paper has, in the text of a template or in what it fills in."""
    text = re.sub(r'printed\("[^"]*"\)|\{#.*?#\}|`[^`]*`|^ {4}.*$', "", template, flags=re.M)
    return re.findall(r"(?<!\d)\d?\.\d{3,}", text)


def test_what_is_taken_for_a_result():
    marked = '{{ printed(".790 → .792") }} `--set model.weight=0.125`\n\n    dynpix eval --set a=0.125\n'
    assert written(marked + 'F {{ file["gated, ρ 0.5"].ods|digits(4) }} at rho .5') == []
    assert written("F .7936 {{ .612 }}\n{% set average = 0.755 %}") == [".7936", ".612", "0.755"]


def not_run(page: str) -> list[str]:
    """The commands of the rows whose data are missing; [] of a page that does not have their section."""
    section = page.partition("\n## Not run here\n")[2].partition("\n## ")[0]
    return re.findall(r"`dynpix (reproduce [^`]*)`", section)


NOT_RUN = not_run(PAGE.read_text("utf-8"))


def test_commands_are_those_of_their_section():
    page = "`dynpix reproduce a`\n\n## Not run here\n\n| `dynpix reproduce b --c` |\n"
    assert not_run(f"{page}\n## Next\n\n`dynpix reproduce d`\n") == ["reproduce b --c"]
    assert not_run("# Results\n") == []


def reproduced(page: str) -> list[str]:
    """The commands of the rows that were run, which stand in blocks; a backslash continues a line."""
    return re.findall(r"^ {4}dynpix (reproduce .*)$", re.sub(r"\\\n +", "", page), flags=re.M)


@pytest.mark.parametrize("command", reproduced(PAGE.read_text("utf-8")))
def test_commands_of_the_page_are_not_refused(command, capsys):
    """None of their rows, whose configs are read before anything is trained."""
    assert main.main([*shlex.split(command), "--dry-run"]) == 0
    assert "dynpix eval" in capsys.readouterr().out


def test_commands_go_on_behind_a_backslash():
    page = "Text\n\n    dynpix reproduce a \\\n        --keep b\n    dynpix eval\n    dynpix reproduce c\n"
    assert reproduced(page) == ["reproduce a --keep b", "reproduce c"]


@pytest.mark.parametrize("command", NOT_RUN)
def test_rows_that_were_not_run_have_commands(command, capsys):
    """That train and evaluate; their data are looked for when they run."""
    assert main.main([*shlex.split(command), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines} == {"train", "eval"}


def test_every_data_set_that_is_missing_has_a_plan():
    """A data set of the papers' tables either has results on the page, or a plan and a command."""
    assert NOT_RUN, f"{PAGE.name}: no section '## Not run here' with commands `dynpix reproduce ...`"
    files = list((FOLDER / "plans").glob("*.json"))
    configs = {json.loads(file.read_text("utf-8"))["config"].partition(":")[0] for file in files}
    tables = [table for paper in PAPERS for table in read_tables(paper).tables]
    assert len(NOT_RUN) == len(files)
    assert {table.source for table in tables if table.config not in configs} == {"bsds500"}


def changed(folder: Path, number: str, value: float) -> None:
    """The file of quickstart with another number in the first run of its gated row."""
    content = json.loads(KEPT.read_text("utf-8"))
    content["tables"][0]["rows"][GATED]["results"][0]["scores"][number] = value
    (folder / KEPT.name).write_text(json.dumps(content), "utf-8")


def test_another_measurement_is_another_page(tmp_path: Path) -> None:
    """In tables, and in sentences."""
    page = (
        '{% set file = read("pag_quickstart") %}\n'
        'before\n{{ file.markdown }}\n{{ file["gated, ρ 0.5"].ods|digits(4) }}\n'
    )
    changed(tmp_path, "ods", 0.9)
    was, now = (filled(page, Files(folder)).splitlines() for folder in (FOLDER, tmp_path))
    assert was[0] == now[0] == "before"
    (old,), (new,) = ([line for line in lines if line.startswith(f"| {GATED}")] for lines in (was, now))
    assert [a != b for a, b in zip(old.split("|"), new.split("|"), strict=True)].count(True) == 1
    assert was[-1] == ".6941"
    assert now[-1] == digits((0.9 + sum(_ods()[1:])) / 3, 4)


def _ods() -> list[float]:
    content = json.loads(KEPT.read_text("utf-8"))
    return [one["scores"]["ods"] for one in content["tables"][0]["rows"][GATED]["results"]]


def test_numbers_of_rows(tmp_path: Path) -> None:
    """Against numbers worked out by hand; chance is a mean of the runs, too."""
    content = json.loads(KEPT.read_text("utf-8"))
    for run, (ods, density, shuffled) in zip(
        content["tables"][0]["rows"][GATED]["results"],
        [(0.5, 0.4, 0.2), (0.7, 0.5, 0.3), (0.9, 0.6, 0.4)],
        strict=True,
    ):
        run["scores"]["ods"], run["density"], run["macs"] = ods, density, 2.5e9
        run["chance"]["shuffled"]["ods"] = shuffled
    (tmp_path / KEPT.name).write_text(json.dumps(content), "utf-8")
    page = (
        '{% set row = read("pag_quickstart")["gated, ρ 0.5"] %}\n'
        '{{ row|spread("ods", 2) }}; {{ row|each("ods", 1) }}; {{ row.density|percent }};'
        ' {{ row.macs|giga(2) }}; {{ (row.chance["shuffled"].ods - row.ods)|digits(3) }}'
    )
    assert filled(page, Files(tmp_path)) == ".70 ± .20; .5, .7, .9; 50; 2.50; -.400"
    networks = filled('{{ read("pag_quickstart").networks|join("; ") }}', Files(tmp_path))
    assert networks == "no gates, trained as long; gated, ρ 0.5"


def test_records_and_other_files(tmp_path: Path) -> None:
    record = {"about": "by hand", "heads": ["gates", "F"], "rows": [["centred", ".70"], ["others", ".69"]]}
    (tmp_path / "written.json").write_text(json.dumps(record), "utf-8")
    (tmp_path / "counted.json").write_text(json.dumps([{"macs": 3}]), "utf-8")
    files = Files(tmp_path)
    page = '{{ read("written").markdown }}\n{{ read("written")["others"].F }}'
    assert filled(page, files).splitlines() == [
        "| gates | F |",
        "| --- | --- |",
        "| centred | .70 |",
        "| others | .69 |",
        "",
        "by hand",
        ".69",
    ]
    assert list(files.unused()) == ["counted"]
    assert filled('{{ read("counted")[0].macs }}', files) == "3"


@pytest.mark.parametrize(
    "asked", ['["gated, ρ 0.6"].ods', '["gated, ρ 0.5"].miou', '["no gates"].chance["shuffled"]']
)
def test_what_no_file_has_is_not_left_out(asked):
    with pytest.raises(jinja2.UndefinedError):
        filled("{{ read('pag_quickstart')" + asked + " }}", Files(FOLDER))


def test_digits():
    assert digits(0.76995, 4) == ".7700"
    assert digits(-0.0164, 3) == "-.016"
    assert digits(-0.00001, 3) == ".000"
    assert digits(12.5, 1) == "12.5"

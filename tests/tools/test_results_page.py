"""docs/results.md says what the files of docs/results say."""

from __future__ import annotations

import json
from pathlib import Path

from tools.results_page import PAGE, filled

FOLDER = PAGE.parent / "results"


def test_the_page_is_what_its_files_say():
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, PAGE.parent) == page, "run: python -m tools.results_page"
    for file in FOLDER.iterdir():
        assert page.count(f"<!-- results/{file.name} -->") == 1, file


def test_another_measurement_is_another_page(tmp_path: Path) -> None:
    """Every row's first score is one that no network has; the text around the table stays."""
    file = sorted(FOLDER.iterdir())[0]
    content = json.loads(file.read_text(encoding="utf-8"))
    rows = content["tables"][0]["rows"]
    for row in rows.values():
        for result in row["results"]:
            result["scores"] = dict.fromkeys(result["scores"], 0.98765)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "other.json").write_text(json.dumps(content), encoding="utf-8")
    lines = filled("before\n<!-- results/other.json -->\nold\n<!-- end -->\nafter\n", tmp_path).splitlines()
    assert lines[:2] == ["before", "<!-- results/other.json -->"]
    assert lines[-2:] == ["<!-- end -->", "after"]
    assert "old" not in lines
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert all(".9877" in line or ".988" in line or "98.77" in line for line in table[2:])

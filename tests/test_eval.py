from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from dynpix_jax.cli import eval as eval_program
from dynpix_jax.cli.common import call
from tests.training.test_writers import events


def run(*argv: str) -> int:
    return call("eval.py", lambda: eval_program.main(list(argv)))


@pytest.fixture(scope="module")
def evaluated(tiny_run, tmp_path_factory):
    """(table on the console, eval.json, report.html) of every stage of the tiny run."""
    import contextlib
    import io

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = run(
            f"--config={tiny_run.config}",
            f"--workdir={tiny_run.workdir}",
            "--set",
            "evaluation.every_stage=True",
        )
    assert status == 0
    numbers = json.loads((tiny_run.workdir / "eval.json").read_text())
    return output.getvalue(), numbers, (tiny_run.workdir / "report.html").read_text()


def test_table_has_a_row_a_stage(evaluated):
    output, numbers, _ = evaluated
    head, base, gates = output.splitlines()[:3]
    columns = re.split(r"\s{2,}", head)
    assert columns == [
        "stage", "rho", "density", "MACs/image", "of open", "F (ODS)", "OIS", "AP", "dense ms", "sparse ms"
    ]  # fmt: skip
    assert len(base) == len(gates) == len(head)
    assert re.split(r"\s{2,}", base)[:3] == ["base", "1", "1.000"]
    assert base.split()[-1] == base.split()[-2]  # nothing is gated: both modes are one program
    row = dict(zip(columns, re.split(r"\s{2,}", gates), strict=True))
    assert (row["stage"], row["rho"]) == ("gates", "0.5")
    assert float(row["density"]) == pytest.approx(numbers["rows"][1]["density"], abs=1e-3)


def test_numbers(evaluated):
    _, numbers, _ = evaluated
    base, gates = numbers["rows"]
    assert (base["stage"], base["step"], base["target_rho"], base["density"]) == ("base", 2, 1.0, None)
    assert (gates["stage"], gates["step"], gates["target_rho"]) == ("gates", 4, 0.5)
    assert base["macs_per_image"] == base["macs_per_image_gates_open"]
    assert gates["macs_per_image"] <= gates["macs_per_image_gates_open"]
    assert 0 <= gates["density"] <= 1
    # Without gates both modes are the same program: one run stands for both.
    assert base["modes"]["dense"] == base["modes"]["sparse"]
    assert base["mode_difference"] is None
    assert gates["mode_difference"] < 1e-5
    assert gates["modes"]["dense"]["ods"] == pytest.approx(gates["modes"]["sparse"]["ods"], abs=1e-3)
    for mode in (*base["modes"].values(), *gates["modes"].values()):
        low, high = mode["milliseconds_p10_p90"]
        assert 0 < low <= mode["milliseconds"] <= high
    assert numbers["config"]["seed"] == 0
    assert numbers["data"] == "scenes val, 2 images"
    assert (numbers["source"], numbers["split"], numbers["images"]) == ("scenes", "val", 2)
    assert numbers["device"].startswith("cpu")
    assert "jax 0." in numbers["versions"]


def test_scores_are_beside_those_of_training_in_tensorboard(evaluated, tiny_run):
    found = {
        (value.tag, event.step): value.simple_value
        for event in events(tiny_run.workdir / "tensorboard")
        for value in event.summary.value
    }
    assert ("train/loss", 4) in found
    for row in evaluated[1]["rows"]:
        assert found["eval/ods", row["step"]] == pytest.approx(row["modes"]["dense"]["ods"])
        assert found["eval/macs", row["step"]] == pytest.approx(row["macs_per_image"])
    assert ("eval/density", 2) not in found  # no gates
    assert found["eval/density", 4] == pytest.approx(evaluated[1]["rows"][1]["density"])


class Page(HTMLParser):
    """Collects what the report refers to and checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        attributes = dict(attrs)
        assert not {"href", "srcset", "onload"} & attributes.keys()
        if tag == "img":
            assert attributes["alt"]
            self.images.append(attributes["src"])
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_is_one_sound_page_with_nothing_from_outside(evaluated):
    text = evaluated[2]
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe"} & page.tags
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in page.images)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    # Two curves; photo and truth; two predictions, and for the gates 1 + 2 ponder maps and the masks of the 4
    # blocks of Res2 and Res3.
    assert len(page.images) == 2 + 2 + 2 + 3 + 4
    assert "gates, rho 0.5" in text


def test_one_stage(tiny_run, capsys):
    argv = [f"--config={tiny_run.config}", f"--workdir={tiny_run.workdir}", "--stage=base"]
    assert run(*argv, "--set", "evaluation.mode=dense", "evaluation.limit=1", "evaluation.pictures=0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == "base"
    assert lines[1].split()[-1] == "-"  # sparse was not run
    assert lines[2].startswith("numbers: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "seed=1"), "config.seed is 0 there and 1 here"),
        (("--set", "evaluation.mode=fast"), "expected one of 'dense', 'sparse', 'both'"),
        (("--stage=gate",), "no end of a stage 'gate'; did you mean 'gates'"),
        (("--set", "data.eval.source.split=vla"), "did you mean 'val'"),
    ],
)
def test_mistakes_are_one_line_and_2(tiny_run, arguments, message, capsys):
    assert run(f"--config={tiny_run.config}", f"--workdir={tiny_run.workdir}", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("eval.py: ")
    assert message in line


def test_workdir_without_a_run(tiny_run, tmp_path, capsys):
    for workdir, message in ((tmp_path, "holds no checkpoint"), (tmp_path / "no", "workdir not found")):
        assert run(f"--config={tiny_run.config}", f"--workdir={workdir}") == 2
        assert message in capsys.readouterr().err

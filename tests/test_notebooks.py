"""Every notebook runs from top to bottom; they are stored with their outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stored(path):
    """So that pages which show notebooks show pictures; small ones."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs), "store them: see the Makefile"
    assert not any(output["output_type"] == "error" for output in outputs)
    assert path.stat().st_size < 800_000


SLOW = ("03_anytime", "04_own_gate", "05_own_photos")


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.slow if p.stem in SLOW else (), id=p.stem) for p in NOTEBOOKS],
)
@pytest.mark.filterwarnings("ignore")  # of the machinery that runs notebooks
def test_notebook(path, monkeypatch):
    import nbclient  # both take seconds, and all processes of the tests import this file
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert any(
        "image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())
    )

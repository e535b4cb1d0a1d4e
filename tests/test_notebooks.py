"""Every notebook runs from top to bottom; they are stored with their outputs.

The quick run is of two of them, with less work, in this process; the slow one of all, as Jupyter runs them.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = {
    "01_gates": {"STEPS, BATCH = 60, 4\n": "STEPS, BATCH = 3, 4\n"},
    "02_sparse_execution": {"CHANNELS = 256\n": "CHANNELS = 32\n", "runs=7)": "runs=1)"},
}
"""Notebooks that import nothing which takes long, and what makes them shorter: nothing that they assert."""


def cells_of(path: Path) -> list[dict[str, Any]]:
    """The cells with code."""
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def pictures(cell: dict[str, Any]) -> int:
    """How many pictures are stored with a cell."""
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def test_there_are_notebooks():
    assert NOTEBOOKS
    assert set(QUICK) <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stored(path):
    """So that pages which show notebooks show pictures; small ones."""
    cells = cells_of(path)
    assert any(pictures(cell) for cell in cells), "store them: see the Makefile"
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    assert path.stat().st_size < 800_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_where_the_library_is_missing(path, monkeypatch):
    """And does nothing where it is importable."""
    source = "".join(cells_of(path)[0]["source"])
    assert "not on the package index yet" in source
    ran = []
    shell = SimpleNamespace(run_line_magic=lambda *words: ran.append(words))
    exec(source, {"get_ipython": lambda: shell})
    assert not ran
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exec(source, {"get_ipython": lambda: shell})
    assert ran == [("pip", "install -q 'dynpix_jax[all]'")]


@pytest.mark.parametrize("name", QUICK)
def test_notebook(name, monkeypatch):
    """Every cell draws as many figures as are stored with it."""
    import matplotlib.pyplot as plt  # takes a second, and all processes of the tests import this file

    path = ROOT / "notebooks" / f"{name}.ipynb"
    cells = cells_of(path)
    sources = ["".join(cell["source"]) for cell in cells]
    for old, new in QUICK[name].items():
        assert sum(source.count(old) for source in sources) == 1
        sources = [source.replace(old, new) for source in sources]

    shown = []

    def show() -> None:
        shown.extend(plt.get_fignums())
        plt.close("all")

    monkeypatch.setattr(plt, "show", show)
    monkeypatch.chdir(path.parent)
    plt.switch_backend("Agg")
    namespace = {"__name__": "__main__"}
    try:
        for number, (cell, source) in enumerate(zip(cells, sources, strict=True)):
            shown.clear()
            exec(compile(source, f"{path.name}, cell {number}", "exec"), namespace)
            assert len(shown) == pictures(cell), source
    finally:
        plt.close("all")


def test_a_photo_is_drawn_upright(tmp_path, monkeypatch):
    """As the predictor reads it: its maps have that shape."""
    import matplotlib.pyplot as plt

    stored = np.zeros((20, 30, 3), np.uint8)
    stored[:, :10] = 250  # on the left, which a quarter turn clockwise takes to the top
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    photo = tmp_path / "photo.png"
    Image.fromarray(stored).save(photo, exif=exif)
    sources = ["".join(cell["source"]) for cell in cells_of(ROOT / "notebooks/05_own_photos.ipynb")]
    maps = np.zeros((30, 20))
    found = SimpleNamespace(predictions={"boundaries": maps}, ponder={"total": maps})
    namespace = {"image": str(photo), "found": found}
    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    try:
        for source in (sources[1], next(source for source in sources if source.startswith("pixels ="))):
            exec(source, namespace)
        drawn = plt.gcf().axes[0].images[0].get_array()
    finally:
        plt.close("all")
    assert drawn.shape == (30, 20, 3)
    assert (drawn[:10] == 250).all()
    assert (drawn[10:] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # of the machinery that runs notebooks
def test_notebook_in_jupyter(path, monkeypatch):
    import nbclient
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

"""dynpix config: configs that ship, all settings of one, how two differ; configs copied to anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dynpix_jax.cli.main import main
from dynpix_jax.core.configs import find_config, shipped_configs
from dynpix_jax.core.errors import UserError
from dynpix_jax.run_config import read_run

ROOT = Path(__file__).resolve().parents[2]


def test_list_names_every_config(capsys):
    assert main(["config", "list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    expected = {
        file.relative_to(ROOT / "configs").as_posix()
        for file in (ROOT / "configs").rglob("*.py")
        if "\ndef get_config(" in file.read_text()
    }
    assert set(names) == expected


def test_show_writes_defaults_out_and_reads_what_it_has_shown(capsys):
    spec = "pag/scenes.py:variant=base"
    assert main(["config", "show", spec, "--config.training.batch_size=3", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["training"]["batch_size"] == 3
    assert "checkpoint_every" in shown["training"]
    assert main(["config", "show", spec]) == 0
    assert "seed = 0" in capsys.readouterr().out.splitlines()


def test_diff(capsys, tiny_run):
    spec = "pag/scenes.py:variant=base"
    assert main(["config", "diff", spec, f"configs/{spec}"]) == 0
    assert main(["config", "diff", str(tiny_run.config), str(tiny_run.workdir)]) == 0
    assert capsys.readouterr().out == ""
    assert main(["config", "diff", str(tiny_run.config), str(tiny_run.workdir), "--set", "seed=4"]) == 1
    assert capsys.readouterr().out == "config.seed is 4 there and 0 here\n"
    assert main(["config", "diff", spec, str(tiny_run.workdir / "checkpoints")]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_a_config_needs_no_path_and_a_file_here_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        find_config("quickstart.py") == find_config("configs/quickstart.py") == ROOT / "configs/quickstart.py"
    )
    Path("quickstart.py").write_text("")
    assert find_config("quickstart.py") == Path("quickstart.py")
    with pytest.raises(UserError, match=r"config file pag/camvit.py: not found .*did you mean pag/camvid.py"):
        find_config("pag/camvit.py")


@pytest.mark.parametrize("name", ["pag/bsds500.py", "anytime/scenes_pose.py", "mdeq/camvid.py"])
def test_a_copied_config_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(shipped_configs() / name, tmp_path / "mine.py")
    assert read_run("mine.py") == read_run(name)

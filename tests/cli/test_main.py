from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

import dynpix_jax
from dynpix_jax.cli import common, main
from dynpix_jax.core.errors import UserError


def outcome(argv, capsys) -> tuple[int, str, str]:
    """(status, stdout, stderr) of `dynpix argv`."""
    try:
        status = main.main(argv)
    except SystemExit as end:
        status = end.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def fake_command(monkeypatch, run) -> None:
    def add_arguments(parser):
        parser.add_argument("--size", type=int)

    module = SimpleNamespace(__doc__=None, add_arguments=add_arguments, run=run)
    monkeypatch.setattr(main.importlib, "import_module", lambda name: module)


def test_help_lists_every_command_and_imports_none():
    program = (
        "import sys; from dynpix_jax.cli import main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit as end: print(end.code, 'jax' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "0 False"
    for command in main.COMMANDS:
        assert command in result.stdout


@pytest.mark.parametrize("command", main.COMMANDS)
def test_help_of_every_command_has_an_example(command, capsys):
    status, out, _ = outcome([command, "--help"], capsys)
    assert status == 0
    assert re.search(rf"example.*dynpix {command} ", out, flags=re.DOTALL)


def test_every_module_of_the_table_exists():
    for module, _ in main.COMMANDS.values():
        assert importlib.util.find_spec(f"dynpix_jax.cli.{module}"), module


def test_version(capsys):
    assert outcome(["--version"], capsys) == (0, f"dynpix_jax {dynpix_jax.__version__}\n", "")


@pytest.mark.parametrize("argv", [[], ["flop"], ["--nonsense"], ["flops", "--size", "x"]])
def test_bad_arguments_end_with_2(argv, capsys, monkeypatch):
    fake_command(monkeypatch, lambda args: 0)
    status, out, err = outcome(argv, capsys)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("dynpix")


def test_runs_the_command_with_its_arguments(capsys, monkeypatch):
    fake_command(monkeypatch, lambda args: print(args.size) or 3)
    assert outcome(["flops", "--size", "7"], capsys) == (3, "7\n", "")


def test_user_error_is_one_line_and_2(capsys, monkeypatch):
    def run(args):
        raise UserError("config.model.rho: expected\n a number")

    fake_command(monkeypatch, run)
    assert outcome(["flops"], capsys) == (2, "", "dynpix flops: config.model.rho: expected a number\n")


def test_other_errors_keep_their_traceback(monkeypatch):
    def run(args):
        raise ValueError("ours")

    fake_command(monkeypatch, run)
    with pytest.raises(ValueError, match="ours"):
        main.main(["flops"])


def test_memory_of_the_device_is_one_line(capsys):
    def compute():
        # 2^48 bytes, of which the sort keeps every one.
        x = jnp.ones(2**23)
        return jax.jit(lambda x: jnp.sort(x[:, None] * x, axis=0))(x).block_until_ready()

    assert common.call("dynpix train", compute) == 2
    err = capsys.readouterr().err
    assert err.startswith("dynpix train: not enough memory: Out of memory allocating")
    assert err.endswith("--max-side\n")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes.\nBuffers:", True),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20G of 15.75G hbm.", True),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem while allocating 20M.", False),
        ("RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 250000", False),
        ("INTERNAL: no kernel image is available", False),
    ],
)
def test_only_memory_that_users_can_save_is_told(text, told, capsys):
    def fail():
        raise jax.errors.JaxRuntimeError(text)

    if told:
        assert common.call("train.py", fail) == 2
        expected = text.partition("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ")
        assert capsys.readouterr().err.startswith(f"train.py: not enough memory: {expected}; what makes")
    else:
        with pytest.raises(jax.errors.JaxRuntimeError):
            common.call("train.py", fail)


def test_interrupt_is_130(capsys):
    def interrupt():
        raise KeyboardInterrupt

    assert common.call("train.py", interrupt) == 130
    assert capsys.readouterr().err == "train.py: interrupted\n"


def test_run_main_exits_with_the_status(capsys):
    def fail():
        raise UserError("no such file")

    with pytest.raises(SystemExit) as end:
        common.run_main(fail, "eval.py")
    assert end.value.code == 2
    assert capsys.readouterr().err == "eval.py: no such file\n"
    with pytest.raises(SystemExit) as end:
        common.run_main(lambda: None, "eval.py")
    assert end.value.code == 0


def test_a_closed_pipe_is_no_error():
    program = (
        "from dynpix_jax.cli.common import run_main\n"
        "def fn():\n for i in range(10**6): print(i)\n"
        "run_main(fn, 'x')"
    )
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_missing_package_names_its_extra(capsys):
    def without(name):
        def run():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return run

    assert common.call("dynpix train", without("grain.python")) == 2
    line = "dynpix train: needs grain, which is not installed: pip install 'dynpix_jax[train]'\n"
    assert capsys.readouterr().err == line
    with pytest.raises(ModuleNotFoundError):
        common.call("dynpix train", without("my_module"))


def test_values_of_the_config_in_the_spelling_of_ml_collections():
    given = ["--config=a.py", "--config.a.b=1", "--config.c[0].d", "x", "--set", "e=2"]
    assert common.respelled(given) == ["--config=a.py", "--set=a.b=1", "--set=c[0].d=x", "--set", "e=2"]
    parser = argparse.ArgumentParser()
    common.add_overrides(parser)
    parser.add_argument("photo")
    assert parser.parse_args(common.respelled(["--config.a=1", "p.jpg", "--config.b", "2"])).set == [
        "a=1",
        "b=2",
    ]


@pytest.mark.parametrize(("shell", "word"), [("bash", "complete -"), ("zsh", "#compdef dynpix")])
def test_completion_knows_commands_and_their_options(shell, word, capsys):
    status, out, _ = outcome(["completion", shell], capsys)
    assert status == 0
    assert word in out
    assert "--budget-ms" in out


def test_modules_of_the_current_folder_are_found(tmp_path, monkeypatch):
    (tmp_path / "my_own_module.py").write_text("STATUS = 4\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert common.call("train.py", lambda: importlib.import_module("my_own_module").STATUS) == 4
    assert sys.path[-1] == str(tmp_path)
    del sys.modules["my_own_module"]

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from dynpix_jax.core.configs import given_args, load_config, parse_arg
from dynpix_jax.core.errors import UserError


def test_parse_arg_types_come_from_the_defaults():
    config = parse_arg(
        "variant=gated, rho=1,fast,steps=3,res=3+4", variant="base", rho=0.5, fast=False, steps=1, res=(2,)
    )
    assert config.to_dict() == {"variant": "gated", "rho": 1.0, "fast": True, "steps": 3, "res": (3, 4)}
    assert type(config.rho) is float
    assert parse_arg("fast=no", fast=True).fast is False
    assert parse_arg("res=", res=(1,)).res == ()
    assert parse_arg("names=a+b", names=()).names == ("a", "b")
    assert parse_arg(None, rho=0.5).rho == parse_arg("", rho=0.5).rho == 0.5


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("roh=1", "config argument 'roh' is unknown; did you mean 'rho'? valid: rho, steps"),
        ("rho=half", "config argument 'rho': expected float, got 'half'"),
        ("steps=1.5", "config argument 'steps': expected int, got '1.5'"),
        ("rho", "config argument 'rho' needs a value"),
        ("rho=1,rho=2", "config argument 'rho' is given twice"),
    ],
)
def test_parse_arg_mistakes(arg, message):
    with pytest.raises(UserError) as error:
        parse_arg(arg, rho=0.5, steps=1)
    assert str(error.value).startswith(message)


@hypothesis.given(st.floats(allow_nan=False), st.integers(), st.booleans())
def test_parse_arg_reads_back_what_python_prints(rho, steps, fast):
    config = parse_arg(f"rho={rho},steps={steps},fast={fast}", rho=0.0, steps=0, fast=False)
    assert (config.rho, config.steps, config.fast) == (rho, steps, fast)


def test_given_args_are_those_that_were_written():
    assert given_args(None) == given_args("") == frozenset()
    assert given_args("variant=gated, fast,rho=1.0") == {"variant", "fast", "rho"}


def write(folder, text: str) -> str:
    file = folder / "example.py"
    file.write_text("import ml_collections\n" + text)
    return str(file)


def test_load_config_passes_the_argument(tmp_path):
    file = write(
        tmp_path, "def get_config(arg='none'):\n    return ml_collections.ConfigDict({'arg': arg})\n"
    )
    assert load_config(f"{file}:a=1,b=2").arg == "a=1,b=2"
    assert load_config(file).arg == ""
    assert (
        load_config(write(tmp_path, "def get_config():\n    return ml_collections.ConfigDict({'a': 1})\n")).a
        == 1
    )


@pytest.mark.parametrize("names", [("a", "b"), ("no-identifier", "b.c")])
def test_load_config_may_import_its_neighbours(names, tmp_path, monkeypatch):
    """Each those of its own folder and of the one above, wherever the program was started."""
    monkeypatch.chdir("/")
    (tmp_path / "common.py").write_text("Y = 'above'\n")
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "shared.py").write_text(f"from .. import common\nX = {name!r} + common.Y\n")
        text = (
            "from ..common import Y\nfrom . import shared\n"
            "def get_config():\n    return ml_collections.ConfigDict({'x': shared.X + Y})\n"
        )
        assert load_config(write(folder, text)).x == f"{name}aboveabove"


@pytest.mark.parametrize(
    ("text", "arg", "message"),
    [
        ("def get_config(:\n", "", "SyntaxError"),
        ("import no_such_module\n", "", "ModuleNotFoundError"),
        ("x = 1\n", "", "defines no function get_config"),
        ("def get_config(arg): return {}\n", "", "must return a ConfigDict"),
        ("def get_config(): return None\n", ":a=1", "takes no argument, got ':a=1'"),
        (
            "c = ml_collections.ConfigDict({'training': {}})\ndef get_config():\n    c.trainig.steps = 1\n",
            "",
            'Did you mean "training" instead of',
        ),
        (
            "def get_config():\n    c = ml_collections.ConfigDict({'x': 1})\n    c.x = 'a'\n",
            "",
            "line 4: TypeError: Could not override field 'x'",
        ),
    ],
)
def test_load_config_mistakes(tmp_path, text, arg, message):
    with pytest.raises(UserError, match=r"example\.py") as error:
        load_config(write(tmp_path, text) + arg)
    assert message in str(error.value)


def test_load_config_of_no_file(tmp_path):
    with pytest.raises(UserError, match="not found"):
        load_config(tmp_path / "none.py")
    (tmp_path / "x.yaml").write_text("")
    with pytest.raises(UserError, match="expected a Python file"):
        load_config(tmp_path / "x.yaml")

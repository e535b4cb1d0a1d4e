from __future__ import annotations

import dataclasses
from typing import Any, Literal

import hypothesis
import hypothesis.strategies as st
import ml_collections
import pytest

from dynpix_jax.core.configs import from_config, given_args, load_config, parse_arg
from dynpix_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Mesh:
    data: int = -1
    model: int = 1


@dataclasses.dataclass(frozen=True)
class Stage:
    name: str
    steps: int
    multipliers: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Training:
    learning_rate: float
    optimizer: Literal["sgd", "adamw"]
    stages: tuple[Stage, ...]
    warm: bool = False
    clip: float | None = None
    mesh: Mesh = Mesh()
    extra: dict[str, int] = dataclasses.field(default_factory=dict)
    size: tuple[int, int] = (32, 32)
    names: list[str] = dataclasses.field(default_factory=list)
    optional_mesh: Mesh | None = None
    model: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate: must be positive, got {self.learning_rate}")
        if self.size[0] > 1000:
            raise ValueError(f"too large to train: {self.size}")


def section(**changes) -> ml_collections.ConfigDict:
    base: dict[str, Any] = {
        "learning_rate": 0.1,
        "optimizer": "sgd",
        "stages": [{"name": "base", "steps": 3}],
    }
    return ml_collections.ConfigDict({**base, **changes})


def test_builds_nested_dataclasses_with_defaults_and_conversions():
    config = section(
        learning_rate=1,
        stages=[
            {"name": "base", "steps": 3},
            {"name": "gates", "steps": 4, "multipliers": [["head/.*", 10]]},
        ],
        mesh={"data": 8},
        extra={"a": 1},
        size=[4, 5],
        names=("x",),
        model={"gates": {"rho": 0.5}},
    )
    built = from_config(Training, config)
    assert built == Training(
        learning_rate=1.0,
        optimizer="sgd",
        stages=(Stage("base", 3), Stage("gates", 4, (("head/.*", 10.0),))),
        mesh=Mesh(data=8),
        extra={"a": 1},
        size=(4, 5),
        names=["x"],
        model=built.model,
    )
    assert type(built.learning_rate) is float
    assert built.model["gates"]["rho"] == 0.5


def test_plain_mapping_is_a_section_too():
    assert from_config(Mesh, {"data": 2}) == Mesh(data=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 1.0}, "config.training.learning_rat: unknown key; did you mean 'learning_rate'?"),
        ({"learning_rate": "0.1"}, "config.training.learning_rate: expected float, got '0.1' (str)"),
        ({"learning_rate": True}, "config.training.learning_rate: expected float, got True (bool)"),
        ({"learning_rate": -1.0}, "config.training.learning_rate: must be positive, got -1.0"),
        ({"size": (2000, 1)}, "config.training: too large to train: (2000, 1)"),
        (
            {"optimizer": "sdg"},
            "config.training.optimizer: expected one of 'sgd', 'adamw', got 'sdg' (str); did you",
        ),
        ({"warm": 1}, "config.training.warm: expected bool, got 1 (int)"),
        ({"clip": "no"}, "config.training.clip: expected float or None, got 'no' (str)"),
        (
            {"mesh": {"dat": 1}},
            "config.training.mesh.dat: unknown key; did you mean 'data'? valid: data, model",
        ),
        ({"mesh": 3}, "config.training.mesh: expected a section with keys, got 3 (int)"),
        ({"optional_mesh": {"dat": 1}}, "config.training.optional_mesh.dat: unknown key"),
        ({"stages": [{"name": "base"}]}, "config.training.stages[0].steps: missing; expected int"),
        (
            {"stages": [{"name": "base", "steps": 1.5}]},
            "config.training.stages[0].steps: expected int, got 1.5",
        ),
        ({"stages": "base"}, "config.training.stages: expected tuple"),
        ({"extra": {"a": "b"}}, "config.training.extra.a: expected int, got 'b' (str)"),
        ({"size": (1, 2, 3)}, "config.training.size: expected 2 values, got 3"),
        ({"names": [1]}, "config.training.names[0]: expected str, got 1 (int)"),
    ],
)
def test_mistakes_name_the_full_path(changes, message):
    with pytest.raises(UserError) as error:
        from_config(Training, section(**changes), "config.training")
    assert str(error.value).startswith(message)


def test_missing_key_and_open_placeholder():
    with pytest.raises(
        UserError, match=r"config\.training\.optimizer: missing; expected one of 'sgd', 'adamw'"
    ):
        from_config(Training, {"learning_rate": 0.1, "stages": ()}, "config.training")
    stage = ml_collections.ConfigDict({"name": "x"})
    stage.steps = ml_collections.config_dict.placeholder(int, required=True)
    with pytest.raises(UserError, match=r"config\.steps: missing; the config leaves"):
        from_config(Stage, stage)


@dataclasses.dataclass(frozen=True)
class Stride:
    value: Literal[1, 2]


def test_literal_tells_bool_from_int():
    assert from_config(Stride, {"value": 2}).value == 2
    with pytest.raises(UserError, match=r"config\.value: expected one of 1, 2, got True"):
        from_config(Stride, {"value": True})


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

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import ml_collections
import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.merging import merge
from dynpix_jax.core.registry import Registry
from dynpix_jax.core.sections import BESIDE, Given, OneOf, from_config, to_json, unread


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


@dataclasses.dataclass(frozen=True)
class Gate:
    kind: str


@dataclasses.dataclass(frozen=True)
class PixelGate(Gate):
    blur: bool = False


class TopK:
    """A layer that names its settings."""

    @dataclasses.dataclass(frozen=True)
    class Config(Gate):
        share: float = 0.5

        def unread(self) -> Mapping[str, str]:
            return {"share": "kind 'all' takes all"} if self.kind == "all" else {}


GATES: Registry[Any] = Registry("gate", {"pixel": PixelGate, "topk": TopK, "all": TopK})
TASKS: Registry[Any] = Registry("task", {"pixel": Mesh, "topk": Stride})


@dataclasses.dataclass(frozen=True)
class Model:
    gate: Annotated[Gate, OneOf(GATES, key="kind", default="pixel")] = PixelGate("pixel")
    other: Annotated[Gate, OneOf(GATES, key="kind")] | None = None
    task: str = "pixel"
    options: Annotated[Any, OneOf(TASKS, key="task", beside=True)] = BESIDE
    each: dict[str, Annotated[Any, OneOf(TASKS, key=None)]] = dataclasses.field(default_factory=dict)
    mesh: Mesh = Mesh()


def test_a_registry_gives_the_class_of_a_section():
    model = from_config(Model, dict(gate=dict(kind="topk", share=0.3), other=dict(kind="pixel", blur=True)))
    assert model.gate == TopK.Config("topk", 0.3)
    assert model.other == PixelGate("pixel", True)
    assert model.options == Mesh()  # of the task that is named beside it
    assert from_config(Model, dict(gate=dict(blur=True))).gate == PixelGate("pixel", True)
    assert from_config(Model, dict(task="topk", options=dict(value=2))).options == Stride(2)
    assert from_config(Model, dict(each=dict(pixel=dict(data=4)))).each == {"pixel": Mesh(4)}
    assert from_config(Model, dict(other=None)).other is None


def test_a_class_of_the_users_own(tmp_path, monkeypatch):
    text = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Mine:
    kind: str
    share: float = 0.5
"""
    (tmp_path / "own_gates.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    mine = from_config(Model, dict(gate=dict(kind="own_gates:Mine", share=1))).gate
    assert to_json(mine) == {"kind": "own_gates:Mine", "share": 1.0}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            dict(gate=dict(kind="pixle")),
            r"config\.gate\.kind: there is no gate 'pixle'; did you mean 'pixel'",
        ),
        (dict(gate=dict(kind="pixel", share=1.0)), r"config\.gate\.share: unknown key; valid: blur, kind"),
        (
            dict(other=dict(blur=True)),
            r"config\.other\.kind: missing; expected the name of a gate; valid: all",
        ),
        (dict(gate=3), r"config\.gate: expected a section with keys, got 3"),
        (dict(each=dict(pixels={})), r"config\.each\.pixels: there is no task 'pixels'"),
        (dict(task="tpok"), r"config\.task: there is no task 'tpok'; did you mean 'topk'"),
        (dict(task="topk"), r"config\.options\.value: missing; expected one of 1, 2"),
    ],
)
def test_mistakes_in_such_a_section(section, message):
    with pytest.raises(UserError, match=message):
        from_config(Model, section)


def test_merge_reaches_into_sections_and_replaces_another_entry():
    section = dict(gate=dict(kind="topk", share=0.3), mesh=dict(data=2), task="pixel")
    changes = dict(gate=dict(share=0.4), mesh=dict(model=3))
    replaced: list[str] = []
    assert merge(Model, section, changes, "config", replaced) == dict(
        gate=dict(kind="topk", share=0.4), mesh=dict(data=2, model=3), task="pixel"
    )
    other = merge(Model, section, dict(gate=dict(kind="pixel", blur=True)), "config", replaced)
    assert other["gate"] == dict(kind="pixel", blur=True)
    assert replaced == ["config.gate.share", "config.gate.kind", "config.gate.share"]
    assert section["gate"] == dict(kind="topk", share=0.3)
    assert merge(Model, dict(other=None), dict(other=dict(kind="topk")), "", [])["other"] == dict(kind="topk")


def test_unread_values_are_those_that_differ_from_the_default():
    model = from_config(Model, dict(gate=dict(kind="all", share=0.3), other=dict(kind="all")))
    assert list(unread(model, "config")) == [("config.gate.share", 0.3, "kind 'all' takes all")]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("name", "3", "3"),
        ("steps", "3", 3),
        ("multipliers", "(('a', 1),)", (("a", 1.0),)),
    ],
)
def test_the_field_decides_what_a_given_text_is(key, text, value):
    built = from_config(Stage, {"name": "x", "steps": 1, key: Given(text)})
    assert getattr(built, key) == value
    assert type(getattr(built, key)) is type(value)


def test_given_texts_of_choices_and_unions():
    assert from_config(Stride, {"value": Given("2")}).value == 2
    training = from_config(
        Training,
        section(optimizer=Given("adamw"), warm=Given("true"), clip=Given("none"), learning_rate=Given("1")),
    )
    assert (training.optimizer, training.warm, training.clip, training.learning_rate) == (
        "adamw",
        True,
        None,
        1.0,
    )
    with pytest.raises(UserError, match=r"config\.steps: expected int, got 'four' \(str\)"):
        from_config(Stage, {"name": "x", "steps": Given("four")})


@dataclasses.dataclass(frozen=True)
class Lists:
    words: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()
    choices: tuple[Literal["a", "b"], ...] = ()
    optional: tuple[int, ...] | None = None
    pair: tuple[int, int] = (1, 2)
    stages: tuple[Stage, ...] = ()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("words", "boundaries", ("boundaries",)),
        ("words", "'boundaries'", ("boundaries",)),
        ("words", "('boundaries')", ("boundaries",)),
        ("words", "('boundaries',)", ("boundaries",)),
        ("words", "depth,normals", ("depth", "normals")),
        ("words", "3", ("3",)),
        ("words", "()", ()),
        ("numbers", "0.5", (0.5,)),
        ("numbers", "1,2", (1.0, 2.0)),
        ("choices", "b", ("b",)),
        ("optional", "4", (4,)),
        ("optional", "none", None),
    ],
)
def test_a_tuple_of_one_needs_no_brackets(key, text, value):
    assert getattr(from_config(Lists, {key: Given(text)}), key) == value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("words", Given("('a'"), r"config\.words: expected tuple\[str, \.\.\.\], got"),
        ("words", Given(""), r"config\.words: expected tuple\[str, \.\.\.\], got ''"),
        (
            "words",
            "a",
            r"config\.words: expected tuple\[str, \.\.\.\], got 'a'",
        ),  # of a file, not a command line
        ("numbers", Given("a"), r"config\.numbers\[0\]: expected float, got 'a'"),
        ("choices", Given("c"), r"config\.choices\[0\]: expected one of 'a', 'b', got 'c'"),
        ("pair", Given("3"), r"config\.pair: expected tuple\[int, int\], got 3"),
        ("stages", Given("3"), r"config\.stages: expected tuple"),
    ],
)
def test_what_is_no_tuple_of_one(key, value, message):
    with pytest.raises(UserError, match=message):
        from_config(Lists, {key: value})


def test_json_has_every_default():
    assert to_json(from_config(Stage, {"name": "x", "steps": 1})) == {
        "name": "x",
        "steps": 1,
        "multipliers": [],
    }
    given = Given("4")
    from_config(Stage, {"name": "x", "steps": given})
    assert to_json({"size": (1, 2), "steps": given}) == {"size": [1, 2], "steps": 4}

"""Tables that users can extend."""

from __future__ import annotations

import math

import pytest

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.registry import Registry


@pytest.fixture
def table() -> Registry[object]:
    return Registry("function", {"root": "math:sqrt", "length": len})


def test_names_and_imports(table):
    assert table.resolve("root", "config.f") is math.sqrt
    assert table.resolve("length", "config.f") is len
    assert table.resolve("math:floor", "config.f") is math.floor
    assert list(table) == ["root", "length"]


def test_registering_adds_and_replaces(table):
    table.register("length", "math:fsum")
    table.register("power", pow)
    assert table.resolve("length", "config.f") is math.fsum
    assert table.resolve("power", "config.f") is pow
    assert len(table) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rot", r"config\.f: there is no function 'rot'; did you mean 'root'"),
        ("no_such_module:f", r"config\.f: cannot import 'no_such_module'"),
        (":sqrt", r"config\.f: ':sqrt' names no module; expected package\.module:Name"),
        (".math:sqrt", r"config\.f: '\.math:sqrt' names no module"),
        ("math:sqr", r"config\.f: module 'math' has no 'sqr'; did you mean 'sqrt'"),
    ],
)
def test_what_there_is_not(table, name, message):
    with pytest.raises(UserError, match=message):
        table.resolve(name, "config.f")


def test_whatever_a_module_raises_names_it(table, tmp_path, monkeypatch):
    (tmp_path / "my_broken.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"config\.f: cannot import 'my_broken' .*: ZeroDivisionError"):
        table.resolve("my_broken:f", "config.f")

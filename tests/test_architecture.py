"""The house rules of docs/architecture.md, enforced: what may import what, and how long a file may be."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynpix_jax.cli.common import EXTRA_OF

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "dynpix_jax"
MAX_LINES = 450

# Folder or module of the package -> the folders it may import (its own is always allowed): of lower levels,
# and of its own level those neighbours that docs/architecture.md names. The longest name that fits counts. A
# module that a string names ("dynpix_jax.nn.gates:PixelGate", as tables do) counts as imported.
LEVELS_0_2 = {"core", "ops", "nn"}
LEVELS_0_3 = LEVELS_0_2 | {"backbones", "tasks", "flops"}
LEVELS_0_4 = LEVELS_0_3 | {"papers", "data", "weights"}
MAY_IMPORT = {
    "core": set(),
    "configs": {"core"},
    "ops": {"core"},
    "nn": {"core", "ops"},
    "backbones": LEVELS_0_2,
    "tasks": {"core", "ops"},
    "flops": LEVELS_0_2,
    "papers": LEVELS_0_3,
    "data": {"core"},
    "weights": {"core", "backbones"},
    "run_config": LEVELS_0_4,
    "training": LEVELS_0_4 | {"run_config"},
    "evaluation": LEVELS_0_4 | {"run_config"},
    "evaluation.reproduce": LEVELS_0_4 | {"training", "run_config"},
    "visualization": LEVELS_0_4,
    "serving": LEVELS_0_4 | {"run_config", "training", "evaluation", "visualization"},
    "bench": LEVELS_0_4 | {"run_config", "training", "evaluation"},
    "cli": LEVELS_0_4 | {"run_config", "training", "evaluation", "visualization", "serving", "bench"},
}
# Module -> folders that its strings may name, and its imports not: tables of what each paper has.
MAY_NAME = {"weights.importer": {"papers"}}
NAMED = re.compile(rf"{PACKAGE}(\.\w+)+\.?(:\w*)?")
EVERYTHING = {name for name in MAY_IMPORT if "." not in name}

# Third-party packages by the name that is imported. Levels 0 to 3 run on the core alone.
CORE = {"jax", "flax", "optax", "numpy", "ml_collections"}
THIRD_PARTY = {
    "core": CORE,
    "ops": CORE,
    "nn": CORE,
    "backbones": CORE,
    "papers": CORE,
    "tasks": CORE,
    "flops": CORE,
    "data": {
        *("numpy", "scipy", "cv2", "PIL", "h5py", "grain", "array_record", "tensorflow_datasets"),
        *("ml_collections", "absl"),
    },
    "training": CORE | {"grain", "orbax", "tensorboardX", "rich", "absl"},
    "evaluation": CORE | {"scipy", "cv2", "PIL", "rich"},
    "visualization": CORE | {"cv2", "PIL", "matplotlib"},
    "weights": CORE | {"safetensors", "scipy", "h5py"},
    "serving": CORE | {"cv2"},
    "bench": CORE | {"matplotlib"},
    "cli": CORE | {"rich", "absl", "cv2", "PIL", "grain", "shtab"},
    "run_config": CORE,
}
# Packages that one module alone imports, where they are installed; nothing depends on them.
OPTIONAL = {
    "bench.runtimes": {"onnx", "onnxruntime", "openvino", "torch"},
    "bench.torch_conv": {"torch"},
    "training.wandb_writer": {"wandb"},
}
ENTRY_POINTS = ("train.py", "eval.py")
CONFIG_MAY_IMPORT = {"core", "configs"}
TOOLS_LIBRARIES = {"numpy", "cv2", "jinja2", "mkdocs", "tools"}
TOOLS_MAY_IMPORT = {"core", "data", "cli", "evaluation", "serving", "tasks", "visualization"}
# Data loading runs in processes that must not start jax: of level 0 it uses what is free of it.
NO_JAX_MODULES = {
    "core.errors",
    "core.configs",
    "core.registry",
    "core.sections",
    "core.source",
    "core.augmentation",
    "core.locks",
    "core.memory",
    "core.text",
}

# Names as imported -> names as installed, where they differ.
DISTRIBUTIONS = {
    "absl": "absl-py",
    "array_record": "array-record",
    "cv2": "opencv-python-headless",
    "ml_collections": "ml-collections",
    "orbax": "orbax-checkpoint",
    "PIL": "pillow",
    "tensorflow_datasets": "tensorflow-datasets",
}


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, also inside functions and by a constant `import_module`.

    Modules of the package that strings name are those of `named`.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            # `from a.b import c` may mean the module a.b.c: the longest name tells most.
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            text = _text(node.args[0])
            if name in ("import_module", "__import__") and text and not NAMED.fullmatch(text):
                yield node.lineno, text


def named(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every string that names a module of the package, or begins a name (f-strings).

    The program of a process (``python -m NAME``) is none: it is not imported.
    """
    tree = ast.parse(source)
    programs = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple | ast.List):
            for flag, program in itertools.pairwise(node.elts):
                if isinstance(flag, ast.Constant) and flag.value == "-m":
                    programs.add(program)
    for node in ast.walk(tree):
        text = _text(node)
        if NAMED.fullmatch(text) and node not in programs:
            yield node.lineno, text.partition(":")[0].rstrip(".")


def _text(node: ast.AST) -> str:
    """The string that a node is; "" if it is none."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def violations(root: Path) -> list[str]:
    """Every breach of the rules in the tree at `root`, as "file:line: what"."""
    found = []
    for file in sorted((root / PACKAGE).rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        place = module.split(".")[1] if "." in module else ""
        if place and place not in MAY_IMPORT:
            found.append(
                f"{module}: '{place}' is on no level; add it to the table in tests/test_architecture.py"
            )
            continue
        inside = _rule(module) | {place}
        outside = THIRD_PARTY.get(place, set()) | OPTIONAL.get(module.removeprefix(f"{PACKAGE}."), set())
        found += _check_file(root, file, module, is_package, inside, outside)
    for file in [root / name for name in ENTRY_POINTS]:
        if file.is_file():
            found += _check_file(root, file, file.stem, False, EVERYTHING, THIRD_PARTY["cli"])
    for file in sorted((root / "configs").rglob("*.py")):
        module = ".".join(file.relative_to(root).with_suffix("").parts)
        found += _check_file(root, file, module, False, CONFIG_MAY_IMPORT, {"ml_collections", "configs"})
    for file in sorted((root / "tools").rglob("*.py")):
        module = ".".join(file.relative_to(root).with_suffix("").parts)
        found += _check_file(root, file, module, False, TOOLS_MAY_IMPORT, TOOLS_LIBRARIES)
    for folder in (PACKAGE, "configs", "tests", "tools"):
        for file in sorted((root / folder).rglob("*.py")):
            lines = len(file.read_text().splitlines())
            if lines > MAX_LINES:
                found.append(
                    f"{file.relative_to(root)}: {lines} lines, at most {MAX_LINES}; split it by idea"
                )
    return found


def _rule(module: str) -> set[str]:
    names = module.split(".")[1:]
    if not names:
        return {"serving"}  # the package itself: `dynpix_jax.load`
    prefixes = [".".join(names[:n]) for n in range(len(names), 0, -1)]
    return next((MAY_IMPORT[prefix] for prefix in prefixes if prefix in MAY_IMPORT), set())


def _check_file(
    root: Path, file: Path, module: str, is_package: bool, inside: set[str], outside: set[str]
) -> Iterator[str]:
    for line, name in imports(file.read_text(), module, is_package):
        where = f"{file.relative_to(root)}:{line}"
        top, _, rest = name.partition(".")
        if top in sys.stdlib_module_names:
            continue
        if top == "tensorflow":
            yield f"{where}: TensorFlow is never imported"
        elif top != PACKAGE:
            if top not in outside and not (top == "configs" and module in map(_stem, ENTRY_POINTS)):
                yield f"{where}: may not import '{top}' here"
        elif (folder := rest.split(".")[0]) in EVERYTHING and folder not in inside:
            yield f"{where}: may not import '{PACKAGE}.{folder}' here: imports only point down the levels"
        elif module.startswith(f"{PACKAGE}.data") and folder == "core" and not _free_of_jax(rest):
            yield f"{where}: data uses no jax, and '{name}' imports it"
    inside = inside | MAY_NAME.get(module.removeprefix(f"{PACKAGE}."), set())
    for line, name in named(file.read_text()):
        where, folder = f"{file.relative_to(root)}:{line}", name.split(".")[1]
        if folder in EVERYTHING and folder not in inside:
            yield f"{where}: may not name '{PACKAGE}.{folder}' here: imports only point down the levels"


def _free_of_jax(rest: str) -> bool:
    return any(f"{rest}.".startswith(f"{allowed}.") for allowed in NO_JAX_MODULES)


def _stem(name: str) -> str:
    return Path(name).stem


def test_imports_point_down_and_files_are_short():
    found = violations(ROOT)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "dynpix_jax/ops/a.py",
            "from dynpix_jax.nn import conv",
            "ops/a.py:1: may not import 'dynpix_jax.nn'",
        ),
        ("dynpix_jax/ops/a.py", "import dynpix_jax.training.loop", "may not import 'dynpix_jax.training'"),
        ("dynpix_jax/ops/a.py", "from dynpix_jax import papers", "may not import 'dynpix_jax.papers'"),
        ("dynpix_jax/ops/p/a.py", "from ...nn import conv", "may not import 'dynpix_jax.nn'"),
        ("dynpix_jax/ops/p/__init__.py", "from ... import nn", "may not import 'dynpix_jax.nn'"),
        ("dynpix_jax/backbones/a.py", "from dynpix_jax import tasks", "may not import 'dynpix_jax.tasks'"),
        ("dynpix_jax/nn/a.py", "def f():\n  import grain", "nn/a.py:2: may not import 'grain'"),
        (
            "dynpix_jax/tasks/a.py",
            "import importlib as i\ni.import_module('scipy.io')",
            "may not import 'scipy'",
        ),
        (
            "dynpix_jax/weights/a.py",
            "NAMES = {'a': 'dynpix_jax.papers.pag.weight_names:published'}",
            "weights/a.py:1: may not name 'dynpix_jax.papers'",
        ),
        ("dynpix_jax/weights/a.py", "f'dynpix_jax.papers.{x}.y'", "may not name 'dynpix_jax.papers'"),
        ("dynpix_jax/weights/importer.py", "f'dynpix_jax.tasks.{x}'", "may not name 'dynpix_jax.tasks'"),
        (
            "dynpix_jax/weights/importer.py",
            "from dynpix_jax.papers import pag",
            "may not import 'dynpix_jax.papers'",
        ),
        (
            "dynpix_jax/ops/a.py",
            "import importlib as i\ni.import_module('dynpix_jax.nn.gates')",
            "ops/a.py:2: may not name 'dynpix_jax.nn'",
        ),
        ("dynpix_jax/data/a.py", "import jax.numpy as jnp", "may not import 'jax'"),
        ("dynpix_jax/data/a.py", "from dynpix_jax.core import rng", "data uses no jax"),
        ("dynpix_jax/training/a.py", "import tensorflow.data", "TensorFlow is never imported"),
        ("dynpix_jax/training/a.py", "import torch", "may not import 'torch'"),
        ("dynpix_jax/bench/a.py", "import torch", "may not import 'torch'"),
        ("dynpix_jax/training/a.py", "from dynpix_jax.cli import common", "may not import 'dynpix_jax.cli'"),
        ("dynpix_jax/attic/a.py", "", "'attic' is on no level"),
        ("configs/a.py", "import dynpix_jax.papers", "may not import 'dynpix_jax.papers'"),
        ("tools/a/b.py", "import dynpix_jax.training", "may not import 'dynpix_jax.training'"),
        ("dynpix_jax/data/a.py", "from tools import annotate_panorama", "may not import 'tools'"),
        ("train.py", "import tensorflow", "TensorFlow is never imported"),
        ("dynpix_jax/ops/a.py", "\n" * (MAX_LINES + 1), "451 lines, at most 450"),
        ("tests/ops/test_a.py", "\n" * (MAX_LINES + 1), "451 lines, at most 450"),
    ],
)
def test_a_planted_violation_is_caught(tmp_path, file, text, message):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    (found,) = violations(tmp_path)
    assert message in found


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "dynpix_jax/ops/a.py",
            "import math\nimport jax\nfrom . import b\nfrom dynpix_jax.core.errors import UserError",
        ),
        ("dynpix_jax/ops/p/__init__.py", "from .api import f\nfrom ..conv import conv"),
        (
            "dynpix_jax/data/a.py",
            "import grain\nfrom dynpix_jax.core.sections import from_config\nfrom . import b",
        ),
        ("dynpix_jax/training/a.py", "import dynpix_jax\nfrom dynpix_jax import __version__, papers"),
        ("dynpix_jax/papers/a.py", "from dynpix_jax.tasks import boundaries"),
        ("dynpix_jax/weights/importer.py", "f'dynpix_jax.papers.{x}.weight_names:published'"),
        ("dynpix_jax/bench/a.py", "PROGRAM = ('python', '-m', 'dynpix_jax.cli.main', 'train')"),
        ("dynpix_jax/ops/a.py", "'dynpix_jax.nn has a layer for this.'"),
        ("train.py", "from dynpix_jax.training.loop import train"),
        ("configs/pag/a.py", "import ml_collections\nfrom . import recipe"),
    ],
)
def test_what_is_allowed_passes(tmp_path, file, text):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert violations(tmp_path) == []


def declared(requirements: list[str]) -> set[str]:
    """Names of packages, in small letters."""
    return {re.split(r"[<>=\[ ]", requirement)[0].lower() for requirement in requirements}


def test_every_third_party_package_is_declared_and_no_other():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    core, training = declared(project["dependencies"]), declared(extras["train"])
    used = {DISTRIBUTIONS.get(name, name).lower() for names in THIRD_PARTY.values() for name in names}
    assert not core & training
    assert core | training == used
    # What the lower levels need comes with a plain install.
    assert {DISTRIBUTIONS.get(name, name).lower() for name in CORE} <= core
    # A command that lacks a package of an extra names the extra.
    assert training <= {DISTRIBUTIONS.get(name, name).lower() for name in EXTRA_OF}
    for name, extra in EXTRA_OF.items():
        assert DISTRIBUTIONS.get(name, name).lower() in declared(extras[extra])


LEVELS = ("core", "ops", "nn", "backbones", "tasks", "papers")
# Commands that need no extra.
COMMANDS = (
    "check_config",
    "completion",
    "config",
    "demo",
    "export",
    "flops",
    "import_weights",
    "models",
    "predict",
)


# What the extra `train` brings, and nothing else does; a plain install has none of it.
TRAIN_ONLY = "grain array_record tensorflow_datasets tensorboardX h5py flatbuffers"
BLOCKER = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED.split():
            raise ModuleNotFoundError(f"{name} is blocked by this test", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run_without(blocked: str, program: str, *options: str) -> subprocess.CompletedProcess[str]:
    """A process in which importing the `blocked` packages fails."""
    return subprocess.run(
        [sys.executable, *options, "-c", f"BLOCKED = {blocked!r}\n{BLOCKER}{program}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_plain_install_completes_commands_and_shows_their_help():
    program = """
from dynpix_jax.cli.main import COMMANDS, main

assert main(["completion", "bash"]) == 0
for command in COMMANDS:
    try:
        main([command, "--help"])
    except SystemExit as end:
        assert end.code == 0
"""
    result = run_without(TRAIN_ONLY, program)
    assert result.returncode == 0, result.stderr
    assert "complete -" in result.stdout
    # Options of the commands that need the extra.
    for option in ("--accept-changed-data", "--verify", "--batches", "--workdir"):
        assert option in result.stdout


def test_a_plain_install_names_the_extra_that_a_command_needs():
    program = """
from dynpix_jax.cli.main import main

sys.exit(main(["train", "--config=quickstart.py", "--workdir=never-made"]))
"""
    result = run_without(TRAIN_ONLY, program)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.endswith("which is not installed: pip install 'dynpix_jax[train]'\n")
    assert not (ROOT / "never-made").exists()


@pytest.mark.parametrize(
    ("blocked", "modules"),
    [
        ("grain orbax cv2 matplotlib PIL tensorflow_datasets tensorboardX h5py safetensors", LEVELS),
        (TRAIN_ONLY, ("serving", *(f"cli.{command}" for command in COMMANDS))),
    ],
    ids=["core", "plain install"],
)
def test_modules_import_without_packages_that_they_do_not_need(blocked, modules):
    program = f"""
for name in {modules}:
    module = importlib.import_module(f"{PACKAGE}.{{name}}")
    for info in pkgutil.walk_packages(getattr(module, "__path__", ()), module.__name__ + "."):
        importlib.import_module(info.name)
    assert module.__name__ in sys.modules
"""
    result = run_without(blocked, program, "-W", "error")
    assert result.returncode == 0, result.stderr

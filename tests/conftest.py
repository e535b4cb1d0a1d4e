"""Settings for all tests: CPU, parsed flags, quick hypothesis runs, and the folder with real data."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before jax is imported by any test. Set JAX_PLATFORMS to test on another device.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The older emitters of XLA for CPUs compile in less than half of the time. XLA_FLAGS="" has those of users.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
# Tests write nothing into the user's home.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")

import hypothesis
import jax
import pytest
from absl import flags

from tests.tiny import SHORT_CONFIG, TinyRun

ROOT = Path(__file__).resolve().parents[1]

# What jax keeps of traced programs is alive; to go through it again and again takes a quarter of the time.
gc.set_threshold(100_000, 50, 100)

# grain 0.2.18 reads an absl flag in `mp_prefetch` and raises if no absl app has parsed the command line
# (grain issue 1355).
flags.FLAGS.mark_as_parsed()

# Derandomized: a failure in one run is a failure in all, on every machine. No deadline: first
# calls compile.
hypothesis.settings.register_profile(
    "dynpix",
    deadline=None,
    derandomize=True,
    max_examples=15,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("dynpix")

QUICKLY = "JAX_DISABLE_MOST_OPTIMIZATIONS"
CHOSEN = os.environ.get(QUICKLY)
LONGEST = (
    "test_notebooks.py",
    "test_sparse_systems.py",
    "test_gated.py",
    "test_anytime.py",
    "test_gate_and_backbone.py",
    "test_astmt.py",
    "test_perspective.py",
    "test_mdeq.py",
    "test_resume.py",
    "test_configs.py",
    "test_tasks.py",
    "test_pag.py",
)
"""Files that take longest. They begin first: no process is to be left alone with one in the end."""


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist would begin with the files that have the most tests.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Programs of tests run a few times and are not worth optimizing, which is most of the time of compiling,
    which is most of all time. The same goes for the processes that tests start. With
    JAX_DISABLE_MOST_OPTIMIZATIONS=0 all are compiled as users' are.
    """
    if CHOSEN is None:
        long = any(item.get_closest_marker(name) for name in ("slow", "aot", "gpu", "tpu"))
        quickly = not long and os.environ["JAX_PLATFORMS"] == "cpu"
        os.environ[QUICKLY] = str(int(quickly))
        jax.config.update(QUICKLY.lower(), quickly)


def resident() -> int:
    """Bytes of memory that this process has; 0 where the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


@pytest.fixture(scope="session")
def most_memory() -> list[int]:
    """Bytes with which a process forgets what it has compiled before it goes on to another file."""
    return [2 * 2**30]


@pytest.fixture(scope="module", autouse=True)
def bounded_memory(most_memory: list[int]) -> Iterator[None]:
    """What jax keeps of the programs of one file serves few others, and adds up to gigabytes."""
    yield
    if resident() > most_memory[0]:
        jax.clear_caches()
        gc.collect()
        # What cannot be given back must not make every file forget what it could share.
        most_memory[0] = max(most_memory[0], resident() + 2**30)


OFF_CPU = jax.make_user_context(False)
"""Part of the key of what jax keeps: no other test meets a program traced so."""


@pytest.fixture
def off_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is compiled in this test is, on a CPU too, the program that other platforms get."""

    def default_of(*arguments: Any, default: Callable[..., Any], **_: Any) -> Any:
        return default(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", default_of)
    with OFF_CPU(True):
        yield


@pytest.fixture(params=["cpu", "other"])
def platform(request: pytest.FixtureRequest) -> str:
    """Runs a test twice: as on a CPU, and as on any other platform."""
    if request.param == "other":
        request.getfixturevalue("off_cpu")
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A tiny gated network, trained for two steps in each of two stages; a copy for each process."""
    from dynpix_jax.cli import train  # takes seconds, also in the process that starts those of pytest-xdist

    folder = tmp_path_factory.getbasetemp()
    # The folder above is that of one run of pytest, and of all its processes.
    common = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    trained = common / "tiny"
    with (common / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (trained / "done").exists():
            trained.mkdir(exist_ok=True)
            (trained / "tiny.py").write_text(SHORT_CONFIG)
            config, workdir = trained / "tiny.py", trained / "run"
            assert train.main([f"--config={config}", f"--workdir={workdir}"]) == 0
            (trained / "done").touch()
    copy = tmp_path_factory.mktemp("tiny")
    shutil.copytree(trained, copy, dirs_exist_ok=True)
    return TinyRun(copy / "tiny.py", copy / "run")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and weights: $DYNPIX_SHARED, or `../shared` beside the repository."""
    folder = Path(os.environ.get("DYNPIX_SHARED", ROOT.parent / "shared")).resolve()
    if not folder.is_dir():
        pytest.skip(
            f"real data not found at {folder}; set DYNPIX_SHARED to the folder that holds data/ and weights/"
        )
    return folder

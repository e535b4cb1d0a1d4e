from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from dynpix_jax.evaluation import timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what programs add to it, in seconds."""
    now = SimpleNamespace(time=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now.time))
    return now


def test_medians_and_percentiles_of_interleaved_runs(clock):
    order = []

    def program(name, seconds):
        given = iter(seconds)

        def run():
            order.append(name)
            clock.time += next(given)
            return jnp.zeros(2)

        return run

    # The first second is the compilation. Quantiles of 0, 1, ..., 10 are their own positions.
    eleven = [0.010, 0.004, 0.0, 0.001, 0.002, 0.003, 0.005, 0.006, 0.007, 0.008, 0.009]
    slow, fast = timing.interleaved_medians([program("a", [1.0, *eleven]), program("b", [1.0] * 12)], runs=11)
    assert [slow.median, slow.p10, slow.p90] == pytest.approx([5.0, 1.0, 9.0])
    assert [fast.median, fast.p10, fast.p90] == pytest.approx([1000.0] * 3)
    assert str(slow) == "5 (1-9)"
    assert str(timing.Timing(1234.5, 999.4, 1300.1, 990.0)) == "1234 (999-1300)"
    # In turn, every other round backwards.
    assert "".join(order) in ("abba" * 6, "baab" * 6)


def test_calls_in_a_row_are_one_measurement(clock):
    count = SimpleNamespace(n=0)

    def run():
        count.n += 1
        clock.time += 0.003

    (taken,) = timing.interleaved_medians([run], runs=2, warmup=0, calls=5)
    assert count.n == 10
    assert taken.median == pytest.approx(3.0)


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"runs": 1, "calls": 0}, {"runs": 1, "warmup": -1}])
def test_wrong_counts(wrong):
    with pytest.raises(ValueError, match="interleaved_medians"):
        timing.interleaved_medians([lambda: None], **wrong)


def test_it_needs_jax_and_numpy_alone():
    """A machine that only measures kernels has nothing else installed."""
    program = (
        "import sys, dynpix_jax.evaluation.timing\n"
        "print(sorted({'flax', 'orbax', 'grain', 'cv2', 'optax'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"

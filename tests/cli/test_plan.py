"""`dynpix plan`: what it reads and prints; with the compiler, a tiny step that is compiled for a TPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dynpix_jax.cli import main
from dynpix_jax.cli import plan as command
from dynpix_jax.cli.plan import describe, duration, hours, row
from dynpix_jax.core.config import RunConfig
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.settings import MeshConfig
from dynpix_jax.run_config import read_run
from dynpix_jax.training import checks
from dynpix_jax.training import plan as planned
from dynpix_jax.training.checks import stage_system
from dynpix_jax.training.plan import Plan, abstract_batch, image_size, smaller
from dynpix_jax.training.program import collectives, estimated_cycles, repetition
from dynpix_jax.training.sharding import make_mesh
from dynpix_jax.training.slices import CHIPS, H100, Slice, parse_slice
from tests.tiny import SHORT_CONFIG

PROGRAM = """
  %all-reduce.1 = f32[64,3]{1,0} all-reduce(f32[64,3]{1,0} %a), replica_groups={{0,1}}, to_apply=%add
  all-reduce.2 = (f32[512,512]{1,0}, bf16[7]{0}) all-reduce(%b, %c), channel_id=1
  ROOT %permute = pred[2,5]{1,0} collective-permute(pred[2,5]{1,0} %d), source_target_pairs={{0,1}}
  %sum = f32[64]{0} add(f32[64]{0} %all-reduce.1, f32[64]{0} %e)
"""


def test_slices() -> None:
    assert parse_slice("v5e-16") == Slice("v5e", (4, 4)) == parse_slice("v5e:4x4")
    assert parse_slice("v5e-8").sides == (2, 4)
    assert parse_slice("v6e-1").chips == 1
    assert parse_slice("v5p-4").sides == (2, 2, 1)  # the names that libtpu knows
    assert parse_slice("v5p-16").sides == (2, 2, 4)
    # Google's page of v5e: 197 TFLOPS of bf16, 819 GB/s, 16 GB.
    assert CHIPS["v5e"].intensity == pytest.approx(240.5, abs=0.1)
    for wrong in ("v5e", "v5e-12", "v9-4", "v5e:2x2x1", "v5e-0"):
        with pytest.raises(UserError, match=f"--topology {wrong}: "):
            parse_slice(wrong)


def test_collectives_of_a_program() -> None:
    found = collectives(PROGRAM)
    assert set(found) == {"all-reduce", "collective-permute"}
    reduced, permuted = found["all-reduce"], found["collective-permute"]
    assert (reduced.count, reduced.bytes, reduced.small) == (2, 64 * 3 * 4 + 512 * 512 * 4 + 7 * 2, 1)
    assert (permuted.count, permuted.bytes, permuted.small) == (1, 10, 1)


# As libtpu and XLA for GPUs write them, without what follows the operands.
ASYNCHRONOUS = """
%fused_computation.5 (param_0: bf16[1,64,1024]) -> (bf16[1,64,1024], bf16[1,1024,1024], s32[2]) {
  %param_0 = bf16[1,64,1024]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.16 = bf16[1,1024,1024]{2,1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=4, dimensions={1}
  ROOT %custom-call.2 = (bf16[1,64,1024]{2,1,0:T(8,128)(2,1)S(1)}, \
bf16[1,1024,1024]{2,1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}) custom-call(%all-gather.16), \
custom_call_target="AsyncCollectiveStart"
}

%fused_computation.6 (param_0.35: bf16[1,64,1024]) -> bf16[1,1024,1024] {
  %all-gather.20 = bf16[1,1024,1024]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.35), channel_id=4, \
dimensions={1}
  ROOT %custom-call.4 = bf16[1,1024,1024]{2,1,0} custom-call(%all-gather.20), \
custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: bf16[256,1024]) -> bf16[256,1024] {
  %async-collective-start = (bf16[1,64,1024]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,1024,1024]{2,1,0}, \
s32[2]{0:S(4)}) fusion(%p), kind=kCustom, calls=%fused_computation.5
  %async-collective-done = bf16[1,1024,1024]{2,1,0} fusion(%g), kind=kCustom, calls=%fused_computation.6
  %collective-permute-start.1 = (bf16[256,1024]{1,0:T(8,128)(2,1)S(1)}, \
bf16[256,1024]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%fusion.12), \
channel_id=1, source_target_pairs={{0,1},{1,0}}
  %collective-permute-done.1 = bf16[256,1024]{1,0} collective-permute-done(%collective-permute-start.1)
  %all-gather-start = ((f32[4]{0}, f32[2,3]{1,0}), (f32[16]{0}, f32[8,3]{1,0})) all-gather-start(%a, %b), \
dimensions={0}
  %all-gather-done = (f32[16]{0}, f32[8,3]{1,0}) all-gather-done(%all-gather-start)
  %all-reduce-start = (f32[7]{0}, f32[5]{0}) all-reduce-start(%c, %d), to_apply=%add
  %all-reduce-done = (f32[7]{0}, f32[5]{0}) all-reduce-done(%all-reduce-start)
}
"""


def test_asynchronous_collectives_count_once() -> None:
    """By their results: what they start with is among the values that a start holds, fused or not."""
    found = {kind: (one.count, one.bytes) for kind, one in collectives(ASYNCHRONOUS).items()}
    assert found == {
        "all-gather": (2, 1024 * 1024 * 2 + (16 + 8 * 3) * 4),
        "collective-permute": (1, 256 * 1024 * 2),
        "all-reduce": (1, (7 + 5) * 4),
    }


def test_loops_of_a_program() -> None:
    """As XLA writes them: a loop of 4 turns, in it one of 3 turns, and a fusion."""
    inner = "  %body.inner (p: f32[8]) -> f32[8] {\n    %g = f32[8]{0} all-gather(f32[2]{0} %q)\n  }\n"
    program = f"""
%fused (p: f32[8]) -> f32[8] {{
  ROOT %m = f32[8]{{0}} multiply(f32[8]{{0}} %p, f32[8]{{0}} %p)
}}
{inner.replace("  ", "", 1).replace("  }", "}")}
%body.1 (t: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %r = f32[8]{{0}} all-reduce(f32[8]{{0}} %v), to_apply=%add
  %w = f32[8]{{0}} while(%r), body=%body.inner, backend_config={{"known_trip_count":{{"n":"3"}}}}
}}
ENTRY %main (a: f32[8]) -> f32[8] {{
  %f = f32[8]{{0}} fusion(f32[8]{{0}} %a), kind=kLoop, calls=%fused
  %while.2 = (s32[], f32[8]{{0}}) while(%t), body=%body.1, backend_config={{"known_trip_count":{{"n":"4"}}}}
}}
"""
    found = collectives(program)
    assert (found["all-reduce"].count, found["all-gather"].count) == (4, 12)
    assert repetition(program) == pytest.approx((1 + 4 + 12) / 3)  # all of the same size


# As libtpu writes loops and cycles: the number of turns stands in the condition alone.
TPU_LOOPS = """
%fused_computation.1 (param_0.1: f32[8]) -> f32[8] {
  ROOT %multiply.1 = f32[8]{0:T(128)} multiply(%param_0.1, %param_0.1)
}

%wide.region_2.3_spmd (wide.param.1: (s32[], f32[8])) -> pred[] {
  %constant.7 = s32[]{:T(128)} constant(9)
  %constant.556.clone.1 = s32[]{:T(128)} constant(5)
  %wide.param.1 = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) parameter(0)
  %get-tuple-element.5149 = s32[]{:T(128)} get-tuple-element(%wide.param.1), index=0
  ROOT %lt.56 = pred[]{:T(512)} compare(%get-tuple-element.5149, %constant.556.clone.1), direction=LT, \
metadata={op_name="jit(step)/while/cond/lt"}
}

%wide.region_1.2_spmd.sunk (wide.param.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.9 = f32[8]{0:T(128)} fusion(%p), kind=kLoop, calls=%fused_computation.1, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %all-reduce.3 = f32[8]{0:T(128)} all-reduce(%fusion.9), channel_id=1, to_apply=%add
}

%until.1 (param.3: (pred[], f32[8])) -> pred[] {
  ROOT %get-tuple-element.1 = pred[]{:T(512)} get-tuple-element(%param.3), index=0
}

%solver.1 (param.4: (pred[], f32[8])) -> (pred[], f32[8]) {
  %fusion.10 = f32[8]{0:T(128)} fusion(%q), kind=kLoop, calls=%fused_computation.1, \
backend_config={"estimated_cycles":"7"}
}

ENTRY %main.5_spmd (param: f32[8]) -> f32[8] {
  %fusion.11 = f32[8]{0:T(128)} fusion(%param), kind=kLoop, calls=%fused_computation.1, \
backend_config={"estimated_cycles":"30"}
  %while.208 = (s32[]{:T(128)}, f32[8]{0:T(128)S(1)}) while(%tuple.558), condition=%wide.region_2.3_spmd, \
body=%wide.region_1.2_spmd.sunk, metadata={op_name="jit(step)/while"}
  %while.209 = (pred[]{:T(512)}, f32[8]{0:T(128)}) while(%tuple.559), condition=%until.1, body=%solver.1
}
"""


def test_loops_of_a_program_for_a_tpu() -> None:
    """Five turns of the first loop; the second, which its values end, counts once."""
    assert collectives(TPU_LOOPS)["all-reduce"].count == 5
    assert estimated_cycles(TPU_LOOPS) == 5 * 100 + 7 + 30
    assert estimated_cycles(PROGRAM) == 0


def test_the_batch_of_a_config_without_its_data() -> None:
    run = read_run("configs/pag/nyuv2.py:task=normals,budget=gpu", [])
    assert image_size(run) == (400, 544)
    batch = abstract_batch(run, stage_system(run.stages[0]), (400, 544), make_mesh(run.training.mesh, 8))
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in batch.items()} == {
        "image": ((8, 400, 544, 3), np.uint8),
        "normals": ((8, 400, 544, 3), np.float32),
        "valid": ((8,), np.bool_),
        "index": ((8,), np.int32),
        "size": ((8, 2), np.int32),
    }
    remat = ["training.remat=blocks", "training.remat=stages"]
    changes = smaller(run, 0, parse_slice("v5e-4"))
    assert changes == [*remat, "training.sharding=fsdp", "training.microbatches=2"]
    # There is nothing to share it with, and each chip has one image.
    assert smaller(run, 0, parse_slice("v5e-1")) == [*remat, "training.microbatches=2"]
    assert smaller(run, 0, parse_slice("v5e-8")) == [*remat, "training.sharding=fsdp"]


def test_the_dtype_is_that_of_the_stage(tmp_path: Path) -> None:
    narrow = '"model": {"compute_dtype": "bfloat16", "gate"'
    (tmp_path / "tiny.py").write_text(SHORT_CONFIG.replace('"model": {"gate"', narrow))
    run = read_run(str(tmp_path / "tiny.py"), [])
    dtypes = ["model.compute_dtype=bfloat16" in smaller(run, index, parse_slice("v5e-1")) for index in (0, 1)]
    assert dtypes == [True, False]


@pytest.mark.parametrize(
    ("config", "size", "labels"),
    [
        ("anytime/mpii.py", (256, 256), {"keypoints", "head_size"}),
        ("astmt/bsds_camvid.py", (352, 448), {"boundaries", "segmentation"}),
        ("pixelnet/bsds500.py", (321, 481), {"boundaries"}),
    ],
)
def test_sources_declare_their_labels(config: str, size: tuple[int, int], labels: set[str]) -> None:
    run = read_run(f"configs/{config}:budget=gpu", [])
    assert image_size(run) == size
    shapes = abstract_batch(run, stage_system(run.stages[-1]), size, make_mesh(MeshConfig(), 16))
    assert shapes.keys() == {"image", "valid", "index", "size", *labels}


def test_two_batches_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.py").write_text(SHORT_CONFIG)
    arguments = [f"--config={tmp_path / 'tiny.py'}", "--topology=v5e-4", "--batch=8"]
    assert main.main(["plan", *arguments, "--set", "training.batch_size=4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("--batch and --set training.batch_size say the same; give one of them")


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(2, True, 2**31, 2**29, 1.97e12, 8.19e9, collectives(PROGRAM), 60.0, 2**20, 39_300_000)
    describe(plan, parse_slice("v5e-4"))
    text = capsys.readouterr().out
    assert "fits: peak 2.00 of 16 GiB" in text
    assert "10.0 ms of arithmetic (bfloat16), 10.0 ms of memory traffic" in text
    assert "39.3 million cycles, as the compiler estimates" in text
    assert "2 all-reduce: 1.05 MB, 1 of them below 64 KiB" in text
    describe(Plan(2, False, 2**35), parse_slice("v5e-4"))
    assert "DOES NOT FIT: peak 32.00 of 16 GiB" in capsys.readouterr().out
    assert row("x", Plan(2, False, 2**35)) == ["x", "no", "32.00", "-", "-", "-"]


def test_hours_at_best(tmp_path: Path) -> None:
    """By hand: 2 images a chip, 10 ms of arithmetic and 20 of memory traffic on a v5e; one H100 has all 8."""
    (tmp_path / "tiny.py").write_text(SHORT_CONFIG)
    run = read_run(str(tmp_path / "tiny.py"), [])
    plan = Plan(2, True, 2**31, flops=1.97e12, bytes=16.38e9)
    steps = run.training.total_steps
    found = hours(run, plan, parse_slice("v5e-4"))
    assert found["slice"] == pytest.approx(steps * 0.020 / 3600)
    # 4 * 16.38e9 bytes at 3352e9 a second, above 4 * 1.97e12 operations at 989e12.
    assert found["h100"] == pytest.approx(steps * 0.019547 / 3600, rel=1e-4)
    bound_by_arithmetic = dataclasses.replace(plan, flops=9.89e12)
    assert bound_by_arithmetic.seconds(H100) == pytest.approx(0.010)


def test_durations_need_no_exponent() -> None:
    texts = {1234.4: "1,234 h", 130.0: "130 h", 9.97: "10 h", 2.43: "2.4 h", 0.2: "12 min", 1e-4: "0.36 s"}
    assert {value: duration(value) for value in texts} == texts
    assert duration(0.0) == "0 s"


def test_a_step_that_does_not_fit_has_no_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its work was not counted: no 0 hours."""
    (tmp_path / "tiny.py").write_text(SHORT_CONFIG)
    arguments = ["plan", f"--config={tmp_path / 'tiny.py'}", "--topology=v5e-1"]
    steps = read_run(arguments[1].partition("=")[2], []).training.total_steps
    for fits, found in ((True, {"slice": steps * 0.5, "h100": steps * 0.5 * 197 / 989}), (False, None)):
        plan = Plan(1, fits, 2**34, flops=1800 * 197e12 if fits else 0.0)
        monkeypatch.setattr(command, "plan_step", lambda run, plan=plan, **_: plan)
        assert main.main(arguments) == (not fits)
        text = capsys.readouterr().out
        assert (f"{steps} steps of 1 images, each like this one: at best {steps / 2:g} h;" in text) == fits
        assert main.main([*arguments, "--json"]) == (not fits)
        best = json.loads(capsys.readouterr().out)["hours_at_best"]
        assert best == (found and pytest.approx(found))


def test_without_the_compiler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("libtpu") is not None:
        pytest.skip("libtpu is installed")
    (tmp_path / "tiny.py").write_text(SHORT_CONFIG)
    assert main.main(["plan", f"--config={tmp_path / 'tiny.py'}", "--topology=v5e-4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'dynpix_jax[tpu]'" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.remat=block", r"config.training.remat: .* stage 'base' has no 'block'"),
        ("model.compute_dtype=(('nothing', 'bfloat16'),)", "'nothing' matches no module with parameters"),
    ],
)
def test_what_training_refuses_is_refused(
    change: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is compiled; the memory of this machine does not count."""
    (tmp_path / "tiny.py").write_text(SHORT_CONFIG)
    monkeypatch.setattr(planned, "slice_devices", lambda of: jax.devices()[: of.chips])
    monkeypatch.setattr(checks, "physical_memory", lambda: 1)
    run = read_run(str(tmp_path / "tiny.py"), [change])
    with pytest.raises(UserError, match=message):
        planned.plan_step(run, 1, parse_slice("v5e-1"))


def test_a_suggestion_that_is_refused_loses_its_row_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan_step(run: RunConfig, **_: Any) -> Plan:
        if run.training.remat == "stages":
            raise UserError("there are no stages")
        return Plan(1, fits=run.training.remat == "blocks", peak=2**34)

    (tmp_path / "tiny.py").write_text(SHORT_CONFIG)
    monkeypatch.setattr(command, "plan_step", plan_step)
    arguments = ["plan", f"--config={tmp_path / 'tiny.py'}", "--topology=v5e-1"]
    assert main.main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    rows = {cells[0]: cells[1:] for cells in map(str.split, lines) if cells}
    assert rows["training.remat=blocks"] == ["yes", "16.00", "0.0", "0.00", "-"]
    assert rows["training.remat=stages"] == ["refused", "-", "-", "-", "-"]
    assert lines[-1] == "training.remat=stages: there are no stages"
    assert main.main([*arguments, "--json"]) == 1
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert plans["training.remat=stages"] == {"refused": "there are no stages"}
    assert plans["training.remat=blocks"]["fits"]


@pytest.mark.aot
def test_a_step_for_four_chips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: run `make test-aot`, which installs it beside the environment")
    (tmp_path / "tiny.py").write_text(SHORT_CONFIG)
    arguments = [f"--config={tmp_path / 'tiny.py'}", "--topology=v5e-4", "--batch=8", "--compare", "--json"]
    assert main.main(["plan", *arguments]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert list(plans)[:3] == ["as given", "training.remat=blocks", "training.remat=stages"]
    plain, blocks = plans["as given"], plans["training.remat=blocks"]
    assert plain["images"] == 2
    assert plain["collectives"]["all-reduce"]["count"] > 0
    assert blocks["flops"] > plain["flops"]
    assert 0 < blocks["peak"] < 16 * 2**30
    # Two turns of a loop, each on half of the images: the traffic of both is counted.
    turns = plans["training.microbatches=2"]
    assert turns["cycles"] > 0.9 * plain["cycles"] > 0
    assert turns["bytes"] > 0.9 * plain["bytes"]
    assert jax.default_backend() == "cpu"

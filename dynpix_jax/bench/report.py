"""Jobs measured one after the other, and what is printed of them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import jax

from dynpix_jax.bench.timed import Job, LeftOut, Settings, Timed, measure
from dynpix_jax.core.text import aligned

_HEADS = ("program", "density", "ms (p10-p90)", "time", "MACs", "time / MACs")


def run_jobs(
    jobs: Sequence[Job], settings: Settings, *, as_json: bool, left_out: Sequence[LeftOut] = ()
) -> int:
    """Measures and prints."""
    about = machine() | dataclasses.asdict(settings)
    if not as_json:
        print(_describe(about))
    rows: list[Timed] = []
    for job in jobs:
        measured = measure(job.name, job.programs(), settings.runs, calls=job.calls)
        rows += measured
        if not as_json:
            print(f"\n{job.title}\n{aligned(_HEADS, [_cells(row) for row in measured])}", flush=True)
    if as_json:
        missing = [dataclasses.asdict(out) for out in left_out]
        print(json.dumps(about | {"rows": [row.to_json() for row in rows], "left_out": missing}, indent=2))
        return 0
    for out in left_out:
        if out.asked_for:
            print(f"left out: {out.layer}, {out.label}: {out.reason}")
    return 0


def machine() -> dict[str, Any]:
    """The device, its host's cores and the version of jax."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
    }


def _describe(about: dict[str, Any]) -> str:
    device = f"{about['cores']} CPU cores" if about["platform"] == "cpu" else about["device"]
    passes = "forward and backward" if about["backward"] else "forward"
    return (
        f"{device}, jax {about['jax']}; {passes}, {about['dtype']}, batch {about['batch']}, "
        f"masks of kind {about['mask']}, {about['runs']} runs in turn"
    )


def _cells(row: Timed) -> list[str]:
    over = "-" if row.time_over_macs is None else f"{row.time_over_macs:.3f}"
    ratios = (f"{row.time_ratio:.3f}", f"{row.mac_ratio:.3f}", over)
    return [row.label, f"{row.density:.3g}", str(row.timing), *ratios]

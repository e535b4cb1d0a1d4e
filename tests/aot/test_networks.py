"""Whole networks in sparse mode with the kernels, compiled for chips that are not there."""

from __future__ import annotations

from typing import Any

import jax
import pytest

from dynpix_jax import papers
from dynpix_jax.core.routing import Routing
from dynpix_jax.flops import variable_shapes
from dynpix_jax.ops.platform import compiled_for
from dynpix_jax.ops.sparse import ImplementationUnavailable
from tests.aot.conftest import Compile
from tests.tiny_systems import ANYTIME

pytestmark = pytest.mark.aot

# Two blocks a stage, with the widths of a ResNet-50; gates on all of them, and pooling sizes in the last.
PAG: dict[str, Any] = dict(
    system="pag",
    task="boundaries",
    backbone=dict(depth=26, width=64),
    gate=dict(kind="pixel", scope="residual"),
    multipool=dict(blocks=("res5_2",), dilations=(0, 1, 2)),
)
# Two exits, as many branches as in any HRNet, width of the smallest one in the paper.
NETWORKS = {
    "pag": (PAG, (65, 97)),
    "anytime": (ANYTIME | dict(backbone=dict(arch="w18s1", width=18, blocks=1), exits=(3, 4)), (64, 96)),
}


def compiled_text(
    compile_for: Compile, name: str, implementation: str, dtype: str, platform: str | None = None
) -> str:
    """The program of a network's predictions in sparse mode, masks found by its own gates."""
    section, size = NETWORKS[name]
    system = papers.build(section | dict(compute_dtype=dtype))
    images = jax.ShapeDtypeStruct((1, *size, 3), "uint8")

    def predict(variables: Any, images: Any) -> Any:
        routing = Routing(mode="sparse", implementation=implementation)
        return system.apply(variables, images, {}, routing).predictions

    with compiled_for(implementation.removeprefix("pallas_") if platform is None else platform):
        return str(compile_for(predict, variable_shapes(system), images).as_text())


# PAG: seven gated blocks and two branches; on a GPU a block has a kernel for each of its convolutions.
# Anytime: 25 masked convolutions, and the head of the second exit, two 1x1 layers at active positions.
TPU_KERNELS = {"pag": 9, "anytime": 26}
GPU_KERNELS = {"pag": 16, "anytime": 27}


@pytest.mark.parametrize("name", NETWORKS)
def test_tpu(compile_tpu, name):
    text = compiled_text(compile_tpu, name, "pallas_tpu", "bfloat16")
    assert text.count('custom_call_target="tpu_custom_call"') == TPU_KERNELS[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_gpu(compile_cuda, name):
    text = compiled_text(compile_cuda, name, "pallas_gpu", "bfloat16")
    assert text.count('custom_call_target="mosaic_gpu_v2"') == GPU_KERNELS[name]


def test_a_kernel_is_refused_on_the_other_platform(compile_tpu):
    with pytest.raises(
        ImplementationUnavailable, match=r"it needs gpu, the platform is tpu; these can: .*pallas_tpu"
    ):
        compiled_text(compile_tpu, "pag", "pallas_gpu", "bfloat16", platform="tpu")

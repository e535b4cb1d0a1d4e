"""The GPU kernel compiles for an H100, by the compiler of jax's CUDA plugin: no GPU and no driver needed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from dynpix_jax.bench import arg_specs
from dynpix_jax.bench.arg_specs import ConvSpec
from dynpix_jax.bench.roofline import bottleneck, branch
from dynpix_jax.ops.conv import conv_output_size
from dynpix_jax.ops.sparse import Convolution, pallas_gpu, pallas_gpu_plan
from dynpix_jax.ops.sparse.call import Call

pytestmark = pytest.mark.aot

DTYPES = ["float32", "bfloat16"]

# What no layer of arg_specs has: strides, large dilations, one channel, odd features, other windows.
OTHERS = [
    ConvSpec("1x1_512_2048", (41, 61), 512, 2048, kernel_size=(1, 1)),
    ConvSpec("1x1_stride2", (81, 121), 256, 512, (2, 2), kernel_size=(1, 1)),
    ConvSpec("3x3_stride2", (81, 121), 128, 256, (2, 2)),
    ConvSpec("5x5_1_to_19", (33, 47), 1, 19, kernel_size=(5, 5)),
    ConvSpec("aspp_2048_dilation_36", (41, 61), 2048, 256, dilation=(36, 36)),
]


def arguments(spec: ConvSpec, dtype: str, batch: int = 1) -> list[jax.ShapeDtypeStruct]:
    """x, kernel, mask, bias."""
    output = conv_output_size(spec.size, spec.kernel_size, spec.strides, spec.dilation)
    return [
        jax.ShapeDtypeStruct((batch, *spec.size, spec.channels), dtype),
        jax.ShapeDtypeStruct((*spec.kernel_size, spec.channels, spec.features), dtype),
        jax.ShapeDtypeStruct((batch, *output), jnp.bool_),
        jax.ShapeDtypeStruct((spec.features,), dtype),
    ]


def bound(spec: ConvSpec, x, kernel, mask, bias) -> Call:
    return Call(x, mask, (Convolution(kernel, bias, spec.strides, spec.dilation),))


def kernel_of(spec: ConvSpec):
    return lambda *given: pallas_gpu.pallas_gpu(bound(spec, *given))


def has_one_kernel(compiled) -> bool:
    return compiled.as_text().count('custom_call_target="mosaic_gpu_v2"') == 1


# The target above has 227 KiB of shared memory for a block: each compilation holds the kernel to them.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", [*arg_specs.ALL, *OTHERS], ids=lambda spec: spec.name)
def test_compiles(compile_cuda, spec, dtype):
    for batch in (1, 16):
        given = arguments(spec, dtype, batch)
        assert pallas_gpu.refuses(bound(spec, *given)) == ""
        assert has_one_kernel(compile_cuda(kernel_of(spec), *given))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", arg_specs.PAG_RESNET50_NYU, ids=lambda spec: spec.name)
def test_chains_compile_as_a_whole(compile_cuda, spec, dtype):
    for call, kernels in ((bottleneck(spec, dtype), 2), (branch(spec, dtype), 1)):
        assert pallas_gpu.fuses(call)
        text = compile_cuda(pallas_gpu.pallas_gpu, call).as_text()
        assert text.count('custom_call_target="mosaic_gpu_v2"') == kernels
        assert "convolution(" not in text


def test_float16_gradients_and_vmap_compile(compile_cuda):
    spec = arg_specs.ALL[0]
    x, kernel, mask, bias = arguments(spec, "float16")

    def loss(x, kernel, mask, bias):
        return (kernel_of(spec)(x, kernel, mask, bias).astype(jnp.float32) ** 2).sum()

    assert has_one_kernel(compile_cuda(jax.value_and_grad(loss, (0, 1, 3)), x, kernel, mask, bias))
    stacked = [jax.ShapeDtypeStruct((3, *a.shape), a.dtype) for a in (x, mask)]
    mapped = jax.vmap(kernel_of(spec), (0, None, 0, None))
    assert has_one_kernel(compile_cuda(mapped, stacked[0], kernel, stacked[1], bias))


def test_the_output_is_written_in_place(compile_cuda):
    # Zeros, and the kernel that fills results in: no copy of either.
    spec = arg_specs.find("res4_480x640")
    compiled = compile_cuda(kernel_of(spec), *arguments(spec, "bfloat16", 16))
    assert "output_to_operand_aliasing" in compiled.as_text()
    result = 2 * 16 * 60 * 80 * spec.features
    assert compiled.memory_analysis().temp_size_in_bytes < result / 10


def test_the_compiler_holds_the_kernel_to_its_shared_memory(compile_cuda, monkeypatch):
    # A kernel traced with more stages than fit.
    from dynpix_jax.ops.sparse import pallas_gpu_kernel

    monkeypatch.setattr(pallas_gpu_kernel, "STAGES", 2 * pallas_gpu_plan.STAGES)
    spec = ConvSpec("too_much", (64, 1000), 64, 256)
    with pytest.raises(ValueError, match="shared memory"):
        compile_cuda(kernel_of(spec), *arguments(spec, "bfloat16"))

"""The TPU kernel compiles for real chips: every layer of the papers, within their vector memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from dynpix_jax.bench import arg_specs, roofline
from dynpix_jax.bench.arg_specs import ConvSpec
from dynpix_jax.bench.roofline import bottleneck, branch
from dynpix_jax.ops.conv import conv_output_size
from dynpix_jax.ops.sparse import Convolution, pallas_tpu, pallas_tpu_plan
from dynpix_jax.ops.sparse.call import Call

pytestmark = pytest.mark.aot

DTYPES = ["float32", "bfloat16"]

# What no layer of arg_specs has: 1x1 and 7x7 windows, more channels, larger dilations.
OTHERS = [
    ConvSpec("1x1_512_2048", (41, 61), 512, 2048, kernel_size=(1, 1)),
    ConvSpec("1x1_2048_512", (41, 61), 2048, 512, kernel_size=(1, 1)),
    ConvSpec("1x1_stride2", (81, 121), 256, 512, (2, 2), kernel_size=(1, 1)),
    ConvSpec("stem_7x7", (321, 481), 3, 64, (2, 2), kernel_size=(7, 7)),
    *(ConvSpec(f"dilation_{d}", (41, 61), 512, 512, dilation=(d, d)) for d in (8, 16, 36)),
    ConvSpec("aspp_2048_dilation_12", (60, 80), 2048, 256, dilation=(12, 12)),
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
    return lambda *given: pallas_tpu.pallas_tpu(bound(spec, *given))


# The kernel asks for VMEM_LIMIT bytes of vector memory on every chip, so each compilation holds it to them.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", [*arg_specs.ALL, *OTHERS], ids=lambda spec: spec.name)
def test_compiles(compile_tpu, spec, dtype):
    given = arguments(spec, dtype)
    assert pallas_tpu.refuses(bound(spec, *given)) == ""
    compiled = compile_tpu(kernel_of(spec), *given)
    assert 'custom_call_target="tpu_custom_call"' in compiled.as_text()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", arg_specs.PAG_RESNET50_NYU, ids=lambda spec: spec.name)
def test_chains_compile_as_a_whole(compile_tpu, spec, dtype):
    for call in (bottleneck(spec, dtype), branch(spec, dtype)):
        assert pallas_tpu.fuses(call)
        text = compile_tpu(pallas_tpu.pallas_tpu, call).as_text()
        assert text.count('custom_call_target="tpu_custom_call"') == 1
        assert "convolution(" not in text


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_and_gradients_compile(compile_tpu, dtype):
    spec = arg_specs.ALL[0]

    def loss(x, kernel, mask, bias):
        return (kernel_of(spec)(x, kernel, mask, bias) ** 2).sum()

    compiled = compile_tpu(jax.value_and_grad(loss, (0, 1, 3)), *arguments(spec, dtype, batch=16))
    assert 'custom_call_target="tpu_custom_call"' in compiled.as_text()


def test_vmap_compiles(compile_tpu):
    spec = arg_specs.ALL[0]
    x, kernel, mask, bias = arguments(spec, "bfloat16")
    stacked = [jax.ShapeDtypeStruct((3, *a.shape), a.dtype) for a in (x, mask)]
    compile_tpu(jax.vmap(kernel_of(spec), (0, None, 0, None)), stacked[0], kernel, stacked[1], bias)


def test_the_compiler_holds_the_kernel_to_its_memory(compile_tpu, monkeypatch):
    # A plan that ignores the limit, while the kernel asks for as much as ever.
    monkeypatch.setattr(pallas_tpu_plan, "VMEM_SHARE", 2**16)
    spec = ConvSpec("too_much", (40, 40), 4096, 128, dilation=(16, 16))
    plan = pallas_tpu_plan.make_plan(4096, 128, (3, 3), (1, 1), (16, 16), jnp.dtype("bfloat16"))
    assert plan.vmem > pallas_tpu.VMEM_LIMIT
    with pytest.raises(jax.errors.JaxRuntimeError, match="vmem"):
        compile_tpu(kernel_of(spec), *arguments(spec, "bfloat16"))


@pytest.mark.parametrize("form", ["convolution", "bottleneck"])
def test_the_roofline_is_below_what_the_compiler_counts(compile_tpu, form):
    """Operations of the dense program, and bytes, of which the compiler's program may move more."""
    call = roofline.FORMS[form](arg_specs.find("res3_480x640"), "bfloat16")
    counted = compile_tpu(roofline.dense, call).cost_analysis()
    predicted = roofline.predict(call, "v5e").dense
    assert predicted.flops == pytest.approx(counted["flops"], rel=0.1)
    assert predicted.bytes < 1.05 * counted["bytes accessed"]

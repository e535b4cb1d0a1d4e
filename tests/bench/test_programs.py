"""What the benchmarks time is what they say: the programs' results, their MACs, gates that are there."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax.backbones.resnet import ResNetConfig
from dynpix_jax.bench import bottleneck, conv, dense_conv, model, pooling, torch_conv
from dynpix_jax.bench.arg_specs import ConvSpec
from dynpix_jax.bench.timed import Program, Settings, measure
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.system import Outputs
from dynpix_jax.ops import perforated_conv_reference, winograd
from dynpix_jax.papers.pag.system import GateConfig, Pag, PagConfig

STRIDED = ConvSpec("strided", (7, 10), 4, 6, strides=(2, 2), dilation=(1, 2))
BLOCK = ConvSpec("block", (5, 8), 4, 4, dilation=(2, 2))


def test_rows_are_relative_to_the_first_program():
    programs = [Program("dense", lambda: None), Program("sparse", lambda: None, density=0.5, mac_ratio=0.0)]
    dense, sparse = measure("layer", programs, 3)
    assert (dense.time_ratio, dense.time_over_macs) == (1.0, 1.0)
    assert sparse.time_ratio == sparse.timing.median / dense.timing.median
    assert sparse.time_over_macs is None
    assert sparse.to_json()["timing"]["median"] == sparse.timing.median


def test_dense_convolutions_run_by_xla_and_as_chosen(monkeypatch):
    """Where Winograd is chosen, the two differ in their last digits."""
    monkeypatch.setattr(winograd, "_CONVOLUTION", (4, 1, 9.0))
    xla, chosen = (program.run() for program in dense_conv.programs(BLOCK, Settings(())))
    np.testing.assert_allclose(chosen, xla, atol=1e-4)
    assert (chosen != xla).any()


@pytest.mark.parametrize("shared_active", [False, True])
def test_convolutions_compute_what_the_mask_asks_for(shared_active):
    settings = Settings((0.25, 1.0), "blobs", batch=2)
    programs = conv.programs(STRIDED, ["auto", "gather"], settings, shared_active=shared_active)
    assert [program.label for program in programs] == ["dense", *["auto", "gather"] * 2]
    assert [program.density for program in programs] == [1.0, 0.25, 0.25, 1.0, 1.0]
    assert [program.mac_ratio for program in programs] == [program.density for program in programs]
    x, kernel = conv.arrays(STRIDED, settings)
    assert (x.shape, kernel.shape) == ((2, 7, 10, 4), (3, 3, 4, 6))
    geometry = {"strides": STRIDED.strides, "dilation": STRIDED.dilation}
    everywhere = perforated_conv_reference(x, kernel, jnp.ones((2, 4, 5), bool), **geometry)
    results = [np.asarray(program.run()) for program in programs]
    for result in (results[0], *results[3:]):
        np.testing.assert_allclose(result, everywhere, atol=1e-5)
    for result in results[1:3]:
        computed = (result != 0).any(-1)
        assert computed.mean() == 0.25
        np.testing.assert_allclose(result, np.where(computed[..., None], everywhere, 0), atol=1e-5)


def test_backward_of_convolutions():
    """The cotangent is the result itself: its product with it is the gradient along the kernel."""
    settings = Settings((0.5,), batch=1, backward=True)
    for program in conv.programs(STRIDED, ["gather"], settings):
        y, (grad_x, grad_kernel) = program.run()
        x, kernel = conv.arrays(STRIDED, settings)
        np.testing.assert_allclose((grad_kernel * kernel).sum(), (y * y).sum(), rtol=1e-4)
        np.testing.assert_allclose((grad_x * x).sum(), (y * y).sum(), rtol=1e-4)


def test_what_cannot_run_has_a_reason():
    settings = Settings((0.5,), dtype="bfloat16")
    assert conv.unavailable(STRIDED, conv.AUTO, settings) == ""
    assert conv.unavailable(STRIDED, "masked", settings) == ""
    if jax.default_backend() == "cpu":
        assert "'pallas_gpu' cannot run" in conv.unavailable(STRIDED, "pallas_gpu", settings)


@pytest.mark.parametrize("backward", [False, True])
def test_bottlenecks_in_both_modes(backward):
    programs = bottleneck.programs(BLOCK, Settings((0.5, 1.0), backward=backward))
    assert [program.label for program in programs] == ["plain", *["dense", "sparse"] * 2]
    # F1, F2, F3 of 4, 9, 4 products of widths: half of the last two goes.
    half = (4 + 13 / 2) / 17
    assert [program.mac_ratio for program in programs] == pytest.approx([1, half, half, 1, 1])
    plain, dense, sparse, full, _ = (program.run() for program in programs)
    if backward:
        (plain, _), ((dense, _), grads), ((sparse, _), others), ((full, _), _) = plain, dense, sparse, full
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), grads, others)
        assert np.abs(grads[1]).max() > 0
    else:
        dense, sparse, full = dense[0], sparse[0], full[0]
    np.testing.assert_allclose(sparse, dense, atol=1e-5)
    np.testing.assert_allclose(full, plain, atol=1e-5)
    assert np.abs(dense - plain).max() > 0.1


def test_pooling_in_each_pixels_own_branch():
    spec, settings = ConvSpec("pool", (5, 8), 4, 4), Settings((), "blobs", batch=2)
    everything, dense, sparse = pooling.programs(spec, settings)
    labels = ["all branches", "arg-max, dense", "arg-max, sparse"]
    assert [program.label for program in (everything, dense, sparse)] == labels
    assert [program.mac_ratio for program in (everything, dense, sparse)] == [1, 0.2, 0.2]
    mixed, masked, executed = (np.asarray(program.run()) for program in (everything, dense, sparse))
    np.testing.assert_allclose(executed, masked, atol=1e-5)
    assert np.abs(mixed - masked).max() > 1e-2
    variables, x, *_ = everything.run.args
    kernels = {name: branch["conv"]["kernel"] for name, branch in variables["params"].items()}
    chosen = np.asarray(pooling.choices(settings, (2, 5, 8), 5))
    np.testing.assert_array_equal(np.bincount(chosen.ravel()), [16] * 5)
    # One position by hand: a 3x3 at the dilation that is chosen there; the norm is as it begins.
    b, y, z = 1, 2, 3
    reach = 2 ** chosen[b, y, z]
    padded = np.pad(np.asarray(x[b]), ((16, 16), (16, 16), (0, 0)))
    window = padded[y + 16 - reach : y + 17 + reach : reach, z + 16 - reach : z + 17 + reach : reach]
    value = np.einsum("hwi,hwio->o", window, kernels[f"dilation_{reach}"])
    np.testing.assert_allclose(
        executed[b, y, z], np.maximum(value, 0) / np.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-6
    )


def test_macs_of_the_other_reading():
    assert bottleneck.mac_ratio(0.0, "conv3x3") == pytest.approx(8 / 17)
    assert bottleneck.mac_ratio(1.0, "residual") == 1.0


def system(kind: str) -> Pag:
    gate = GateConfig(kind, "residual")
    backbone = ResNetConfig(depth=26, width=8)
    return Pag(PagConfig("pag", "boundaries", backbone, gate, head_features=4, drop_blocks=6))


def test_networks_in_both_modes():
    pag, size = system("pixel"), (17, 25)
    assert model.gate_shapes(pag, size, 2) == {"res2_1": (2, 5, 7), "res2_2": (2, 5, 7)}
    ungated, dense, sparse = model.programs(pag, size, Settings((18 / 35,), "blobs", batch=2))
    assert [program.label for program in (ungated, dense, sparse)] == ["ungated", "dense", "sparse"]
    # 8 channels in the 3x3, 32 outside: of each skipped position F2 and F3 are saved.
    total = model.system_macs(pag, size).report.total
    saved = 2 * 17 * (9 * 8 * 8 + 8 * 32)
    assert (ungated.mac_ratio, ungated.density) == (1.0, 1.0)
    assert dense.mac_ratio == sparse.mac_ratio == pytest.approx((total - saved) / total)
    assert sparse.density == pytest.approx(18 / 35)
    masked, executed = dense.run(), sparse.run()
    for name, mask in masked.gates.items():
        np.testing.assert_array_equal(executed.gates[name], mask)
        assert mask.sum() == 2 * 18
        assert executed.probabilities[name].shape == mask.shape  # its own gate has been computed too
    assert (masked.gates["res2_1"] != masked.gates["res2_2"]).any()
    program = ungated.run.func.lower(*ungated.run.args).compile()
    assert "/gate/" not in program.as_text()  # the compiler has removed the gates
    outputs = (program(*ungated.run.args), masked, executed)
    logits = [np.asarray(output.predictions["boundaries"]) for output in outputs]
    np.testing.assert_allclose(logits[1], logits[2], atol=1e-4 * np.abs(logits[1]).max())
    assert np.abs(logits[0] - logits[1]).max() > 1e-3 * np.abs(logits[1]).max()


def test_networks_by_named_implementations():
    pag, size, settings = system("pixel"), (17, 25), Settings((18 / 35,), "blobs")
    *_, auto, gather, masked = model.programs(pag, size, settings, ["auto", "gather", "masked"])
    assert [one.label for one in (auto, gather, masked)] == ["sparse", "sparse, gather", "sparse, masked"]
    logits = [np.asarray(one.run().predictions["boundaries"]) for one in (auto, gather, masked)]
    for found in logits[1:]:
        np.testing.assert_allclose(found, logits[0], atol=1e-4 * np.abs(logits[0]).max())
    with pytest.raises(UserError, match=r"--implementation pallas_tpu: .* cannot run"):
        model.programs(pag, size, settings, ["pallas_tpu"])


def test_gates_of_whole_images_cannot_follow_a_mask():
    masks = {"res2_1": jnp.asarray([[[True, False]]]), "res2_2": jnp.ones((1, 1, 2), bool)}
    gates = {name: mask.astype(jnp.float32) for name, mask in masks.items()}
    assert model.common_density(masks, Outputs({}, gates, {})) == 0.75
    gates["res2_1"] = jnp.zeros((1, 1, 2))  # an image in whose mask a position is missing skips the layer
    with pytest.raises(UserError, match="gate res2_1 decides for a whole image"):
        model.common_density(masks, Outputs({}, gates, {}))


def test_a_network_without_gates():
    plain = system("none")
    assert model.gate_shapes(plain, (17, 25)) == {}
    with pytest.raises(ValueError, match="no gates"):
        model.programs(plain, (17, 25), Settings((0.5,)))


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def test_torch_that_is_not_installed(no_torch):
    with pytest.raises(UserError, match=r"--torch: PyTorch is not installed here .* pip install torch"):
        torch_conv.check()


def test_torch_without_the_platform(monkeypatch):
    absent = SimpleNamespace(__version__="2.0", cuda=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "torch", absent)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match=r"--torch: this PyTorch \(2.0\) cannot run on jax's platform, gpu"):
        torch_conv.check()


def test_torch_computes_the_same_layer(monkeypatch):
    """What it is called with and gives, values and gradients: in the environment of `make bench-runtimes`."""
    torch = pytest.importorskip("torch")
    plain, differentiate = torch.nn.functional.conv2d, torch.autograd.grad
    layers, gradients = [], []

    def conv2d(x, weight, **geometry):
        layers.append((x, weight, plain(x, weight, **geometry)))
        return layers[-1][2]

    def grad(*arguments):
        gradients.append(differentiate(*arguments))
        return gradients[-1]

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    program = torch_conv.program(STRIDED, Settings((0.5,), batch=2, backward=True))
    jax.block_until_ready(program.run())
    ((x, kernel, y),), ((grad_x, grad_kernel),) = layers, gradients
    x, y, grad_x = (one.detach().numpy().transpose(0, 2, 3, 1) for one in (x, y, grad_x))
    kernel, grad_kernel = (one.detach().numpy().transpose(2, 3, 1, 0) for one in (kernel, grad_kernel))
    assert (x.shape, x.dtype, kernel.shape) == ((2, 7, 10, 4), np.float32, (3, 3, 4, 6))

    def layer(x, kernel):
        everywhere, geometry = jnp.ones((2, 4, 5), bool), (STRIDED.strides, STRIDED.dilation)
        return perforated_conv_reference(x, kernel, everywhere, strides=geometry[0], dilation=geometry[1])

    expected, backward = jax.vjp(layer, jnp.asarray(x), jnp.asarray(kernel))
    for found, true in zip((y, grad_x, grad_kernel), (expected, *backward(expected)), strict=True):
        np.testing.assert_allclose(found, true, atol=1e-5)
        assert np.abs(found).max() > 0

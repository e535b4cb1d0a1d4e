"""The dense convolution in PyTorch, where it is installed: the yardstick outside XLA."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import jax

from dynpix_jax.bench.arg_specs import ConvSpec
from dynpix_jax.bench.timed import Program, Settings
from dynpix_jax.core.errors import UserError
from dynpix_jax.ops.conv import torch_padding


def check(what: str = "--torch") -> None:
    """Raises UserError, which names ``what`` needs it, unless PyTorch can run here."""
    _torch(what)


def program(spec: ConvSpec, settings: Settings) -> Program:
    """``torch.nn.functional.conv2d`` of the layer, channels last, on the platform that jax runs on.

    Raises:
        UserError: PyTorch is not installed, or cannot run on this platform.
    """
    torch, device = _torch()
    dtype = getattr(torch, settings.dtype)

    def random(*shape: int) -> Any:
        values = torch.randn(shape, dtype=dtype, device=device)
        return values.to(memory_format=torch.channels_last).requires_grad_(settings.backward)

    x = random(settings.batch, spec.channels, *spec.size)
    weight = random(spec.features, spec.channels, *spec.kernel_size) * 0.01
    weight = weight.detach().requires_grad_(settings.backward)
    padding = torch_padding(spec.kernel_size, spec.dilation)

    def run() -> Any:
        # cuDNN tries its algorithms and keeps the fastest, as XLA does.
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
            y = torch.nn.functional.conv2d(
                x, weight, stride=spec.strides, padding=padding, dilation=spec.dilation
            )
            if settings.backward:
                torch.autograd.grad(y, (x, weight), y.detach())
        return _Pending(torch.cuda.synchronize if device == "cuda" else lambda: None)

    return Program("torch dense", run)


class _Pending:
    """Makes jax.block_until_ready wait for PyTorch."""

    def __init__(self, wait: Callable[[], None]):
        self.block_until_ready = wait


def _torch(what: str = "--torch") -> tuple[Any, str]:
    platform = jax.default_backend()
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise UserError(f"{what}: PyTorch is not installed here ({error}); try: pip install torch") from None
    if platform == "cpu":
        return torch, "cpu"
    if platform == "gpu" and torch.cuda.is_available():
        return torch, "cuda"
    raise UserError(f"{what}: this PyTorch ({torch.__version__}) cannot run on jax's platform, {platform}")

"""Layers of ASTMT: a DeepLabv3+ decoder (Chen et al., ECCV 2018), UberNet's head, and the discriminator.

The decoder is narrow, and tasks have modules of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynpix_jax.core.typing import Array, PRNGKey
from dynpix_jax.nn.conv import Conv, DepthwiseConv, he_normal
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.per_task import Modulation, PerTask, SqueezeExcite, of_task, per_task, task_norm
from dynpix_jax.nn.remat import remat_unit
from dynpix_jax.ops.resize import resize_bilinear

SMALL = nn.initializers.normal(0.01)
"""Initializer of the released ResNets' decoder and discriminator. (MobileNet's: SE alone.)"""


def predictor(in_features: int, features: int, kernel_size: int = 1) -> Conv:
    """A last convolution, whose bias starts as PyTorch's: uniform, at most 1 / sqrt(number of inputs)."""
    bound = (kernel_size**2 * in_features) ** -0.5

    uniform = nn.initializers.uniform(2 * bound)

    def bias_init(key: PRNGKey, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        return uniform(key, shape, dtype, out_sharding) - bound

    return Conv(in_features, features, kernel_size, use_bias=True, kernel_init=SMALL, bias_init=bias_init)


class Unit(nn.Module):
    """Convolution -> norm -> ReLU -> SE: (B, H, W, in_features) -> (B, H, W, features).

    Attributes:
        separable: 3x3 kernels become a depthwise 3x3 and a 1x1, ReLU becomes ReLU6 (MobileNet's form).
        reduction: Reduction of the SE.
        pooled: The unit of the image's mean, which has no adapters, nor, if ``separable``, SE (as released).
        unbiased: Of the norm, see nn.norm.BatchNorm.
    """

    in_features: int
    features: int
    modulation: Modulation
    kernel_size: int = 1
    dilation: int = 1
    separable: bool = False
    reduction: int = 16
    pooled: bool = False
    unbiased: bool = True

    def setup(self) -> None:
        own, shape = self.modulation, (self.in_features, self.features)
        init = he_normal if self.separable else SMALL
        if self.separable and self.kernel_size > 1:
            self.depthwise = DepthwiseConv(self.in_features, self.kernel_size, dilation=self.dilation)
            self.conv = Conv(*shape, kernel_size=1, kernel_init=init)
        else:
            self.conv = Conv(*shape, self.kernel_size, dilation=self.dilation, kernel_init=init)
        self.adapts = own.adapters and bool(own.tasks) and not self.pooled
        self.excited = own.se and not (self.pooled and self.separable)
        if self.adapts:
            zero = nn.initializers.zeros_init()
            self.adapter = PerTask(own.tasks, lambda: Conv(*shape, kernel_size=1, kernel_init=zero))
        self.bn = task_norm(own, self.features, unbiased=self.unbiased)
        if self.excited:
            excite = partial(SqueezeExcite, self.features, self.reduction, self._activation)
            if self.separable:
                excite = partial(excite, kernel_init=SMALL)
            self.se = per_task(own.tasks, excite, own=own.se)

    def _activation(self, x: Array) -> Array:
        return jax.nn.relu6(x) if self.separable else jax.nn.relu(x)

    @remat_unit("blocks")
    def __call__(self, x: Array, task: str, *, train: bool) -> Array:
        y = self.conv(self.depthwise(x) if self.separable and self.kernel_size > 1 else x)
        if self.adapts:
            y = y + of_task(self.adapter, task)(x)
        y = self._activation(of_task(self.bn, task)(y, train=train))
        return of_task(self.se, task)(y) if self.excited else y


def _units_of(module: ASPP | DeepLabDecoder) -> Callable[..., Unit]:
    """Units with the options of the module that holds them."""
    return partial(
        Unit,
        modulation=module.modulation,
        separable=module.separable,
        reduction=module.reduction,
        unbiased=module.unbiased,
    )


class ASPP(nn.Module):
    """Atrous spatial pyramid: (B, H, W, in_features) -> (B, H, W, features).

    A 1x1, three 3x3 at ``rates`` and the image's mean side by side, then a 1x1 over all of them.
    """

    in_features: int
    features: int
    rates: tuple[int, ...]
    modulation: Modulation
    separable: bool = False
    reduction: int = 16
    unbiased: bool = True

    def setup(self) -> None:
        unit = _units_of(self)
        self.point = unit(self.in_features, self.features)
        self.atrous = [unit(self.in_features, self.features, kernel_size=3, dilation=d) for d in self.rates]
        self.pool = unit(self.in_features, self.features, pooled=True)
        self.fuse = unit((2 + len(self.rates)) * self.features, self.features)

    def __call__(self, x: Array, task: str, *, train: bool) -> Array:
        branches = [self.point(x, task, train=train)]
        branches += [branch(x, task, train=train) for branch in self.atrous]
        mean = self.pool(x.mean((1, 2), keepdims=True), task, train=train)
        branches.append(jnp.broadcast_to(mean, branches[0].shape))
        return self.fuse(jnp.concatenate(branches, axis=-1), task, train=train)


class DeepLabDecoder(nn.Module):
    """Encoder features of two strides -> the features that all tasks' heads read.

    The low map is reduced to 48/256 of ``features``; the high one passes through an ASPP and is resized to
    the low one. Two 3x3 units follow.

    Attributes:
        low: Channels of the map at stride 4.
        high: Channels of the last map.
    """

    low: int
    high: int
    features: int
    rates: tuple[int, ...]
    modulation: Modulation
    separable: bool = False
    reduction: int = 16
    unbiased: bool = True

    def setup(self) -> None:
        unit = _units_of(self)
        reduced = max(48 * self.features // 256, 1)
        self.aspp = ASPP(
            self.high,
            self.features,
            self.rates,
            self.modulation,
            separable=self.separable,
            reduction=self.reduction,
            unbiased=self.unbiased,
        )
        self.reduce = unit(self.low, reduced, reduction=4)
        self.join = unit(self.features + reduced, self.features, kernel_size=3)
        self.process = unit(self.features, self.features, kernel_size=3)

    @remat_unit("stages")
    def __call__(self, low: Array, high: Array, task: str, *, train: bool) -> Array:
        """(B, h, w, low), (B, h', w', high) -> (B, h, w, features)."""
        high = self.aspp(high, task, train=train)
        high = resize_bilinear(high, (low.shape[1], low.shape[2]))
        x = jnp.concatenate([high, self.reduce(low, task, train=train)], axis=-1)
        return self.process(self.join(x, task, train=train), task, train=train)


class UberHead(nn.Module):
    """One task's logits from encoder features of two strides (UberNet; Kokkinos, CVPR 2017; appendix B).

    (B, h, w, low) and (B, h', w', high) are reduced to ``channels`` (1x1, norm, ReLU), the high one is
    resized to the low one, and a 1x1 reads both: (B, h, w, channels).
    """

    low: int
    high: int
    channels: int
    unbiased: bool = True

    def setup(self) -> None:
        self.low_conv = Conv(self.low, self.channels, kernel_size=1, kernel_init=SMALL)
        self.low_bn = BatchNorm(self.channels, unbiased=self.unbiased)
        self.high_conv = Conv(self.high, self.channels, kernel_size=1, kernel_init=SMALL)
        self.high_bn = BatchNorm(self.channels, unbiased=self.unbiased)
        self.logits = predictor(2 * self.channels, self.channels)

    def __call__(self, low: Array, high: Array, *, train: bool) -> Array:
        low = jax.nn.relu(self.low_bn(self.low_conv(low), train=train))
        high = jax.nn.relu(self.high_bn(self.high_conv(high), train=train))
        high = resize_bilinear(high, (low.shape[1], low.shape[2]))
        return self.logits(jnp.concatenate([low, high], axis=-1))


class Discriminator(nn.Module):
    """(B, h, w, features) -> logits of the tasks (B, h, w, tasks): two convolutions with a ReLU between."""

    features: int
    tasks: int
    kernel: int = 1

    def setup(self) -> None:
        self.conv1 = Conv(self.features, self.features, self.kernel, kernel_init=SMALL)
        self.conv2 = predictor(self.features, self.tasks, self.kernel)

    def __call__(self, x: Array) -> Array:
        return self.conv2(jax.nn.relu(self.conv1(x)))

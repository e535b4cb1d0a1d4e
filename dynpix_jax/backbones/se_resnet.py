"""SE-ResNet-26/50/101 whose squeeze-and-excitation, norms and adapters may be each task's own (ASTMT).

A ResNet of ``models.backbones.resnet`` with other blocks: the same specs, stages and names of parameters.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax

from dynpix_jax.backbones.resnet import BackboneConfig, ResNet
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.per_task import SHARED, Modulation, SqueezeExcite, of_task, per_task, task_norm
from dynpix_jax.nn.residual import BlockSpec

REDUCTION = 16


class SEBottleneck(nn.Module):
    """O = ReLU(I + SE(F3(F2(F1(I))))), SE after the last norm and before the addition.

    Each task may have its own SE, its own norms (the shortcut's too), and a 1x1 adapter parallel to the 3x3
    convolution that starts at zero. (B, H, W, in_features) -> (B, ceil(H / strides), ceil(W / strides),
    4 * features).
    """

    spec: BlockSpec
    modulation: Modulation = SHARED

    def setup(self) -> None:
        spec, own = self.spec, self.modulation
        norm = partial(task_norm, own, frozen=spec.frozen_norm)
        first, second = (spec.strides, 1) if spec.stride_in_1x1 else (1, spec.strides)
        self.conv1 = Conv(spec.in_features, spec.features, 1, first)
        self.bn1 = norm(spec.features)
        self.conv2 = Conv(spec.features, spec.features, 3, second, spec.dilation)
        if own.adapters and own.tasks:
            zero = nn.initializers.zeros_init()
            self.adapter = per_task(
                True, own.tasks, lambda: Conv(spec.features, spec.features, 1, second, kernel_init=zero)
            )
        self.bn2 = norm(spec.features)
        self.conv3 = Conv(spec.features, spec.out_features, 1)
        self.bn3 = norm(spec.out_features)
        self.se = per_task(own.se, own.tasks, lambda: SqueezeExcite(spec.out_features, REDUCTION))
        if spec.needs_projection:
            self.projection = Conv(spec.in_features, spec.out_features, 1, spec.strides)
            self.projection_bn = norm(spec.out_features)

    def __call__(self, x: Array, task: str = "", *, train: bool = False) -> Array:
        y = jax.nn.relu(of_task(self.bn1, task)(self.conv1(x), train=train))
        wide = self.conv2(y)
        if self.modulation.adapters and self.modulation.tasks:
            wide = wide + of_task(self.adapter, task)(y)
        y = jax.nn.relu(of_task(self.bn2, task)(wide, train=train))
        y = of_task(self.bn3, task)(self.conv3(y), train=train)
        y = of_task(self.se, task)(y)
        if self.spec.needs_projection:
            x = of_task(self.projection_bn, task)(self.projection(x), train=train)
        return jax.nn.relu(x + y)


def se_resnet(config: BackboneConfig, modulation: Modulation = SHARED, classes: int | None = None) -> ResNet:
    """The network; a call needs ``run_block=lambda block, x: block(x, task, train=train)`` if tasks differ.

    Without tasks it is the classifier whose ImageNet weights are published.
    """
    return ResNet(config, partial(SEBottleneck, modulation=modulation), classes=classes)

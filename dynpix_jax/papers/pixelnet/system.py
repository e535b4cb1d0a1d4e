"""PixelNet: Towards a General Pixel-Level Architecture (Bansal et al., arXiv 1609.06694).

A pixel's hypercolumn consists of several layers of VGG-16, each interpolated bilinearly; an MLP predicts from
it (section 3). Training samples a few pixels of many images and computes hypercolumns only there; prediction
computes every pixel, in chunks.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dynpix_jax import tasks
from dynpix_jax.core.adapt import TakeOver
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.system import LossAux, Outputs, System
from dynpix_jax.core.typing import Array, PRNGKey, Variables
from dynpix_jax.papers.pixelnet.config import (
    HypercolumnConfig,
    MLPConfig,
    PixelNetConfig,
    SamplingConfig,
)
from dynpix_jax.papers.pixelnet.network import PixelNetNetwork
from dynpix_jax.papers.pixelnet.points import biased_points, random_points, random_points_of_batch

__all__ = ["HypercolumnConfig", "MLPConfig", "PixelNet", "PixelNetConfig", "SamplingConfig"]


class PixelNet(System):
    """PixelNet as pure functions; see System. It has no gates: both modes do the same."""

    name = "pixelnet"
    Config = PixelNetConfig
    following = (r"mlp\d+",)

    def __init__(self, config: PixelNetConfig):
        self.config = config
        self.task = tasks.build(config.task, config.task_options, "config.model.task_options")
        if not self.task.by_pixel:
            raise UserError(
                f"config.model.task_options: this loss of {config.task} needs whole images, PixelNet samples "
                "pixels"
            )
        if config.sampling.strategy == "uniform" and self.task.by_image:
            raise UserError(
                "config.model.sampling.strategy: 'uniform' mixes the pixels of images, whose scales the loss "
                "takes off one by one; expected 'stratified'"
            )
        self.tasks = {self.task.name: self.task}
        self.network: PixelNetNetwork = PixelNetNetwork(config, self.task.channels)

    def apply(
        self,
        variables: Variables,
        images: Array,
        inputs: Mapping[str, Array] = {},
        routing: Routing = Routing(),
        *,
        rngs: Mapping[str, PRNGKey] | None = None,
    ) -> Outputs:
        """Forward pass at every pixel; see System.

        Raises:
            ValueError: Training, which computes hypercolumns at sampled pixels (`at`), or a mask.
        """
        routing.masks_of(())
        if routing.train:
            raise ValueError("train: training computes hypercolumns at sampled pixels; see `at`")
        logits, _ = self.call(variables, images)
        return Outputs({self.task.name: logits})

    def at(
        self,
        variables: Variables,
        images: Array,
        points: Array,
        *,
        train: bool = False,
        rngs: Mapping[str, PRNGKey] | None = None,
    ) -> Outputs:
        """Forward pass at some pixels.

        Args:
            variables: As of `apply`.
            images: The batch.
            points: (B, N, 2), rows (y, x) of each image, or (N, 3), rows (image, y, x): predictions are then
                (B, N, channels) or (N, channels).
            train: Move running averages, draw from ``rngs["dropout"]``.
            rngs: The named streams.
        """

        def forward(network: PixelNetNetwork) -> Array:
            return network.at_pixels(network.maps(images, train=train), points, train=train)

        logits, updates = self.call(variables, method=forward, rngs=rngs, moving=train)
        return Outputs({self.task.name: logits}, updates=updates)

    def loss(
        self,
        variables: Variables,
        batch: Mapping[str, Array],
        *,
        rngs: Mapping[str, PRNGKey],
        controls: Mapping[str, Array],
    ) -> tuple[Array, LossAux]:
        """The task's loss at pixels drawn from ``rngs["points"]``, of those that are labelled.

        Beside the term of the task's name, ``rare`` is the share of rare ones among them.
        """
        target, valid = batch[self.task.target], batch["valid"]
        points = self.draw(rngs["points"], target, valid)
        outputs = self.at(variables, batch["image"], points, train=True, rngs=rngs)
        logits, labels = outputs.predictions[self.task.name], at_points(target, points)
        if points.ndim == 2:
            # Of the whole batch: one image of so many pixels.
            logits, labels, valid = logits[None], labels[None], valid.any()[None]
        loss = self.task.loss(logits[:, :, None], labels[:, :, None], valid)
        terms = {self.task.name: loss}
        if self.task.has_rare:
            drawn = self.task.labelled(labels[:, :, None]) & valid[:, None, None]
            rare = self.task.rare(labels[:, :, None]) & drawn
            terms["rare"] = rare.sum() / jnp.maximum(drawn.sum(), 1)
        return loss, LossAux(terms, outputs.updates)

    def draw(self, key: PRNGKey, target: Array, valid: Array) -> Array:
        """The pixels of a batch that a step learns from, by ``model.sampling``: (B, N, 2), or (N, 3)."""
        sampling = self.config.sampling
        mask = self.task.labelled(target) & valid[:, None, None]
        if sampling.strategy == "uniform":
            return random_points_of_batch(key, mask, sampling.pixels * len(target))
        if sampling.strategy == "stratified":
            return random_points(key, mask, sampling.pixels)
        return biased_points(key, mask, self.task.rare(target), sampling.pixels, sampling.rare_share)

    @property
    def taken_over(self) -> TakeOver:
        """The MLP and its norms may stay fresh."""
        return TakeOver(f"{self.config.backbone.name} up to the highest of model.hypercolumn.layers")


def at_points(target: Array, points: Array) -> Array:
    """(B, H, W, ...) labels at whole pixels: (B, N, ...) at points (B, N, 2), (N, ...) at (N, 3)."""
    if points.ndim == 2:
        return target[points[:, 0], points[:, 1], points[:, 2]]
    return jax.vmap(lambda one, rows: one[rows[:, 0], rows[:, 1]])(target, points)

"""What toys that predict in steps share."""

from __future__ import annotations

from dynpix_jax.core.progressive import ProgressiveSystem


class OnlySteps(ProgressiveSystem):
    """For toys with `steps` alone: nobody applies or trains them."""

    def apply(self, variables, images, **options):
        raise NotImplementedError

    def loss(self, variables, batch, **options):
        raise NotImplementedError

    def adapt(self, given, fresh):
        return given

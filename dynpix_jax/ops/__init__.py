"""Floor 1: pure functions on arrays: Gumbel sampling, gating, active sets, convolutions, resizing."""

from dynpix_jax.ops.active import ActiveSet, active_set, chunk_size, map_active
from dynpix_jax.ops.blur import gaussian_blur
from dynpix_jax.ops.conv import conv, conv_output_size, torch_padding
from dynpix_jax.ops.gating import (
    bernoulli_kl,
    global_sparsity_loss,
    mask_density,
    mild_divergence,
    per_layer_sparsity_loss,
)
from dynpix_jax.ops.gumbel import argmax_one_hot, gumbel_softmax, gumbel_softmax_st
from dynpix_jax.ops.interpolation import interpolate_masked
from dynpix_jax.ops.perforated_conv import (
    ImplementationUnavailable,
    perforated_conv,
    perforated_conv_reference,
)
from dynpix_jax.ops.points import biased_points, random_points, random_points_of_batch
from dynpix_jax.ops.pointwise import pointwise
from dynpix_jax.ops.resize import cells_to_pixels, resize_bilinear, resize_nearest
from dynpix_jax.ops.sampling import hypercolumns, linear_everywhere, sample_bilinear, sample_linear

__all__ = [
    "ActiveSet",
    "ImplementationUnavailable",
    "active_set",
    "argmax_one_hot",
    "bernoulli_kl",
    "biased_points",
    "cells_to_pixels",
    "chunk_size",
    "conv",
    "conv_output_size",
    "gaussian_blur",
    "global_sparsity_loss",
    "gumbel_softmax",
    "gumbel_softmax_st",
    "hypercolumns",
    "interpolate_masked",
    "linear_everywhere",
    "map_active",
    "mask_density",
    "mild_divergence",
    "per_layer_sparsity_loss",
    "perforated_conv",
    "perforated_conv_reference",
    "pointwise",
    "random_points",
    "random_points_of_batch",
    "resize_bilinear",
    "resize_nearest",
    "sample_bilinear",
    "sample_linear",
    "torch_padding",
]

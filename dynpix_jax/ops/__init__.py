"""Level 1: pure functions on arrays: Gumbel sampling, active sets, convolutions, resizing."""

from dynpix_jax.ops.blur import gaussian_blur
from dynpix_jax.ops.conv import conv, conv_output_size, torch_padding
from dynpix_jax.ops.gumbel import argmax_one_hot, gumbel_softmax, gumbel_softmax_st
from dynpix_jax.ops.interpolation import interpolate_masked
from dynpix_jax.ops.pointwise import pointwise
from dynpix_jax.ops.resize import cells_to_pixels, pixels_to_cells, resize_bilinear, resize_nearest
from dynpix_jax.ops.sparse import (
    ActiveSet,
    ImplementationUnavailable,
    active_set,
    perforated_conv,
    perforated_conv_reference,
    sparse_block,
)
from dynpix_jax.ops.sparse.chunks import chunk_size
from dynpix_jax.ops.sparse.windows import map_active

__all__ = [
    "ActiveSet",
    "ImplementationUnavailable",
    "active_set",
    "argmax_one_hot",
    "cells_to_pixels",
    "chunk_size",
    "conv",
    "conv_output_size",
    "gaussian_blur",
    "gumbel_softmax",
    "gumbel_softmax_st",
    "interpolate_masked",
    "map_active",
    "perforated_conv",
    "perforated_conv_reference",
    "pixels_to_cells",
    "pointwise",
    "resize_bilinear",
    "resize_nearest",
    "sparse_block",
    "torch_padding",
]

"""PAG residual blocks (Kong and Fowlkes, section 3.1, eq. 2): bottlenecks that compute where gates are on."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from dynpix_jax.core.routing import Routing
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.gates import LayerGate, PixelGate
from dynpix_jax.nn.norm import SPARSE_NEEDS_FROZEN_NORMS
from dynpix_jax.nn.residual import Bottleneck
from dynpix_jax.ops.sparse.active import active_set, map_active
from dynpix_jax.papers.pag.multipool import MultiPool

GateScope = Literal["conv3x3", "residual"]


def _as_mask(given: Array, shape: tuple[int, ...], name: str) -> Array:
    """A given mask in the form of a gate's."""
    if given.dtype != jnp.bool_ or given.shape != shape:
        raise ValueError(
            f"{name}: a given mask must be bool {shape}, True = compute; got {given.dtype} {given.shape}"
        )
    return given.astype(jnp.float32)


class GatedBottleneck(Bottleneck):
    """X = F1(I), G = gate(I); then by ``gate_scope``, the two readings of eq. 2:

    ``conv3x3`` (as released): Y = F2(X) where G is on, Z = F3((1 - G) X + G Y) everywhere. Saves F2.
    ``residual``: Z = F3(F2(X)) where G is on, 0 elsewhere. Saves F2 and F3.
    O = ReLU(I + Z). Returns (O, G) with G a float mask (B, h, w) in {0, 1}. A ``given`` mask, bool of that
    shape, replaces the gate's, in force or not.
    """

    gate_scope: GateScope = "conv3x3"
    blur: bool = False
    init_std: float = 1.0
    open_bias: float = 0.0

    def setup(self) -> None:
        super().setup()
        if self.spec.strides != 1 and not self.spec.stride_in_1x1:
            raise ValueError(
                f"{self.spec.name}: its 3x3 has a stride; X and Y of eq. 2 differ in size; leave it ungated"
            )
        # X and Y are added, so the gate has the resolution of F1's output.
        self.gate = PixelGate(
            self.spec.in_features, self.spec.strides, self.blur, self.init_std, self.open_bias
        )

    def __call__(  # type: ignore[override]
        self, x: Array, routing: Routing, *, in_force: Array | bool = True, given: Array | None = None
    ) -> tuple[Array, Array]:
        mask = jnp.where(in_force, self.gate(x, routing), 1.0)
        if given is not None:
            mask = _as_mask(given, mask.shape, self.spec.name)
        train = routing.train
        reduced = self.reduce(x, train=train)
        if routing.mode == "sparse":
            return self._sparse(x, reduced, mask, train), mask
        g = mask[..., None].astype(x.dtype)
        computed = self.spatial(reduced, train=train)
        if self.gate_scope == "conv3x3":
            z = self.expand((1 - g) * reduced + g * computed, train=train)
        else:
            z = g * self.expand(computed, train=train)
        return jax.nn.relu(self.shortcut(x, train=train) + z), mask

    def _sparse(self, x: Array, reduced: Array, mask: Array, train: bool) -> Array:
        """O, with F2 (and F3) executed at the active positions only."""
        if train and not self.spec.frozen_norm:
            raise ValueError(SPARSE_NEEDS_FROZEN_NORMS)
        active = active_set(mask > 0.5)
        dilation = (self.spec.dilation, self.spec.dilation)

        def spatial(windows: Array) -> Array:
            return jax.nn.relu(self.bn2.stored(self.conv2.on_windows(windows)))

        if self.gate_scope == "conv3x3":
            mixture = map_active(spatial, reduced, active, dilation=dilation, init=reduced)
            return jax.nn.relu(self.shortcut(x, train=train) + self.expand(mixture, train=train))

        projected = self.spec.needs_projection

        def identity(rows: Array) -> Array:
            return self.projection_bn.stored(rows) if projected else rows

        def update(windows: Array, rows: Array) -> Array:
            z = self.bn3.stored(self.conv3.on_windows(spatial(windows)))
            return jax.nn.relu(identity(rows) + z)

        init = self.projection(x) if projected else x
        out = map_active(update, reduced, active, dilation=dilation, init=init, combine="update")
        # What was not updated is I, and O is ReLU(I) there.
        if projected:
            return jnp.where(mask[..., None] > 0.5, out, jax.nn.relu(identity(out)))
        return out if self.spec.rectified else jax.nn.relu(out)


class LayerSkipBottleneck(Bottleneck):
    """Baseline that keeps or skips the whole residual update per image: O = ReLU(I + g Z), g in {0, 1}.

    Returns (O, mask) with the mask (B, h, w) constant over each image. In sparse mode the block does not run
    at all where no image of the batch wants it. A ``given`` mask, bool (B, h, w), replaces the gate's: an
    image keeps the update where its mask is True everywhere.
    """

    def setup(self) -> None:
        super().setup()
        self.gate = LayerGate(self.spec.in_features)

    def __call__(  # type: ignore[override]
        self, x: Array, routing: Routing, *, in_force: Array | bool = True, given: Array | None = None
    ) -> tuple[Array, Array]:
        keep = jnp.where(in_force, self.gate(x, routing), 1.0)
        train = routing.train
        shortcut = self.shortcut(x, train=train)
        if given is not None:
            keep = _as_mask(given, shortcut.shape[:3], self.spec.name).min((1, 2))

        def update() -> Array:
            z = self.expand(self.spatial(self.reduce(x, train=train), train=train), train=train)
            return shortcut + keep[:, None, None, None] * z

        if routing.mode == "sparse":
            if train and not self.spec.frozen_norm:
                raise ValueError(SPARSE_NEEDS_FROZEN_NORMS)
            out = jax.lax.cond(jnp.any(keep > 0.5), update, lambda: shortcut)
        else:
            out = update()
        mask = jnp.broadcast_to(keep[:, None, None], shortcut.shape[:3])
        return jax.nn.relu(out), mask


class MultiPoolBottleneck(Bottleneck):
    """A bottleneck whose 3x3 convolution is a MultiPool module (section 3.4).

    Returns (O, W) with W the selection (B, h, w, P) over the pooling sizes.
    """

    dilations: tuple[int, ...] = (0, 1, 2, 4, 6, 8, 10)
    selection: Literal["pag", "average"] = "pag"
    original_bias: float = 0.0

    def _setup_spatial(self, strides: int) -> None:
        if strides != 1:
            raise ValueError(
                f"{self.spec.name}: MultiPool keeps the resolution; choose a block without stride"
            )
        self.multipool = MultiPool(
            self.spec.features,
            dilations=self.dilations,
            selection=self.selection,
            frozen_norm=self.spec.frozen_norm,
            original_dilation=self.spec.dilation,
            original_bias=self.original_bias,
        )

    def __call__(  # type: ignore[override]
        self, x: Array, routing: Routing
    ) -> tuple[Array, Array]:
        train = routing.train
        pooled, selection = self.multipool(self.reduce(x, train=train), routing)
        return jax.nn.relu(self.shortcut(x, train=train) + self.expand(pooled, train=train)), selection

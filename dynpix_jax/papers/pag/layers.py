"""PAG residual blocks (Kong and Fowlkes, section 3.1, eq. 2): blocks that compute where gates are on.

Each wraps a block of any backbone and shares its scope: the block's parameters keep their names, and the gate
or the MultiPool stands beside them ("res4_2/conv1", "res4_2/gate", "res4_2/multipool").
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from dynpix_jax.core.routing import Routing
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.gates import GateOptions, LayerOptions, PixelOptions
from dynpix_jax.nn.norm import SPARSE_NEEDS_FROZEN_NORMS
from dynpix_jax.nn.residual import Block
from dynpix_jax.ops.sparse import ImplementationUnavailable, active_set, sparse_block
from dynpix_jax.papers.pag.multipool import MultiPool

GateScope = Literal["conv3x3", "residual"]

GATED = "gated"
"""Named scope of what a closed gate saves, within its block."""


@flax.struct.dataclass
class BlockOutputs:
    """What a block tells beside its features; None: it has no such part.

    Attributes:
        mask: float (B, h, w) in {0, 1}, where it computed.
        probability: of its gate, see Decision.
        selection: (B, h, w, P), the weights of a MultiPool's pooling sizes.
    """

    mask: Array | None = None
    probability: Array | None = None
    selection: Array | None = None


def _as_mask(given: Array, shape: tuple[int, ...], name: str) -> Array:
    """A given mask in the form of a gate's."""
    if given.dtype != jnp.bool_ or given.shape != shape:
        raise ValueError(
            f"{name}: a given mask must be bool {shape}, True = compute; got {given.dtype} {given.shape}"
        )
    return given.astype(jnp.float32)


class PagBlock(nn.Module):
    """A block as the backbone has it; base of those with a gate or a MultiPool."""

    block: Block

    def setup(self) -> None:
        nn.share_scope(self, self.block)

    def __call__(
        self, x: Array, routing: Routing, *, in_force: Array | bool = True, given: Array | None = None
    ) -> tuple[Array, BlockOutputs]:
        """O, and what there is to tell.

        Args:
            x: (B, H, W, in_features).
            routing: how the pass is run.
            in_force: whether its gate is, scalar; otherwise the gate is open.
            given: bool (B, h, w), a mask in place of what the gate decides, in force or not.
        """
        return self.block(x, train=routing.train), BlockOutputs()

    def _check_sparse(self, routing: Routing) -> bool:
        """Whether the pass is sparse; it must not have to move running averages."""
        if routing.mode == "sparse" and routing.train and not self.block.spec.frozen_norm:
            raise ValueError(SPARSE_NEEDS_FROZEN_NORMS)
        return routing.mode == "sparse"


class GatedBlock(PagBlock):
    """X = F1(x), G = gate(x); then by ``gate_scope``, the two readings of eq. 2:

    ``conv3x3`` (as released): Y = F2(X) where G is on, Z = F3((1 - G) X + G Y) everywhere. Saves F2.
    ``residual``: Z = F3(F2(X)) where G is on, 0 elsewhere. Saves F2 and F3.
    O = join(I, Z), of a ResNet ReLU(I + Z).

    Attributes:
        options: of the gate.
        gate_scope: which reading.
    """

    options: GateOptions = PixelOptions()
    gate_scope: GateScope = "conv3x3"

    def setup(self) -> None:
        super().setup()
        spec = self.block.spec
        if not spec.splits:
            raise ValueError(f"{spec.name}: X and Y of eq. 2 differ in size, or in kind; leave it ungated")
        # X and Y are added, so the gate has the resolution of F1's output.
        self.gate = self.options.build("features", spec.in_features, spec.strides)

    def __call__(
        self, x: Array, routing: Routing, *, in_force: Array | bool = True, given: Array | None = None
    ) -> tuple[Array, BlockOutputs]:
        """See PagBlock."""
        block, train = self.block, routing.train
        decision = self.gate(x, routing)
        mask = jnp.where(in_force, decision.mask, 1.0)
        if given is not None:
            mask = _as_mask(given, mask.shape, block.spec.name)
        told = BlockOutputs(mask=mask, probability=decision.probability)
        reduced = block.reduce(x, train=train)
        if self._check_sparse(routing):
            return self._sparse(x, reduced, mask, routing), told
        g = mask[..., None].astype(x.dtype)
        with jax.named_scope(GATED):
            computed = block.spatial(reduced, train=train)
        if self.gate_scope == "conv3x3":
            z = block.expand((1 - g) * reduced + g * computed, train=train)
        else:
            with jax.named_scope(GATED):
                z = g * block.expand(computed, train=train)
        return block.join(block.shortcut(x, train=train), z), told

    def _sparse(self, x: Array, reduced: Array, mask: Array, routing: Routing) -> Array:
        """O, with F2 (and F3) executed at the active positions only."""
        block, train = self.block, routing.train
        run = partial(sparse_block, reduced, active_set(mask > 0.5), implementation=routing.implementation)
        if self.gate_scope == "conv3x3":
            mixture = run(block.spatial_layers(), init=reduced)
            return block.join(block.shortcut(x, train=train), block.expand(mixture, train=train))
        init, shortcut = block.shortcut_in_parts(x, train=train)
        return run((*block.spatial_layers(), *block.expand_layers()), init=init, combine=shortcut)


class SkippedBlock(PagBlock):
    """Baseline that keeps or skips the whole update per image: O = join(I, g Z), g in {0, 1}.

    The mask (B, h, w) is constant over each image. In sparse mode the block does not run at all where no
    image of the batch wants it; with implementation "masked" it does. With a given mask an image keeps the
    update if it is True everywhere.

    Attributes:
        options: of a gate that decides for whole images.
    """

    options: GateOptions = LayerOptions()

    def setup(self) -> None:
        super().setup()
        self.gate = self.options.build("features", self.block.spec.in_features)

    def __call__(
        self, x: Array, routing: Routing, *, in_force: Array | bool = True, given: Array | None = None
    ) -> tuple[Array, BlockOutputs]:
        """See PagBlock."""
        block, train = self.block, routing.train
        decision = self.gate(x, routing)
        keep = jnp.where(in_force, decision.mask, 1.0)
        shortcut = block.shortcut(x, train=train)
        if given is not None:
            keep = _as_mask(given, shortcut.shape[:3], block.spec.name).min((1, 2))

        def update() -> Array:
            with jax.named_scope(GATED):
                z = block.expand(block.spatial(block.reduce(x, train=train), train=train), train=train)
            return block.join(shortcut, keep[:, None, None, None] * z)

        if self._check_sparse(routing) and routing.implementation != "masked":
            if routing.implementation not in (None, "gather"):
                raise ImplementationUnavailable(
                    f"implementation {routing.implementation!r} cannot run: the gate of {block.spec.name} "
                    "skips it for whole images, where no kernel saves anything; these can: masked, gather"
                )
            out = jax.lax.cond(
                jnp.any(keep > 0.5), update, lambda: block.join(shortcut, jnp.zeros_like(shortcut))
            )
        else:
            out = update()
        mask = jnp.broadcast_to(keep[:, None, None], shortcut.shape[:3])
        return out, BlockOutputs(mask=mask, probability=decision.probability)


class MultiPoolBlock(PagBlock):
    """A block whose F2 is a MultiPool module (section 3.4).

    Attributes:
        dilations, selection, original_bias: see MultiPool.
    """

    dilations: tuple[int, ...] = (0, 1, 2, 4, 6, 8, 10)
    selection: Literal["pag", "average"] = "pag"
    original_bias: float = 0.0

    def setup(self) -> None:
        super().setup()
        spec = self.block.spec
        if not spec.splits:
            raise ValueError(f"{spec.name}: MultiPool keeps the resolution; choose a block without stride")
        self.multipool = MultiPool(
            spec.features,
            dilations=self.dilations,
            selection=self.selection,
            frozen_norm=spec.frozen_norm,
            original_dilation=spec.dilation,
            original_bias=self.original_bias,
        )

    def __call__(
        self, x: Array, routing: Routing, *, in_force: Array | bool = True, given: Array | None = None
    ) -> tuple[Array, BlockOutputs]:
        """See PagBlock; there is no gate to be in force or given."""
        block, train = self.block, routing.train
        pooled, selection = self.multipool(block.reduce(x, train=train), routing)
        out = block.join(block.shortcut(x, train=train), block.expand(pooled, train=train))
        return out, BlockOutputs(selection=selection)

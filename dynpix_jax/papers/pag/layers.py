"""PAG's layers (sections 3.1 and 3.4): MultiPool, blocks that compute where their gates are on, Res6.

A PAG block wraps a block of any backbone and shares its scope: the block's parameters keep their names,
beside those of the gate or the MultiPool ("res4_2/conv1", "res4_2/gate", "res4_2/multipool").
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from dynpix_jax.core.routing import Routing, check_mask
from dynpix_jax.core.typing import Array
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.gates import Decision, GateOptions, LayerOptions, PixelOptions, choose, constants
from dynpix_jax.nn.norm import SPARSE_NEEDS_FROZEN_NORMS, BatchNorm
from dynpix_jax.nn.pooling import DilatedBranch, pool_dilated
from dynpix_jax.nn.remat import remat_unit
from dynpix_jax.nn.residual import Block
from dynpix_jax.ops.sparse import active_set, run_if_any, sparse_block

Selection = Literal["pag", "average"]


class PoolGate(nn.Module):
    """Logits of the pooling sizes: 1x1 to 128, 3x3 to 32, 1x1 to P; norm and ReLU between (as released)."""

    in_features: int
    choices: int
    bias: tuple[float, ...]

    def setup(self) -> None:
        def normal(features: int) -> nn.initializers.Initializer:
            return nn.initializers.normal((2.0 / features) ** 0.5)

        self.conv1 = Conv(self.in_features, 128, 1, kernel_init=normal(128))
        self.bn1 = BatchNorm(128)
        self.conv2 = Conv(128, 32, 3, kernel_init=normal(32))
        self.bn2 = BatchNorm(32)
        self.conv3 = Conv(
            32,
            self.choices,
            1,
            use_bias=True,
            kernel_init=normal(self.choices),
            bias_init=constants(*self.bias),
        )

    def __call__(self, x: Array, *, train: bool) -> Array:
        x = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        x = jax.nn.relu(self.bn2(self.conv2(x), train=train))
        return self.conv3(x)


class MultiPool(nn.Module):
    """O = sum_i W_i M_i over pooling sizes M_i; dilation 0 copies the input.

    (B, H, W, features) -> ((B, H, W, features), W of (B, H, W, P)). ``pag``: W is one-hot (eq. 4 by
    straight-through), so in sparse mode a pixel runs in its own branch only. ``average``: W is a softmax and
    every branch runs everywhere, in both modes ("wAvg", the weighted average the paper compares with).

    Attributes:
        original_dilation: Dilation of the replaced convolution.
        original_bias: Initial logit in favour of the replaced convolution.
    """

    features: int
    dilations: tuple[int, ...] = (0, 1, 2, 4, 6, 8, 10)
    selection: Selection = "pag"
    frozen_norm: bool = True
    original_dilation: int = 1
    original_bias: float = 0.0

    def setup(self) -> None:
        self.branches = {
            dilation: DilatedBranch(
                self.features, self.features, frozen_norm=self.frozen_norm, name=f"dilation_{dilation}"
            )
            for dilation in self.dilations
            if dilation
        }
        bias = tuple(self.original_bias if d == self.original_dilation else 0.0 for d in self.dilations)
        self.gate = PoolGate(self.features, len(self.dilations), bias)

    def __call__(self, x: Array, routing: Routing, mask: Array | None = None) -> tuple[Array, Array]:
        """O and W; of ``pag``, pixels where ``mask`` (B, H, W) is 0 are only copied."""
        logits = self.gate(x, train=routing.train)
        average = self.selection == "average"
        selection = jax.nn.softmax(logits) if average else choose(self, logits, routing)
        pooled = pool_dilated(
            x, selection, self.dilations, self.branches.__getitem__, routing, one_hot=not average, mask=mask
        )
        return pooled, selection


GateScope = Literal["conv3x3", "residual"]

GATED = "gated"
"""Named scope of the layers that a closed gate saves, within its block."""


@flax.struct.dataclass
class BlockOutputs:
    """Outputs of a block beside its features; None if it has no such part.

    Attributes:
        mask: float (B, h, w) in {0, 1}, 1 = computed.
        probability: Probability of its gate, see Decision.
        selection: (B, h, w, P), the weights of a MultiPool's pooling sizes.
    """

    mask: Array | None = None
    probability: Array | None = None
    selection: Array | None = None


def _mask_of(decision: Decision, given: Array | None, name: str, *, in_force: Array | bool) -> Array:
    """The mask of a block's gate: all open where the gate is not in force; ``given`` replaces it."""
    mask = jnp.where(in_force, decision.mask, 1.0)
    return mask if given is None else check_mask(given, mask.shape, name).astype(jnp.float32)


class PagBlock(nn.Module):
    """A plain block of the backbone; base of the blocks with a gate or a MultiPool."""

    block: Block

    def setup(self) -> None:
        nn.share_scope(self, self.block)

    @remat_unit("blocks")
    def __call__(
        self, x: Array, routing: Routing, *, in_force: Array | bool = True, given: Array | None = None
    ) -> tuple[Array, BlockOutputs]:
        """O, and the other outputs.

        Args:
            x: (B, H, W, in_features).
            routing: How to run the pass.
            in_force: Scalar; whether the gate is in force. Otherwise it is open.
            given: bool (B, h, w), a mask that replaces the gate's, in force or not.
        """
        return self.block(x, train=routing.train), BlockOutputs()

    def _check_sparse(self, routing: Routing) -> bool:
        """Whether the pass is sparse; refuses a sparse pass that would move running averages."""
        if routing.mode == "sparse" and routing.train and not self.block.spec.frozen_norm:
            raise ValueError(SPARSE_NEEDS_FROZEN_NORMS)
        return routing.mode == "sparse"


class GatedBlock(PagBlock):
    """A block with a gate: X = F1(x), G = gate(x), and eq. 2 in one of two interpretations (``gate_scope``).

    ``conv3x3`` (as released): Y = F2(X) where G is on, Z = F3((1 - G) X + G Y) everywhere. Saves F2.
    ``residual``: Z = F3(F2(X)) where G is on, 0 elsewhere. Saves F2 and F3.
    O = join(I, Z), for a ResNet ReLU(I + Z).

    Attributes:
        options: Options of the gate.
        gate_scope: Interpretation of eq. 2.
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
        mask = _mask_of(decision, given, block.spec.name, in_force=in_force)
        outputs = BlockOutputs(mask=mask, probability=decision.probability)
        reduced = block.reduce(x, train=train)
        if self._check_sparse(routing):
            return self._sparse(x, reduced, mask, routing), outputs
        g = mask[..., None].astype(x.dtype)
        with jax.named_scope(GATED):
            computed = block.spatial(reduced, train=train)
        if self.gate_scope == "conv3x3":
            z = block.expand((1 - g) * reduced + g * computed, train=train)
        else:
            with jax.named_scope(GATED):
                z = g * block.expand(computed, train=train)
        return block.join(block.shortcut(x, train=train), z), outputs

    def _sparse(self, x: Array, reduced: Array, mask: Array, routing: Routing) -> Array:
        """O, with F2 (and F3) executed at the active positions only."""
        block, train = self.block, routing.train
        run = partial(sparse_block, reduced, active_set(mask > 0.5), implementation=routing.implementation)
        if self.gate_scope == "conv3x3":
            mixture = run(block.spatial_layers(), init=reduced)
            return block.join(block.shortcut(x, train=train), block.expand(mixture, train=train))
        init, shortcut = block.shortcut_in_parts(x, train=train)
        return run((*block.spatial_layers(), *block.expand_layers()), init=init, combine=shortcut)


class ImageGate(nn.Module):
    """A gate for whole images, with a moving average of its probability over training images.

    The average, ``rate``, is in ``batch_stats`` beside what the gate itself keeps there, and starts at 1:
    `papers.pag.sparsity.layer_rate_loss` needs more images than a batch has.

    Attributes:
        options: Options of the gate.
        in_features: Channels of the features that it reads.
        momentum: Of the moving average.
    """

    options: GateOptions
    in_features: int
    momentum: float = 0.99

    def setup(self) -> None:
        self.gate = self.options.build("features", self.in_features)
        nn.share_scope(self, self.gate)
        self.rate = self.variable("batch_stats", "rate", jnp.ones, (), jnp.float32)

    def __call__(self, x: Array, routing: Routing) -> Decision:
        """The gate's decision, (B,)."""
        decision = self.gate(x, routing)
        if routing.train and not self.is_initializing():
            now = jax.lax.stop_gradient(decision.probability.mean())
            self.rate.value = self.momentum * self.rate.value + (1 - self.momentum) * now
        return decision


class SkippedBlock(PagBlock):
    """Baseline that keeps or skips the whole update per image: O = join(I, g Z), g in {0, 1}.

    The mask (B, h, w) is constant over each image. In sparse mode the block does not run if no image of the
    batch needs it, except with implementation "masked". With a given mask an image keeps the update if the
    mask is True everywhere.

    Attributes:
        options: Options of a gate that decides for whole images.
    """

    options: GateOptions = LayerOptions()

    def setup(self) -> None:
        super().setup()
        self.gate = ImageGate(self.options, self.block.spec.in_features)

    def __call__(
        self, x: Array, routing: Routing, *, in_force: Array | bool = True, given: Array | None = None
    ) -> tuple[Array, BlockOutputs]:
        """See PagBlock."""
        block, train = self.block, routing.train
        decision = self.gate(x, routing)
        keep = jnp.where(in_force, decision.mask, 1.0)
        shortcut = block.shortcut(x, train=train)
        if given is not None:
            given = check_mask(given, shortcut.shape[:3], block.spec.name)
            keep = given.astype(jnp.float32).min((1, 2))

        def update() -> Array:
            with jax.named_scope(GATED):
                z = block.expand(block.spatial(block.reduce(x, train=train), train=train), train=train)
            return block.join(shortcut, keep[:, None, None, None].astype(z.dtype) * z)

        def idle() -> Array:
            return block.join(shortcut, jnp.zeros_like(shortcut))

        if self._check_sparse(routing):
            name, implementation = block.spec.name, routing.implementation
            out = run_if_any(keep, update, idle, name=name, implementation=implementation)
        else:
            out = update()
        mask = jnp.broadcast_to(keep[:, None, None], shortcut.shape[:3])
        return out, BlockOutputs(mask=mask, probability=decision.probability)


class MultiPoolBlock(PagBlock):
    """A block whose F2 is a MultiPool module (section 3.4).

    With a gate: Z = F3(F2(X)) where it is on, 0 elsewhere, as in a GatedBlock of scope ``residual``.

    Attributes:
        dilations: See MultiPool.
        selection: See MultiPool; with a gate ``pag``.
        original_bias: See MultiPool.
        options: Options of its gate; None: it has none.
        expands: Whether F3 and the sum with I follow; the top of a truncated network may end in F2.
    """

    dilations: tuple[int, ...] = (0, 1, 2, 4, 6, 8, 10)
    selection: Literal["pag", "average"] = "pag"
    original_bias: float = 0.0
    options: GateOptions | None = None
    expands: bool = True

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
        if self.options is not None:
            self.gate = self.options.build("features", spec.in_features, spec.strides)

    def __call__(
        self, x: Array, routing: Routing, *, in_force: Array | bool = True, given: Array | None = None
    ) -> tuple[Array, BlockOutputs]:
        """See PagBlock; without a gate a mask cannot be given."""
        block, train = self.block, routing.train
        reduced = block.reduce(x, train=train)
        if self.options is not None:
            return self._gated(x, reduced, routing, in_force=in_force, given=given)
        pooled, selection = self.multipool(reduced, routing)
        outputs = BlockOutputs(selection=selection)
        if not self.expands:
            return pooled, outputs
        return block.join(block.shortcut(x, train=train), block.expand(pooled, train=train)), outputs

    def _gated(
        self, x: Array, reduced: Array, routing: Routing, *, in_force: Array | bool, given: Array | None
    ) -> tuple[Array, BlockOutputs]:
        """O and the other outputs of a block with a gate."""
        block, train = self.block, routing.train
        decision = self.gate(x, routing)
        mask = _mask_of(decision, given, block.spec.name, in_force=in_force)
        sparse = self._check_sparse(routing)
        pooled, selection = self.multipool(reduced, routing, mask if sparse else None)
        outputs = BlockOutputs(mask, decision.probability, selection)
        if sparse:
            init, shortcut = block.shortcut_in_parts(x, train=train)
            run = partial(sparse_block, implementation=routing.implementation)
            active = active_set(mask > 0.5)
            return run(pooled, active, block.expand_layers(), init=init, combine=shortcut), outputs
        with jax.named_scope(GATED):
            z = mask[..., None].astype(x.dtype) * block.expand(pooled, train=train)
        return block.join(block.shortcut(x, train=train), z), outputs


class CutBlock(PagBlock):
    """The top block of a truncated network whose upper layers are left out: (B, h, w, features).

    Attributes:
        dropped: How many of its three layers are left out: 1 leaves F1 and F2, 2 leaves F1.
    """

    dropped: int = 1

    def __call__(
        self, x: Array, routing: Routing, *, in_force: Array | bool = True, given: Array | None = None
    ) -> tuple[Array, BlockOutputs]:
        """See PagBlock; there is no gate, and a mask cannot be given."""
        reduced = self.block.reduce(x, train=routing.train)
        if self.dropped == 2:
            return reduced, BlockOutputs()
        return self.block.spatial(reduced, train=routing.train), BlockOutputs()


class Res6(nn.Module):
    """Two 3x3 convolutions with norm and ReLU: (B, H, W, in_features) -> ((B, H, W, features), selection).

    With ``pooled`` the second is a MultiPool and the selection is (B, H, W, P); otherwise it is None. No
    pretrained network has these layers, so their norms learn moments even if the backbone's are frozen.
    """

    in_features: int
    features: int
    pooled: bool = False
    dilations: tuple[int, ...] = (0, 1, 2, 4, 6, 8, 10)
    selection: Selection = "pag"
    original_bias: float = 0.0

    def setup(self) -> None:
        self.conv1 = Conv(self.in_features, self.features, 3)
        self.bn1 = BatchNorm(self.features)
        if self.pooled:
            self.multipool = MultiPool(
                self.features,
                dilations=self.dilations,
                selection=self.selection,
                frozen_norm=False,
                original_bias=self.original_bias,
            )
        else:
            self.conv2 = Conv(self.features, self.features, 3)
            self.bn2 = BatchNorm(self.features)

    def __call__(self, x: Array, routing: Routing) -> tuple[Array, Array | None]:
        train = routing.train
        x = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        if self.pooled:
            pooled, selection = self.multipool(x, routing)
            return pooled, selection
        return jax.nn.relu(self.bn2(self.conv2(x), train=train)), None

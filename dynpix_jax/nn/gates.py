"""Gates decide where, or whether, a layer computes. PAG and the anytime system share one table of them.

A gate reads the features in front of a block (PAG, sections 3.1 and 3.2) or the logits of an exit (Liu et
al., section 3.4), and returns a Decision. A config names it by ``kind``, a key of `GATES` or
``package.module:Name`` of a user's GateOptions, and sets its fields in ``options``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from dynpix_jax.core.errors import UserError
from dynpix_jax.core.registry import Registry
from dynpix_jax.core.rng import stream
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.trees import map_named, named_leaves
from dynpix_jax.core.typing import Array, Mask, Params
from dynpix_jax.nn.conv import Conv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.ops.confidence import Measure, confidence, top_share
from dynpix_jax.ops.gumbel import argmax_one_hot, gumbel_softmax, gumbel_softmax_st

SKIP, COMPUTE = 0, 1
MARGIN = "margin"
"""Name under which a gate sows, among the intermediates, by how much computing outweighs skipping: the
difference of its logits, above 0 where the mask of evaluation is on."""
Reads = Literal["features", "logits"]
"""Input of a gate: the features in front of a block, or the logits of a prediction."""


@flax.struct.dataclass
class Decision:
    """The decision of a gate.

    Attributes:
        mask: float (B, h, w) in {0, 1}, 1 = compute; (B,) if the gate decides for whole images. In training
            it may be a sample, with straight-through gradients.
        probability: Probability of computing, in [0, 1], of the shape of ``mask``; samples are drawn from it.
    """

    mask: Array
    probability: Array


class Gate(nn.Module):
    """Base of the gates."""

    def __call__(self, x: Array, routing: Routing, *, before: Mask | None = None) -> Decision:
        """Decides for a batch of maps. Training draws from the stream ``gumbel``.

        Args:
            x: (B, H, W, C) features or logits.
            routing: How to run the pass.
            before: bool (B, h, w), the previous mask; positions that it skips stay skipped.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class GateOptions(ABC):
    """Section ``options`` beside a gate's ``kind``.

    Attributes:
        reads: Inputs that the gate can decide on.
        whole_images: Whether it keeps or skips a layer for whole images. PAG then skips whole blocks, and
            holds the share of images that run each by the `Decision.probability`.
        drawn: Whether training draws its decisions from logits, by a temperature.
        bias: Path of the bias of its two logits within the gate ("logits/bias"), which a calibration and the
            slider of `dynpix demo` shift (`with_shifted_biases`); the gate then tells `MARGIN`. "": none
            shifts it.
    """

    reads: ClassVar[tuple[Reads, ...]] = ("features", "logits")
    whole_images: ClassVar[bool] = False
    drawn: ClassVar[bool] = True
    bias: ClassVar[str] = ""

    @property
    def fixed_density(self) -> float | None:
        """The share of each image's positions that the gate computes whatever it learns; else None."""
        return None

    @abstractmethod
    def build(self, reads: Reads, features: int, strides: int = 1) -> Gate:
        """The gate."""


def with_shifted_biases(params: Params, shifts: Mapping[str, float]) -> Params:
    """The parameters with the logit of computing raised by the shift at each path of a gate's bias.

    Raises:
        UserError: There is no parameter at a path, which `GateOptions.bias` is a part of.
    """

    def shift(path: str, leaf: Array) -> Array:
        return jnp.asarray(leaf).at[COMPUTE].add(shifts[path]) if path in shifts else leaf

    if missing := sorted(shifts.keys() - {path for path, _ in named_leaves(params)}):
        raise UserError(f"gate.kind: its bias is to be {missing[0]!r}, which the network does not have")
    shifted: Params = map_named(shift, params)
    return shifted


def _check_density(density: float) -> None:
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"density: {density}; expected a share in [0, 1]")


def constants(*values: float) -> Initializer:
    """Initializer of a bias with these values."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        return jnp.asarray(values, dtype).reshape(shape)

    return init


def choose(module: nn.Module, logits: Array, routing: Routing) -> Array:
    """One choice per position from logits (..., K), one-hot (..., K).

    Training draws it by Gumbel arg-max (eq. 3) with the gradient of the relaxation (eq. 4); evaluation takes
    the arg-max without noise.
    """
    if not routing.train:
        return argmax_one_hot(logits)
    sample = gumbel_softmax if routing.soft else gumbel_softmax_st
    return sample(module.make_rng("gumbel"), logits, routing.temperature, noise=routing.noise)


@dataclass(frozen=True)
class NoGate(GateOptions):
    """Kind ``none``: everything is computed."""

    reads: ClassVar[tuple[Reads, ...]] = ()

    def build(self, reads: Reads, features: int, strides: int = 1) -> Gate:
        raise ValueError("gate: kind 'none' decides nothing")


@dataclass(frozen=True)
class PixelOptions(GateOptions):
    """Kind ``pixel``: see PixelGate.

    Attributes:
        blur: Average the logits over 3x3 pixels first (an option of the released code).
        init_std: Standard deviation of the initial kernel.
        open_bias: Initial logit in favour of computing.
        centred: Subtract each image's mean over positions from the logits, but for their bias. How much is
            computed is then the bias's alone, and the kernel learns where. Without it a density that falls
            pulls the kernel against the features' mean, and so away from positions with strong features.
    """

    reads: ClassVar[tuple[Reads, ...]] = ("features",)
    bias: ClassVar[str] = "logits/bias"
    blur: bool = False
    centred: bool = False
    init_std: float = 1.0
    open_bias: float = 0.0

    def build(self, reads: Reads, features: int, strides: int = 1) -> PixelGate:
        return PixelGate(features, strides, self)


class PixelGate(Gate):
    """Per-pixel gate: one 1x1 convolution with bias to two logits (as released: no norm, no hidden layer).

    (B, H, W, in_features) -> decision (B, ceil(H / strides), ceil(W / strides)).
    """

    in_features: int
    strides: int = 1
    options: PixelOptions = PixelOptions()

    def setup(self) -> None:
        self.logits = Conv(
            self.in_features,
            2,
            kernel_size=1,
            strides=self.strides,
            use_bias=True,
            kernel_init=nn.initializers.normal(self.options.init_std),
            bias_init=constants(0.0, self.options.open_bias),
        )

    def __call__(self, x: Array, routing: Routing, *, before: Mask | None = None) -> Decision:
        """See Gate."""
        logits = self.logits(x)
        if self.options.centred:
            bias: Array = self.logits.get_variable("params", "bias")
            logits = logits - jnp.mean(logits, axis=(1, 2), keepdims=True) + bias.astype(logits.dtype)
        if self.options.blur:
            logits = nn.avg_pool(logits, (3, 3), (1, 1), ((1, 1), (1, 1)))
        self.sow("intermediates", MARGIN, logits[..., COMPUTE] - logits[..., SKIP])
        mask = choose(self, logits, routing)[..., COMPUTE]
        mask = mask if before is None else mask * before
        return Decision(mask, jax.nn.softmax(logits)[..., COMPUTE])


@dataclass(frozen=True)
class LayerOptions(GateOptions):
    """Kind ``layer``: see LayerGate."""

    reads: ClassVar[tuple[Reads, ...]] = ("features",)
    whole_images: ClassVar[bool] = True

    def build(self, reads: Reads, features: int, strides: int = 1) -> LayerGate:
        return LayerGate(features)


class LayerGate(Gate):
    """Per-image gate of the layer-skipping baseline that PAG compares with (Veit and Belongie, ECCV 2018).

    Global average pool, 1x1 to 16, norm, ReLU, 1x1 to two logits; the last bias starts at (0.1, 2), so that
    most blocks start open. (B, H, W, in_features) -> decision (B,). Arg-max in evaluation.

    Its probability is the relaxed decision, softmax(logits / temperature); as the temperature falls it
    becomes the arg-max, which evaluation uses.
    """

    in_features: int
    hidden: int = 16

    def setup(self) -> None:
        # Pooled to one position, a batch of one has no variance: use the stored moments.
        self.conv1 = Conv(self.in_features, self.hidden, kernel_size=1)
        self.bn1 = BatchNorm(self.hidden, frozen=True)
        self.conv2 = Conv(
            self.hidden,
            2,
            kernel_size=1,
            use_bias=True,
            kernel_init=nn.initializers.normal(0.001),
            bias_init=constants(0.1, 2.0),
        )

    def __call__(self, x: Array, routing: Routing, *, before: Mask | None = None) -> Decision:
        """See Gate; decides for whole images and ignores ``before``."""
        pooled = x.mean((1, 2), keepdims=True)
        logits = self.conv2(jax.nn.relu(self.bn1(self.conv1(pooled))))[:, 0, 0]
        relaxed = jax.nn.softmax(logits / routing.temperature)[:, COMPUTE]
        return Decision(choose(self, logits, routing)[:, COMPUTE], relaxed)


@dataclass(frozen=True)
class ConfidenceOptions(GateOptions):
    """Kind ``confidence``: compute where a prediction is not yet certain (eq. 1 of Liu et al.).

    Attributes:
        measure: ``max_probability``: compute where the largest class probability is at most the threshold;
            ``entropy``: where the entropy is at least the threshold, in nats; ``max_value``: where the
            largest output is at least the threshold (of tasks without classes; pose: a possible joint).
        threshold: Threshold of the measure.
    """

    reads: ClassVar[tuple[Reads, ...]] = ("logits",)
    drawn: ClassVar[bool] = False
    measure: Measure = "max_probability"
    threshold: float = 0.998

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise ValueError(f"threshold: {self.threshold}; expected a number >= 0")
        if self.measure == "max_probability" and self.threshold > 1:
            raise ValueError(f"threshold: {self.threshold}; expected a probability in [0, 1]")

    def build(self, reads: Reads, features: int, strides: int = 1) -> Confidence:
        return Confidence(self)


class Confidence(Gate):
    """Computes where a prediction (B, h, w, K) is not certain; see ConfidenceOptions. It has no gradient."""

    options: ConfidenceOptions = ConfidenceOptions()

    def __call__(self, x: Array, routing: Routing, *, before: Mask | None = None) -> Decision:
        """See Gate."""
        measure, threshold = self.options.measure, self.options.threshold
        sure = confidence(jax.lax.stop_gradient(x), measure)
        return _decided(sure <= threshold if measure == "max_probability" else -sure >= threshold, before)


@dataclass(frozen=True)
class TopKOptions(GateOptions):
    """Kind ``top_k``: compute at a fixed share of each image's positions.

    Attributes:
        density: The share. Chosen are the least certain positions (logits: lowest maximum class probability)
            or those with the highest scores of a learned 1x1 convolution (features).
    """

    drawn: ClassVar[bool] = False
    density: float = 0.5

    def __post_init__(self) -> None:
        _check_density(self.density)

    @property
    def fixed_density(self) -> float:
        """The share."""
        return self.density

    def build(self, reads: Reads, features: int, strides: int = 1) -> TopK:
        return TopK(self, features if reads == "features" else 0, strides)


class TopK(Gate):
    """Computes at the positions with the largest scores; see TopKOptions.

    Scores of features are learned; the mask has the gradient of their sigmoid (straight-through).

    Attributes:
        in_features: Channels of the features; 0 for logits, whose scores are their uncertainty.
        strides: Stride of the mask, relative to the input.
    """

    options: TopKOptions = TopKOptions()
    in_features: int = 0
    strides: int = 1

    def setup(self) -> None:
        if self.in_features:
            self.score = Conv(self.in_features, 1, kernel_size=1, strides=self.strides, use_bias=True)

    def __call__(self, x: Array, routing: Routing, *, before: Mask | None = None) -> Decision:
        """See Gate."""
        if not self.in_features:
            score = -confidence(jax.lax.stop_gradient(x), "max_probability")
            return _decided(top_share(score, self.options.density, before), None)
        score = self.score(x)[..., 0]
        mask = top_share(score, self.options.density, before).astype(score.dtype)
        relaxed = jax.nn.sigmoid(score)
        # Exactly the mask, also after rounding: the added term is 0.
        return Decision(mask + (relaxed - jax.lax.stop_gradient(relaxed)), relaxed)


@dataclass(frozen=True)
class RandomOptions(GateOptions):
    """Kind ``random``: compute at a share of each image's positions drawn at random, a baseline.

    Attributes:
        density: The share.
    """

    drawn: ClassVar[bool] = False
    density: float = 0.5

    def __post_init__(self) -> None:
        _check_density(self.density)

    @property
    def fixed_density(self) -> float:
        """The share."""
        return self.density

    def build(self, reads: Reads, features: int, strides: int = 1) -> Random:
        return Random(self, strides)


class Random(Gate):
    """Computes at random positions, among those that the previous mask has.

    They are drawn anew in training; otherwise they are the same for every batch, and others for each gate of
    a network.
    """

    options: RandomOptions = RandomOptions()
    strides: int = 1

    def __call__(self, x: Array, routing: Routing, *, before: Mask | None = None) -> Decision:
        """See Gate."""
        shape = (x.shape[0], -(-x.shape[1] // self.strides), -(-x.shape[2] // self.strides))
        key = self.make_rng("gumbel") if routing.train else stream(0, "/".join(self.path))
        return _decided(top_share(jax.random.uniform(key, shape), self.options.density, before), None)


def _decided(mask: Mask, before: Mask | None) -> Decision:
    """The decision of a gate without parameters."""
    decided = (mask if before is None else mask & before).astype(jnp.float32)
    return Decision(decided, decided)


GATES: Registry[type[GateOptions]] = Registry(
    "gate",
    {
        "none": NoGate,
        "pixel": PixelOptions,
        "layer": LayerOptions,
        "confidence": ConfidenceOptions,
        "top_k": TopKOptions,
        "random": RandomOptions,
    },
)
"""Options of a gate, by its kind."""

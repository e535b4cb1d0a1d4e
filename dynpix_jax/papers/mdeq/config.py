"""Config section of the MDEQ system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from dynpix_jax.core.sections import BESIDE, OneOf
from dynpix_jax.core.system import NetworkConfig
from dynpix_jax.papers.mdeq.fixed_point import ImplicitConfig, SolverConfig
from dynpix_jax.tasks import TASKS, task_class


@dataclass(frozen=True)
class CellConfig:
    """Section ``model.cell``: f, whose fixed point is sought. The defaults are those of "small".

    Attributes:
        channels: Channels of the branches, from the highest resolution (a quarter of the image's) down, each
            half the one before.
        expansion: Width of the block inside a branch, relative to its channels.
        groups: Groups of the group norms; the norm after the fusion has half as many.
        dropout: Share of a block's channels to drop in training, the same in all iterations of a forward
            pass.
        weight_norm: Kernels of blocks and after the fusion are direction times length (Salimans and Kingma,
            NeurIPS 2016).
    """

    channels: tuple[int, ...] = (32, 64, 128, 256)
    expansion: int = 5
    groups: int = 8
    dropout: float = 0.05
    weight_norm: bool = True

    def __post_init__(self) -> None:
        if self.expansion < 1:
            raise ValueError(f"expansion: {self.expansion}; expected at least 1")
        if self.groups < 2 or self.groups % 2:
            raise ValueError(f"groups: {self.groups}; expected an even number >= 2")
        if not self.channels or any(width < 1 or width % self.groups for width in self.channels):
            raise ValueError(
                f"channels: {self.channels}; expected at least one, all multiples of groups = {self.groups}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: {self.dropout}; expected a share in [0, 1)")


@dataclass(frozen=True)
class JacobianConfig:
    """Section ``model.jacobian``: the penalty on f's Jacobian at the fixed point (Bai et al., ICML 2021).

    Attributes:
        weight: Weight of the penalty; 0 leaves it out.
        frequency: Share of the training steps with the penalty.
        probes: Number of random vectors of the estimate.
    """

    weight: float = 0.0
    frequency: float = 1.0
    probes: int = 2

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight: {self.weight}; expected a number >= 0")
        if not 0.0 < self.frequency <= 1.0:
            raise ValueError(f"frequency: {self.frequency}; expected a share in (0, 1]")
        if self.probes < 1:
            raise ValueError(f"probes: {self.probes}; expected at least 1")

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        return {} if self.weight else dict.fromkeys(("frequency", "probes"), "model.jacobian.weight is 0")


@dataclass(frozen=True)
class EarlyConfig:
    """Section ``model.anytime``: predictions from iterates before the fixed point.

    Attributes:
        iterations: Iterations after which to decode, ascending; those from the solver's limit on are left
            out, because its end is always decoded.
        iterate: The ``best`` so far, which a solver with that limit would return, or the ``latest``; the
            paper does not say which. In the first iterations they are usually the same.
    """

    iterations: tuple[int, ...] = (4, 6, 8, 10)
    iterate: Literal["best", "latest"] = "best"

    def __post_init__(self) -> None:
        if any(a >= b for a, b in zip((0, *self.iterations), self.iterations, strict=False)):
            raise ValueError(f"iterations: {self.iterations}; expected rising numbers >= 1")


@dataclass(frozen=True)
class MdeqConfig(NetworkConfig):
    """Section ``model`` of an MDEQ config.

    Attributes:
        task: Name of the task in ``tasks.TASKS``.
        task_options: Fields of that task's class.
        cell: The function f.
        forward: The search for the fixed point.
        backward: The search for its gradient, in training.
        implicit: What training decodes, and where the search for the gradient starts.
        unrolled: 0 seeks the fixed point; n applies f n times instead and differentiates through these
            applications, for pretraining.
        jacobian: The penalty on f's Jacobian.
        anytime: Predictions from earlier iterates.
        norm_momentum: Momentum of the moving averages of stem and head.
        running_variance: What these norms store of a batch: its ``unbiased`` variance, as released (PyTorch),
            or the ``biased`` one that it is normalised by.
    """

    system: str
    task: str = "segmentation"
    task_options: Annotated[Any, OneOf(TASKS, key="task", beside=True)] = BESIDE
    cell: CellConfig = field(default_factory=CellConfig)
    forward: SolverConfig = field(default_factory=SolverConfig)
    backward: SolverConfig = field(default_factory=lambda: SolverConfig(iterations=30, tolerance=2e-10))
    implicit: ImplicitConfig = field(default_factory=ImplicitConfig)
    unrolled: int = 0
    jacobian: JacobianConfig = field(default_factory=JacobianConfig)
    anytime: EarlyConfig = field(default_factory=EarlyConfig)
    norm_momentum: float = 0.99
    running_variance: Literal["unbiased", "biased"] = "unbiased"

    def __post_init__(self) -> None:
        super().__post_init__()
        task_class(self.task)
        if self.unrolled < 0:
            raise ValueError(f"unrolled: {self.unrolled}; expected a number >= 0")
        if self.unrolled and self.jacobian.weight:
            raise ValueError("jacobian.weight: pretraining (unrolled > 0) has no fixed point; expected 0")
        if not 0.0 <= self.norm_momentum < 1.0:
            raise ValueError(f"norm_momentum: {self.norm_momentum}; expected a number in [0, 1)")

    def unread(self) -> Mapping[str, str]:
        """Options that are not read, and why."""
        names = ("forward", "backward", "implicit", "jacobian", "anytime") if self.unrolled else ()
        return dict.fromkeys(names, "model.unrolled applies f so often, and seeks no fixed point")

    @property
    def read_out(self) -> tuple[int, ...]:
        """Iterations after which predictions are made, ascending; with ``unrolled``, applications of f."""
        if self.unrolled:
            return (self.unrolled,)
        limit = self.forward.iterations
        return (*(n for n in self.anytime.iterations if n < limit), limit)

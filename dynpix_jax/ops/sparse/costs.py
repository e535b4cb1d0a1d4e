"""What decides between sparse and dense execution on a CPU, as `dynpix bench` measured it."""

from __future__ import annotations

# (channels, density): with fewer channels, gather is faster up to this density (docs/sparse-execution.md).
_BREAK_EVEN = ((48, 0.6), (72, 0.4), (128, 0.6), (192, 0.75), (384, 0.88))
_WINOGRAD_BREAK_EVEN = ((384, 0.48),)

# (channels, costs): with fewer channels, the cost of an active and of an interpolated row of a residual
# block, relative to a position of the dense block.
_ROW_COSTS = ((72, (1.7, 0.5)), (128, (1.2, 0.25)), (256, (1.1, 0.2)))


def break_even(channels: int, *, winograd: bool = False) -> float:
    """Density up to which ``gather`` with ``channels`` input channels is faster than dense, on a CPU.

    For a single convolution; measured on the papers' layers of 18 to 512 channels.

    Args:
        channels: Channels of the input.
        winograd: Whether the dense convolution runs by Winograd (`ops.winograd`).
    """
    table, else_ = (_WINOGRAD_BREAK_EVEN, 0.47) if winograd else (_BREAK_EVEN, 0.97)
    return next((density for limit, density in table if channels < limit), else_)


def row_costs(channels: int, *, winograd: bool = False) -> tuple[float, float]:
    """CPU cost of an active and of an interpolated row of a block, relative to a dense position.

    Args:
        channels: Channels of the block.
        winograd: Whether the dense block runs by Winograd (`ops.winograd`), in two thirds of XLA's time.
    """
    active, interpolated = next((cost for limit, cost in _ROW_COSTS if channels < limit), (1.05, 0.25))
    return (1.5 * active, 1.5 * interpolated) if winograd else (active, interpolated)

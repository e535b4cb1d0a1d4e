"""One-to-one matching of predicted and annotated boundary pixels: an exact minimum-cost assignment.

Every pixel of either map is matched to one pixel of the other at most `radius` pixels away, at the cost of
their Euclidean distance, or stays alone at the cost of 100 x `radius`. A pair that stays alone thus costs 200
times as much as the longest match, so that the cheapest assignment has as many matches as possible and, among
those, the shortest.

Source: the BSDS500 benchmark (`correspondPixels`), which solves this problem on costs rounded to 1/100 pixel,
as we do, but allows each pixel only a few randomly drawn ways to stay alone: its counts vary very slightly,
ours do not.

What makes it fast enough for 500 problems an image: pixels without a candidate never enter; connected
components of the candidate graph are separate problems, and the solver's time grows with the square of their
size; in each component the side with fewer pixels is the one that must be assigned, so that few pixels have
to search in vain.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

# Components with fewer nodes are solved together: a call costs as much as a problem of about this size.
_GROUP = 300


def match_radius(shape: tuple[int, ...], max_dist: float) -> float:
    """The largest distance in pixels of a match: `max_dist` as a fraction of the diagonal of (H, W)."""
    height, width = shape
    return max_dist * math.hypot(height, width)


class Annotation:
    """One annotator's boundary, prepared to be matched with many maps of the same image.

    Args:
      mask: bool (H, W).
      radius: the largest distance of a match, in pixels, above 0.

    `count` is the number of annotated pixels.
    """

    def __init__(self, mask: np.ndarray, radius: float) -> None:
        if mask.ndim != 2:
            raise ValueError(f"Annotation: expected a mask (H, W), got shape {mask.shape}")
        if not radius > 0:
            raise ValueError(f"Annotation: radius must be above 0, got {radius}")
        mask = np.asarray(mask, bool)
        height, width = mask.shape
        reach = int(radius)
        span = np.arange(-reach, reach + 1)
        dy, dx = (grid.ravel() for grid in np.meshgrid(span, span, indexing="ij"))
        within = dy**2 + dx**2 <= radius**2
        dy, dx = dy[within], dx[within]

        self.shape = (height, width)
        self.count = int(np.count_nonzero(mask))
        self._reach, self._stride = reach, width + 2 * reach
        self._offsets = dy * self._stride + dx
        # SciPy reads a weight of 0 as a missing edge. One more on every edge changes no decision, because all
        # the assignments that are compared have equally many edges.
        self._costs = np.rint(100.0 * np.hypot(dy, dx)) + 1.0
        self._alone = max(2.0 * np.rint(100.0 * 100.0 * radius), 1.0) + 1.0
        # Number of each annotated pixel, -1 elsewhere, with a margin so that no candidate is outside.
        numbers = np.full((height + 2 * reach, self._stride), -1, np.int32)
        numbers[reach : reach + height, reach : reach + width][mask] = np.arange(self.count, dtype=np.int32)
        self._numbers = numbers.ravel()
        near = np.zeros(self._numbers.shape, bool)
        positions = np.flatnonzero(self._numbers >= 0)
        for offset in self._offsets:
            near[positions + offset] = True
        self._near = near.reshape(numbers.shape)[reach : reach + height, reach : reach + width].ravel()

    def match(self, pixels: np.ndarray) -> np.ndarray:
        """Which of the predicted `pixels` are matched: bool, same length.

        `pixels` are distinct flat indices y * W + x. The number of matched annotated pixels is the sum.
        """
        matched = np.zeros(len(pixels), bool)
        candidates = np.flatnonzero(self._near[pixels])
        if len(candidates):
            matched[candidates] = self._assign(*self._edges(pixels[candidates]), len(candidates))
        return matched

    def _edges(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Candidate pairs: position in `pixels` (ascending), number of the annotated pixel, cost."""
        y, x = np.divmod(pixels, self.shape[1])
        base = (y + self._reach) * self._stride + x + self._reach
        numbers = self._numbers[base[:, None] + self._offsets]
        predicted, offset = np.nonzero(numbers >= 0)
        return predicted, numbers[predicted, offset], self._costs[offset]

    def _assign(
        self, predicted: np.ndarray, annotated: np.ndarray, costs: np.ndarray, count: int
    ) -> np.ndarray:
        """Solves the assignment on the candidate graph; bool (count,) of the matched predicted pixels."""
        used, annotated = np.unique(annotated, return_inverse=True)
        nodes = count + len(used)
        graph = csr_array((costs, (predicted, annotated + count)), shape=(nodes, nodes))
        components, label = connected_components(graph, directed=False)
        size = np.bincount(label, minlength=components)
        swap = np.bincount(label[:count], minlength=components) > size / 2

        # Each node is a row (to be assigned) or a column of its group; number both within the group.
        group_of = _pack(size)
        group = group_of[label]
        is_row = np.arange(nodes) < count
        is_row ^= swap[label]
        number = np.empty(nodes, np.int64)
        rows = _number_within(group, is_row, number)
        columns = _number_within(group, ~is_row, number)

        edge_swap = swap[label[predicted]]
        first = np.where(edge_swap, annotated + count, predicted)
        second = np.where(edge_swap, predicted, annotated + count)
        edge_group = group[first]
        order = np.argsort(edge_group, kind="stable")
        first, second, costs = first[order], second[order], costs[order]
        ends = np.cumsum(np.bincount(edge_group, minlength=len(rows)))

        taken = np.zeros(nodes, bool)
        by_group = np.argsort(group, kind="stable")
        node_ends = np.cumsum(np.bincount(group, minlength=len(rows)))
        for index, (n_rows, n_columns) in enumerate(zip(rows, columns, strict=True)):
            edges = slice(ends[index - 1] if index else 0, ends[index])
            matched_rows, matched_columns = _solve(
                number[first[edges]], number[second[edges]], costs[edges], n_rows, n_columns, self._alone
            )
            members = by_group[node_ends[index - 1] if index else 0 : node_ends[index]]
            taken[members[is_row[members]][matched_rows]] = True
            taken[members[~is_row[members]][matched_columns]] = True
        return taken[:count]


def _solve(
    rows: np.ndarray, columns: np.ndarray, costs: np.ndarray, n_rows: int, n_columns: int, alone: float
) -> tuple[np.ndarray, np.ndarray]:
    """Cheapest assignment of every row to a column or, at the cost `alone`, to none; the matched of both."""
    each = np.arange(n_rows)
    matrix = csr_array(
        (
            np.concatenate([costs, np.full(n_rows, alone)]),
            (np.concatenate([rows, each]), np.concatenate([columns, n_columns + each])),
        ),
        shape=(n_rows, n_columns + n_rows),
    )
    assigned_rows, assigned = min_weight_full_bipartite_matching(matrix)
    real = assigned < n_columns
    return assigned_rows[real], assigned[real]


def _pack(size: np.ndarray) -> np.ndarray:
    """Group number of each component: large ones alone, small ones together, none empty."""
    order = np.argsort(size, kind="stable")[::-1]
    group = np.empty(len(size), np.int64)
    current, filled = 0, 0
    for component in order.tolist():
        if filled and filled + size[component] > _GROUP:
            current, filled = current + 1, 0
        group[component] = current
        filled += int(size[component])
    return group


def _number_within(group: np.ndarray, member: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Numbers each group's members from 0 in ascending order, into `number`; returns their count by group."""
    nodes = np.flatnonzero(member)
    count = np.bincount(group[nodes], minlength=int(group.max()) + 1)
    order = nodes[np.argsort(group[nodes], kind="stable")]
    start = np.repeat(np.cumsum(count) - count, count)
    number[order] = np.arange(len(order)) - start
    return count

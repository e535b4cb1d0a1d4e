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

        # Each node is a row (to be assigned) or a column of its group. `number` runs through the
        # rows of one group after the other, and through the columns of each group from 0.
        group = _pack(size)[label]
        is_row = np.arange(nodes) < count
        is_row ^= swap[label]
        number = np.empty(nodes, np.int64)
        rows, row_start = _number(group, is_row, number)
        columns, column_start = _number(group, ~is_row, number)
        number[columns] -= column_start[group[columns]]

        # One matrix for all: a row holds its candidates and, in a column of its own, the cost of being alone.
        edge_swap = swap[label[predicted]]
        first = np.where(edge_swap, annotated + count, predicted)
        second = np.where(edge_swap, predicted, annotated + count)
        n_rows, n_columns = np.diff(row_start), np.diff(column_start)
        own = n_columns[group[rows]] + np.arange(len(rows)) - row_start[group[rows]]
        row = np.concatenate([number[first], np.arange(len(rows))])
        order = np.argsort(row, kind="stable")
        column = np.concatenate([number[second], own])[order].astype(np.int32)
        cost = np.concatenate([costs, np.full(len(rows), self._alone)])[order]
        pointer = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(rows)))]).astype(np.int32)

        taken = np.zeros(nodes, bool)
        for index, (height, width) in enumerate(zip(n_rows.tolist(), n_columns.tolist(), strict=True)):
            top, left = row_start[index], column_start[index]
            inside = pointer[top : top + height + 1]
            edges = slice(inside[0], inside[-1])
            matrix = csr_array(
                (cost[edges], column[edges], inside - inside[0]), shape=(height, width + height)
            )
            row, column_of_row = min_weight_full_bipartite_matching(matrix)
            matched = column_of_row < width
            taken[rows[top + row[matched]]] = True
            taken[columns[left + column_of_row[matched]]] = True
        return taken[:count]


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


def _number(group: np.ndarray, member: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the members from 0, group after group, into `number`.

    Returns the members in that order, and where each group starts (groups + 1).
    """
    nodes = np.flatnonzero(member)
    nodes = nodes[np.argsort(group[nodes], kind="stable")]
    number[nodes] = np.arange(len(nodes))
    count = np.bincount(group[nodes], minlength=int(group.max()) + 1)
    return nodes, np.concatenate([[0], np.cumsum(count)])

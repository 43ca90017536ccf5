"""The outputs of condensation for every matrix, side and step of a block: one row each, filled as they are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .neurons.clustering import Ints, cluster_sizes, numbered, size_entropy
from .neurons.cosines import Floats, Pairs, joined
from .neurons.vectors import SIDES

if TYPE_CHECKING:
    from ckpt_tools import Out


class Table:
    """Rows in the order of step, matrix, side; what is not found stays NaN or -1."""

    def __init__(
        self,
        outputs: Mapping[str, Out],
        names: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        *,
        steps: int,
        sizes: int,
        labels_max: int,
    ) -> None:
        self._names, self._steps, self._labels_max = names, steps, labels_max
        self._widths = [n for rows, columns in shapes for n in (columns, rows)]
        self.per_step = len(self._widths)
        counts = [n for shape in shapes for n in shape] * steps
        plain = {key: out.dtype for key, out in outputs.items() if out.dims == ("matrix", "side")}
        self.floats = {key: np.full(len(counts), np.nan) for key, kind in plain.items() if kind == "f8"}
        self.ints = {key: np.full(len(counts), -1) for key, kind in plain.items() if kind == "i8"}
        self.ints["neurons"][:] = counts
        self.orders: dict[int, Any] = {}
        self.cosines: dict[int, Any] = {}
        self._found: dict[int, list[tuple[list[int], Pairs, Ints, Floats]]] = {}
        self._sizes = np.full((len(counts), sizes), -1)
        self._labels: dict[int, Any] = {}

    def width(self, row: int) -> int:
        """Return how many numbers a neuron of a row has, its bias left out."""
        return self._widths[row % self.per_step]

    def what(self, row: int) -> str:
        """Return how a row is called in messages."""
        matrix, side = divmod(row % self.per_step, 2)
        return f"The {SIDES[side]} side of matrix {self._names[matrix]!r}"

    def add(self, rows: list[int], pairs: Pairs, roots: Ints, within: Floats) -> None:
        """Take the results of the sides `rows`: statistics, roots `[b, n]`, smallest cosines to a cluster's mean."""
        self._found.setdefault(roots.shape[1], []).append((rows, pairs, roots, within))

    def _put(self, rows: list[int], pairs: Pairs, roots: Ints, within: Floats) -> None:
        floats, ints, used = self.floats, self.ints, pairs.used
        population = ints["neurons"][rows] - ints["tiny"][rows]
        floats["mean_abs_cos"][rows] = pairs.mean_abs
        floats["mean_cos"][rows] = pairs.mean
        floats["share_above"][rows] = pairs.share
        floats["effective_directions"][rows] = pairs.directions
        floats["within_cos"][rows] = within
        with np.errstate(all="ignore"):
            rest = np.sqrt(np.maximum(0.0, 1 - used / population))
            floats["mean_abs_cos_error"][rows] = 2 * pairs.spread / np.sqrt(used) * rest
        ints["used"][rows] = used
        self._put_clusters(np.array(rows), used, roots)

    def _put_clusters(self, rows: Ints, used: Ints, roots: Ints) -> None:
        sizes = cluster_sizes(roots)
        ordered = -np.sort(-sizes, axis=1)
        finite = self.ints["tiny"][rows] >= 0
        with np.errstate(all="ignore"):
            self.floats["largest_share"][rows] = ordered[:, 0] / used
        self.floats["size_entropy"][rows] = np.where(used > 0, size_entropy(sizes), np.nan)
        self.ints["clusters"][rows] = np.where(finite, (sizes > 0).sum(axis=1), -1)
        self.ints["single"][rows] = np.where(finite, (sizes == 1).sum(axis=1), -1)
        width = min(self._sizes.shape[1], ordered.shape[1])
        self._sizes[rows, :width] = np.where(ordered[:, :width] > 0, ordered[:, :width], -1)
        if roots.shape[1] <= self._labels_max:
            self._labels.update(zip(rows.tolist(), numbered(roots), strict=True))

    def outputs(self) -> dict[str, Any]:
        """Return every output that has the dims `matrix` and `side`, `[step, matrix, side, ...]`."""
        for found in self._found.values():
            rows, pairs, roots, within = zip(*found, strict=True)
            self._put(
                [row for some in rows for row in some], joined(pairs), np.concatenate(roots), np.concatenate(within)
            )
        count = len(self._sizes)
        extra: dict[str, Any] = {"label": _filled(self._labels, count), "order": _filled(self.orders, count)}
        extra["cosine"] = _squares(self.cosines, count)
        flat = {**self.floats, **self.ints, "cluster_size": self._sizes, **extra}
        shape = (self._steps, self.per_step // 2, 2)
        return {key: value.reshape(*shape, *value.shape[1:]) for key, value in flat.items()}


def _filled(rows: Mapping[int, Any], count: int) -> Ints:
    full = np.full((count, max((len(row) for row in rows.values()), default=0)), -1)
    for at, row in rows.items():
        full[at, : len(row)] = row
    return full


def _squares(rows: Mapping[int, Any], count: int) -> NDArray[np.float32]:
    width = max((len(square) for square in rows.values()), default=0)
    full = np.full((count, width, width), np.nan, dtype=np.float32)
    for at, square in rows.items():
        full[at, : len(square), : len(square)] = square
    return full

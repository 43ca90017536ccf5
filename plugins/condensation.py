"""Condensation: neurons of a layer gather on few directions (Luo et al. 2021; Zhou et al., arXiv 2105.11686).

A neuron is a vector: on the input side of a matrix `[out, in]` a row joined by its bias, u = (w, b), on the output side
a column. With the cosine D(u, v) = u.v / (|u| |v|), per matrix and side, over neurons whose norm is not tiny:

- mean |D| and mean D over pairs; the share of pairs beyond a threshold t;
- effective number of directions n^2 / sum_ij D_ij^2: 1 when all are parallel, n when orthogonal;
- clusters: connected components of |D| > t (single linkage cut at 1 - t), their number, sizes, entropy of sizes, and
  how tight they are: the smallest cosine of a member to its cluster's mean, which exposes chains;
- |D| to the leading direction (the top right-singular vector of the neurons) and to a given one.

Counts and components are those of float64. Of more neurons than `max_neurons` a random sample is taken, and the
standard error of mean |D| says what that costs: 2 std(mean |D| of a neuron) / sqrt(n), with the correction for a finite
population; cluster counts are then those of the sample.

For one-dimensional inputs a neuron a sigma(w x + b) has the orientation sign(b) arccos(w / sqrt(w^2 + b^2)) and the
amplitude |a| sqrt(w^2 + b^2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ckpt_tools import Analyzer, Figure, OptionError, Out, hookimpl, option

from .condensation_stacks import STACKED, lines_of, stacks_of
from .condensation_table import Table
from .neurons.clustering import partition, scan, within_cosine
from .neurons.cosines import Array, Floats, Mask, exactly, unit_rows
from .neurons.directions import alignment, heatmap_order, leading_direction
from .neurons.stacks import scan_stack
from .neurons.vectors import SIDES, first_steps, group_of, norms

if TYPE_CHECKING:
    from ckpt_tools import BatchView, Series

PARALLEL = 0.99
"""Neurons whose mean |cos| starts here or above are parallel from the start."""

_SIDE = ("matrix", "side")


@dataclass
class Neurons:
    """Sides of one shape: `vectors [b, n, d]`, their norms, which of them count, and the output rows they fill."""

    rows: list[int]
    vectors: Array
    lengths: Floats
    keep: Mask


class Condensation(Analyzer):
    """Cosines between neurons, their clusters and directions, for both sides of every weight matrix."""

    name = "condensation"
    version = "3"
    needs = "weights"
    batched = True
    reading = (
        "A neuron is a vector: the weights by which it reads (input side), or those that lead to it from one input "
        "(output side). Neurons start in random directions. When they condense, many turn to the same few directions "
        "and act as one: the mean |cos| of pairs goes from near 0 to 1, and the number of clusters falls. Where it "
        "falls again, neurons have begun to tell more things apart."
    )
    events: ClassVar[Mapping[str, str]] = {
        "onset_order": "condensation: neurons of {group} gather on few directions ({label} side)."
    }
    outputs: ClassVar[Mapping[str, Out]] = {
        "neurons": Out(_SIDE, long_name="number of neurons", dtype="i8"),
        "tiny": Out(_SIDE, long_name="neurons left out because their norm is tiny", dtype="i8"),
        "used": Out(_SIDE, long_name="neurons compared", dtype="i8"),
        "mean_abs_cos": Out(_SIDE, long_name="mean |cos| between different neurons"),
        "mean_abs_cos_error": Out(
            _SIDE, long_name="standard error of mean |cos| from sampling neurons, 0 without", error_of="mean_abs_cos"
        ),
        "mean_cos": Out(_SIDE, long_name="mean cos between different neurons"),
        "share_above": Out(_SIDE, long_name="share of pairs beyond the threshold"),
        "effective_directions": Out(_SIDE, long_name="effective number of directions, n^2 / sum cos^2"),
        "clusters": Out(_SIDE, long_name="number of clusters, single neurons included", dtype="i8"),
        "single": Out(_SIDE, long_name="neurons that share a cluster with no other", dtype="i8"),
        "largest_share": Out(_SIDE, long_name="share of the compared neurons in the largest cluster"),
        "size_entropy": Out(_SIDE, unit="nat", long_name="entropy of cluster sizes"),
        "within_cos": Out(_SIDE, long_name="smallest cosine of a neuron to the mean of its cluster"),
        "cluster_size": Out((*_SIDE, "cluster"), long_name="sizes of the largest clusters", dtype="i8"),
        "label": Out((*_SIDE, "neuron"), long_name="cluster of each neuron, largest first; -1 none", dtype="i4"),
        "order": Out((*_SIDE, "place"), long_name="neurons by the top eigenvector of the cosine matrix", dtype="i4"),
        "cosine": Out((*_SIDE, "place", "other"), long_name="cosines of neurons in that order", dtype="f4"),
        "leading_cos": Out(_SIDE, long_name="mean |cos| of neurons to the leading direction"),
        "direction_cos": Out(_SIDE, long_name="mean |cos| of neurons to the given direction"),
        "leading_direction_cos": Out(_SIDE, long_name="|cos| of the leading direction to the given one"),
        "orientation": Out(("line", "unit"), unit="rad", long_name="angle of (w, b) for one-dimensional input"),
        "amplitude": Out(("line", "unit"), long_name="|a| sqrt(w^2 + b^2) for one-dimensional input"),
    }
    figures = (
        Figure("mean_abs_cos", lines="matrix"),
        Figure("effective_directions", lines="matrix", log="y"),
        Figure("cosine", "map"),
        Figure("amplitude", "scatter", against="orientation", log="y"),
    )
    threshold: float = option(0.95, help="Neurons beyond this |cos| are neighbours.", min=0.0, max=0.9999)
    signed: bool = option(False, help="Tell opposite directions apart: cos instead of |cos|.")
    min_norm: float = option(0.1, help="Leave out neurons below this share of the largest norm.", min=0.0, max=1.0)
    method: str = option("components", help="How to cluster.", choices=("components", "average", "complete", "hdbscan"))
    min_cluster: int = option(5, help="Smallest cluster HDBSCAN may find.", min=2)
    max_dense: int = option(8192, help="Most neurons for methods other than components.", min=2)
    max_neurons: int = option(16384, help="Compare a random sample of a larger number of neurons.", min=2)
    labels_max: int = option(512, help="Store each neuron's cluster up to this many neurons; 0: never.", min=0)
    order_max: int = option(0, help="Store the heat map of cosines up to this many neurons; 0: never.", min=0)
    sizes: int = option(8, help="How many cluster sizes to store.", min=1)
    leading: bool = option(False, help="Also the leading direction (one eigenvector per matrix and side).")
    direction: tuple[float, ...] = option((), help="A direction to compare with neurons of as many inputs or outputs.")
    onset: float = option(
        0.5, help="Onset: mean |cos| has gone this share of the way from its first value to 1.", min=0.0, max=1.0
    )

    def analyze(self, view: BatchView) -> Mapping[str, Any]:
        """Return the statistics of every matrix and side at every step of the block."""
        names = view.matrix_names()
        shapes = [view.info(name).shape for name in names]
        if self.direction and not any(len(self.direction) in (n, n + 1) for shape in shapes for n in shape):
            raise OptionError(
                f"Option 'direction' of condensation has {len(self.direction)} numbers, but no selected matrix has as "
                "many inputs or outputs. Give one number per input (and one for the bias, if you like) or per output."
            )
        table = Table(self.outputs, names, shapes, steps=len(view), sizes=self.sizes, labels_max=self.labels_max)
        for rows, vectors in stacks_of(view, names, alone=self.method != "components"):
            lengths = norms(vectors)
            part = Neurons(rows, vectors, lengths, self._kept(rows, lengths, table, view))
            if self.leading or self.direction or self.order_max:
                for at in range(len(rows)):
                    self._directions(part, at, table)
            if vectors.shape[1] > STACKED or self.method != "components":
                self._measure(part, table)
            else:
                found = scan_stack(vectors, lengths, part.keep, self.threshold, signed=self.signed)
                table.add(rows, *found)
        return {"matrix": names, "side": list(SIDES), **table.outputs(), **lines_of(view, names)}

    def _kept(self, rows: list[int], lengths: Floats, table: Table, view: BatchView) -> Mask:
        """Return which neurons `[b, n]` are compared: none of a side with a NaN or an infinity."""
        finite = np.asarray(np.isfinite(lengths).all(axis=1, keepdims=True))
        with np.errstate(invalid="ignore"):
            large = lengths >= self.min_norm * lengths.max(axis=1, keepdims=True)
        keep = np.asarray((lengths > 0) & large & finite)
        counts = np.count_nonzero(keep, axis=1)
        table.ints["tiny"][rows] = np.where(finite[:, 0], keep.shape[1] - counts, -1)
        for at in np.flatnonzero(counts > self.max_neurons):
            step, side = divmod(rows[at], table.per_step)
            # A stream per side: what one side draws depends on nothing that is measured beside it.
            rng = np.random.Generator(np.random.PCG64(view[step].rng.integers(2**63)).jumped(side))
            chosen = rng.choice(np.flatnonzero(keep[at]), size=self.max_neurons, replace=False)
            keep[at] = False
            keep[at, chosen] = True
        return keep

    def _directions(self, part: Neurons, at: int, table: Table) -> None:
        """Put into the table how neurons lie to the leading and the given direction, and the heat map's order."""
        chosen = np.flatnonzero(part.keep[at])
        if not chosen.size:
            return
        row, vectors, lengths = part.rows[at], part.vectors[at][chosen], part.lengths[at][chosen]
        if len(chosen) <= self.order_max:
            unit = unit_rows(vectors, lengths)
            order = heatmap_order(unit)
            table.orders[row], table.cosines[row] = chosen[order], unit[order] @ unit[order].T
        top = leading_direction(vectors) if self.leading else None
        if top is not None:
            table.floats["leading_cos"][row] = alignment(vectors, lengths, top).mean()
        width, given = len(self.direction), np.array(self.direction)
        if width == vectors.shape[1] or (width and width == table.width(row)):
            seen = vectors[:, :width]
            table.floats["direction_cos"][row] = np.nanmean(alignment(seen, norms(seen), given))
            if top is not None:
                table.floats["leading_direction_cos"][row] = _cos(top[:width], given)

    def _measure(self, part: Neurons, table: Table) -> None:
        """Measure one large side, or one for which all distances are needed."""
        vectors, keep = part.vectors[0], part.keep[0]
        chosen = np.flatnonzero(keep)
        u = np.ascontiguousarray(unit_rows(vectors if keep.all() else vectors[chosen], part.lengths[0][chosen]))
        decide = exactly(vectors, chosen, self.threshold, self.signed)
        pairs, roots = scan(u, self.threshold, decide, signed=self.signed)
        if self.method != "components":
            roots = partition(
                u,
                self.method,
                self.threshold,
                signed=self.signed,
                smallest=self.min_cluster,
                largest=self.max_dense,
                what=table.what(part.rows[0]),
            )
        full = np.full((1, len(keep)), -1, dtype=np.int64)
        full[0, chosen] = chosen[roots]
        table.add(part.rows, pairs, full, np.array([within_cosine(u, roots, signed=self.signed)]))

    def summarize(self, series: Series) -> Mapping[str, Any]:
        """Return the step at which each matrix, and each group of matrices by role, condenses.

        None where that does not happen, or where the neurons are parallel from the start.
        """
        values, names = series["mean_abs_cos"], series.labels("matrix")
        groups = [group_of(name) for name in names]
        onset: dict[str, Any] = {}
        order: dict[str, Any] = {}
        for number, side in enumerate(series.labels("side")):
            of_side = values[:, :, number]
            onset[side] = dict(zip(names, self._onsets(series.steps, of_side), strict=True))
            kinds = list(dict.fromkeys(groups))
            means = np.stack([_mean_of(of_side, [g == kind for g in groups]) for kind in kinds], axis=1)
            found = [(step, kind) for step, kind in zip(self._onsets(series.steps, means), kinds, strict=True)]
            order[side] = [{"group": kind, "step": step} for step, kind in sorted(found, key=_by_step)]
        rule = f"first step with mean |cos| >= m0 + {self.onset:g} (1 - m0), m0 its value at the first step"
        return {"onset_rule": rule, "onset_step": onset, "onset_order": order}

    def _onsets(self, steps: NDArray[np.int64], values: Floats) -> list[int | None]:
        start = values[:1]
        return first_steps(steps, (values >= start + self.onset * (1 - start)) & (start < PARALLEL))


def _cos(a: Floats, b: Floats) -> float:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return abs(float(a @ b)) / size if size > 0 else math.nan


def _mean_of(values: Floats, chosen: list[bool]) -> Floats:
    part = values[:, chosen]
    known = ~np.isnan(part)
    count = known.sum(axis=1)
    total = np.where(known, part, 0.0).sum(axis=1)
    return np.asarray(np.divide(total, count, out=np.full(len(part), np.nan), where=count > 0))


def _by_step(found: tuple[int | None, str]) -> tuple[bool, int]:
    step, _ = found
    return step is None, step or 0


@hookimpl
def ckpt_analyzers() -> list[type[Analyzer]]:
    """Offer the analyzer `condensation`."""
    return [Condensation]

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
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ckpt_tools import Analyzer, OptionError, Out, hookimpl, option

from .neurons.clustering import Ints, cluster_sizes, numbered, partition, scan, size_entropy, within_cosine
from .neurons.cosines import Array, Floats, Mask, PairStats, exactly, unit_rows
from .neurons.directions import alignment, heatmap_order, leading_direction, orientations
from .neurons.stacks import scan_stack
from .neurons.vectors import SIDES, first_steps, group_of, neuron_vectors, norms, outgoing

if TYPE_CHECKING:
    from ckpt_tools.results.series import Series
    from ckpt_tools.view import View

STACKED = 512
"""Up to this many neurons, matrices of one shape are worked on together."""
STACK_PAIRS = 1 << 18
"""Most cosines of one stack: its buffers then stay in the cache."""

_SIDE = ("matrix", "side")


@dataclass
class Neurons:
    """One side of one matrix: `vectors [n, d]`, their norms, which of them count, and the output row they fill."""

    row: int
    what: str
    vectors: Array
    lengths: Floats
    keep: Mask


class Condensation(Analyzer):
    """Cosines between neurons, their clusters and directions, for both sides of every weight matrix."""

    name = "condensation"
    needs = "weights"
    invariant_to = frozenset({"sign"})
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
        "leading_cos": Out(_SIDE, long_name="mean |cos| of neurons to the leading direction"),
        "direction_cos": Out(_SIDE, long_name="mean |cos| of neurons to the given direction"),
        "leading_direction_cos": Out(_SIDE, long_name="|cos| of the leading direction to the given one"),
        "orientation": Out(("line", "unit"), unit="rad", long_name="angle of (w, b) for one-dimensional input"),
        "amplitude": Out(("line", "unit"), long_name="|a| sqrt(w^2 + b^2) for one-dimensional input"),
    }
    threshold: float = option(0.95, help="Neurons beyond this |cos| are neighbours.", min=0.0, max=0.9999)
    signed: bool = option(False, help="Tell opposite directions apart: cos instead of |cos|.")
    min_norm: float = option(0.1, help="Leave out neurons below this share of the largest norm.", min=0.0, max=1.0)
    method: str = option("components", help="How to cluster.", choices=("components", "average", "complete", "hdbscan"))
    min_cluster: int = option(5, help="Smallest cluster HDBSCAN may find.", min=2)
    max_dense: int = option(8192, help="Most neurons for methods other than components.", min=2)
    max_neurons: int = option(16384, help="Compare a random sample of a larger number of neurons.", min=2)
    labels_max: int = option(512, help="Store each neuron's cluster up to this many neurons; 0: never.", min=0)
    order_max: int = option(0, help="Store the order of the heat map up to this many neurons; 0: never.", min=0)
    sizes: int = option(8, help="How many cluster sizes to store.", min=1)
    leading: bool = option(False, help="Also the leading direction (one eigenvector per matrix and side).")
    direction: tuple[float, ...] = option((), help="A direction to compare with neurons of as many inputs or outputs.")
    onset: float = option(
        0.5, help="Onset: mean |cos| has gone this share of the way from its first value to 1.", min=0.0, max=1.0
    )

    def analyze(self, view: View) -> Mapping[str, Any]:
        """Return the statistics of every matrix and side."""
        names = view.matrix_names()
        table = _Table(self, [view.info(name).shape for name in names])
        stacks: dict[tuple[Any, ...], list[Neurons]] = defaultdict(list)
        for part in self._parts(view, names, table):
            n, d = part.vectors.shape
            if self.method != "components" or n > STACKED:
                self._measure(part, table)
                continue
            stack = stacks[n, d, part.vectors.dtype]
            stack.append(part)
            if len(stack) * n * n >= STACK_PAIRS:
                self._measure_stack(stack, table)
                stack.clear()
        for stack in stacks.values():
            if stack:
                self._measure_stack(stack, table)
        return {"matrix": names, "side": list(SIDES), **table.outputs(), **_lines(view, names)}

    def _parts(self, view: View, names: list[str], table: _Table) -> Iterator[Neurons]:
        """Yield the sides that can be compared, after what concerns their neurons one by one is in the table."""
        rng, fits = view.rng, False
        for index, name in enumerate(names):
            for number, (side, vectors) in enumerate(neuron_vectors(view, name).items()):
                lengths = norms(vectors)
                fits |= self._fits(vectors, view.info(name).shape[number ^ 1])
                if not np.isfinite(lengths).all():
                    continue
                row = 2 * index + number
                keep = (lengths > 0) & (lengths >= self.min_norm * lengths.max(initial=0.0))
                table.ints["tiny"][row] = len(keep) - np.count_nonzero(keep)
                keep = _sampled(keep, self.max_neurons, rng)
                part = Neurons(row, f"The {side} side of matrix {name!r}", vectors, lengths, keep)
                self._directions(part, view.info(name).shape[number ^ 1], table)
                yield part
        if self.direction and not fits:
            raise OptionError(
                f"Option 'direction' of condensation has {len(self.direction)} numbers, but no selected matrix has as "
                "many inputs or outputs. Give one number per input (and one for the bias, if you like) or per output."
            )

    def _fits(self, vectors: Array, width: int) -> bool:
        return len(self.direction) in (width, vectors.shape[1])

    def _directions(self, part: Neurons, width: int, table: _Table) -> None:
        """Put into the table how neurons lie to the leading and the given direction, and the heat map's order."""
        wanted = self.leading or self._fits(part.vectors, width) or np.count_nonzero(part.keep) <= self.order_max
        if not (wanted and part.keep.any()):
            return
        chosen = np.flatnonzero(part.keep)
        vectors, lengths = part.vectors[chosen], part.lengths[chosen]
        if len(chosen) <= self.order_max:
            table.orders[part.row] = chosen[heatmap_order(unit_rows(vectors, lengths))]
        top = leading_direction(vectors) if self.leading else None
        if top is not None:
            table.floats["leading_cos"][part.row] = alignment(vectors, lengths, top).mean()
        if self._fits(part.vectors, width):
            given = np.array(self.direction)
            seen = vectors[:, : len(given)]
            table.floats["direction_cos"][part.row] = np.nanmean(alignment(seen, norms(seen), given))
            if top is not None:
                table.floats["leading_direction_cos"][part.row] = _cos(top[: len(given)], given)

    def _measure_stack(self, stack: Sequence[Neurons], table: _Table) -> None:
        vectors = np.stack([part.vectors for part in stack])
        lengths, keep = np.stack([part.lengths for part in stack]), np.stack([part.keep for part in stack])
        found = scan_stack(vectors, lengths, keep, self.threshold, signed=self.signed)
        table.add([part.row for part in stack], found.pairs, found.sums, found.roots, found.within)

    def _measure(self, part: Neurons, table: _Table) -> None:
        chosen = np.flatnonzero(part.keep)
        u = unit_rows(part.vectors[chosen], part.lengths[chosen])
        decide = exactly(part.vectors, chosen, self.threshold, self.signed)
        pairs, roots = scan(u, self.threshold, decide, signed=self.signed)
        if self.method != "components":
            roots = partition(
                u,
                self.method,
                self.threshold,
                signed=self.signed,
                smallest=self.min_cluster,
                largest=self.max_dense,
                what=part.what,
            )
        tight = within_cosine(u, roots, signed=self.signed)
        full = np.full(len(part.keep), -1, dtype=np.int64)
        full[chosen] = chosen[roots]
        total = np.array([np.square(u.sum(axis=0, dtype=np.float64)).sum()])
        table.add([part.row], [pairs], total, full[None], np.array([tight]))

    def summarize(self, series: Series) -> Mapping[str, Any]:
        """Return the step at which each matrix, and each group of matrices by role, condenses; None if it does not."""
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
        return first_steps(steps, values >= values[:1] + self.onset * (1 - values[:1]))


class _Table:
    """The outputs of all matrices and sides, one row each, as they are found; what is not found stays NaN or -1."""

    def __init__(self, analyzer: Condensation, shapes: Sequence[tuple[int, ...]]) -> None:
        self._of, self._counts = analyzer, [n for shape in shapes for n in shape[:2]]
        rows = len(self._counts)
        plain = {key: out.dtype for key, out in analyzer.outputs.items() if out.dims == _SIDE}
        self.floats: dict[str, Floats] = {key: np.full(rows, np.nan) for key, kind in plain.items() if kind == "f8"}
        self.ints: dict[str, Ints] = {key: np.full(rows, -1) for key, kind in plain.items() if kind == "i8"}
        self.ints["neurons"][:] = self._counts
        self.orders: dict[int, Any] = {}
        self._sizes = np.full((rows, analyzer.sizes), -1)
        self._labels: dict[int, Any] = {}

    def add(self, rows: list[int], pairs: list[PairStats], sums: Floats, roots: Ints, within: Floats) -> None:
        """Take the results of sides `rows`; `sums [b]` are squared lengths of the sum of unit vectors."""
        floats, ints = self.floats, self.ints
        sizes = cluster_sizes(roots)
        used = sizes.sum(axis=1)
        with np.errstate(all="ignore"):
            floats["mean_cos"][rows] = np.where(used > 1, (sums - used) / (used * (used - 1)), np.nan)
            floats["largest_share"][rows] = sizes.max(axis=1, initial=0) / used
        floats["mean_abs_cos"][rows] = [p.mean_abs for p in pairs]
        floats["share_above"][rows] = [p.share for p in pairs]
        floats["effective_directions"][rows] = [p.directions for p in pairs]
        floats["size_entropy"][rows] = np.where(used > 0, size_entropy(sizes), np.nan)
        floats["within_cos"][rows] = within
        ints["used"][rows] = used
        ints["clusters"][rows] = (sizes > 0).sum(axis=1)
        ints["single"][rows] = (sizes == 1).sum(axis=1)
        whole = ints["neurons"][rows] - ints["tiny"][rows]
        floats["mean_abs_cos_error"][rows] = [_error(p, n) for p, n in zip(pairs, whole, strict=True)]
        top = -np.sort(-sizes, axis=1)[:, : self._of.sizes]
        self._sizes[rows, : top.shape[1]] = np.where(top > 0, top, -1)
        if roots.shape[1] <= self._of.labels_max:
            self._labels.update(zip(rows, numbered(roots), strict=True))

    def outputs(self) -> dict[str, Any]:
        """Return every output of dims `matrix`, `side` and one more."""
        flat = {
            **self.floats, **self.ints, "cluster_size": self._sizes,
            "label": _filled(self._labels, len(self._counts)), "order": _filled(self.orders, len(self._counts)),
        }  # fmt: skip
        return {key: value.reshape(len(value) // 2, 2, *value.shape[1:]) for key, value in flat.items()}


def _filled(rows: Mapping[int, Any], count: int) -> Ints:
    full = np.full((count, max((len(row) for row in rows.values()), default=0)), -1)
    for at, row in rows.items():
        full[at, : len(row)] = row
    return full


def _error(pairs: PairStats, population: int) -> float:
    n = len(pairs.abs_means)
    if n < 2:
        return math.nan
    return 2 * float(pairs.abs_means.std(ddof=1)) / math.sqrt(n) * math.sqrt(max(0.0, 1 - n / population))


def _sampled(keep: Mask, largest: int, rng: np.random.Generator) -> Mask:
    if np.count_nonzero(keep) <= largest:
        return keep
    mask = np.zeros_like(keep)
    mask[rng.choice(np.flatnonzero(keep), size=largest, replace=False)] = True
    return mask


def _cos(a: Floats, b: Floats) -> float:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return abs(float(a @ b)) / size if size > 0 else math.nan


def _lines(view: View, names: Sequence[str]) -> dict[str, Any]:
    """Return orientation and amplitude of neurons with one input, NaN where the outgoing matrix is not known."""
    lines = [name for name in names if view.info(name).shape[1] == 1]
    width = max((view.info(name).shape[0] for name in lines), default=0)
    angle, amplitude = np.full((2, len(lines), width), np.nan)
    readers = outgoing(view) if lines else {}
    for at, name in enumerate(lines):
        vectors = neuron_vectors(view, name)["input"]
        angle[at, : len(vectors)] = orientations(vectors)
        if name in readers:
            amplitude[at, : len(vectors)] = norms(vectors) * norms(view.matrices()[readers[name]].T)
    return {"line": lines, "orientation": angle, "amplitude": amplitude}


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

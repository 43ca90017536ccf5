"""How far weights have moved from where they started, how fast, and which of them move at all.

With W_t a matrix at step t, W_0 at the first and W_p, W_q at the two checkpoints before:

- distance ||W_t - W_0|| / ||W_0|| (the RD of Zhou et al., arXiv 2105.11686) and change of norm ||W_t|| / ||W_0|| - 1;
- update ||W_t - W_p||, its speed per step, its cosines to the update before, W_p - W_q, and the way so far, W_p - W_0;
- active or frozen: whether the distance exceeds a threshold;
- the Wasserstein-1 distance between the distributions of neuron amplitudes at two steps, mean |sorted differences|
  (arXiv 2410.20119): the amplitude of neuron a sigma(w x + b) is sqrt(||a|| ||(w, b)||) where the matrix that reads it
  is known, else ||(w, b)||.

Norms are Frobenius norms. All inner products are summed in float64, differences are taken before squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ckpt_tools import Analyzer, Figure, Out, hookimpl, option

from .neurons.vectors import first_steps, group_of, neuron_vectors, norms, outgoing

if TYPE_CHECKING:
    from ckpt_tools import Series, View

Array = NDArray[Any]
Floats = NDArray[np.float64]

BLOCK = 1 << 13
"""Entries of each tensor that are held in float64 at once."""

NOW, FIRST, BEFORE, MOVED, UPDATE, UPDATE_BEFORE, WAY = range(7)
"""Rows of the Gram matrix: W_t, W_0, W_p, W_t - W_0, W_t - W_p, W_p - W_q, W_p - W_0."""


def motion_gram(now: Array, first: Array, before: Array, earlier: Array) -> Floats:
    """Return the inner products `[7, 7]` of W_t, W_0, W_p, W_t - W_0, W_t - W_p, W_p - W_q, W_p - W_0.

    >>> gram = motion_gram(np.array([3.0]), np.array([1.0]), np.array([2.0]), np.array([2.0]))
    >>> float(gram[MOVED, MOVED]), float(gram[UPDATE, WAY])
    (4.0, 1.0)
    """
    gram, flat = np.zeros((7, 7)), [np.ravel(x) for x in (now, first, before, earlier)]
    buffer = np.empty((8, min(BLOCK, flat[0].size)))
    with np.errstate(all="ignore"):
        for start in range(0, flat[0].size, BLOCK):
            rows = buffer[:, : flat[0].size - start]
            t, o, p, *differences, q = rows
            for row, x in zip((t, o, p, q), flat, strict=True):
                row[:] = x[start : start + BLOCK]
            for row, a, b in zip(differences, (t, t, p, p), (o, p, q, o), strict=True):
                np.subtract(a, b, out=row)
            gram += rows[:7] @ rows[:7].T
    return gram


def wasserstein(a: Floats, b: Floats) -> float:
    """Return the Wasserstein-1 distance of two samples of equal size, NaN when empty.

    >>> wasserstein(np.array([0.0, 1.0]), np.array([3.0, 1.0]))
    1.5
    """
    return float(np.abs(np.sort(a) - np.sort(b)).mean()) if len(a) else float("nan")


def amplitudes(view: View, name: str, reader: str | None) -> Floats:
    """Return the amplitude `[out]` of every neuron of a matrix, in units of the weights."""
    size = norms(neuron_vectors(view, name)["input"])
    return size if reader is None else np.sqrt(size * norms(view.matrices()[reader].T))


_MEASURES: Mapping[str, Out] = {
    "norm": Out(long_name="Frobenius norm"),
    "distance": Out(long_name="distance from the first checkpoint, relative to its norm"),
    "norm_change": Out(long_name="relative change of the norm since the first checkpoint"),
    "first_cos": Out(long_name="cosine to the first checkpoint"),
    "update_norm": Out(long_name="norm of the change since the previous checkpoint"),
    "relative_update": Out(long_name="change since the previous checkpoint, relative to its norm"),
    "speed": Out(long_name="norm of the change since the previous checkpoint per step"),
    "update_cos": Out(long_name="cosine of the change to the one before"),
    "way_cos": Out(long_name="cosine of the change to the way from the first to the previous checkpoint"),
}
_AMPLITUDES: Mapping[str, Out] = {
    "amplitude": Out(("matrix",), long_name="mean amplitude of neurons"),
    "amplitude_distance": Out(("matrix",), long_name="Wasserstein-1 distance of amplitudes to the first checkpoint"),
    "amplitude_update": Out(("matrix",), long_name="Wasserstein-1 distance of amplitudes to the previous checkpoint"),
    "amplitude_speed": Out(("matrix",), long_name="Wasserstein-1 distance of amplitudes per step"),
}


class Drift(Analyzer):
    """Distance from the first checkpoint, update, speed and direction of every matrix, and of all weights together."""

    name = "drift"
    needs = "weights"
    reference = ("first", "previous", "before_previous")
    reading = (
        "How far the weights are from where they started, how fast they go, and whether they go straight on or turn. "
        "Matrices do not all start at once: some move while others are still frozen, and this order tells the stages "
        "of a training apart. A distance of 1 means that a matrix has moved by as much as it was large."
    )
    events: ClassVar[Mapping[str, str]] = {
        "active_order": "start: {group} begins to move.",
        "fastest_step": "fastest: all weights together move fastest.",
    }
    invariant_to = frozenset({"sign"})
    outputs: ClassVar[Mapping[str, Out]] = {
        **{key: Out(("matrix",), long_name=out.long_name) for key, out in _MEASURES.items()},
        **_AMPLITUDES,
        "active": Out(("matrix",), long_name="1 where the distance exceeds the threshold, else 0", dtype="i1"),
        **{f"total_{key}": Out(long_name=f"{out.long_name}, all weights as one") for key, out in _MEASURES.items()},
    }
    figures = (
        Figure("distance"),
        Figure("speed", log="y"),
        Figure("amplitude_speed", log="y"),
    )
    active_from: float = option(0.1, help="A matrix is active once its relative distance exceeds this.", min=0.0)
    vectors: bool = option(True, help="Count biases and gains in the totals.")
    turning: bool = option(True, help="Also the cosine of successive updates (reads one more checkpoint).")

    def analyze(self, view: View) -> Mapping[str, Any]:
        """Return every measure; those of updates are NaN at the first checkpoint, of turning also at the second."""
        names = view.matrix_names()
        time = view.step - view.references["previous"].step  # 0 at the start: there is no previous one
        grams = [self._gram(view, name, "matrices") for name in names]
        others = [self._gram(view, name, "vectors") for name in view.vectors()] if self.vectors else []
        known = [gram for gram in [*grams, *others] if gram is not None]
        unknown = np.full((7, 7), np.nan)
        each = _measures(np.array([unknown if gram is None else gram for gram in grams]).reshape(-1, 7, 7), time)
        total = _measures(np.sum(known, axis=0) if known else unknown, time)
        return {
            "matrix": names,
            **each,
            **self._amplitudes(view, names, time),
            "active": np.where(np.isnan(each["distance"]), -1, each["distance"] > self.active_from),
            **{f"total_{key}": value for key, value in total.items()},
        }

    def _gram(self, view: View, name: str, kind: str) -> Floats | None:
        """Return the inner products of one weight; None when a reference lacks it or has it in another shape."""
        now = getattr(view, kind)()[name]
        past = []
        for which in ("first", "previous", "before_previous" if self.turning else "previous"):
            weights = getattr(view.references[which], kind)()
            if name not in weights or weights[name].shape != now.shape:
                return None
            past.append(weights[name])
        return motion_gram(now, *past)

    def _amplitudes(self, view: View, names: Sequence[str], time: int) -> dict[str, Floats]:
        values = np.full((len(_AMPLITUDES), len(names)), np.nan)
        readers = outgoing(view)
        first, previous = view.references["first"], view.references["previous"]
        for at, name in enumerate(names):
            reader = readers.get(name)
            now = amplitudes(view, name, reader)
            then, before = (amplitudes_like(past, name, reader, len(now)) for past in (first, previous))
            moved = wasserstein(now, before) if time else np.nan
            values[:, at] = now.mean(), wasserstein(now, then), moved, moved / time if time else np.nan
        return dict(zip(_AMPLITUDES, values, strict=True))

    def summarize(self, series: Series) -> Mapping[str, Any]:
        """Return when each matrix and group became active, which groups stayed frozen, and how straight the way was."""
        names, distance = series.labels("matrix"), series["distance"]
        groups = [group_of(name) for name in names]
        kinds = list(dict.fromkeys(groups))
        since = dict(zip(names, first_steps(series.steps, distance > self.active_from), strict=True))
        furthest = [distance[:, [g == kind for g in groups]].max(axis=1, initial=-np.inf) for kind in kinds]
        started = [first_steps(series.steps, (far > self.active_from)[:, None])[0] for far in furthest]
        order = sorted((step, kind) for step, kind in zip(started, kinds, strict=True) if step is not None)
        return {
            "active_since": since,
            "active_order": [{"group": kind, "step": step} for step, kind in order],
            "frozen": [
                kind
                for step, kind, far in zip(started, kinds, furthest, strict=True)
                if step is None and not np.isnan(far).all()
            ],
            "fastest_step": _peak(series.steps, series["total_speed"]),
            "straightness": dict(zip(names, _straightness(series), strict=True)),
        }


def amplitudes_like(view: View, name: str, reader: str | None, count: int) -> Floats:
    """Return a reference's amplitudes `[count]`, NaN where it has no such neurons."""
    matrices = view.matrices()
    if name not in matrices or (reader is not None and reader not in matrices) or view.info(name).shape[0] != count:
        return np.full(count, np.nan)
    return amplitudes(view, name, reader)


def _measures(gram: Floats, time: int) -> dict[str, Floats]:
    """Return the measures `[...]` of Gram matrices `[..., 7, 7]`."""
    size = np.sqrt(np.einsum("...ii->...i", gram))
    update = np.where(time, size[..., UPDATE], np.nan)
    return {
        "norm": size[..., NOW],
        "distance": _relative(size[..., MOVED], size[..., FIRST]),
        "norm_change": _relative(size[..., NOW] - size[..., FIRST], size[..., FIRST]),
        "first_cos": _ratio(gram[..., NOW, FIRST], size[..., NOW] * size[..., FIRST]),
        "update_norm": update,
        "relative_update": _relative(update, size[..., BEFORE]),
        "speed": update / max(time, 1),
        "update_cos": _ratio(gram[..., UPDATE, UPDATE_BEFORE], update * size[..., UPDATE_BEFORE]),
        "way_cos": _ratio(gram[..., UPDATE, WAY], update * size[..., WAY]),
    }


def _ratio(above: Floats, below: Floats) -> Floats:
    """Return above / below, NaN where below is 0."""
    return np.asarray(np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) != 0))


def _relative(above: Floats, below: Floats) -> Floats:
    """Return above / below, infinite where a zero weight has moved and 0 where it has not."""
    sudden = np.where(np.isnan(above) | (above == 0), above, np.copysign(np.inf, above))
    return np.where(np.asarray(below) == 0, sudden, _ratio(above, below))


def _peak(steps: NDArray[np.int64], speed: Floats) -> int | None:
    return None if np.isnan(speed).all() else int(steps[np.nanargmax(speed)])


def _straightness(series: Series) -> list[float]:
    """Return, per matrix, the distance between the ends over the length of the way between them; 1 if straight."""
    if not len(series):
        return []
    reached = series["distance"][-1] * series["norm"][0]
    return [float(x) for x in _ratio(reached, np.nansum(series["update_norm"], axis=0))]


@hookimpl
def ckpt_analyzers() -> list[type[Analyzer]]:
    """Offer the analyzer `drift`."""
    return [Drift]

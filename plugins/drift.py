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

from . import drift_motion as of
from .drift_motion import Places, motion, window
from .neurons.vectors import first_steps, group_of, neuron_vectors, norms, outgoing

if TYPE_CHECKING:
    from ckpt_tools import BatchView, Series, View

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


def wasserstein(a: Floats, b: Floats) -> Floats:
    """Return the Wasserstein-1 distance `[...]` of samples `[..., n]` of equal size, NaN when empty.

    >>> float(wasserstein(np.array([0.0, 1.0]), np.array([3.0, 1.0])))
    1.5
    """
    return _apart(np.sort(a, axis=-1), np.sort(b, axis=-1))


def _apart(a: Floats, b: Floats) -> Floats:
    """Return the Wasserstein-1 distance `[...]` of samples in order."""
    if not a.shape[-1]:
        return np.full(np.broadcast_shapes(a.shape, b.shape)[:-1], np.nan)
    return np.asarray(np.abs(a - b).mean(axis=-1))


def amplitudes(views: Sequence[View], name: str, reader: str | None) -> Floats:
    """Return the amplitude `[view, out]` of every neuron of a matrix at some checkpoints, in units of the weights."""
    size = _norms([neuron_vectors(view, name)["input"] for view in views])
    return size if reader is None else np.sqrt(size * _norms([view.matrices()[reader].T for view in views]))


def _norms(vectors: Sequence[Array]) -> Floats:
    """Return the norms `[view, n]` of neurons `[n, d]` of some checkpoints: small ones at once, and copied for that."""
    if vectors[0].size > TOGETHER:
        return np.array([norms(each) for each in vectors])
    across = vectors[0].flags.f_contiguous and not vectors[0].flags.c_contiguous
    return norms(np.stack([each.T for each in vectors]).swapaxes(-1, -2) if across else np.stack(vectors))


TOGETHER = 1 << 16
"""Numbers of a matrix up to which several checkpoints are worked on at once."""
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
    version = "2"
    needs = "weights"
    batched = True
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

    def analyze(self, view: BatchView) -> Mapping[str, Any]:
        """Return every measure; those of updates are NaN at the first checkpoint, of turning also at the second."""
        names = view.matrix_names()
        views, at = window(view, turning=self.turning)
        steps = np.array([one.step for one in views])
        time = steps[at.now] - steps[at.before]  # 0 at the start: there is no previous one
        products = _Products(views, at)
        each = _measures(products.of("matrices", names), time[:, None])
        if self.vectors:
            products.of("vectors", list(view.vectors()))
        total = _measures(products.total(), time)
        return {
            "matrix": names,
            **each,
            **_amplitudes(views, at, names, time),
            "active": np.where(np.isnan(each["distance"]), -1, each["distance"] > self.active_from),
            **{f"total_{key}": value for key, value in total.items()},
        }

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


class _Products:
    """Inner products of weights, NaN where a reference lacks a weight or has it in another shape, and their sum."""

    def __init__(self, views: Sequence[View], at: Places) -> None:
        self._views, self._at = views, at
        self._sum = np.zeros((10, len(at.now)))
        self._known = np.zeros(len(at.now), dtype=bool)

    def of(self, kind: str, names: Sequence[str]) -> Floats:
        """Return the products `[10, step, weight]` of some weights and count them into the total."""
        weights = [getattr(view, kind)() for view in self._views]
        found = np.full((10, len(self._at.now), len(names)), np.nan)
        for number, name in enumerate(names):
            rows = [each.get(name) for each in weights]
            known, products = self._one(rows)
            found[:, known, number] = products
            self._sum[:, known] += products
            self._known |= known
        return found

    def _one(self, rows: Sequence[Array | None]) -> tuple[NDArray[np.bool_], Floats]:
        at = self._at
        now = rows[int(at.now[0])]
        fits = np.array([row is not None and now is not None and row.shape == now.shape for row in rows])
        known = fits[at.now] & fits[at.first] & fits[at.before] & fits[at.earlier]
        if not known.any():
            return known, np.zeros((10, 0))
        needed, places = at.among(known)
        return known, motion([row for i in needed if (row := rows[i]) is not None], places)

    def total(self) -> Floats:
        """Return the products `[10, step]` of all weights as one."""
        return np.where(self._known, self._sum, np.nan)


def _amplitudes(views: Sequence[View], at: Places, names: Sequence[str], time: Ints) -> dict[str, Floats]:
    values = np.full((len(_AMPLITUDES), len(at.now), len(names)), np.nan)
    now, later = int(at.now[0]), np.where(time > 0, time, np.nan)
    readers = outgoing(views[now])
    for number, name in enumerate(names):
        found = np.full((len(views), views[now].info(name).shape[0]), np.nan)
        alike = [i for i, view in enumerate(views) if _has(view, name, readers.get(name), found.shape[1])]
        found[alike] = amplitudes([views[i] for i in alike], name, readers.get(name))
        ordered = np.sort(found, axis=1)
        here = ordered[at.now]
        moved = np.where(time > 0, _apart(here, ordered[at.before]), np.nan)
        values[:, :, number] = here.mean(axis=1), _apart(here, ordered[at.first]), moved, moved / later
    return dict(zip(_AMPLITUDES, values, strict=True))


def _has(view: View, name: str, reader: str | None, count: int) -> bool:
    """Return whether a checkpoint has so many neurons of that name."""
    matrices = view.matrices()
    return name in matrices and (reader is None or reader in matrices) and view.info(name).shape[0] == count


def _measures(products: Floats, time: Ints) -> dict[str, Floats]:
    """Return the measures `[...]` of inner products `[10, ...]`, after `time` steps each."""
    size = np.sqrt(products[: of.NOW_FIRST])
    update = np.where(time > 0, size[of.UPDATE], np.nan)
    return {
        "norm": size[of.NOW],
        "distance": _relative(size[of.MOVED], size[of.FIRST]),
        "norm_change": _relative(size[of.NOW] - size[of.FIRST], size[of.FIRST]),
        "first_cos": _ratio(products[of.NOW_FIRST], size[of.NOW] * size[of.FIRST]),
        "update_norm": update,
        "relative_update": _relative(update, size[of.BEFORE]),
        "speed": update / np.maximum(time, 1),
        "update_cos": _ratio(products[of.TURN], update * size[of.UPDATE_BEFORE]),
        "way_cos": _ratio(products[of.UPDATE_WAY], update * size[of.WAY]),
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

"""Two sets of runs at one step: means, their difference with its interval, and a test, for every cell.

Runs with the same seeds are pairs, and the test is Student's on their differences; otherwise it is Welch's. Both assume
differences that are roughly normal, which a handful of seeds cannot show: read the interval first. p-values are
adjusted for the number of cells after Holm (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ResultsError
from ..results import Results, read_results
from ..results.attributes import plain
from ..results.choose import Chosen, select
from ..results.names import row_names
from ..results.reader import Variable
from ..results.settings import seed_of
from .cells import numbers

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Effect:
    """One cell: means of the two sets, b - a with its 95 % interval, the p-value and the one adjusted for all cells."""

    output: str
    cell: str
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    p: float
    p_adjusted: float


@dataclass(frozen=True)
class Effects:
    """All cells at one step. `paired` says whether runs were paired by seed; `count` is the runs of each set."""

    step: int
    paired: bool
    count: tuple[int, int]
    cells: list[Effect]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able data, NaN as None."""
        data: dict[str, Any] = plain(asdict(self))
        return data


def effects(
    a: Sequence[str | Path],
    b: Sequence[str | Path],
    *,
    what: Sequence[str] = (),
    matrices: Sequence[str] = (),
    at: int | None = None,
) -> Effects:
    """Compare two sets of at least two results files at step `at`, by default the last one that all have.

    Raises ResultsError for fewer files, for steps they do not share, and for outputs that are not in all of them.
    """
    if min(len(a), len(b)) < 2:
        raise ResultsError("Statistics need at least two files on either side, as in a_0.h5 a_1.h5 vs b_0.h5 b_1.h5.")
    with ExitStack() as stack:
        left, right = ([stack.enter_context(read_results(path)) for path in paths] for paths in (a, b))
        right, paired = _paired(left, right)
        chosen = select(left[0], what, matrices, everything=True)
        numeric = [(one, v) for one in chosen for v in one.variables if not v.is_text]
        wanted = [(one, v) for one, v in numeric if what or _plain(left[0], one, v)]
        step = _step(left + right, {one.group.name for one, _ in wanted}, at)
        rows = [row for one, v in wanted for row in _rows(one, v, left, right, step, paired)]
    return Effects(step, paired, (len(a), len(b)), _adjusted(rows))


def _plain(found: Results, one: Chosen, variable: Variable) -> bool:
    return one.group is not found.trajectory and not variable.error_of


def _paired(left: list[Results], right: list[Results]) -> tuple[list[Results], bool]:
    """Return the right side in the order of the left side's seeds, and whether both have the same different seeds."""
    mine, its = [seed_of(f) for f in left], [seed_of(f) for f in right]
    if "" in mine or len(set(mine)) < len(mine) or sorted(mine) != sorted(its):
        return right, False
    return [right[its.index(seed)] for seed in mine], True


def _step(files: Sequence[Results], groups: set[str], at: int | None) -> int:
    shared: set[int] | None = None
    for found in files:
        for name in groups:
            steps = set((found.trajectory if name == "trajectory" and found.trajectory else found[name]).steps.tolist())
            shared = steps if shared is None else shared & steps
    if not shared or (at is not None and at not in shared):
        wanted = "share no step" if at is None else f"do not all have step {at}"
        raise ResultsError(f"These files {wanted}; choose one with --at that all have.")
    return max(shared) if at is None else at


def _rows(
    one: Chosen, variable: Variable, left: Sequence[Results], right: Sequence[Results], step: int, paired: bool
) -> list[Effect]:
    dims = variable.dims[1:]
    labels = [one.labels(d) for d in dims]
    a, b = (np.stack([_cells(found, one, variable, labels, step) for found in side]) for side in (left, right))
    names = row_names(dims, labels) if dims else [""]
    rows = []
    for i, name in enumerate(names):
        x, y = a[:, i], b[:, i]
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            continue
        low, high, p = _interval(x, y, paired)
        output = f"{one.group.name}.{variable.name}"
        rows.append(Effect(output, name, float(x.mean()), float(y.mean()), float(y.mean() - x.mean()), low, high, p, p))
    return rows


def _cells(found: Results, one: Chosen, variable: Variable, labels: Sequence[list[Any]], step: int) -> Any:
    """Return a file's values of the labelled cells at a step, flat, NaN where it has none."""
    group = found.trajectory if one.group.name == "trajectory" and found.trajectory else found[one.group.name]
    own = group[variable.name]
    at = int(np.flatnonzero(group.steps == step)[0])
    values = numbers(Chosen(group, []), own)[at]
    full = np.full([len(of) for of in labels], np.nan)
    mine, its = [], []
    for wanted, dim in zip(labels, own.dims[1:], strict=True):
        places = {label: i for i, label in enumerate(group.labels[dim])}
        mine.append([i for i, label in enumerate(wanted) if label in places])
        its.append([places[wanted[i]] for i in mine[-1]])
    full[np.ix_(*mine)] = values[np.ix_(*its)]
    return full.ravel()


def _interval(x: NDArray[np.float64], y: NDArray[np.float64], paired: bool) -> tuple[float, float, float]:
    """Return the interval of mean(y) - mean(x) and the p-value; where nothing varies, the difference and 0 or 1."""
    from scipy import stats

    if (np.ptp(y - x) == 0) if paired else (np.ptp(x) == np.ptp(y) == 0):
        gap = float(y.mean() - x.mean())
        return gap, gap, 1.0 if gap == 0 else 0.0
    found = stats.ttest_rel(y, x) if paired else stats.ttest_ind(y, x, equal_var=False)
    interval = found.confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high), float(found.pvalue)


def _adjusted(rows: Sequence[Effect]) -> list[Effect]:
    """Return the rows with p-values adjusted by Holm's step-down rule."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].p)
    worst, adjusted = 0.0, {}
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, rows[i].p * (len(rows) - rank)))
        adjusted[i] = worst
    return [replace(row, p_adjusted=adjusted[i]) for i, row in enumerate(rows)]

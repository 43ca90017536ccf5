"""Two results files cell by cell: which outputs differ, by how much, and where most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..results import Results, read_results
from ..results.attributes import plain
from ..results.choose import Chosen, select
from ..results.names import row_names
from ..results.reader import Variable

_FACTS = ("analyzer_version", "options", "distribution_version", "matrix_selection")


@dataclass(frozen=True)
class Difference:
    """One output in both files: cells both have, those that differ, the largest differences and where that is.

    A cell differs when |a - b| > atol + rtol |b|, or when one has no value. `beyond_errors` counts those farther apart
    than their stated errors together; None when the output states none.
    """

    output: str
    unit: str
    cells: int
    differing: int
    largest: float
    largest_relative: float
    where: str
    beyond_errors: int | None


@dataclass(frozen=True)
class Comparison:
    """What two files share and do not. `notes` say what could not be compared, and which facts differ."""

    outputs: list[Difference]
    notes: list[str]

    @property
    def same(self) -> bool:
        """Whether no compared cell differs beyond the tolerance."""
        return not any(one.differing for one in self.outputs)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able data, infinities as None."""
        return {"same": self.same, **plain(asdict(self))}


def compare(
    a: str | Path,
    b: str | Path,
    *,
    what: Sequence[str] = (),
    matrices: Sequence[str] = (),
    rtol: float = 1e-6,
    atol: float = 0.0,
) -> Comparison:
    """Compare the outputs two results files share, at the steps and labels they share.

    Raises ResultsError for files that cannot be read and for names that the first does not have.
    """
    with read_results(a) as left, read_results(b) as right:
        notes = _notes(left, right)
        chosen = [(one, v) for one in select(left, what, matrices, everything=True) for v in one.variables]
        outputs = []
        for one, variable in chosen:
            other = _groups(right).get(one.group.name)
            if one.group.name != "trajectory" and other is None:
                continue
            if other is None or variable.name not in other.variables:
                notes.append(f"{one.group.name}.{variable.name} is in {left.path} only")
            elif other[variable.name].dims != variable.dims:
                notes.append(f"{one.group.name}.{variable.name} has different dimensions")
            elif not variable.is_text:
                outputs.append(_difference(one, variable, Chosen(other, []), rtol, atol, notes))
        return Comparison([one for one in outputs if one.cells], list(dict.fromkeys(notes)))


def _groups(found: Results) -> dict[str, Any]:
    return {**({"trajectory": found.trajectory} if found.trajectory else {}), **found.groups}


def _notes(left: Results, right: Results) -> list[str]:
    notes = []
    for one, other in ((left, right), (right, left)):
        notes += [f"{name} is in {one.path} only" for name in one.groups if name not in other.groups]
    for name in left.groups:
        if name in right.groups:
            mine, its = left[name].attrs, right[name].attrs
            unlike = [fact for fact in _FACTS if mine.get(fact) != its.get(fact)]
            notes += [f"{name}: {fact} is {mine.get(fact)!r} and {its.get(fact)!r}" for fact in unlike]
    mine, its = (found.attrs.get("content_hashes") or {} for found in (left, right))
    changed = [step for step in mine if step in its and mine[step] != its[step]]
    if changed:
        notes.append(f"the checkpoints differ at {len(changed)} of {len(mine.keys() & its.keys())} shared steps")
    return notes


def _difference(
    one: Chosen, variable: Variable, other: Chosen, rtol: float, atol: float, notes: list[str]
) -> Difference:
    name = f"{one.group.name}.{variable.name}"
    at, labels = shared(one, other, variable, notes)
    a = numbers(one, variable)[np.ix_(*(mine for mine, _ in at))]
    b = numbers(other, other.group[variable.name])[np.ix_(*(its for _, its in at))]
    with np.errstate(all="ignore"):
        gap = np.where(a == b, 0.0, np.abs(a - b))
        relative = np.where(gap == 0, 0.0, gap / np.abs(b))
        differs = ~(gap <= atol + rtol * np.abs(b)) & ~(np.isnan(a) & np.isnan(b))
    ranked = np.where(differs, np.where(np.isnan(gap), np.inf, gap), -1.0)
    worst = np.unravel_index(int(ranked.argmax()), ranked.shape) if differs.any() else None
    return Difference(
        name,
        variable.unit,
        int((~np.isnan(a) | ~np.isnan(b)).sum()),
        int(differs.sum()),
        _largest(gap),
        _largest(relative),
        _where(variable.dims, labels, worst),
        _beyond(one, other, variable, at, gap),
    )


def shared(
    one: Chosen, other: Chosen, variable: Variable, notes: list[str]
) -> tuple[list[tuple[list[int], list[int]]], list[list[Any]]]:
    """Return positions of the labels both have along each dimension, in either, and these labels."""
    at, labels = [], []
    for dim in variable.dims:
        mine, its = one.labels(dim), list(other.group.labels[dim])
        places = {label: i for i, label in enumerate(its)}
        both = [(i, places[label]) for i, label in enumerate(mine) if label in places]
        if len(both) < max(len(mine), 0 if dim in one.keep else len(its)):
            notes.append(f"{one.group.name}: {len(both)} of {len(mine)} and {len(its)} along {dim!r} are shared")
        at.append(([i for i, _ in both], [j for _, j in both]))
        labels.append([mine[i] for i, _ in both])
    return at, labels


def numbers(chosen: Chosen, variable: Variable) -> NDArray[np.float64]:
    """Return an output's values as floats, NaN where there is none."""
    values = np.asarray(chosen.values(variable), dtype=np.float64)
    padding = variable.attrs.get("padding")
    return values if padding is None else np.where(values == padding, np.nan, values)


def _largest(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if known.size else 0.0


def _where(dims: Sequence[str], labels: Sequence[Sequence[Any]], worst: Any) -> str:
    if worst is None:
        return ""
    cell = [[of[int(i)]] for of, i in zip(labels, worst, strict=True)]
    rest = row_names(dims[1:], cell[1:])[0] if len(dims) > 1 else ""
    return f"step {cell[0][0]}" + (f", {rest}" if rest else "")


def _beyond(one: Chosen, other: Chosen, variable: Variable, at: Any, gap: NDArray[np.float64]) -> int | None:
    error = next((v for v in one.group.variables.values() if v.error_of == variable.name), None)
    if error is None or error.dims != variable.dims or error.name not in other.group.variables:
        return None
    mine = numbers(one, error)[np.ix_(*(i for i, _ in at))]
    its = numbers(other, other.group[error.name])[np.ix_(*(j for _, j in at))]
    return int((gap > mine + its).sum())

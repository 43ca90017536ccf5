"""Several results in one figure: which settings tell their runs apart, and means over runs that differ by seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import ResultsError, nearest
from ..results.names import printable
from ..results.reader import Results
from ..results.settings import SEEDS, settings_of
from .data import Data


@dataclass(frozen=True)
class Set:
    """Results that share a line: positions among the files, what they are called, their number on a colour scale."""

    label: str
    members: tuple[int, ...]
    number: float | None = None


def sets(results: Sequence[Results], by: str = "") -> tuple[str, list[Set]]:
    """Return the setting on the colour scale (or "") and the sets of results that share a line.

    Results that differ in nothing but seeds share one. `by` names the setting to tell apart, all others are averaged
    over. Raises ResultsError for a name that no setting has.
    """
    all_settings = [settings_of(found) for found in results]
    differing = _differing(all_settings)
    names = [_resolved(by, all_settings)] if by else [name for name in differing if name not in SEEDS]
    if not names and not any(name in differing for name in SEEDS) and len(results) > 1:
        return "", [Set(label, (i,)) for i, label in enumerate(_file_names(results))]
    found: dict[tuple[str, ...], list[int]] = {}
    for i, settings in enumerate(all_settings):
        found.setdefault(tuple(_text(settings.get(name)) for name in names), []).append(i)
    if len(names) == 1:
        numbers = {values: all_settings[at[0]].get(names[0]) for values, at in found.items()}
        if len(found) > 2 and all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers.values()):
            ordered = sorted(found, key=lambda values: float(numbers[values]))  # type: ignore[arg-type]
            short = _short(names[0])
            return short, [Set(f"{short} = {v[0]}", tuple(found[v]), float(numbers[v])) for v in ordered]  # type: ignore[arg-type]
    return "", [Set(_described(names, values), tuple(at)) for values, at in found.items()]


def _differing(all_settings: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for settings in all_settings for name in settings)
    return [name for name in names if len({_text(settings.get(name)) for settings in all_settings}) > 1]


def _resolved(by: str, all_settings: Sequence[Mapping[str, Any]]) -> str:
    known = dict.fromkeys(name for settings in all_settings for name in settings)
    fits = [name for name in known if by in (name, _short(name))]
    if not fits:
        raise ResultsError(f"No setting of these runs is named {by!r}.{nearest(by, {_short(name) for name in known})}")
    return fits[0]


def _short(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else printable(str(value))


def _described(names: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{_short(name)} = {value}" for name, value in zip(names, values, strict=True))


def _file_names(results: Sequence[Results]) -> list[str]:
    stems = [found.path.stem for found in results]
    return stems if len(set(stems)) == len(stems) else [str(found.path) for found in results]


def common(of_files: Sequence[Data]) -> list[Data]:
    """Return the same output of several files, cut down to the labels all have; ResultsError when there are none."""
    first = of_files[0]
    if any(data.dims != first.dims for data in of_files):
        raise ResultsError(f"{first.name} has different dimensions in these files; draw them apart.")
    for dim in first.dims:
        shared = [label for label in first.of(dim) if all(label in data.of(dim) for data in of_files)]
        if not shared:
            raise ResultsError(f"{first.name}: these files share no {dim}; draw them apart.")
        of_files = [data.take(dim, [data.of(dim).index(label) for label in shared]) for data in of_files]
    return list(of_files)


def mean(of_runs: Sequence[Data]) -> Data:
    """Return the mean over runs at the steps all have, and its standard deviation over runs as `errors`.

    Raises ResultsError when the runs share no step.
    """
    if len(of_runs) == 1:
        return of_runs[0]
    steps = shared_steps(data.steps for data in of_runs)
    if not len(steps):
        raise ResultsError(f"{of_runs[0].name}: these files share no step, so no mean can be taken; use --by or fewer.")
    values = np.stack([data.at_steps(steps).values for data in of_runs])
    return replace(of_runs[0], steps=steps, values=values.mean(0), errors=values.std(0, ddof=1))


def shared_steps(all_steps: Iterable[Any]) -> Any:
    """Return the steps that occur in all of several lists."""
    found = None
    for steps in all_steps:
        found = np.asarray(steps) if found is None else np.intersect1d(found, steps)
    return found

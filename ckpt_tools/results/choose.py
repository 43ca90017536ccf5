"""Which outputs of a results file are meant by names (`rank.effective_rank`) and globs over labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ..errors import ResultsError, nearest
from .reader import ResultGroup, Results, Variable

ONE_STEP_COLUMNS = 4
_MOST_NAMED = 12


@dataclass
class Chosen:
    """What is shown of one group: which outputs, which were left for --what, which positions along filtered dims."""

    group: ResultGroup
    variables: list[Variable]
    others: list[str] = field(default_factory=list)
    keep: dict[str, list[int]] = field(default_factory=dict)

    def labels(self, dim: str) -> list[Any]:
        """Return the labels of a dim that pass the filter."""
        labels = list(self.group.labels[dim])
        return [labels[i] for i in self.keep[dim]] if dim in self.keep else labels

    def values(self, variable: Variable) -> Any:
        """Return an output's values that pass the filter, `[step, *dims]`."""
        values = variable.read()
        for axis, dim in enumerate(variable.dims):
            if dim in self.keep:
                values = values.take(self.keep[dim], axis=axis)
        return values


def select(found: Results, what: Sequence[str], matrices: Sequence[str], everything: bool = False) -> list[Chosen]:
    """Return what to show; ResultsError with the nearest name for unknown names and globs that match nothing."""
    groups = {**({"trajectory": found.trajectory} if found.trajectory else {}), **found.groups}
    chosen = _named(groups, what) if what else [_main(group, everything) for group in groups.values()]
    if matrices:
        chosen = _matching(chosen, matrices)
    return [c for c in chosen if c.variables or not what]


def _named(groups: Mapping[str, ResultGroup], what: Sequence[str]) -> list[Chosen]:
    names = {f"{g}.{v}": (g, v) for g, group in groups.items() for v in group.variables}
    picked: dict[str, list[str]] = {}
    for name in what:
        if name in groups:
            picked.setdefault(name, []).extend(groups[name].variables)
        elif name in names:
            picked.setdefault(names[name][0], []).append(names[name][1])
        else:
            raise ResultsError(f"The results hold no {name!r}.{nearest(name, [*groups, *names])}")
    return [Chosen(groups[g], [groups[g].variables[v] for v in dict.fromkeys(vs)]) for g, vs in picked.items()]


def _main(group: ResultGroup, everything: bool) -> Chosen:
    """Choose single numbers per step, and the first output that has dims (one step: all with the same dims)."""
    variables = list(group.variables.values())
    if everything:
        return Chosen(group, variables)
    plain = [v for v in variables if not v.is_text and not v.error_of]
    first = next((v for v in plain if len(v.dims) > 1), None)
    main = [v for v in plain if len(v.dims) == 1]
    if first is not None:
        alike = [v for v in plain if v.dims == first.dims]
        main += alike[:ONE_STEP_COLUMNS] if len(group.steps) == 1 else [first]
    return Chosen(group, main, [v.name for v in variables if v not in main])


def _matching(chosen: Sequence[Chosen], patterns: Sequence[str]) -> list[Chosen]:
    """Keep outputs labelled by matching texts, and of their first labelled dim only the matching entries."""
    known: dict[str, None] = {}
    for one in chosen:
        kept = []
        for variable in one.variables:
            dim = next((d for d in variable.dims if isinstance(one.group.labels[d], list)), None)
            if dim is None:
                continue
            labels = one.labels(dim) if dim not in one.keep else list(one.group.labels[dim])
            known.update(dict.fromkeys(labels))
            matches = [i for i, label in enumerate(labels) if any(fnmatchcase(label, p) for p in patterns)]
            if matches:
                one.keep[dim] = matches
                kept.append(variable)
        one.variables = kept
    if not any(one.variables for one in chosen):
        hint = nearest(patterns[0], known)
        if len(known) > _MOST_NAMED and hint.startswith(" Known"):
            hint = f" The first of {len(known)} labels is {next(iter(known))!r}."
        raise ResultsError(f"No label matches {' or '.join(map(repr, patterns))}.{hint}")
    return [one for one in chosen if one.variables]

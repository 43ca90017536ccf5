"""`ckpt show`: a results file as tables with a sparkline per series, or as JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from ..results.reader import ResultGroup, Results, Variable

_ONE_STEP_COLUMNS = 4
_MOST_NAMED = 12
_CAVEATS = {
    "bfloat16": "rounding to bfloat16 alone shifts effective ranks by up to 28 % on steep spectra; "
    "participation ratios and stable ranks do not move",
    "float16": "rounding to float16 alone shifts effective ranks of steep spectra",
    "float8": "rounding to float8 alone shifts effective ranks strongly",
}


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


@click.command()
@click.argument("results", type=click.Path())
@click.option("--what", multiple=True, metavar="NAME", help="Analyzer or analyzer.output, as rank.effective_rank.")
@click.option("--matrices", multiple=True, metavar="GLOB", help="Only rows whose label matches, as 'layers.*.attn.q'.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, NaN as null.")
def show(results: str, what: tuple[str, ...], matrices: tuple[str, ...], as_json: bool) -> None:
    """Print RESULTS as tables: per matrix its first, last, smallest and largest value, and a sparkline over steps."""
    from ..results import read_results

    with read_results(results) as found:
        chosen = select(found, what, matrices, everything=as_json)
        if as_json:
            click.echo(json.dumps(as_data(found, chosen), allow_nan=False))
        else:
            _print(found, chosen)


def select(found: Results, what: Sequence[str], matrices: Sequence[str], everything: bool = False) -> list[Chosen]:
    """Return what to show; ResultsError with the nearest name for unknown names and globs that match nothing."""
    groups = {**({"trajectory": found.trajectory} if found.trajectory else {}), **found.groups}
    chosen = _named(groups, what) if what else [_main(group, everything) for group in groups.values()]
    if matrices:
        chosen = _matching(chosen, matrices)
    return [c for c in chosen if c.variables or not what]


def _named(groups: Mapping[str, ResultGroup], what: Sequence[str]) -> list[Chosen]:
    from ..errors import ResultsError, nearest

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
        main += alike[:_ONE_STEP_COLUMNS] if len(group.steps) == 1 else [first]
    return Chosen(group, main, [v.name for v in variables if v not in main])


def _matching(chosen: Sequence[Chosen], patterns: Sequence[str]) -> list[Chosen]:
    """Keep outputs labelled by matching texts, and of their first labelled dim only the matching entries."""
    from ..errors import ResultsError, nearest

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


def as_data(found: Results, chosen: Sequence[Chosen]) -> dict[str, Any]:
    """Return file, attributes and all chosen values as JSON-able data, NaN and infinities as None."""
    from ..results.attributes import plain

    groups = {one.group.name: _group_data(one) for one in chosen}
    data: dict[str, Any] = plain({"path": found.path, "attributes": found.attrs, "groups": groups})
    return data


def _group_data(one: Chosen) -> dict[str, Any]:
    outputs = {
        v.name: {
            "dims": v.dims,
            "unit": v.unit,
            "long_name": v.long_name,
            "error_of": v.error_of or None,
            "values": one.values(v),
        }
        for v in one.variables
    }
    dims = dict.fromkeys(d for v in one.variables for d in v.dims if d != "step")
    return {
        "attributes": dict(one.group.attrs),
        "steps": one.group.steps,
        "labels": {dim: one.labels(dim) for dim in dims},
        "outputs": outputs,
    }


def _print(found: Results, chosen: Sequence[Chosen]) -> None:
    from rich.console import Console

    from .tables import facts

    console = Console(highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        facts(console, _header(found))
        for one in chosen:
            _print_group(console, found, one)
    for line in capture.get().splitlines():
        click.echo(line.rstrip().encode(console.encoding, "backslashreplace").decode(console.encoding))


def _header(found: Results) -> Iterator[tuple[str, str]]:
    from ..results.writer import SCHEMA

    attrs = found.attrs
    yield "results", f"{found.path} ({SCHEMA} {attrs['schema_version']}, {attrs.get('created', 'time unknown')})"
    for name in ("source", "family", "seed", "history"):
        if attrs.get(name) not in (None, ""):
            yield name, str(attrs[name])
    yield "steps", _steps(found)
    yield from _dtypes(attrs.get("storage_dtypes") or [])
    for note in attrs.get("notes") or []:
        yield "note", str(note)
    for name, reason in dict(attrs.get("skipped_checkpoints") or {}).items():
        yield "skipped", f"{name}: {reason}"
    yield from _skipped(found)


def _steps(found: Results) -> str:
    steps = sorted({int(s) for group in found.groups.values() for s in group.steps})
    if len(steps) < 2:
        return f"one checkpoint, step {steps[0]}" if steps else "none"
    return f"{len(steps)}, from {steps[0]} to {steps[-1]}"


def _dtypes(stored: Sequence[str]) -> Iterator[tuple[str, str]]:
    if stored:
        yield "stored as", ", ".join(stored)
    for prefix, caveat in _CAVEATS.items():
        if any(name.startswith(prefix) for name in stored):
            yield "caution", caveat


def _skipped(found: Results) -> Iterator[tuple[str, str]]:
    """Yield what was left out, once for all analyzers, names gathered by reason."""
    reasons: dict[str, dict[str, None]] = {}
    for group in found.groups.values():
        for item in group.attrs.get("skipped") or []:
            reasons.setdefault(item["reason"], {})[item["name"]] = None
    for reason, names in reasons.items():
        listed = list(names)
        more = f" and {len(listed) - 8} more (--json lists all)" if len(listed) > 8 else ""
        yield "skipped", f"{', '.join(listed[:8])}{more}: {reason}"


def _print_group(console: Console, found: Results, one: Chosen) -> None:
    from .tables import facts

    for variables in _tables(one):
        console.print()
        _print_table(console, one, variables)
    summary = one.group.attrs.get("summary") or {}
    if summary:
        console.print()
        console.print(f"Summary of {one.group.name}")
        facts(console, ((f"  {key}", _fact(value)) for key, value in summary.items()))
    if one.others and one.group.name in found.groups:
        others = ", ".join(one.others)
        console.print()
        console.print(f"Also in {one.group.name}: {others}.")
        command = shlex.join(["ckpt", "show", str(found.path), "--what", f"{one.group.name}.{one.others[0]}"])
        console.print(f"Show one: {command}", soft_wrap=True)


def _fact(value: Any) -> str:
    from .tables import number

    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tables(one: Chosen) -> list[list[Variable]]:
    """Group outputs into tables: numbers per step share one, so do outputs of a single step with the same dims."""
    tables: dict[Any, list[Variable]] = {}
    for v in one.variables:
        alone = len(v.dims) > 1 and len(one.group.steps) != 1
        tables.setdefault((v.dims, v.is_text, v.name if alone else ""), []).append(v)
    return [part for table in tables.values() for part in _parts(table)]


def _parts(table: list[Variable]) -> Iterator[list[Variable]]:
    """Cut a table of outputs side by side into parts that fit a line."""
    width = _ONE_STEP_COLUMNS if len(table[0].dims) > 1 else len(table)
    yield from (table[i : i + width] for i in range(0, len(table), width))


def _print_table(console: Console, one: Chosen, variables: Sequence[Variable]) -> None:
    from .tables import at_one_step, over_steps, row_names

    dims, steps = variables[0].dims[1:], len(one.group.steps)
    names = row_names(dims, [one.labels(d) for d in dims]) if dims else [v.name for v in variables]
    values = [one.values(v).reshape(steps, len(names) if dims else 1) for v in variables]
    title = one.group.name if len(variables) > 1 else f"{one.group.name}.{_titled(variables[0])}"
    if not steps:
        console.print(f"{title}: no step was analyzed.")
    elif steps == 1 and dims:
        at_one_step(console, title, names, {v.name: x[0] for v, x in zip(variables, values, strict=True)})
    elif steps == 1:
        at_one_step(console, title, names, {"value": [x[0, 0] for x in values]})
    else:
        over_steps(console, title, names, [row for x in values for row in x.T])


def _titled(variable: Variable) -> str:
    unit = "" if variable.unit == "1" else f" [{variable.unit}]"
    spoken = variable.name.replace("_", " ")
    return f"{variable.name}{unit}" + (f": {variable.long_name}" if variable.long_name not in ("", spoken) else "")

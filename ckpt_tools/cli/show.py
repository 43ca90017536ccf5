"""`ckpt show`: a results file as tables with a sparkline per series, or as JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from ..results.choose import Chosen
    from ..results.reader import Results, Variable

_CAVEATS = {
    "bfloat16": "rounding to bfloat16 alone shifts effective ranks by up to 28 % on steep spectra; "
    "participation ratios and stable ranks do not move",
    "float16": "rounding to float16 alone shifts effective ranks of steep spectra",
    "float8": "rounding to float8 alone shifts effective ranks strongly",
}


@click.command()
@click.argument("results", type=click.Path())
@click.option("--what", multiple=True, metavar="NAME", help="Analyzer or analyzer.output, as rank.effective_rank.")
@click.option("--matrices", multiple=True, metavar="GLOB", help="Only rows whose label matches, as 'layers.*.attn.q'.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, NaN as null.")
@click.option("--validate", is_flag=True, help="Check the file against the schema instead, and list every fault.")
def show(results: str, what: tuple[str, ...], matrices: tuple[str, ...], as_json: bool, validate: bool) -> None:
    """Print RESULTS as tables: per matrix its first, last, smallest and largest value, and a sparkline over steps."""
    if validate:
        _validate(results)
        return
    from ..results import read_results
    from ..results.choose import select

    with read_results(results) as found:
        chosen = select(found, what, matrices, everything=as_json)
        if as_json:
            click.echo(json.dumps(as_data(found, chosen), allow_nan=False))
        else:
            _print(found, chosen)


def _validate(path: str) -> None:
    """Say that a file keeps the schema; ResultsError with every fault when it does not."""
    from ..errors import ResultsError
    from ..results.validate import GATES, RULES
    from ..results.validate import validate as faults_of
    from ..results.writer import SCHEMA, SCHEMA_VERSION

    faults = faults_of(path)
    if faults:
        listed = "".join(f"\n  - {fault}" for fault in faults)
        raise ResultsError(f"{path} breaks the results schema (docs/results.md) in {len(faults)} place(s):{listed}")
    click.echo(f"{path} keeps {SCHEMA} {SCHEMA_VERSION}: {len(GATES) + len(RULES)} rules hold")


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
    for name in ("source", "family", "seed", "history", "device"):
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
    from .summary import print_summary

    for variables in _tables(one):
        console.print()
        _print_table(console, one, variables)
    print_summary(console, one)
    if one.others and one.group.name in found.groups:
        others = ", ".join(one.others)
        console.print()
        console.print(f"Also in {one.group.name}: {others}.")
        command = shlex.join(["ckpt", "show", str(found.path), "--what", f"{one.group.name}.{one.others[0]}"])
        console.print(f"Show one: {command}", soft_wrap=True)


def _tables(one: Chosen) -> list[list[Variable]]:
    """Group outputs into tables: numbers per step share one, so do outputs of a single step with the same dims."""
    tables: dict[Any, list[Variable]] = {}
    for v in one.variables:
        alone = len(v.dims) > 1 and len(one.group.steps) != 1
        tables.setdefault((v.dims, v.is_text, v.name if alone else ""), []).append(v)
    return [part for table in tables.values() for part in _parts(table)]


def _parts(table: list[Variable]) -> Iterator[list[Variable]]:
    """Cut a table of outputs side by side into parts that fit a line."""
    from .tables import ONE_STEP_COLUMNS

    width = ONE_STEP_COLUMNS if len(table[0].dims) > 1 else len(table)
    yield from (table[i : i + width] for i in range(0, len(table), width))


def _print_table(console: Console, one: Chosen, variables: Sequence[Variable]) -> None:
    from ..results.names import row_names
    from .tables import at_one_step, over_steps

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

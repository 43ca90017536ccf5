"""`ckpt plugins`: what is installed, what is broken and why, and what one analyzer measures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..analyzer import Analyzer
    from ..registry import Registry


@click.group(invoke_without_command=True)
@click.option(
    "--plugin-file", "plugin_files", multiple=True, type=click.Path(), help="Plugin in Python, or role table in TOML."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def plugins(ctx: click.Context, plugin_files: tuple[str, ...], as_json: bool) -> None:
    """List plugins; `ckpt plugins show NAME` explains one."""
    from ..registry import load_registry

    ctx.obj = load_registry(plugin_files)
    if ctx.invoked_subcommand is None:
        rows = list(_rows(ctx.obj))
        click.echo(json.dumps(rows, indent=1) if as_json else _table(rows))


def _rows(registry: Registry) -> Any:
    registry.analyzers(), registry.families()  # loads everything and refuses clashes
    for plugin in registry.plugins:
        if plugin.broken:
            yield {"kind": "BROKEN", "name": plugin.name, "about": plugin.broken, "origin": plugin.origin}
        for analyzer in plugin.analyzers:
            yield {"kind": "analyzer", "name": analyzer.name, "about": _first_line(analyzer), "origin": plugin.origin}
        for family in plugin.families:
            yield {"kind": "family", "name": family.name, "about": _first_line(family), "origin": plugin.origin}


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]


def _table(rows: list[dict[str, str]]) -> str:
    kinds = {"analyzer": "Analyzers", "family": "Families", "BROKEN": "BROKEN"}
    width = max((len(r["name"]) for r in rows), default=0)
    blocks = []
    for kind, title in kinds.items():
        lines = [f"  {r['name']:<{width}}  {r['about']}{_provider(r)}" for r in rows if r["kind"] == kind]
        if lines:
            blocks.append("\n".join([title, *lines]))
    return "\n\n".join(blocks)


def _provider(row: dict[str, str]) -> str:
    """Return in brackets whose it is, unless it came with this package and works."""
    from ..registry import DISTRIBUTION

    ours = row["kind"] != "BROKEN" and row["origin"].startswith(f"{DISTRIBUTION} ")
    return "" if ours else f"  [{row['origin']}]"


@plugins.command()
@click.argument("name")
@click.option("--markdown", is_flag=True, help="Print tables of outputs and options for a page of documentation.")
@click.pass_obj
def show(registry: Registry, name: str, markdown: bool) -> None:
    """Print what analyzer NAME measures, its options and its outputs."""
    analyzer = registry.analyzer(name)
    if markdown:
        click.echo(reference(analyzer))
        return
    from ..options import expected

    plugin = registry.provider(analyzer)
    click.echo(f"{analyzer.name} {analyzer.version}  [{plugin.origin}]\n")
    click.echo(_doc(analyzer))
    click.echo(f"\nneeds {analyzer.needs}" + (f", reference {analyzer.reference}" if analyzer.reference else ""))
    click.echo("\nOptions" if analyzer.declared else "\nNo options")
    for option in analyzer.declared.values():
        click.echo(f"  {analyzer.name}.{option.name}={option.default}  {option.help}  [{expected(option)}]")
    click.echo("\nOutputs")
    for key, out in analyzer.outputs.items():
        click.echo(f"  {key} ({', '.join(('step', *out.dims))}) [{out.unit}]  {out.long_name}")


def reference(analyzer: type[Analyzer]) -> str:
    """Return what an analyzer needs, its outputs and its options, as tables in Markdown."""
    from ..analyzer import reference_kinds
    from ..options import expected

    kinds = ", ".join(reference_kinds(analyzer))
    outputs = [
        (f"`{key}`", ", ".join(("step", *out.dims)), out.unit, out.long_name + _error_of(out.error_of))
        for key, out in analyzer.outputs.items()
    ]
    options = [(f"`{o.name}`", f"`{_default(o.default)}`", expected(o), o.help) for o in analyzer.declared.values()]
    return "\n".join(
        [
            f"Needs {analyzer.needs}" + (f" and, of other checkpoints: {kinds}." if kinds else "."),
            "",
            *_rows_of(("output", "dimensions", "unit", "what it is"), outputs),
            *(["", *_rows_of(("option", "default", "takes", "what it does"), options)] if options else []),
        ]
    )


def _error_of(output: str) -> str:
    return f" (error of `{output}`)" if output else ""


def _default(value: Any) -> str:
    """Return a default as it is given to --set."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or " "
    return str(value).lower() if isinstance(value, bool) else str(value) or " "


def _rows_of(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    body = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {row} |" for row in body)]


def _doc(analyzer: type[Analyzer]) -> str:
    import inspect

    return inspect.getdoc(analyzer) or "No description."


@plugins.command()
@click.argument("name")
@click.option("--set", "settings", multiple=True, metavar="OPTION=VALUE", help="Option of the analyzer to check with.")
@click.pass_obj
def check(registry: Registry, name: str, settings: tuple[str, ...]) -> int:
    """Run the conformance checks on analyzer NAME; exit code 1 when one fails."""
    from ..testing import Blocked, NonConformance, NotApplicable, analyzer_checks

    options = dict(text.partition("=")[::2] for text in settings)
    failed = 0
    for bound in analyzer_checks(registry.analyzer(name), **options):
        try:
            bound.verdict()
            verdict = "ok"
        except NotApplicable as reason:
            verdict = f"-       {reason}"
        except Blocked as reason:
            verdict = f"blocked {reason}"
        except NonConformance as reason:
            failed += 1
            verdict = f"FAILED  {reason}"
        click.echo(f"{bound.name:<32} {verdict}")
    click.echo(f"{name}: {failed} check(s) failed" if failed else f"{name}: conforms")
    return 1 if failed else 0


@plugins.command()
@click.argument("name")
@click.option("--out", type=click.Path(), help="Folder to create (default: ckpt-NAME).")
def new(name: str, out: str | None) -> None:
    """Write a plugin distribution with one analyzer NAME, its test and its pyproject.toml."""
    from .scaffold import write_plugin

    folder = write_plugin(name, out)
    click.echo(f"{folder}: try\n  pip install -e {folder}\n  ckpt plugins check {name}\n  pytest {folder}")

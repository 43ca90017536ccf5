"""`ckpt analyze`: run analyzers over a source and write the results file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from ..errors import OptionError


def split_settings(texts: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return `{"rank": {"k": "8"}}` for `("rank.k=8",)`; raises OptionError for text of another form."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        analyzer, dot, option = key.strip().partition(".")
        if not (equals and dot and analyzer and option):
            raise OptionError(f"--set {text!r}: expected ANALYZER.OPTION=VALUE, as in rank.k=8.")
        found.setdefault(analyzer, {})[option] = value
    return found


def complete_plugins(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return entry-point names for shell completion, without importing any plugin."""
    from importlib.metadata import entry_points

    return sorted(e.name for e in entry_points(group="ckpt_tools") if e.name.startswith(incomplete))


@click.command()
@click.argument("source", type=click.Path())
@click.option(
    "--plugin",
    "-p",
    "plugins",
    multiple=True,
    required=True,
    shell_complete=complete_plugins,
    help="Analyzer to run; repeat for several. `ckpt plugins` lists them.",
)
@click.option(
    "--plugin-file",
    "plugin_files",
    multiple=True,
    type=click.Path(),
    help="Python file with a plugin in it; repeatable.",
)
@click.option("--steps", help="Steps to take: 0:1000:10, log:50, at:0,1,2, first, last, or a union with commas.")
@click.option("--matrices", multiple=True, help="Only matrices whose name fits this glob, as in 'layers.*.attn.q'.")
@click.option("--set", "settings", multiple=True, metavar="ANALYZER.OPTION=VALUE", help="Set an analyzer's option.")
@click.option("--output", "-o", type=click.Path(), default="results.h5", show_default=True, help="Results file.")
@click.option("--force", is_flag=True, help="Replace an existing results file.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object about what was done.")
def analyze(
    source: str,
    plugins: tuple[str, ...],
    plugin_files: tuple[str, ...],
    steps: str | None,
    matrices: tuple[str, ...],
    settings: tuple[str, ...],
    output: str,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run analyzers over SOURCE, a run, a folder of checkpoints or one checkpoint, and write HDF5.

    \b
    ckpt analyze run --plugin rank -o results.h5
    ckpt analyze path/to/model --plugin rank --matrices 'layers.*.attn.*' --set rank.k=16
    """
    from ..engine import analyze as run_analysis
    from .progress import reporter

    with reporter(quiet=quiet or as_json, label="analyze") as progress:
        outcome = run_analysis(
            source,
            plugins,
            output=Path(output),
            steps=steps,
            matrices=matrices,
            options=split_settings(settings),
            plugin_files=plugin_files,
            force=force,
            on_progress=progress,
        )
    _report(outcome, quiet, as_json)
    return 130 if outcome.interrupted else 0


def _report(outcome: Any, quiet: bool, as_json: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps(outcome.as_dict()))
        return
    if outcome.interrupted:
        click.echo(f"Interrupted: {len(outcome.steps)} of {outcome.planned} checkpoints are in the results.", err=True)
    if not quiet:
        for note in outcome.notes:
            click.echo(f"note: {note}")
        click.echo(
            f"{len(outcome.steps)} checkpoint(s), {outcome.matrices} matrices, {', '.join(outcome.analyzers)} "
            f"in {outcome.seconds:.1f} s -> {outcome.path}"
        )

"""`ckpt study`: train what a paper needs, analyze it, check the paper's claims, write figures and a report."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OptionError

if TYPE_CHECKING:
    from ..study import Performance


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--preset", default="mini", show_default=True, help="mini takes minutes; paper is as published.")
@click.option("--seeds", type=click.IntRange(1), help="How many seeds, 0 and up.  [default: 3]")
@click.option("--seed", type=click.IntRange(0), help="One seed instead.")
@click.option("--out", "-o", type=click.Path(path_type=Path), required=True, help="Folder for runs, results, report.")
@click.option("--data", multiple=True, metavar="NAME=FILE", help="Text that the study can read; see its report.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print claims.json and where things lie as one JSON object.")
def study(
    file: Path,
    preset: str,
    seeds: int | None,
    seed: int | None,
    out: Path,
    data: tuple[str, ...],
    quiet: bool,
    as_json: bool,
) -> int:
    """Reproduce the study in FILE: train, analyze saved checkpoints, check claims, draw, report.

    What is finished is not done again: the same command goes on after Ctrl-C. A claim that fails is a result, shown as
    such, and the exit code is 0; it is 3 when a run could not be trained or analyzed.

    \b
    ckpt study samples/studies/three_layer.py --out three_layer
    ckpt study samples/studies/three_layer.py --seed 17 --out three_layer
    """
    from ..study import load_study, perform, verdicts, write_report
    from ..study.judge import write_claims
    from ..study.perform import Interrupted
    from .progress import reporter

    chosen = chosen_seeds(seeds, seed)
    files = named_files(data)
    loaded = load_study(file)
    command = again(file, preset, seeds, seed, out, data)
    try:
        shown = partial(reporter, quiet=quiet or as_json)
        done = perform(loaded, out, preset=preset, seeds=chosen, data=files, reporter=lambda label: shown(label=label))
        judged = verdicts(loaded.study.claims, done.found)
        write_claims(loaded, judged, out)
        report = write_report(loaded, judged, done, out, preset=preset, command=command)
    except (KeyboardInterrupt, Interrupted):
        click.echo(f"Interrupted; what is done is kept. Go on with: {command}", err=True)
        return 130
    _print([verdict.as_dict(loaded.name) for verdict in judged], done, report, quiet, as_json)
    return 3 if done.failed else 0


def chosen_seeds(seeds: int | None, seed: int | None) -> list[int]:
    """Return the seeds asked for: 0, 1, 2 unless said otherwise."""
    if seeds is not None and seed is not None:
        raise OptionError("--seeds counts seeds and --seed names one. Leave one of them out.")
    return [seed] if seed is not None else list(range(3 if seeds is None else seeds))


def named_files(texts: Iterable[str]) -> dict[str, Path]:
    """Return `{"wikitext": Path("wiki.txt")}` for `("wikitext=wiki.txt",)`."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (equals and name and path):
            raise OptionError(f"--data {text!r}: expected NAME=FILE, as in wikitext=wiki.txt.")
        if name in found:
            raise OptionError(f"--data {name} is given twice. Leave one of them out.")
        found[name] = Path(path)
    return found


def again(file: Path, preset: str, seeds: int | None, seed: int | None, out: Path, data: Iterable[str]) -> str:
    """Return the command line that does the same."""
    import shlex

    which = f"--seed {seed}" if seed is not None else f"--seeds {3 if seeds is None else seeds}"
    texts = [part for text in data for part in ("--data", text)]
    return shlex.join(["ckpt", "study", str(file), "--preset", preset, *which.split(), "--out", str(out), *texts])


def _print(rows: list[dict[str, Any]], done: Performance, report: Path, quiet: bool, as_json: bool) -> None:
    from ..study.table import tally

    if as_json:
        click.echo(json.dumps({"claims": rows, "report": str(report), "skipped": done.skipped, "failed": done.failed}))
        return
    for where, reason in done.failed.items():
        click.echo(f"failed: {where}: {reason}", err=True)
    if quiet:
        return
    for run, reason in done.skipped.items():
        click.echo(f"left out: run {run} {reason}")
    click.echo(table(rows))
    click.echo(f"{tally(rows)}; {done.trained} run(s) trained, {done.known} finished before -> {report}")


def table(rows: list[dict[str, Any]]) -> str:
    """Return claims as columns of text."""
    from ..study.table import claim_columns, claim_rows

    lines = [[cell.replace("**", "") for cell in line] for line in [claim_columns(rows), *claim_rows(rows)]]
    width = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, width)).rstrip() for line in lines)

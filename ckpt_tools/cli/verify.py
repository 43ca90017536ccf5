"""`ckpt verify`: is a trajectory what its names say?"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..verify import Depth, Finding, Report

MOST_OF_A_KIND = 8


@click.command()
@click.argument("source", type=click.Path())
@click.option("--steps", help="Steps to take: 0:1000:10, log:50, at:0,1,2, first, last, or a union with commas.")
@click.option("--cheap", is_flag=True, help="Read a few rows of every large tensor instead of all bytes.")
@click.option("--hashes-only", is_flag=True, help="Read no weights: compare the file hashes that the hub lists.")
@click.option("--quiet", "-q", is_flag=True, help="Print findings only, no progress and no notes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all findings and hashes.")
def verify(source: str, steps: str | None, cheap: bool, hashes_only: bool, quiet: bool, as_json: bool) -> int:
    """Check that SOURCE is the trajectory of one run: no copies, mix-ups, gaps, damage or NaN.

    \b
    ckpt verify run
    ckpt verify 'ckpts/*_epoch_*.pt' --steps log:30 --json
    ckpt verify 'hf://EleutherAI/pythia-70m@step*' --hashes-only

    Exits with 1 when something is suspicious, with 0 when nothing is.
    """
    from ..verify import verify as run_checks
    from .progress import reporter

    with reporter(quiet=quiet or as_json, label="verify") as progress:
        read: Depth = "nothing" if hashes_only else "sample" if cheap else "all"
        report = run_checks(source, steps=steps, read=read, on_progress=progress)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=1))
    else:
        _print(report, quiet)
    return 1 if report.suspicious else 0


def _print(report: Report, quiet: bool) -> None:
    shown = [finding for finding in report.findings if not (quiet and finding.severity == "note")]
    counts: Counter[str] = Counter()
    for finding in shown:
        counts[finding.kind] += 1
        if counts[finding.kind] <= MOST_OF_A_KIND:
            click.echo(_line(finding))
    for kind, count in counts.items():
        if count > MOST_OF_A_KIND:
            click.echo(f"         and {count - MOST_OF_A_KIND} more of kind {kind}; --json lists them all")
    if not quiet:
        click.echo(_summary(report))


def _line(finding: Finding) -> str:
    from ..results.names import printable

    return f"{finding.severity + ':':<9}{printable(finding.message)}"


def _summary(report: Report) -> str:
    steps, unit = report.steps, report.unit
    span = f"{len(steps)} checkpoints, {unit} {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"{unit} {steps[0]}"
    how = "nothing" if report.read == "nothing" else f"{report.bytes_read / 1e6:,.1f} MB"
    counts = Counter(finding.severity for finding in report.findings)
    said = ", ".join(
        f"{counts[s]} {s}{'s' if counts[s] > 1 else ''}" for s in ("error", "warning", "note") if counts[s]
    )
    verdict = f"suspicious: {said}" if report.suspicious else f"nothing suspicious{f' ({said})' if said else ''}"
    return f"{report.source}: {span}, {how} read in {report.seconds:.1f} s: {verdict}"

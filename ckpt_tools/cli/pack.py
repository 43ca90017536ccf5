"""`ckpt pack`: step folders of a run into logs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ..errors import FormatError

if TYPE_CHECKING:
    from ..run import Copied


@click.command()
@click.argument("run", type=click.Path())
@click.option("--check", is_flag=True, help="Only read every checkpoint and compare it with its checksum.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pack(run: str, check: bool, quiet: bool, as_json: bool) -> None:
    """Move the step folders of RUN into a few large files, byte for byte.

    A folder is deleted once its copy is on the device and has been compared. `ckpt unpack` is the way back.

    \b
    ckpt pack runs/markov
    ckpt pack runs/markov --check
    """
    from ..run import check_run
    from ..run import pack as pack_run
    from .progress import reporter

    with reporter(quiet=quiet or as_json, label="pack") as progress:
        if check:
            faults = check_run(run, on_progress=progress)
        else:
            done = pack_run(run, on_progress=progress)
    if not check:
        report(done, run, "in logs", quiet=quiet, as_json=as_json)
        return
    if as_json:
        click.echo(json.dumps({"run": run, "faults": faults}))
    elif not faults and not quiet:
        click.echo(f"{run}: no fault found.")
    refuse(faults)


def report(done: Copied, target: str, where: str, *, quiet: bool, as_json: bool) -> None:
    """Print what was done. Raises FormatError when something is damaged."""
    skipped = [{"name": skip.name, "reason": skip.reason} for skip in done.skipped]
    if as_json:
        facts = {"written": done.written, "bytes": done.bytes, "present": done.present, "damaged": done.damaged}
        click.echo(json.dumps({"run": target, **facts, "skipped": skipped}))
    elif not quiet:
        there = f", {done.present} {'was' if done.present == 1 else 'were'} there already" if done.present else ""
        noun, verb = ("checkpoint", "is") if done.written == 1 else ("checkpoints", "are")
        click.echo(f"{done.written} {noun} ({done.bytes:,} bytes) {verb} now {where}{there} -> {target}")
        for skip in skipped:
            click.echo(f"skipped: {skip['name']}: {skip['reason']}")
    refuse(done.damaged)


def refuse(faults: list[str]) -> None:
    """Raise FormatError with the first fault and the number of others, if there is any."""
    if faults:
        more = f" {len(faults) - 1} more are damaged." if len(faults) > 1 else ""
        raise FormatError(f"{faults[0].rstrip('.')}.{more}")

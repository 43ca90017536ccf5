"""Progress with an ETA on a terminal, occasional plain lines elsewhere, on stderr so that pipes stay clean."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

Progress = Callable[[float, int, str], None]

LINE_EVERY = 10.0


@contextmanager
def reporter(*, quiet: bool, label: str) -> Iterator[Progress]:
    """Yield `progress(done, total, detail)`."""
    if quiet:
        yield lambda done, total, detail: None
    elif sys.stderr.isatty():
        with _bar(label) as progress:
            yield progress
    else:
        yield _lines(label)


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None, detail="")
        yield lambda done, total, detail: bar.update(task, completed=done, total=total, detail=detail)


def _lines(label: str) -> Progress:
    started = last = time.monotonic()

    at_start: float | None = None

    def progress(done: float, total: int, detail: str) -> None:
        nonlocal last, at_start
        now = time.monotonic()
        # What an earlier call did says nothing about this one's speed.
        at_start = done if at_start is None else at_start
        if now - last >= LINE_EVERY and done > at_start:
            last = now
            left = (now - started) / (done - at_start) * (total - done)
            click.echo(f"{label}: {int(done)}/{total} {detail} ({left:.0f} s left)", err=True)

    return progress

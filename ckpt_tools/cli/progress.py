"""Progress with an ETA on a terminal, occasional plain lines elsewhere, on stderr so that pipes stay clean."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

Progress = Callable[[int, int, str], None]

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

    def progress(done: int, total: int, detail: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY and done:
            last = now
            left = (now - started) / done * (total - done)
            click.echo(f"{label}: {done}/{total} {detail} ({left:.0f} s left)", err=True)

    return progress

"""Follow a run that is still training: a plan for every time there are new checkpoints, until the run says it ended."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..analyzer import reference_kinds
from ..errors import SourceError
from ..registry import Registry
from ..run.reader import RUN_FILE, read_run
from .plan import Job, Plan

POLL_SECONDS = 1.0
_IDLE = 10
"""Listing a run may take at most one part of so many of the time."""


def follow(job: Job, registry: Registry | None = None) -> Iterator[tuple[Plan, bool]]:
    """Yield (plan, whether it is the last one) whenever the run has more checkpoints, at the latest when it has ended.

    What compares with the last checkpoint waits for the end. Raises SourceError for anything but the folder of a run,
    and when it ended without a checkpoint.
    """
    seen: Sequence[int] | None = None
    while True:
        started = time.monotonic()
        # Asked first: what is saved between the question and the listing is found by the listing.
        ended = _status(job.source) != "running"
        plan = _planned(job, registry, ended)
        listing = time.monotonic() - started
        if plan is not None and (ended or plan.steps != seen):
            seen = plan.steps
            now = plan.analyzers if ended else [a for a in plan.analyzers if "last" not in reference_kinds(a)]
            if now:
                yield replace(plan, analyzers=now), ended
        if ended:
            return
        time.sleep(max(POLL_SECONDS, _IDLE * listing))


def _status(source: str) -> str:
    if not (Path(source) / RUN_FILE).is_file():
        raise SourceError(
            f"{source} is no run that could be watched: it has no {RUN_FILE}. Give the folder a trainer is writing."
        )
    return read_run(source).status


def _planned(job: Job, registry: Registry | None, ended: bool) -> Plan | None:
    """Return the plan, None when the steps it wants are yet to come."""
    try:
        return job.plan(registry)
    except SourceError:
        if ended:
            raise
        return None

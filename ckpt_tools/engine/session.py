"""One call of analyze: find what is missing, compute it, journal it, keep the results file fresh."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import CkptError, PluginError
from .journal import Journal
from .keys import Keys
from .plan import Plan
from .pool import compute
from .run import Progress, Runner, StepResult
from .store import Store

REFRESH_SECONDS = 120.0
TICK_SECONDS = 0.1

Fit = Callable[[], tuple[int, int]]
"""Returns how many processes there are to be, and the bytes each may use."""


@dataclass
class Tally:
    """What a call did: units computed, found in the journal, failed with a reason; whether it was interrupted."""

    computed: int = 0
    reused: int = 0
    failures: list[tuple[int, str, str]] = field(default_factory=list)
    interrupted: bool = False

    def add(self, later: Tally) -> None:
        """Count what another round over the same trajectory did; what it found in the journal was counted before."""
        first = not (self.computed or self.reused or self.failures)
        self.reused += later.reused if first else 0
        self.computed += later.computed
        self.failures += later.failures
        self.interrupted = later.interrupted

    def without(self, finished: Mapping[str, Container[int]]) -> Tally:
        """Return the tally without failures that a later round mended, or that are listed already."""
        failures = {(step, name): reason for step, name, reason in self.failures if step not in finished[name]}
        listed = [(step, name, reason) for (step, name), reason in failures.items()]
        return Tally(self.computed, self.reused, listed, self.interrupted)


def missing(
    plan: Plan, keys: Keys, known: Callable[[str, int, str], None] = lambda name, step, key: None
) -> dict[int, tuple[str, ...]]:
    """Return the analyzers to run at each position that lacks any; call `known` for the others."""
    wanted: dict[int, tuple[str, ...]] = {}
    # One tuple for all steps that lack the same: memory hardly grows with the trajectory.
    alike: dict[tuple[str, ...], tuple[str, ...]] = {}
    for position, step in enumerate(plan.steps):
        found = {analyzer.name: keys.known(analyzer, position) for analyzer in plan.analyzers}
        for name, key in found.items():
            if key is not None:
                known(name, step, key)
        lacking = tuple(name for name, key in found.items() if key is None)
        if lacking:
            wanted[position] = alike.setdefault(lacking, lacking)
    return wanted


class Session:
    """Runs a plan against a journal; `fit` is asked for processes and their memory if anything is to be computed."""

    def __init__(
        self, plan: Plan, journal: Journal, target: Path, fit: Fit, *, strict: bool = False, client: Any = None
    ) -> None:
        self.plan, self.journal = plan, journal
        self.keys = Keys(plan, journal)
        self.store = Store(plan, journal, target)
        self.tally = Tally()
        self._fit, self._strict, self._client = fit, strict, client
        self._analyzers = {a.name: a for a in plan.analyzers}
        self._errors: list[CkptError] = []

    def steps(self) -> list[int]:
        """Return the steps at which the results hold anything of this call's analyzers."""
        return sorted({int(step) for name in self._analyzers for step in self.journal.steps(name)})

    def run(self, on_progress: Progress, *, last: bool = True) -> Tally:
        """Compute what is missing and write the results file; Ctrl-C ends after the last finished checkpoint.

        Raises the first error when nothing at all could be measured, unless more is to come (`last` is false), and with
        `strict` at the first failure.
        """
        try:
            self._compute(on_progress)
        except KeyboardInterrupt:
            self.tally.interrupted = True
        finally:
            self.store.save()
        if not self.store.write() and self.tally.failures and last:
            step, name, reason = self.tally.failures[0]
            raise self._errors[0] if self._errors else PluginError(f"{name} at step {step} failed: {reason}")
        return self.tally

    def _compute(self, on_progress: Progress) -> None:
        runner = Runner(self.plan)
        try:
            runner.refuse()
        finally:
            runner.close()
        wanted = missing(self.plan, self.keys, self._reuse)
        workers = self._settle() if wanted else 1
        total, done = len(self.plan.steps), len(self.plan.steps) - len(wanted)
        fresh = told = time.monotonic()

        def tick(step: int, share: float, name: str) -> None:
            nonlocal told
            if time.monotonic() - told > TICK_SECONDS:
                told = time.monotonic()
                on_progress(done + share, total, f"step {step}, {name}")

        on_progress(done, total, "")
        for result in compute(self.plan, wanted, workers, tick, self._client):
            self._take(result)
            done += 1
            on_progress(done, total, f"step {result.step}")
            if time.monotonic() - fresh > REFRESH_SECONDS:
                self.store.write()
                fresh = time.monotonic()

    def _settle(self) -> int:
        """Give the plan the memory of one process; return how many processes there are to be."""
        workers, memory = self._fit()
        self.plan.job = replace(self.plan.job, memory=memory)
        return workers

    def _reuse(self, name: str, step: int, key: str) -> None:
        self.journal.show(name, step, key)
        self.tally.reused += 1

    def _take(self, result: StepResult) -> None:
        position = bisect_left(self.plan.steps, result.step)
        with self.journal.group():
            if result.hash:
                self.keys.learn(position, result.hash)
                self.store.learn(result)
            for name, record in result.records.items():
                self.journal.put(self.keys.of(self._analyzers[name], position), name, record)
                self.tally.computed += 1
            for name, reason in result.failures.items():
                self.journal.put_failure(name, result.step, reason)
                self.tally.failures.append((result.step, name, reason))
        self._errors += result.errors
        if self._strict and result.failures:
            name, reason = next(iter(result.failures.items()))
            raise CkptError(f"{name} at step {result.step} failed (--strict): {reason}")

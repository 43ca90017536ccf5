"""A bench: one analyzer class, the specimens it is tried on, and how it is run on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..analyzer import Analyzer
from ..engine.plan import Job, Plan
from ..engine.run import Runner
from ..errors import CkptError
from ..registry import Registry, load_registry
from ..results import Record
from . import specimens as make
from .specimens import Array, Change


class NonConformance(CkptError):
    """An analyzer breaks a rule of the contract; the message says which, where and what to do."""


class Blocked(CkptError):
    """A check could not be made because the analyzer does not run at all; another check says why."""


class NotApplicable(CkptError):
    """A check does not concern this analyzer."""


class Bench:
    """Specimens are written under `folder` when first used."""

    def __init__(self, cls: type[Analyzer], folder: Path, options: Mapping[str, Any] | None = None) -> None:
        self.cls = cls
        self.folder = folder
        self.options = dict(options or {})

    @cached_property
    def registry(self) -> Registry:
        """All plugins."""
        return load_registry()

    @property
    def runs_models(self) -> bool:
        """Whether the analyzer needs more than weights."""
        return self.cls.needs != "weights"

    def fresh(self) -> Analyzer:
        """Return a new instance with the bench's options."""
        return self.cls.parse(self.options)

    def source(self, name: str, change: Change | None = None, **how: Any) -> Path:
        """Return the specimen of that name, written once; `change` is applied to every matrix."""
        path = self.folder / name
        if not path.exists():
            if self.runs_models:
                make.write_run(path, self.registry, change)
            else:
                make.write_folders(path, _changed(make.plain_tensors, change), {}, steps=make.STEPS, **how)
        return path

    def attention(self) -> Path:
        """Return the specimen with roles, heads and a tied embedding (a run for analyzers that run models)."""
        if self.runs_models:
            return self.source("ordinary")
        path = self.folder / "attention"
        if not path.exists():
            make.write_folders(path, make.attention_tensors, make.ATTENTION_CONFIG, steps=make.STEPS)
        return path

    def plan(self, source: Path, analyzer: Analyzer | None = None) -> Plan:
        """Return the plan of the analyzer over all steps of a specimen."""
        return Job(str(source), (analyzer or self.fresh(),)).plan(self.registry)

    def run(self, source: Path, analyzer: Analyzer | None = None) -> list[Record]:
        """Return one record per step; warnings of numpy and others are errors."""
        plan = self.plan(source, analyzer)
        runner = Runner(plan)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                return [runner.record_of(plan.analyzers[0], position) for position in range(len(plan.steps))]
            finally:
                runner.close()

    def block(self) -> list[Record]:
        """Return the records of the ordinary specimen from one block of all its steps, or raise what that raises."""
        errors: list[Exception] = []

        def analyze(analyzer: Analyzer, view: Any) -> Mapping[str, Any]:
            try:
                return self.cls.analyze(analyzer, view)
            except Exception as error:
                errors.append(error)
                raise

        watched = cast(type[Analyzer], type(self.cls.__name__, (self.cls,), {"analyze": analyze}))
        plan = self.plan(self.source("ordinary"), watched.parse(self.options))
        name = self.cls.name
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            results = list(Runner(plan).run({position: [name] for position in range(len(plan.steps))}))
        # The runner goes step by step where a block fails, so that its failure leaves no other trace.
        if errors:
            raise errors[0]
        return [result.records[name] for result in results]

    def ordinary(self, analyzer: Analyzer | None = None) -> list[Record]:
        """Return the records of the ordinary specimen, or raise Blocked when the analyzer does not run on it."""
        try:
            return self.run(self.source("ordinary"), analyzer)
        except Exception as error:  # whatever a stranger's analyzer raises, `outputs` reports it
            raise Blocked(f"{type(error).__name__}: {error}") from error


def _changed(tensors: Callable[[int], dict[str, Array]], change: Change | None) -> Callable[[int], dict[str, Array]]:
    if change is None:
        return tensors
    return lambda step: {n: change(n, t) if t.ndim == 2 else _cut(change, n, t) for n, t in tensors(step).items()}


def _cut(change: Change, name: str, vector: Array) -> Array:
    """Let a change of matrices shape their biases too when it removes rows."""
    return vector[:1] if change is make.one_row else vector


def differences(one: list[Record], other: list[Record], *, exact: bool, leave: frozenset[str] = frozenset()) -> str:
    """Return in which outputs and steps two runs differ, as text; outputs in `leave` are not compared."""
    return ", ".join(
        f"{name} at step {a.step}"
        for a, b in zip(one, other, strict=True)
        for name, values in a.values.items()
        if name not in leave and not _same(values, b.values[name], exact)
    )


def _same(a: Array, b: Array, exact: bool) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    if exact:
        return bool(np.array_equal(a, b, equal_nan=True))
    scale = np.fmax.reduce(np.abs(a), axis=None, initial=0.0)  # nanmax warns of a single NaN
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-5 * scale, equal_nan=True))

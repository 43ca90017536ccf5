"""What a call to analyze will do, worked out before anything is read."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..analyzer import Analyzer
from ..arrays import CPU
from ..checkpoint import Trajectory, open_trajectory
from ..checkpoint.location import Location, local_folder
from ..errors import OptionError, PluginError, nearest
from ..layouts import Layouts
from ..registry import Registry, load_registry
from ..run.reader import PROBE_FILE
from ..text import VOCABULARIES
from .memory import Budget

if TYPE_CHECKING:
    from ..host import BatchSource


@dataclass(frozen=True)
class Job:
    """What a user asked for, as plain data: workers rebuild the same plan from it.

    `data` are the arguments of `ckpt_tools.data.DataSource` as keywords, empty for a run's own probe batch. `memory` is
    the bytes one process may use; results do not depend on it. `device` is a name as for `--device`, which each process
    resolves for itself.
    """

    source: str
    analyzers: tuple[str | type[Analyzer] | Analyzer, ...]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    steps: str | None = None
    matrices: tuple[str, ...] = ()
    plugin_files: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    cache_size: int | None = None
    part: str = ""
    memory: int = 1 << 30
    device: str = CPU

    @property
    def budget(self) -> Budget:
        """What one process may use of its memory for what."""
        return Budget(self.memory)

    def plan(self, registry: Registry | None = None, trajectory: Trajectory | None = None) -> Plan:
        """Return the plan; every mistake in names and options is raised here, before any long work.

        A worker is given the `trajectory` that was opened before it: a run may have grown since, a branch moved.
        """
        registry = registry or load_registry(self.plugin_files)
        configured = configure(self.analyzers, registry, self.options)
        trajectory = trajectory or open_trajectory(self.source, part=self.part, cache_size=self.cache_size)
        steps = trajectory.select(self.steps) if self.steps else trajectory.steps
        layouts = Layouts(registry, trajectory.run, self.matrices)
        return Plan(self, trajectory, array("q", steps), configured, registry, layouts)


@dataclass
class Plan:
    """A trajectory, the steps to take, configured analyzers, and the layouts cache that resolves weights.

    `device` is that of this process, such as "cuda:1"; `device.placed` sets it.
    """

    job: Job
    trajectory: Trajectory
    steps: Sequence[int]
    analyzers: list[Analyzer]
    registry: Registry
    layouts: Layouts
    device: str = CPU

    @property
    def seed(self) -> str:
        """Text that seeds every analyzer's randomness: the run's own seed when it has one, never its location."""
        run = self.trajectory.run or {}
        return str(run.get("seed", 0))

    def path_of(self, step: int) -> Location:
        """Return where the checkpoint of a step lies."""
        return self.trajectory.entry(step).path

    @property
    def runs_models(self) -> bool:
        """Whether any analyzer needs more than weights."""
        return any(a.needs != "weights" for a in self.analyzers)

    @cached_property
    def batch_source(self) -> BatchSource | None:
        """Where batches come from: `--data`, else the run's probe batch, else nowhere."""
        from ..data import DataSource, ProbeSource

        if self.job.data:
            return DataSource(beside=tuple(self._beside()), targets=self.trajectory.run is not None, **self.job.data)
        run = self.trajectory.path if self.trajectory.run is not None else None
        folder = run if run is None or isinstance(run, Path) else local_folder(run, PROBE_FILE)
        return ProbeSource(folder) if folder is not None else None

    def _beside(self) -> Iterator[Path]:
        """Yield the folders a vocabulary may lie in; of a remote one, that of a copy of its tokenizer.json."""
        for path in (self.trajectory.path, *(entry.path for entry in self.trajectory.entries[:1])):
            folder = path if isinstance(path, Path) else local_folder(path, VOCABULARIES[0])
            if folder is not None:
                yield folder

    def data_identity(self, analyzer: Analyzer) -> str:
        """Return what changes whenever an analyzer's batch, or a file that it reads itself, would; "" for neither."""
        runs = analyzer.needs != "weights" and self.batch_source is not None
        batch = self.batch_source.identity if runs and self.batch_source is not None else ""
        return batch + "".join(map(self._digest, analyzer.files()))

    def _digest(self, path: str) -> str:
        """Return the SHA-256 (hex) of a file, read once; that of nothing where the analyzer will not be able to."""
        if path not in self._digests:
            try:
                with open(path, "rb") as file:
                    self._digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                self._digests[path] = hashlib.sha256().hexdigest()
        return self._digests[path]

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {}


def configure(
    analyzers: Iterable[str | type[Analyzer] | Analyzer], registry: Registry, options: Mapping[str, Mapping[str, Any]]
) -> list[Analyzer]:
    """Return one configured instance per analyzer; options for an analyzer that is not asked for are an error."""
    found: dict[str, Analyzer] = {}
    for item in analyzers:
        if isinstance(item, Analyzer):
            found[item.name] = item
        else:
            cls = registry.analyzer(item) if isinstance(item, str) else item
            found[cls.name] = cls.parse(options.get(cls.name, {}))
    if not found:
        raise OptionError("No analyzer is named. Add --plugin NAME; `ckpt plugins` lists them.")
    unused = sorted(set(options) - set(found))
    if unused:
        raise PluginError(
            f"Options are set for {unused[0]!r}, which is not among the analyzers of this call."
            f"{nearest(unused[0], found)} Add --plugin {unused[0]} or drop the option."
        )
    return list(found.values())

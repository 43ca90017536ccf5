"""What a call to analyze will do, worked out before anything is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..analyzer import Analyzer
from ..checkpoint import Trajectory, open_trajectory
from ..errors import PluginError, nearest
from ..layouts import Layouts
from ..registry import Registry


@dataclass
class Plan:
    """A trajectory, the steps to take, configured analyzers, and the layouts cache that resolves weights."""

    trajectory: Trajectory
    steps: list[int]
    analyzers: list[Analyzer]
    registry: Registry
    layouts: Layouts
    patterns: tuple[str, ...] = ()

    @property
    def seed(self) -> str:
        """Text that seeds every analyzer's randomness: the run's own seed when it has one, never its location."""
        run = self.trajectory.run or {}
        return str(run.get("seed", 0))


def make_plan(
    source: str | Path,
    analyzers: Iterable[str | type[Analyzer] | Analyzer],
    registry: Registry,
    *,
    steps: str | None = None,
    matrices: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Plan:
    """Return the plan; every mistake in names and options is raised here, before any long work."""
    configured = configure(analyzers, registry, options or {})
    trajectory = open_trajectory(source)
    chosen = trajectory.select(steps) if steps else trajectory.steps
    layouts = Layouts(registry, trajectory.run, matrices)
    return Plan(trajectory, list(chosen), configured, registry, layouts, tuple(matrices))


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
    unused = sorted(set(options) - set(found))
    if unused:
        raise PluginError(
            f"Options are set for {unused[0]!r}, which is not among the analyzers of this call."
            f"{nearest(unused[0], found)} Add --plugin {unused[0]} or drop the option."
        )
    return list(found.values())

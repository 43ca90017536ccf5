"""From the journal to the results file: every analyzer this file has ever held, with the steps that still hold."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..analyzer import Analyzer, Out
from ..errors import ResultsError
from ..results import Group, Series, check_summary, write_results
from ..results import Trajectory as TrajectoryFacts
from ..verify import Finding, Watcher
from ..verify.sighting import Sighting
from .journal import Journal
from .plan import Plan
from .run import StepResult

_LISTS = ("matrices", "dtypes", "notes", "devices")
_MAPS = ("aliases", "skipped")


class Store:
    """Collects results of one call into the journal and writes the results file from all of it."""

    def __init__(self, plan: Plan, journal: Journal, target: Path) -> None:
        self.plan, self.journal, self.target = plan, journal, target
        self.groups: dict[str, dict[str, Any]] = json.loads(journal.fact("groups") or "{}")
        self.facts: dict[str, Any] = json.loads(journal.fact("facts") or "{}")
        self._findings: list[Finding] | None = None
        self._require_same_source()
        for analyzer in plan.analyzers:
            self._adopt(analyzer)
        self.save()

    def _require_same_source(self) -> None:
        source = str(self.plan.trajectory.path)
        known = self.facts.setdefault("source", source)
        if known != source:
            raise ResultsError(
                f"{self.target} holds results of {known}, not of {source}. Name another file with -o, or add --force "
                "to start this one afresh."
            )

    def _adopt(self, analyzer: Analyzer) -> None:
        """Begin or continue the group of an analyzer; another configuration starts it afresh."""
        plugin = next((p for p in self.plan.registry.plugins if type(analyzer) in p.analyzers), None)
        identity = {
            "version": analyzer.version,
            "options": analyzer.as_dict(),
            "matrices": list(self.plan.job.matrices),
            "data": self.plan.data_identity(analyzer),
        }
        group = {
            "identity": identity,
            "outputs": {name: asdict(out) for name, out in analyzer.outputs.items()},
            "description": " ".join((type(analyzer).__doc__ or "").split()),
            "needs": analyzer.needs,
            "reading": " ".join(analyzer.reading.split()),
            "events": dict(analyzer.events),
            "figures": [asdict(figure) for figure in analyzer.figures],
            "distribution": plugin.distribution if plugin else "",
            "distribution_version": plugin.version if plugin else "",
            "summary": {},
        }
        # Through JSON, as what it is compared with: tuples become lists.
        group = json.loads(json.dumps(group))
        before = self.groups.get(analyzer.name)
        if before is None or before["identity"] != group["identity"]:
            self.journal.hide(analyzer.name)
        self.groups[analyzer.name] = group

    def learn(self, result: StepResult) -> None:
        """Take note of what a checkpoint and its layout are."""
        self._findings = None
        self.journal.see(result.step, hash=result.hash, path=result.path, sighting=result.sighting)
        if not any(result.facts.values()):
            return
        for name in _LISTS:
            known = self.facts.setdefault(name, [])
            known.extend(item for item in result.facts.get(name, []) if item not in known)
        for name in _MAPS:
            self.facts.setdefault(name, {}).update(result.facts.get(name, {}))
        if result.facts.get("family"):
            self.facts["family"] = result.facts["family"]
        self._put()

    def findings(self) -> list[Finding]:
        """Return what is suspicious about the trajectory, as far as all passes into this file have seen it."""
        if self._findings is None:
            watcher = Watcher(self.plan.trajectory)
            for step, seen in self.journal.sightings():
                if seen:
                    watcher.add(int(step), Sighting.parse(seen))
            self._findings = watcher.findings()
        return self._findings

    def _put(self) -> None:
        self.journal.put_facts({name: json.dumps(getattr(self, name)) for name in ("groups", "facts")})

    def save(self) -> None:
        """Put everything into the journal; what was finished is then acknowledged."""
        self._put()
        self.journal.commit()

    def write(self) -> bool:
        """Write the results file from the journal; return False when there is nothing to write yet."""
        series = {name: self._series(name) for name in self.groups}
        for analyzer in self.plan.analyzers:
            if len(series[analyzer.name]):
                facts = analyzer.summarize(series[analyzer.name])
                series[analyzer.name].forget()
                where = f"the summary of {self.plan.trajectory.path}"
                self.groups[analyzer.name]["summary"] = check_summary(analyzer, facts, where)
        self.save()
        groups = [self._group(name, of) for name, of in series.items() if len(of)]
        if not groups:
            return False
        write_results(self.target, groups, self._root(), trajectory=self._trajectory(), force=True)
        return True

    def _series(self, name: str) -> Series:
        group = self.groups[name]
        outputs = {key: Out(**{**out, "dims": tuple(out["dims"])}) for key, out in group["outputs"].items()}
        return Series(outputs, self.journal.records(name))

    def _group(self, name: str, series: Series) -> Group:
        group = self.groups[name]
        return Group(
            name,
            series,
            version=group["identity"]["version"],
            description=group["description"],
            options=group["identity"]["options"],
            distribution=group["distribution"],
            distribution_version=group["distribution_version"],
            needs=group["needs"],
            summary=group["summary"],
            skipped=list(self.facts.get("skipped", {}).items()),
            attrs={
                "failures": self.journal.failures(name),
                "matrix_selection": group["identity"]["matrices"],
                "reading": group.get("reading", ""),
                "events": group.get("events", {}),
                "figures": group.get("figures", []),
            },
        )

    def _root(self) -> dict[str, Any]:
        trajectory, run = self.plan.trajectory, self.plan.trajectory.run or {}
        return {
            "source": self.facts["source"],
            "family": self.facts.get("family", ""),
            "seed": self.plan.seed,
            "history": command_line(),
            "device": "; ".join(self.facts.get("devices", [])) or None,
            "storage_dtypes": sorted(self.facts.get("dtypes", [])),
            "tied": self.facts.get("aliases", {}),
            "notes": self.facts.get("notes", []),
            "findings": [finding.as_dict() for finding in self.findings()],
            "skipped_checkpoints": {s.name: s.reason for s in trajectory.skipped},
            "run": {k: run[k] for k in ("family", "task", "task_config", "config", "train", "seed") if k in run},
        }

    def _trajectory(self) -> TrajectoryFacts:
        steps, hashes, paths = self.journal.checkpoints()
        return TrajectoryFacts(steps, hashes, paths, self.plan.trajectory.metrics(steps))


def command_line() -> str:
    """Return the command this process was started with, as it would be typed."""
    return shlex.join(["ckpt", *sys.argv[1:]]) if Path(sys.argv[0]).stem == "ckpt" else "ckpt_tools.analyze"

"""Is a trajectory what it claims to be? One pass over its checkpoints, findings as data.

Every checkpoint is open once and alone; of each tensor its digest and a sample of entries are kept, so memory grows
with the number of steps and not with the size of the model.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..checkpoint import Checkpoint, Trajectory, open_trajectory
from ..errors import CkptError
from .copies import Copies, Unit
from .finding import KINDS, Finding, Severity
from .geometry import Key, build
from .paths import Paths
from .sample import Entries, peek, read_whole, share
from .sighting import Sighting
from .watcher import Watcher

__all__ = [
    "KINDS",
    "Copies",
    "Depth",
    "Finding",
    "Hashes",
    "Report",
    "Severity",
    "Sighting",
    "Unit",
    "Watcher",
    "verify",
]

Progress = Callable[[int, int, str], None]
Depth = Literal["all", "sample", "nothing"]

MEMORY = 1 << 27
"""Bytes that the samples of all checkpoints may take together."""
MOST_ENTRIES = 1 << 19
_ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Hashes:
    """SHA-256 (hex) of a checkpoint's content, per file and per tensor; of the rows read when only a sample was."""

    content: str
    files: dict[str, str]
    tensors: dict[str, str]


@dataclass(frozen=True)
class Report:
    """What `verify` found; `read` is how much it read of each checkpoint (as asked for), `hashes` are by step."""

    source: str
    unit: str
    steps: list[int]
    findings: list[Finding]
    hashes: dict[int, Hashes] = field(repr=False)
    read: Depth = "all"
    bytes_read: int = 0
    seconds: float = 0.0

    @property
    def suspicious(self) -> bool:
        """Whether there is an error or a warning among the findings."""
        return any(finding.severity != "note" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-able data, without the hashes of single tensors."""
        return {
            "source": self.source,
            "unit": self.unit,
            "steps": self.steps,
            "suspicious": self.suspicious,
            "findings": [finding.as_dict() for finding in self.findings],
            "hashes": {str(step): {"content": h.content, "files": h.files} for step, h in self.hashes.items()},
            "read": self.read,
            "bytes_read": self.bytes_read,
            "seconds": self.seconds,
        }


def verify(
    source: str | Path | Trajectory,
    *,
    steps: str | None = None,
    read: Depth = "all",
    on_progress: Progress = lambda done, total, detail: None,
) -> Report:
    """Check a trajectory: copies, misplaced and foreign checkpoints, damage, NaN, gaps; see `finding.KINDS`.

    `steps` chooses some, as on the command line. `read="sample"` takes a few rows of every large tensor instead of all
    bytes: damage, NaN and copies outside of them go unseen. `read="nothing"` compares the hashes of files that a server
    lists. Raises SourceError when the source itself cannot be opened; a checkpoint that cannot be read is a finding.
    """
    started = time.monotonic()
    trajectory = source if isinstance(source, Trajectory) else open_trajectory(source)
    chosen = trajectory.select(steps) if steps else trajectory.steps
    scan = _Scan(trajectory, len(chosen), read)
    for done, step in enumerate(chosen):
        on_progress(done, len(chosen), f"{trajectory.unit} {step}")
        scan.take(step)
    on_progress(len(chosen), len(chosen), "")
    return scan.report(list(chosen), time.monotonic() - started)


class _Scan:
    """The pass: what each checkpoint gave."""

    def __init__(self, trajectory: Trajectory, count: int, read: Depth = "all") -> None:
        self.trajectory, self.read = trajectory, read
        self.watcher = Watcher(trajectory)
        self.budget = min(MOST_ENTRIES, MEMORY // (4 * max(1, count)))
        self.samples: dict[int, dict[Key, Entries]] = {}
        self.hashes: dict[int, Hashes] = {}
        self.bytes_read = 0

    def take(self, step: int) -> None:
        """Read a checkpoint; what cannot be read is kept as a failure."""
        try:
            if self.read == "all":
                self.trajectory.check(step)
            with self.trajectory.checkpoint(step) as checkpoint:
                self._take(step, checkpoint)
        except CkptError as error:
            self.watcher.failed(step, error)

    def _take(self, step: int, checkpoint: Checkpoint) -> None:
        if self.read == "nothing":
            self.watcher.add(step, Sighting.listed(checkpoint, unit=self.trajectory.unit))
            return
        take, count = read_whole if self.read == "all" else peek, share(checkpoint, self.budget)
        seen = {info.name: take(checkpoint, info, count) for info in checkpoint.tensors.values()}
        self.bytes_read += checkpoint.bytes_read
        digests = {name: glance.digest for name, glance in seen.items()}
        bad = [name for name, glance in seen.items() if glance.nonfinite]
        self.watcher.see(step, checkpoint, nonfinite=bad, digests=digests)
        shapes = {info.name: info.shape for info in checkpoint.tensors.values()}
        self.samples[step] = {(n, shapes[n]): g.entries for n, g in seen.items() if g.entries is not None}
        self.hashes[step] = _hashes(checkpoint, digests)

    def report(self, steps: list[int], seconds: float) -> Report:
        """Return everything found, errors first."""
        read = sorted(self.samples)
        geometry = build(read, [self.samples.pop(step) for step in read])
        paths = Paths(geometry, self.trajectory.unit, self.watcher.copies().identical()).search()
        found = _merged(paths.findings, self.watcher.findings(paths.astray))
        found.sort(key=lambda finding: _ORDER[finding.severity])
        return Report(
            str(self.trajectory.path),
            self.trajectory.unit,
            steps,
            found,
            self.hashes,
            self.read,
            self.bytes_read,
            seconds,
        )


def _hashes(checkpoint: Checkpoint, digests: dict[str, str]) -> Hashes:
    by_file: dict[str, dict[str, str]] = defaultdict(dict)
    for info in checkpoint.tensors.values():
        by_file[info.file.name][info.name] = digests[info.name]
    files = {name: combined(held) for name, held in sorted(by_file.items())}
    return Hashes(combined(digests), files, digests)


def combined(digests: dict[str, str]) -> str:
    """Return the SHA-256 (hex) over the sorted names and digests."""
    import hashlib
    import json

    return hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()


def _merged(paths: list[Finding], others: list[Finding]) -> list[Finding]:
    """Return all findings, without what bytes show better than distances: a copy says whose weights these are."""
    copied = {step for finding in others if finding.kind == "identical" for step in finding.steps}
    tensors = {(s, t) for f in others if f.kind.startswith("foreign") for s in f.steps for t in f.tensors}
    kept = [
        finding
        for finding in paths
        if not (finding.kind == "misplaced" and set(finding.steps) <= copied)
        and not (finding.kind == "foreign_tensor" and {(finding.steps[0], t) for t in finding.tensors} <= tensors)
    ]
    return [*others, *kept]

"""What a unit's numbers depend on, and how to know it without reading files that have not changed."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import __version__
from ..analyzer import Analyzer, reference_kinds
from ..checkpoint.location import Location
from ..errors import SourceError
from .journal import Journal, unit_key
from .plan import Plan
from .run import Runner, reference_position

_REMEMBERED = 256


class Keys:
    """Keys of a plan's units; content hashes are remembered in the journal by file names, sizes and times."""

    def __init__(self, plan: Plan, journal: Journal) -> None:
        self._plan, self._journal = plan, journal
        self._known: OrderedDict[int, str] = OrderedDict()
        self._fixed: dict[int, str] = {}

    def of(self, analyzer: Analyzer, position: int) -> str:
        """Return the key of a unit; reads the checkpoint when its content is not known."""
        plan = self._plan
        references = {
            kind: self.hash_at(reference_position(kind, position, len(plan.steps)))
            for kind in reference_kinds(analyzer)
        }
        return unit_key(
            tool=__version__,
            analyzer=analyzer.name,
            version=analyzer.version,
            options=analyzer.as_dict(),
            matrices=list(plan.job.matrices),
            data=plan.data_identity(analyzer),
            step=plan.steps[position],
            seed=plan.seed,
            content=self.hash_at(position),
            references=references,
        )

    def learn(self, position: int, content_hash: str) -> None:
        """Take note of a content hash found while computing."""
        fingerprint = self._fingerprint(position)
        if fingerprint:
            self._remember(position, content_hash)
            self._journal.remember_hash(fingerprint, content_hash)
        else:
            self._fixed[position] = content_hash

    def _remember(self, position: int, content_hash: str) -> None:
        self._known[position] = content_hash
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def hash_at(self, position: int) -> str:
        """Return the content hash of a checkpoint; raises SourceError when it cannot be read."""
        known = self._known.get(position) or self._fixed.get(position)
        if known is not None:
            return known
        fingerprint = self._fingerprint(position)
        found = self._journal.content_hash(fingerprint) if fingerprint else None
        if found is None:
            found = self._read(position)
            self.learn(position, found)
        else:
            self._remember(position, found)
        return found

    def _read(self, position: int) -> str:
        runner = Runner(self._plan)
        try:
            weights, _ = runner.weights_of(self._plan.steps[position])
            return weights.content_hash(everything=self._plan.runs_models)
        finally:
            runner.close()

    def _fingerprint(self, position: int) -> str:
        """Return a digest of the names, sizes and times of a checkpoint's files; "" where they cannot be known."""
        entry = self._plan.trajectory.entry(self._plan.steps[position])
        try:
            files: list[Any] = [entry.record] if entry.record else list(_files(entry.path))
        except OSError:
            return ""
        if not files:
            return ""
        selection = [list(self._plan.job.matrices), self._plan.runs_models, entry.step, self._plan.trajectory.part]
        return hashlib.sha256(json.dumps([__version__, str(entry.path), selection, sorted(files)]).encode()).hexdigest()

    def known(self, analyzer: Analyzer, position: int) -> str | None:
        """Return the key of a finished unit, or None when it must be computed; costs no read on a first call."""
        if not self._journal.has_any(analyzer.name, self._plan.steps[position]):
            return None
        try:
            key = self.of(analyzer, position)
        except SourceError:
            return None
        return key if self._journal.has([key]) else None


def _files(path: Location) -> Iterator[Any]:
    """Yield what changes whenever a file's bytes do: a clock that is set back fakes no change time *and* inode."""
    if not isinstance(path, Path):
        yield from path.store.fingerprint(path.inner)
        return
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        status = file.stat()
        yield file.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino

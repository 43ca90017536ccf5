"""How checkpoints get from memory to disk: into which store, and in the background or at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .background import SaveQueue
from .files import Sync
from .store import open_store
from .template import Template

BACKGROUND_BYTES = 50 * 2**20


class Saving:
    """Puts checkpoints into the store of a run; `queue` is the bytes that may wait for a thread, 0 for no thread.

    Without `queue`, checkpoints above 50 MB or on a GPU are written by a thread: below, it costs more than it saves.
    """

    def __init__(self, path: Path, mode: str, sync: Sync, queue: int | None) -> None:
        self.store = open_store(path, mode, sync)
        self._limit = queue
        self._queue: SaveQueue | None = None
        self._direct: bool | None = None if queue is None else queue == 0

    def put(self, step: int, template: Template, tensors: Mapping[str, Any]) -> None:
        """Save tensors that the template describes. Raises RunError, with a thread perhaps that of an earlier step."""
        if self._direct is None:
            self._direct = template.size <= BACKGROUND_BYTES and not any(map(_elsewhere, tensors.values()))
        if self._direct:
            self.store.put(step, template.buffers(tensors))
            return
        if self._queue is None:
            self._queue = SaveQueue(self.store, self._limit)
        self._queue.put(step, template.size, lambda out: template.copy(tensors, out))

    def close(self) -> None:
        """Write what waits and close the store. Raises RunError when something could not be written."""
        (self._queue or self.store).close()


def _elsewhere(tensor: Any) -> bool:
    return hasattr(tensor, "is_cpu") and not tensor.is_cpu

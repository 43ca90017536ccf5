"""How much memory a call may use, and how it is shared: processes first, then what is kept of checkpoints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import OptionError

BASE_BYTES = 128 << 20
"""What a process takes before it reads anything: Python, numpy, HDF5."""
MODEL_BYTES = 320 << 20
"""What torch adds for analyzers that run models."""
LEAST_BYTES = 32 << 20
"""What a process needs beside that for tiles and buffers, whatever the checkpoint."""
_SHOWN = (32 << 20) - 8192
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class Budget:
    """Bytes for one process: in all, and of these for what is read of checkpoints (`cache`) and of blocks (`block`)."""

    share: int

    def room(self, runs_models: bool = False) -> int:
        """Return what is left when the process itself has what it needs."""
        return max(self.share - BASE_BYTES - (MODEL_BYTES if runs_models else 0), LEAST_BYTES)

    def cache(self, runs_models: bool = False) -> int:
        """Bytes of tensors kept for the next analyzer."""
        return self.room(runs_models) // 2

    def block(self, runs_models: bool = False) -> int:
        """Bytes of checkpoints that are opened together."""
        return min(self.room(runs_models) // 4, 64 << 20)


def keep_freed() -> None:
    """Let the C library keep what is freed for the next array, instead of giving it back to the system at once.

    Arrays of one analysis are of the same sizes again and again; new pages for each cost a tenth of an SVD of 512 rows.
    glibc learns this from the largest array it has seen freed, to at most 32 MiB, so it is shown one. Elsewhere this
    does nothing.
    """
    np.empty(_SHOWN, np.uint8)  # never touched, so it takes no memory


def free_memory() -> int:
    """Return the bytes this process could still use: what the system has free, within the limit of its group."""
    free = [_free_of_system()]
    for limit, used in _GROUPS:
        most, now = _number(limit), _number(used)
        if most is not None and now is not None:
            free.append(max(most - now, 0))
    return min(free)


def _free_of_system() -> int:
    file = Path("/proc/meminfo")
    for line in file.read_text().splitlines() if file.is_file() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def workers_that_fit(memory: int | None, workers: int, need: int) -> tuple[int, int]:
    """Return how many of the workers fit into the memory (default: half of what is free), and the bytes of each.

    `need` is what one of them takes at least. Raises OptionError when not even one fits into memory that was given.
    """
    total = free_memory() // 2 if memory is None else memory
    if need > total and memory is not None:
        raise OptionError(
            f"--memory {shown(memory)} is too little: the largest matrix of the first checkpoint needs {shown(need)} "
            "in one process. Give more, or choose matrices with --matrices."
        )
    # The process that hands out the work and keeps the results does not compute beside several workers.
    for_workers = max(total - BASE_BYTES, 0)
    fitting = min(workers, for_workers // max(need, 1))
    return (fitting, for_workers // fitting) if fitting > 1 else (1, total)


def shown(size: float) -> str:
    """Return a size for reading: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"

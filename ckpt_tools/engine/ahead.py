"""One large checkpoint on several cores: its spectra are computed ahead of the analyzers, matrix by matrix.

The analyzers run in one process and see what they always see. When the first of them asks for a spectrum, those of the
next matrices are begun in other processes, which read their matrices themselves; what comes back is what the process
would have computed, bit for bit, and the digests of the tensors come along, so that nothing is read again for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack
from math import prod

from ..errors import SourceError
from ..spectra import Spectrum
from ..weights import SMALL, Weights

Found = tuple[Spectrum, str, str]
Measure = Callable[[int, str], Found]


class Ahead:
    """Spectra of a checkpoint's large matrices from a pool of processes, a few begun before they are asked for."""

    def __init__(
        self, weights: Weights, pools: Callable[[], AbstractContextManager[ProcessPoolExecutor]], measure: Measure,
        *, window: int, tries: int,
    ) -> None:  # fmt: skip
        self._weights, self._pools, self._measure = weights, pools, measure
        self._window, self._tries = window, tries
        self._names = [n for n in weights.names if prod(weights.info(n).shape) > SMALL]
        self._begun: dict[str, Future[Found]] = {}
        self._stack = ExitStack()
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, name: str) -> Spectrum | None:
        """Return a spectrum; None for a small matrix. Raises SourceError when its process dies again and again."""
        if name not in self._names:
            return None
        for _ in range(self._tries):
            try:
                spectrum, tensor, digest = self._begin(name).result()
            except BrokenProcessPool:
                self.close()
                continue
            self._weights.checkpoint.learn_digest(tensor, digest)
            return spectrum
        raise SourceError(
            f"{self._weights.checkpoint.path}: the process that measured {name} died {self._tries} times."
        )

    def _begin(self, name: str) -> Future[Found]:
        if self._pool is None:
            self._pool = self._stack.enter_context(self._pools())
        for one in self._next(name):
            if one not in self._begun and one not in self._weights.spectra:
                self._begun[one] = self._pool.submit(self._measure, self._weights.checkpoint.step, one)
        return self._begun.pop(name)

    def _next(self, name: str) -> Sequence[str]:
        at = self._names.index(name)
        return self._names[at : at + self._window]

    def close(self) -> None:
        """End the processes and forget what was begun."""
        self._begun.clear()
        self._pool = None
        self._stack.close()

"""The neurons of a block of checkpoints, small ones of one shape together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .neurons.cosines import Array
from .neurons.directions import orientations
from .neurons.vectors import neuron_vectors, norms, outgoing, sides

if TYPE_CHECKING:
    from ckpt_tools import BatchView

STACKED = 512
"""Up to this many neurons, matrices of one shape are worked on together."""
STACK_ENTRIES = 1 << 18
"""Numbers from which a stack of matrices is worked on and not added to: 1 MiB stays in the cache, and in the heap."""


def stacks_of(view: BatchView, names: Sequence[str], *, alone: bool) -> Iterator[tuple[list[int], Array]]:
    """Yield rows of the output and their neurons `[b, n, d]`: small sides of one shape together, large ones alone."""
    waiting: dict[tuple[Any, ...], tuple[list[int], list[Array]]] = {}
    for row, vectors in _sides(view, names):
        if alone or len(vectors) > STACKED:
            yield [row], vectors[None]
            continue
        key = (vectors.shape, vectors.dtype)
        rows, stack = waiting.setdefault(key, ([], []))
        rows.append(row)
        stack.append(vectors)
        if len(stack) * vectors.size >= STACK_ENTRIES:
            yield rows, np.stack(stack)
            del waiting[key]
    yield from ((rows, np.stack(stack)) for rows, stack in waiting.values())


def _sides(view: BatchView, names: Sequence[str]) -> Iterator[tuple[int, Array]]:
    """Yield the neurons of every side of every matrix at every step, in the order of the output's rows."""
    row = 0
    for one in view:
        matrices = one.matrices()
        for name in names:
            for vectors in sides(matrices[name], one.bias(name)):
                yield row, vectors
                row += 1


def lines_of(view: BatchView, names: Sequence[str]) -> dict[str, Any]:
    """Return orientation and amplitude of neurons with one input, NaN where the outgoing matrix is not known."""
    lines = [name for name in names if view.info(name).shape[1] == 1]
    width = max((view.info(name).shape[0] for name in lines), default=0)
    angle, amplitude = np.full((2, len(view), len(lines), width), np.nan)
    readers = outgoing(view[0]) if lines else {}
    for step, one in enumerate(view):
        for at, name in enumerate(lines):
            vectors = neuron_vectors(one, name)["input"]
            angle[step, at, : len(vectors)] = orientations(vectors)
            if name in readers:
                reader = one.matrices()[readers[name]]
                amplitude[step, at, : len(vectors)] = norms(vectors) * norms(reader.T)
    return {"line": lines, "orientation": angle, "amplitude": amplitude}

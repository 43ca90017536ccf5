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
"""Up to this many neurons, the steps of a block are worked on together."""
STACK_ENTRIES = 1 << 18
"""Most numbers of a stack of several steps: 1 MiB stays in the cache, and in the heap."""


def stacks_of(view: BatchView, names: Sequence[str], *, alone: bool) -> Iterator[tuple[list[int], Array]]:
    """Yield rows of the output and their neurons `[b, n, d]`: small sides of several steps together, large ones alone.

    Rows are in the order of step, matrix, side.
    """
    count, per_step = len(view), 2 * len(names)
    for matrix, name in enumerate(names):
        out, into = view.info(name).shape
        together = 1 if alone or max(out, into) > STACKED else max(1, STACK_ENTRIES // max(1, out * into))
        for start in range(0, count, together):
            steps = range(start, min(start + together, count))
            for side, vectors in enumerate(_sides(view, name, steps)):
                yield [step * per_step + 2 * matrix + side for step in steps], vectors


def _sides(view: BatchView, name: str, steps: range) -> tuple[Array, Array]:
    if len(steps) == 1:
        one = view[steps[0]]
        bias = one.bias(name)
        return sides(one.matrices()[name][None], None if bias is None else bias[None])
    part, biases = slice(steps.start, steps.stop), view.bias(name)
    return sides(view.matrices()[name][part], None if biases is None else biases[part])


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

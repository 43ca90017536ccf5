"""The vectors that make up a neuron, and what neurons are worth in the function they compute.

On the *input side* of a matrix `[out, in]` a neuron is what it listens to: its row, joined by its bias, u = (w, b). On
the *output side* it is what it writes: a column. The rows of an embedding are its tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ckpt_tools import View

Array = NDArray[Any]
Floats = NDArray[np.float64]

SIDES = ("input", "output")
_FIRST_HALF = re.compile(r"(.*\bmlp\b.*)\.(up|gate)")


def neuron_vectors(view: View, name: str) -> dict[str, Array]:
    """Return one neuron per row by side: "input" `[out, in]`, with a bias `[out, in + 1]`, and "output" `[in, out]`."""
    return dict(zip(SIDES, sides(view.matrices()[name], view.bias(name)), strict=True))


def sides(matrix: Array, bias: Array | None) -> tuple[Array, Array]:
    """Return one neuron per row of each side of matrices `[..., out, in]`, as `neuron_vectors` does."""
    joined = matrix if bias is None else np.concatenate([matrix, bias[..., None]], axis=-1)
    return joined, matrix.swapaxes(-1, -2)


def norms(vectors: Array) -> Floats:
    """Return the Euclidean norms `[..., n]` of rows `[..., n, d]`, safe from overflow and underflow of squares.

    Each `[n, d]` is scaled by itself where it must be, so that no digit depends on what it is stacked with.
    """
    if vectors.size == 0:
        return np.zeros(vectors.shape[:-1])
    with np.errstate(all="ignore"):
        lengths = np.sqrt(np.einsum("...i,...i->...", vectors, vectors), dtype=np.float64)
        longest = lengths.max(axis=-1)
    for at in map(tuple, np.argwhere(~((longest > 1e-12) & (longest < 1e12)))):
        peak = float(np.abs(vectors[at]).max())
        if np.isfinite(peak):
            scaled = vectors[at].astype(np.float64) / (peak or 1.0)
            lengths[at] = (peak or 1.0) * np.sqrt(np.einsum("...i,...i->...", scaled, scaled))
    return np.asarray(lengths)


def outgoing(view: View) -> dict[str, str]:
    """Return which matrix reads the neurons that another one forms, where that is certain.

    Known are the two halves of an MLP (of each expert) by role, and a plain feed-forward network: matrices other than
    embeddings that fit each other in model order, none of them in an attention or state-space block.
    """
    names = view.matrix_names()
    halves = ((name, found[1] + ".down") for name in names if (found := _FIRST_HALF.fullmatch(name)))
    pairs = {name: reader for name, reader in halves if reader in names and _fits(view, name, reader)}
    return pairs or _chain(view, [name for name in names if not name.startswith("embed")])


def _fits(view: View, name: str, reader: str) -> bool:
    return view.info(name).shape[0] == view.info(reader).shape[1]


def _chain(view: View, names: list[str]) -> dict[str, str]:
    fits = all(_fits(view, name, reader) for name, reader in pairwise(names))
    if not fits or any(re.search(r"attn|attention|ssm|mixer|conv|rnn|lstm", name) for name in names):
        return {}
    return dict(pairwise(names))


def group_of(name: str) -> str:
    """Return a matrix's name without its indices: one group holds the same matrix of every layer.

    >>> group_of("layers.3.attn.q")
    'attn.q'
    >>> group_of("h.0.mlp.weight")
    'h.mlp.weight'
    """
    bare = re.sub(r"\.\d+(?=\.|$)", "", name)
    return bare.removeprefix("layers.") or name


def first_steps(steps: Iterable[int], reached: NDArray[np.bool_]) -> list[int | None]:
    """Return, for each column of `reached [step, column]`, the first step at which it holds, else None."""
    at = np.asarray(list(steps))
    return [int(at[column.argmax()]) if column.any() else None for column in reached.T]

"""The products W_Q W_K^T and W_V W_O of every head, as the maps they make of the residual stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tools import Spectrum, product_singular_values

if TYPE_CHECKING:
    from ckpt_tools import AttentionWeights

Array = NDArray[Any]
Factors = tuple[str, Array, Array]

BATCH_BYTES = 4 << 20
"""Products are stacked over layers up to this size: below it, the cost of a call outweighs its work."""


def _factors(attention: Sequence[AttentionWeights]) -> Iterator[Factors]:
    """Yield path and factors of W_Q W_K^T and, where both exist, of W_V W_O of one layer at every step.

    Heads come as `[step, H_kv, H // H_kv, ...]` and `[step, H_kv, 1, ...]`, so that a group's keys and values
    broadcast.
    """
    path = f"layers.{attention[0].layer}.attn"
    q, k, v, o = (_stacked([getattr(one, part) for one in attention]) for part in "qkvo")
    if q is not None and k is not None:
        yield f"{path}.qk", _grouped(q, k.shape[1]).swapaxes(-1, -2), k[:, :, None]
    if v is not None and o is not None:
        yield f"{path}.vo", _grouped(o, v.shape[1]), v[:, :, None]


def _stacked(parts: Sequence[Array | None]) -> Array | None:
    present = [part for part in parts if part is not None]
    return None if len(present) < len(parts) else present[0][None] if len(present) == 1 else np.stack(present)


def _grouped(heads: Array, shared: int) -> Array:
    return heads.reshape(len(heads), shared, heads.shape[1] // shared, *heads.shape[2:])


def _batches(factors: Iterable[Factors]) -> Iterator[list[Factors]]:
    """Yield factors of one shape together as long as they are small."""
    batch: list[Factors] = []
    for path, left, right in factors:
        if batch and (
            (left.shape, right.shape) != (batch[0][1].shape, batch[0][2].shape)
            or len(batch) * (left.nbytes + right.nbytes) >= BATCH_BYTES
        ):
            yield batch
            batch = []
        batch.append((path, left, right))
    if batch:
        yield batch


def head_products(layers: Iterable[Sequence[AttentionWeights]]) -> Iterator[tuple[str, Spectrum]]:
    """Yield path and spectra `[step, head, k]` of every product."""
    for batch in _batches(factors for layer in layers for factors in _factors(layer)):
        paths, *sides = zip(*batch, strict=True)
        left, right = (side[0][None] if len(side) == 1 else np.stack(side) for side in sides)
        found = product_singular_values(left, right)
        lead = (len(batch), sides[0][0].shape[0], -1)
        values, error = (x.reshape(*lead, x.shape[-1]) for x in (found.values, found.error))
        yield from ((path, Spectrum(values[i], error[i], found.route)) for i, path in enumerate(paths))

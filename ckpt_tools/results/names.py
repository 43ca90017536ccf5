"""How labels are written for people. They are a stranger's text (tensor names), so control characters are escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from .record import Labels


def printable(text: str) -> str:
    """Return a text with control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def row_names(dims: Sequence[str], labels: Sequence[Labels]) -> list[str]:
    """Return one name per cell of the dims, texts first: `layers.0.attn.q [head 3]`; numbered dims alone: `layer 2`."""
    return [_row_name(dims, cell) for cell in product(*labels)]


def _row_name(dims: Sequence[str], cell: Iterable[Any]) -> str:
    texts, numbers = [], []
    for dim, label in zip(dims, cell, strict=True):
        if isinstance(label, str):
            texts.append(printable(label))
        else:
            numbers.append(f"{dim} {label:g}")
    if not texts:
        return ", ".join(numbers)
    return ", ".join(texts) + (f" [{', '.join(numbers)}]" if numbers else "")

"""Numbers inside a page: base64 of little-endian arrays in script elements that no browser runs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tags import Html, tag

_KINDS = {"f4": "<f4", "u2": "<u2", "u4": "<u4", "f8": "<f8"}


class Blocks:
    """The arrays of a page; equal ones are stored once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes], str] = {}

    def add(self, values: NDArray[Any] | Sequence[Any], kind: str) -> dict[str, str]:
        """Store an array as `f4`, `f8`, `u2` or `u4`; return its address for the page's script."""
        data = np.ascontiguousarray(values, dtype=_KINDS[kind]).tobytes()
        name = self._known.setdefault((kind, data), f"b{len(self._known)}")
        return {"id": name, "kind": kind}

    def add_index(self, values: NDArray[Any]) -> dict[str, str]:
        """Store numbers of steps in the fewest bytes that hold them."""
        return self.add(values, "u2" if values.size == 0 or values.max() < 2**16 else "u4")

    def html(self) -> Html:
        """Return all of them as elements."""
        return Html(
            "\n".join(
                tag("script", Html(base64.b64encode(data).decode("ascii")), type="text/plain", id=name)
                for (_, data), name in self._known.items()
            )
        )

"""One output of a results file as it is drawn: floats with NaN where there is no value, labels for every dimension."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ResultsError, nearest
from ..results.choose import Chosen
from ..results.names import printable
from ..results.reader import Variable

Floats = NDArray[np.float64]
# The first number in a dotted name is the layer: layers.3.attn.q, transformer.h.3.attn.c_attn.
_LAYER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")


@dataclass(frozen=True, eq=False)
class Data:
    """An output: `values` and `errors` are `[step, *dims]`, `labels[i]` those of `dims[i]`."""

    name: str
    title: str
    unit: str
    steps: NDArray[np.int64]
    dims: tuple[str, ...]
    labels: tuple[list[Any], ...]
    values: Floats
    errors: Floats | None = None

    @property
    def axis_label(self) -> str:
        """What it is and its unit, for an axis."""
        return self.title if self.unit in ("", "1") else f"{self.title} ({self.unit})"

    @property
    def empty(self) -> bool:
        """Whether there is no finite value."""
        return not np.isfinite(self.values).any()

    def of(self, dim: str) -> list[Any]:
        """Return the labels of a dimension."""
        return self.labels[self.dims.index(dim)]

    def take(self, dim: str, positions: Sequence[int]) -> Data:
        """Return some entries along a dimension."""
        axis = self.dims.index(dim)
        labels = list(self.labels)
        labels[axis] = [labels[axis][i] for i in positions]
        at = np.asarray(positions, dtype=np.intp)
        errors = None if self.errors is None else self.errors.take(at, axis=axis + 1)
        return replace(self, labels=tuple(labels), values=self.values.take(at, axis=axis + 1), errors=errors)

    def at(self, dim: str, label: Any) -> Data:
        """Return one entry along a dimension, which is then gone; ResultsError when no label is like that."""
        known = {str(own): i for i, own in enumerate(self.of(dim))}
        if str(label) not in known:
            raise ResultsError(f"{self.name} has no {dim} {label!r}.{nearest(str(label), known)}")
        return self.take(dim, [known[str(label)]]).without(dim)

    def without(self, dim: str) -> Data:
        """Return the same without a dimension that has one entry."""
        axis = self.dims.index(dim)
        errors = None if self.errors is None else self.errors.squeeze(axis + 1)
        labels = tuple(of for d, of in zip(self.dims, self.labels, strict=True) if d != dim)
        dims = tuple(d for d in self.dims if d != dim)
        return replace(self, dims=dims, labels=labels, values=self.values.squeeze(axis + 1), errors=errors)

    def at_steps(self, steps: Sequence[int]) -> Data:
        """Return the values at some of the steps."""
        at = np.searchsorted(self.steps, steps)
        errors = None if self.errors is None else self.errors[at]
        return replace(self, steps=self.steps[at], values=self.values[at], errors=errors)

    def single(self, keep: int = 0) -> Data:
        """Return the same without dimensions of one entry, but for the last `keep`."""
        found = self
        for dim in self.dims[: len(self.dims) - keep]:
            if len(found.of(dim)) == 1:
                found = found.without(dim)
        return found

    def panels(self, inner: Sequence[str]) -> Iterator[tuple[str, Data]]:
        """Yield a title and the data of every cell of the dimensions that are not `inner`, empty ones left out."""
        outer = [d for d in self.dims if d not in inner]
        for at in np.ndindex(*(len(self.of(d)) for d in outer)):
            part, names = self, []
            for dim, i in zip(outer, at, strict=True):
                names.append(called(dim, part.of(dim)[i]))
                part = part.take(dim, [i]).without(dim)
            if not part.empty:
                yield ", ".join(names), part


def load(chosen: Chosen, variable: Variable) -> Data:
    """Return an output as drawn; ResultsError when it holds texts."""
    name = f"{chosen.group.name}.{variable.name}"
    if variable.is_text:
        raise ResultsError(f"{name} holds texts, which cannot be drawn; `ckpt show` prints them.")
    errors = (v for v in chosen.group.variables.values() if v.error_of == variable.name and v.dims == variable.dims)
    of = next(errors, None)
    return Data(
        name,
        variable.long_name or variable.name,
        variable.unit,
        chosen.group.steps,
        variable.dims[1:],
        tuple(chosen.labels(d) for d in variable.dims[1:]),
        _floats(chosen, variable),
        _floats(chosen, of) if of else None,
    )


def _floats(chosen: Chosen, variable: Variable) -> Floats:
    values = np.asarray(chosen.values(variable), dtype=np.float64)
    padding = variable.attrs.get("padding")
    return values if padding is None else np.where(values == padding, np.nan, values)


def called(dim: str, label: Any) -> str:
    """Return how an entry is called: a text by itself, a number with its dimension."""
    return printable(label) if isinstance(label, str) else f"{dim.replace('_', ' ')} {label:g}"


def layer_of(label: Any) -> tuple[str, int] | None:
    """Return the role and the layer of a name with a number in it: `("attn.q", 3)` for `layers.3.attn.q`.

    Further numbers (heads, experts) are no part of the role.
    """
    match = _LAYER.search(label) if isinstance(label, str) else None
    if match is None:
        return None
    role = f"{label[: match.start()]}*{_LAYER.sub('*', label[match.end() :])}"
    return role.removeprefix("layers.*."), int(match[0])


def by_role(labels: Sequence[Any]) -> dict[str, list[int]]:
    """Return positions of labels by role, layers ascending; labels without a layer are a role each."""
    found: dict[str, list[tuple[int, int]]] = {}
    for i, label in enumerate(labels):
        role, layer = layer_of(label) or (str(label), 0)
        found.setdefault(role, []).append((layer, i))
    return {role: [i for _, i in sorted(entries)] for role, entries in found.items()}

"""From canonical weights back to a module's parameters, where file and module lay them out differently.

`transformers` fuses on loading what it stores apart (the experts of a mixture) and renames (`embed_out` to `lm_head`).
Both sides map to roles, so the roles carry the weights over, whatever the library's version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from .layout import Layout, WeightInfo
from .split import Parts

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """How one parameter of a module is made: `pieces` pairs each of its canonical weights with the stored one."""

    shape: tuple[int, ...]
    pieces: tuple[tuple[WeightInfo, WeightInfo], ...]

    def make(self, stored: Mapping[str, Tensor]) -> Tensor:
        """Return the parameter, differentiable in the stored tensors."""
        import torch

        experts: dict[int | None, list[tuple[WeightInfo, Tensor]]] = {}
        for wanted, source in self.pieces:
            experts.setdefault(wanted.expert, []).append((wanted, canonical(source, stored[source.tensor])))
        if None in experts:
            return _joined(experts[None], self.shape)
        return torch.stack([_joined(experts[e], self.shape[1:]) for e in range(self.shape[0])])


def recipe(name: str, shape: tuple[int, ...], wanted: Layout, stored: Layout) -> Recipe | None:
    """Return how parameter `name` follows from a checkpoint's weights, or None when some of them are not there."""
    sources = {**stored.matrices, **stored.vectors}
    weights = [w for w in (*wanted.matrices.values(), *wanted.vectors.values()) if w.tensor == name]
    pieces = [(w, sources[_counted(w.name, stored)]) for w in weights if _counted(w.name, stored) in sources]
    fits = all(w.role and w.shape == source.shape for w, source in pieces)
    return Recipe(shape, tuple(pieces)) if pieces and fits and len(pieces) == len(weights) else None


def _counted(role: str, stored: Layout) -> str:
    return stored.aliases.get(role, role)


def canonical(info: WeightInfo, stored: Tensor) -> Tensor:
    """Return the canonical weight cut from a stored tensor: `WeightInfo.take` for torch."""
    import torch

    array = stored if info.expert is None else stored[info.expert]
    array = (array.permute(info.axes) if info.axes else array).reshape(-1, *info.shape[1:])
    if info.parts is None:
        return array
    return torch.cat([array[start:stop:step] for start, stop, step in info.parts])


@lru_cache(maxsize=64)
def _order(parts: tuple[Parts, ...]) -> Tensor | None:
    """Return where the rows of these parts, one after the other, belong; None when that is where they are."""
    import torch

    rows = torch.cat([torch.arange(*piece) for part in parts for piece in part])
    return None if torch.equal(rows, torch.arange(len(rows))) else rows.argsort()


def _joined(weights: Sequence[tuple[WeightInfo, Tensor]], shape: tuple[int, ...]) -> Tensor:
    """Return the array of `shape` whose canonical weights these are."""
    import torch

    info, array = weights[0]
    if info.parts is not None:
        array = torch.cat([a for _, a in weights])
        order = _order(tuple(w.parts or () for w, _ in weights))
        array = array if order is None else array[order]
    if not info.axes:
        return array.reshape(shape)
    moved = array.reshape([shape[axis] for axis in info.axes])
    return moved.permute([info.axes.index(axis) for axis in range(len(shape))])

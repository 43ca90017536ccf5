"""Which rows of a fused matrix belong to which role."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint.source import TensorInfo
from ..errors import SourceError
from .table import Rule

Parts = tuple[tuple[int, int], ...]


def split_parts(rule: Rule, rows: int, facts: Mapping[str, int], info: TensorInfo) -> list[Parts | None]:
    """Return, for each role of a rule, the row ranges of the output axis it owns; None means all rows."""
    count = len(rule.roles)
    if count == 1 and rule.split == "equal":
        return [None]
    if rule.split == "equal":
        return [_one(k * rows // count, (k + 1) * rows // count) for k in range(count) if _even(rows, count, info)]
    if rule.split == "heads":
        heads = _fact("n_heads", facts, info)
        return _interleaved(rows, heads, [1] * count, info)
    if rule.split == "groups":
        groups = _fact("n_kv_heads", facts, info)
        return _interleaved(rows, groups, [_fact("n_heads", facts, info) // groups, 1, 1], info)
    return _sizes(rule.split, rows, facts, info)


def _one(start: int, stop: int) -> Parts:
    return ((start, stop),)


def _even(rows: int, parts: int, info: TensorInfo) -> bool:
    if rows % parts:
        raise SourceError(
            f"{info.file}: tensor {info.name!r} of shape {list(info.shape)} should split into {parts} equal parts, "
            f"but {rows} rows do not divide by {parts}."
        )
    return True


def _interleaved(rows: int, blocks: int, weights: list[int], info: TensorInfo) -> list[Parts | None]:
    """Cut each of `blocks` equal blocks in proportion to `weights`, and gather the k-th cut of every block."""
    _even(rows, blocks * sum(weights), info)
    unit = rows // (blocks * sum(weights))
    starts = [sum(weights[:k]) * unit for k in range(len(weights))]
    block = sum(weights) * unit
    return [
        tuple((b * block + start, b * block + start + weight * unit) for b in range(blocks))
        for start, weight in zip(starts, weights, strict=True)
    ]


def _sizes(split: str | tuple[str, ...], rows: int, facts: Mapping[str, int], info: TensorInfo) -> list[Parts | None]:
    if isinstance(split, str):
        raise SourceError(f"Role table: tensor {info.name!r} has split {split!r}; known: equal, heads, groups, sizes.")
    sizes = [_product(text, facts, info) for text in split]
    if sum(sizes) != rows:
        raise SourceError(
            f"{info.file}: tensor {info.name!r} has {rows} rows, but its parts {', '.join(split)} make {sum(sizes)}."
        )
    return [_one(sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(len(sizes))]


def _product(text: str, facts: Mapping[str, int], info: TensorInfo) -> int:
    value = 1
    for word in text.split("*"):
        value *= int(word) if word.isdigit() else _fact(word, facts, info)
    return value


def _fact(word: str, facts: Mapping[str, int], info: TensorInfo) -> int:
    if not facts.get(word):
        raise SourceError(
            f"{info.file}: splitting tensor {info.name!r} needs {word!r}, which the configuration does not give. "
            "Put the checkpoint's config.json beside it."
        )
    return facts[word]

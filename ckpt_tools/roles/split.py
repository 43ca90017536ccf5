"""Which rows of a fused matrix belong to which role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .table import Rule

Rows = tuple[int, int, int]
Parts = tuple[Rows, ...]


class Unsplittable(Exception):
    """A fused tensor that cannot be taken apart, and why; the layout then keeps it whole."""


def split_parts(rule: Rule, rows: int, facts: Mapping[str, int]) -> list[Parts | None]:
    """Return, for each role of a rule, the ranges (start, stop, step) of output rows it owns; None means all rows.

    Raises Unsplittable when the facts are unknown or do not fit the number of rows.
    """
    count = len(rule.roles)
    if isinstance(rule.split, tuple):
        return _consecutive(_sizes(rule.split, rows, facts))
    if ":" in rule.split:
        return _blocks(rows, 1, [_product(word, facts) for word in rule.split.split(":")])
    if count == 1:
        return [None]
    if rule.split == "interleaved":
        _divides(rows, count)
        return [((k, rows, count),) for k in range(count)]
    if rule.split == "heads":
        return _blocks(rows, _product("n_heads", facts), [1] * count)
    if rule.split == "groups":
        groups, heads = _product("n_kv_heads", facts), _product("n_heads", facts)
        if heads % groups:
            raise Unsplittable(f"{heads} heads do not form {groups} groups")
        return _blocks(rows, groups, [heads // groups, 1, 1])
    return _blocks(rows, 1, [1] * count)


def _divides(rows: int, parts: int) -> None:
    if rows % parts:
        raise Unsplittable(f"{rows} rows do not divide by {parts}")


def _blocks(rows: int, blocks: int, shares: Sequence[int]) -> list[Parts | None]:
    """Cut each of `blocks` equal blocks in proportion to `shares`, and gather the k-th cut of every block."""
    _divides(rows, blocks * sum(shares))
    unit = rows // (blocks * sum(shares))
    size = unit * sum(shares)
    starts = [unit * sum(shares[:k]) for k in range(len(shares))]
    return [
        tuple((b * size + start, b * size + start + unit * share, 1) for b in range(blocks))
        for start, share in zip(starts, shares, strict=True)
    ]


def _sizes(words: Sequence[str], rows: int, facts: Mapping[str, int]) -> list[int]:
    known = {word: _product(word, facts) for word in words if word != "*"}
    rest, shares = rows - sum(known[w] for w in words if w != "*"), words.count("*")
    if rest < bool(shares) or (rest and not shares) or (shares and rest % shares):
        raise Unsplittable(f"{rows} rows are not {' + '.join(str(known.get(w, w)) for w in words)}")
    return [known[w] if w != "*" else rest // shares for w in words]


def _consecutive(sizes: Sequence[int]) -> list[Parts | None]:
    return [((sum(sizes[:k]), sum(sizes[: k + 1]), 1),) for k in range(len(sizes))]


def _product(text: str, facts: Mapping[str, int]) -> int:
    value = 1
    for word in (w.strip() for w in text.split("*")):
        if not word.isdigit() and not facts.get(word):
            raise Unsplittable(f"needs {word}, which the configuration does not give; put config.json beside it")
        value *= int(word) if word.isdigit() else facts[word]
    return value

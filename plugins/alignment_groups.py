"""Which representations are compared: from a file of facts, from the batch, or neighbouring positions.

A file of facts is JSONL: one object per line with `head`, `relation1`, `bridge`, `relation2`, `tail`, each a text or a
list of token ids. The prompts made of it are `head relation1` (group a, whose answer is the bridge), `bridge` (group b)
and `head relation1 relation2` (whose answer is the tail); `prompts`, an object with any of `a`, `b`, `both`, gives them
in other words.

A batch may hold `group_a` and `group_b`: int64 `[n]`, examples whose last position is meant, or `[n, 2]`, example and
position. With them `bridge` and `answer`, token ids `[n]`, and `lens_at`, positions as before, by default `group_a`.

Or a selection names them: examples whose entry of one tensor has one value (`split=0`) at their last position, each
paired with the first example of the other group whose entry of a second tensor (`bridge`) is the same. The logit lens
then looks at group a, for the tokens `bridge` and `targets` of its examples where the batch has them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tools import OptionError, SourceError, nearest, to_numpy

if TYPE_CHECKING:
    from torch import Tensor

Ids = NDArray[np.int64]
Encode = Callable[[str], list[int]]

PARTS = ("head", "relation1", "bridge", "relation2", "tail")
PROMPTS: Mapping[str, tuple[str, ...]] = {
    "a": ("head", "relation1"),
    "b": ("bridge",),
    "both": ("head", "relation1", "relation2"),
}
MAX_FACTS = 64 * 2**20


@dataclass(frozen=True)
class Places:
    """Positions in rows of tokens: `at[i]` is (row, position); rows may differ in length."""

    rows: list[list[int]]
    at: Ids


@dataclass(frozen=True)
class Groups:
    """The two groups, and optionally where the logit lens looks and for which tokens `[n]`."""

    a: Places
    b: Places
    lens: Places | None = None
    bridge: Ids | None = None
    answer: Ids | None = None

    def check(self, where: str, vocabulary: int | None) -> None:
        """Raise SourceError for token ids that a vocabulary of that size does not have."""
        rows = [row for places in (self.a, self.b, self.lens) if places for row in places.rows]
        named = [ids.tolist() for ids in (self.bridge, self.answer) if ids is not None]
        top = max((i for row in [*rows, *named] for i in row), default=0)
        if vocabulary is not None and top >= vocabulary:
            raise SourceError(
                f"{where}: token id {top} lies outside the model's vocabulary of {vocabulary}. "
                "These facts, or alignment.tokenizer, belong to another model."
            )


@dataclass(frozen=True)
class Selection:
    """Groups by the values of per-example tensors: `a` and `b` are (name, value), `pair` the tensor that pairs them."""

    a: tuple[str, int]
    b: tuple[str, int]
    pair: str

    @classmethod
    def parse(cls, a: str, b: str, pair: str) -> Selection:
        """Return the selection of texts such as `split=0`, `split=3` and `bridge`."""
        found: list[tuple[str, int]] = []
        for text in (a, b):
            name, _, value = text.partition("=")
            if not (name and value.strip().lstrip("-").isdigit() and pair):
                raise OptionError(
                    "alignment selects groups by a, b and pair together, such as a='split=0', b='split=3' and "
                    f"pair='bridge'. Got a={a!r}, b={b!r}, pair={pair!r} instead."
                )
            found.append((name.strip(), int(value)))
        return cls(found[0], found[1], pair.strip())

    def groups(self, batch: Mapping[str, Tensor]) -> Groups:
        """Return the groups in a batch; raises OptionError for tensors it lacks and for groups without pairs."""
        count = len(batch["tokens"])
        known = {name: to_numpy(t) for name, t in batch.items() if t.ndim == 1 and len(t) == count}
        for name in (self.a[0], self.b[0], self.pair):
            if name not in known:
                raise OptionError(f"The batch has no {name!r} with one number per example.{nearest(name, known)}")
        first = {}
        for i in np.flatnonzero(known[self.b[0]] == self.b[1])[::-1]:
            first[known[self.pair][i]] = i
        a = [i for i in np.flatnonzero(known[self.a[0]] == self.a[1]) if known[self.pair][i] in first]
        if not a:
            raise OptionError(f"No example with {self.a[0]}={self.a[1]} has a pair with {self.b[0]}={self.b[1]}.")
        rows, last = batch["tokens"].tolist(), batch["tokens"].shape[1] - 1
        one = Places(rows, np.array([(i, last) for i in a]))
        other = Places(rows, np.array([(first[known[self.pair][i]], last) for i in a]))
        ids = {
            name: known[name][a] for name in ("bridge", "targets") if name in known and known[name].dtype.kind == "i"
        }
        return Groups(one, other, one, ids.get("bridge"), ids.get("targets"))


def groups_of_facts(path: Path, encode: Encode | None) -> Groups:
    """Return the groups of a file of facts; raises SourceError that names the line which is none."""
    facts = [_fact(path, number, line) for number, line in _lines(path)]
    if not facts:
        raise SourceError(f"{path} holds no facts.")
    prompts = {name: [_prompt(path, fact, name, encode) for fact in facts] for name in PROMPTS}
    a, b, both = (_ends(rows) for rows in prompts.values())
    bridge = [_next(path, fact, "bridge", "a", encode) for fact in facts]
    answer = [_next(path, fact, "tail", "both", encode) for fact in facts]
    return Groups(a, b, both, np.array(bridge), np.array(answer))


def groups_of_batch(batch: Mapping[str, Tensor], most: int) -> Groups:
    """Return the groups a batch names, else each position and the one after it, evenly thinned to `most` pairs."""
    rows = batch["tokens"].tolist()
    if ("group_a" in batch) != ("group_b" in batch):
        raise SourceError("The batch has only one of group_a and group_b; alignment compares two groups.")
    if "group_a" in batch:
        a, b = (_places(rows, batch[name], name) for name in ("group_a", "group_b"))
        if len(a.at) != len(b.at):
            raise SourceError(f"group_a has {len(a.at)} entries and group_b {len(b.at)}: they are compared in pairs.")
        lens = _places(rows, batch["lens_at"], "lens_at") if "lens_at" in batch else a
        ids = {name: to_numpy(batch[name]) for name in ("bridge", "answer") if name in batch}
        return Groups(a, b, lens, ids.get("bridge"), ids.get("answer"))
    last = len(rows[0]) - 1
    pairs = np.array([(row, t) for row in range(len(rows)) for t in range(max(1, last))])
    pairs = pairs[np.unique(np.linspace(0, len(pairs) - 1, min(most, len(pairs))).round().astype(int))]
    return Groups(Places(rows, pairs), Places(rows, pairs + np.array([0, min(1, last)])))


def _places(rows: list[list[int]], found: Tensor, name: str) -> Places:
    at = to_numpy(found)
    if at.ndim == 1:
        at = np.stack([at, np.full(len(at), len(rows[0]) - 1)], axis=1)
    if at.ndim != 2 or at.shape[1] != 2 or (at < 0).any() or (at >= [len(rows), len(rows[0])]).any():
        raise SourceError(f"{name} must be examples [n] or (example, position) [n, 2] of the batch's tokens.")
    return Places(rows, at)


def _ends(rows: list[list[int]]) -> Places:
    return Places(rows, np.array([(i, len(row) - 1) for i, row in enumerate(rows)]))


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        if path.stat().st_size > MAX_FACTS:
            raise SourceError(f"{path} has {path.stat().st_size} bytes; a file of facts has at most {MAX_FACTS}.")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"The facts {path} cannot be read: {error}. Give a JSONL file with alignment.facts."
        ) from None
    return [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _fact(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        fact = json.loads(line)
    except (ValueError, RecursionError):
        fact = None
    if not isinstance(fact, dict) or any(part not in fact for part in PARTS):
        raise SourceError(f"{path}, line {number}: expected an object with {', '.join(PARTS)}. Got {line[:60]!r}.")
    prompts = fact.get("prompts", {})
    if not isinstance(prompts, dict) or set(prompts) - set(PROMPTS):
        raise SourceError(f"{path}, line {number}: prompts may have {', '.join(PROMPTS)}. Got {prompts!r}.")
    values = [*(fact[part] for part in PARTS), *prompts.values()]
    if not (all(isinstance(v, str) and v for v in values) or all(_is_ids(v) for v in values)):
        raise SourceError(f"{path}, line {number}: give all parts as text, or all as lists of token ids.")
    return fact


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(i) is int and i >= 0 for i in value)


def _said(fact: Mapping[str, Any], name: str) -> Any:
    """Return a prompt as text or ids."""
    if name in fact.get("prompts", {}):
        return fact["prompts"][name]
    parts = [fact[part] for part in PROMPTS[name]]
    return " ".join(parts) if isinstance(parts[0], str) else [i for part in parts for i in part]


def _prompt(path: Path, fact: Mapping[str, Any], name: str, encode: Encode | None) -> list[int]:
    said = _said(fact, name)
    return _encoded(path, said, encode) if isinstance(said, str) else list(said)


def _next(path: Path, fact: Mapping[str, Any], part: str, name: str, encode: Encode | None) -> int:
    """Return the first token of a part said after a prompt: vocabularies differ in what they put before a word."""
    if not isinstance(fact[part], str):
        return int(fact[part][0])
    before = _encoded(path, _said(fact, name), encode)
    after = _encoded(path, f"{_said(fact, name)} {fact[part]}", encode)
    return after[_common(before, after)]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many leading ids two lists share, less than the other's length."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return min(same, len(other) - 1)


def _encoded(path: Path, text: str, encode: Encode | None) -> list[int]:
    if encode is None:
        raise OptionError(
            f"{path} holds text: say how it becomes token ids with --set alignment.tokenizer=FILE, "
            "or write lists of token ids."
        )
    return encode(text)

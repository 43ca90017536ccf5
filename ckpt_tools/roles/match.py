"""Which rule of a table holds for which tensor of one checkpoint, and the role names that follow."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..checkpoint.source import TensorInfo
from .table import RoleTable, Rule
from .template import Template, condition, shape_pattern, template

Tensors = Mapping[str, TensorInfo]
_DIGITS = re.compile("[0-9]+")


def _numberless(text: str) -> str:
    return _DIGITS.sub("#", text)


@dataclass(frozen=True, slots=True)
class Match:
    """A tensor, the rule that holds for it, the rule's position in the table, and what the placeholders stand for."""

    info: TensorInfo
    rule: Rule
    position: int
    indices: dict[str, str]


class Matcher:
    """The rules of one table applied to the tensors of one checkpoint."""

    def __init__(self, table: RoleTable, tensors: Tensors) -> None:
        self._table, self._tensors = table, tensors
        self._outer = table.outer(tensors) or ""
        self._rules = [(_numberless(template(rule.tensor).tail), template(rule.tensor), rule) for rule in table.rules]
        self._candidates: dict[str, list[tuple[int, Template, Rule]]] = {}

    def bare(self, name: str) -> str:
        """Return a tensor name as the table's templates have it."""
        return self._table.bare(name.removeprefix(self._outer))

    def stored(self, bare: str) -> str | None:
        """Return the stored tensor of a bare name, or None."""
        names = (self._outer + prefix + bare for prefix in self._table.prefixes)
        return next((n for n in names if n in self._tensors), None)

    def find(self, info: TensorInfo, name: str = "") -> Match | None:
        """Return the first rule that holds for a tensor, as if it were stored under `name` if one is given."""
        name = name or info.name
        bare = self.bare(name)
        stem = name[: len(name) - len(bare)]
        for position, wanted, rule in self._similar(bare):
            indices = wanted.match(bare)
            if indices is not None and self._holds(rule, info, stem, indices):
                if rule.number is not None:
                    indices["n"] = str(rule.number)
                return Match(info, rule, position, indices)
        return None

    def _similar(self, bare: str) -> list[tuple[int, Template, Rule]]:
        """Return the rules that may hold for this name and for those that differ from it by numbers only."""
        key = _numberless(bare)
        if key not in self._candidates:
            numbered = enumerate(self._rules)
            self._candidates[key] = [(k, wanted, rule) for k, (tail, wanted, rule) in numbered if key.endswith(tail)]
        return self._candidates[key]

    def _holds(self, rule: Rule, info: TensorInfo, stem: str, indices: Mapping[str, str]) -> bool:
        if rule.experts and len(info.shape) < 2:
            return False
        letters = shape_pattern(rule.shape).solve(info.shape) if rule.shape else {}
        if letters is None or not rule.beside:
            return letters is not None
        wanted, pattern = condition(rule.beside)
        other = self._tensors.get(stem + wanted.fill(indices))
        if other is None or pattern is None:
            return other is not None
        return pattern.solve(other.shape, letters) is not None

    def sizes(self) -> dict[str, int]:
        """Return the words that the shapes of tensors give, each from the first tensor that fits."""
        found: dict[str, int] = {}
        for word, text in self._table.shapes.items():
            wanted, pattern = condition(text)
            for info in self._tensors.values() if pattern else ():
                letters = pattern.solve(info.shape) if pattern and wanted.match(self.bare(info.name)) else None
                if letters and "n" in letters:
                    found[word] = letters["n"]
                    break
        return found


class Naming:
    """Turns role templates into role names once all matches of a checkpoint are known.

    Where rules with `{path}` fit several modules (`actor.0`, `critic.0`; `encoder.layers.0`, `decoder.layers.0`), roles
    carry the module's path; where they fit one, they do not. `{n}` becomes the rank of its number among the matrices.
    """

    def __init__(self, matches: Iterable[Match]) -> None:
        matches = list(matches)
        layered = [m for m in matches if "path" in m.indices and m.rule.roles[:1] and "layers." in m.rule.roles[0]]
        self._paths = _distinct([m.indices["path"] for m in layered])
        self._ranks: dict[str, list[int]] = {}
        for m in matches:
            if "n" in m.indices and len(m.info.shape) == 2:
                self._ranks.setdefault(self._path(m), []).append(int(m.indices["n"]))
        self._ranks = {path: sorted(set(numbers)) for path, numbers in self._ranks.items()}

    def _path(self, match: Match) -> str:
        """Return the path that a match belongs to; one without a path belongs to the only one, if so."""
        return match.indices.get("path", next(iter(self._paths), "") if len(self._paths) == 1 else "")

    def indices(self, match: Match) -> dict[str, str] | None:
        """Return the placeholders of the match's roles, or None when no role name makes sense for it."""
        found = dict(match.indices)
        if "path" in found and self._paths and found["path"] not in self._paths:
            return None
        if "n" in found:
            rank = bisect_right(self._ranks.get(self._path(match), []), int(found["n"])) - 1
            if rank < 0:
                return None
            found["n"] = str(rank)
        return found

    def prefix(self, match: Match) -> str:
        """Return what precedes the role names of a match."""
        return self._paths.get(match.indices.get("path", ""), "")

    def order(self, match: Match) -> int:
        """Return where the match's module stands among several."""
        return list(self._paths).index(match.indices["path"]) if match.indices.get("path") in self._paths else 0


def _distinct(paths: list[str]) -> dict[str, str]:
    """Return each path with what tells it from the others: nothing for a single one."""
    unique = list(dict.fromkeys(paths))
    if len(unique) < 2:
        return dict.fromkeys(unique, "")
    parts = [p.split(".")[:-1] for p in unique]
    for end in (0, -1):
        while all(p and p[end] == parts[0][end] for p in parts):
            parts = [p[1:] if end == 0 else p[:-1] for p in parts]
    return {path: "".join(f"{name}." for name in p) for path, p in zip(unique, parts, strict=True)}

"""The two small languages of role tables: tensor-name templates and shape patterns.

A **template** is a tensor name with placeholders:

| placeholder | stands for |
|---|---|
| `{i}`, `{e}` | a number: the layer, the expert |
| `{n}` | a number that only orders layers: `net.0`, `net.2`, `net.5` are layers 0, 1, 2 |
| `{path}` | any dotted path of non-numeric names, or nothing: `encoder.rnn.` |
| `{word}` | one non-numeric name, any |
| `{a\\|b\\|c}` | one of the texts `a`, `b`, `c`, everywhere the same |

A **shape pattern** such as `[3d, d]` holds for every shape that some whole numbers d, ... make true; `_` stands for any
length. A **condition** is a template followed by a pattern: `{path}weight_hh_l{i} [4h, h]` says that this other tensor
is there and has that shape; without a pattern, that it is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_LENGTH = re.compile(r"(\d*)([a-z]|_)?")
_NAME = r"[^\W\d]\w*"
_PATH = rf"(?:{_NAME}\.)*?"


@dataclass(frozen=True)
class Template:
    """A compiled template; `match` answers in a few comparisons for names that end differently."""

    text: str

    def __post_init__(self) -> None:
        for key in self.keys:
            if "|" not in key and key not in ("path", "word") and not re.fullmatch("[a-z]", key):
                known = "{i}, {e}, {n}, {path}, {word} or {a|b}"
                raise ValueError(f"{self.text!r}: {{{key}}} is no placeholder; use {known}")

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Placeholders in order, without braces."""
        return tuple(_PLACEHOLDER.findall(self.text))

    @cached_property
    def tail(self) -> str:
        """The fixed text after the last placeholder."""
        return _PLACEHOLDER.split(self.text)[-1]

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        parts = _PLACEHOLDER.split(self.text)
        groups = [_group(key, self.keys.index(key), self.keys[:k]) for k, key in enumerate(self.keys)]
        return re.compile("".join(re.escape(p) + g for p, g in zip(parts[::2], [*groups, ""], strict=True)))

    def match(self, name: str) -> dict[str, str] | None:
        """Return what the placeholders stand for in `name`, or None when it does not fit."""
        if not name.endswith(self.tail):
            return None
        found = self._regex.fullmatch(name)
        return {self.keys[int(k[1:])]: text for k, text in found.groupdict().items()} if found else None

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text with each placeholder replaced by what it stands for."""
        return _PLACEHOLDER.sub(lambda found: values[found[1]], self.text)


def _group(key: str, number: int, before: tuple[str, ...]) -> str:
    """Return the regular expression of a placeholder: groups are named by number, since keys may hold any text."""
    if key == "word":
        return _NAME
    if key in before:
        return f"(?P=g{number})"
    if "|" in key:
        return f"(?P<g{number}>{'|'.join(re.escape(choice) for choice in key.split('|'))})"
    return f"(?P<g{number}>{_PATH if key == 'path' else '[0-9]+'})"


@lru_cache(maxsize=8192)
def template(text: str) -> Template:
    """Return the compiled template of a text; raises ValueError for unknown placeholders."""
    return Template(text)


@dataclass(frozen=True)
class ShapePattern:
    """A pattern as pairs (factor, letter); the letter is "" for a fixed length and "_" for any."""

    lengths: tuple[tuple[int, str], ...]

    def solve(self, shape: tuple[int, ...], known: Mapping[str, int] | None = None) -> dict[str, int] | None:
        """Return the length behind each letter, or None when the shape does not fit together with `known` ones."""
        if len(shape) != len(self.lengths):
            return None
        found = dict(known or {})
        for length, (factor, letter) in zip(shape, self.lengths, strict=True):
            if letter == "_":
                continue
            if length % factor or found.setdefault(letter, length // factor) != length // factor:
                return None
        return found if found.pop("", 1) == 1 else None


@lru_cache(maxsize=1024)
def shape_pattern(text: str) -> ShapePattern:
    """Return the pattern of a text such as `[3d, d]`; raises ValueError when it is none."""
    body = text.strip()
    lengths = [_LENGTH.fullmatch(part.strip()) for part in body[1:-1].split(",")]
    if not (body.startswith("[") and body.endswith("]")) or not all(m and m[0] for m in lengths):
        raise ValueError(f"{text!r} is no shape pattern such as [3d, d]")
    return ShapePattern(tuple((int(m[1] or 1), m[2] or "") for m in lengths if m))


@lru_cache(maxsize=1024)
def condition(text: str) -> tuple[Template, ShapePattern | None]:
    """Return template and pattern of a condition; raises ValueError when either is malformed."""
    name, bracket, rest = text.partition("[")
    return template(name.strip()), shape_pattern(bracket + rest) if bracket else None

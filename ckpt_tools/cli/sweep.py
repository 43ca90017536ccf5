"""Sweeps: one run for each combination of values, side by side in one folder.

`--sweep gamma=0.3,0.5,0.8 --sweep seed=0:3` is nine runs, `gamma=0.3_seed=0` to `gamma=0.8_seed=2`. `a:b` stands for
the whole numbers from a up to but not with b, `a:b:c` for every c-th of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import product

from ..errors import OptionError, nearest

_RANGE = re.compile(r"(-?\d+):(-?\d+)(?::(\d+))?")


def parse_sweeps(texts: Iterable[str], fixed: Mapping[str, str], known: Collection[str]) -> dict[str, list[str]]:
    """Return the values of each swept setting; raises OptionError for unknown, fixed or repeated ones."""
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, listed = (part.strip() for part in text.partition("="))
        if not (equals and name):
            raise OptionError(f"--sweep {text!r}: expected NAME=VALUE,VALUE or NAME=FIRST:END, as in seed=0:3.")
        if name not in known:
            raise OptionError(f"--sweep {text!r}: there is no setting {name!r}.{nearest(name, known)}")
        if name in found or name in fixed:
            raise OptionError(f"Setting {name!r} is given twice, once by --sweep. Leave one of them out.")
        values = [value for part in listed.split(",") for value in _values(part.strip())]
        if not values or "" in values or len(set(values)) < len(values):
            raise OptionError(f"--sweep {text!r}: expected different values, as in seed=0:3 or gamma=0.3,0.5.")
        found[name] = values
    return found


def _values(text: str) -> list[str]:
    match = _RANGE.fullmatch(text)
    if match is None:
        return [text]
    first, end, stride = int(match[1]), int(match[2]), int(match[3] or 1)
    return [str(k) for k in range(first, end, max(stride, 1))]


def combinations(sweeps: Mapping[str, list[str]]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name of each run and its settings, the last setting changing fastest."""
    for values in product(*sweeps.values()):
        chosen = dict(zip(sweeps, values, strict=True))
        name = "_".join(f"{key}={value}" for key, value in chosen.items())
        yield re.sub(r"[^\w.=+-]", "-", name), chosen

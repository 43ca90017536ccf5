"""How facts become HDF5 attributes that h5py, netCDF, MATLAB and Julia all read, and how they come back.

Texts are variable-length UTF-8, integers int64, floats float64. Anything else (lists, dicts, booleans) is JSON text,
and the attribute `json_attributes` names those, because netCDF has no nested and no boolean attributes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from ..errors import ResultsError

JSON_NAMES = "json_attributes"
_INT64 = 2**63


@dataclass(frozen=True)
class Written:
    """A fact that is JSON text already."""

    text: str


def plain(value: Any) -> Any:
    """Return a JSON-able copy: arrays as lists, paths as text, NaN and infinities as None; TypeError for the rest."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Set):
        return sorted(map(plain, value))
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")


def storable(text: str) -> str:
    """Return a text HDF5 can hold: NUL and lone surrogates (both legal in tensor names) become backslash escapes."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def put(target: Any, facts: Mapping[str, Any]) -> None:
    """Write facts as attributes of an HDF5 object; None is left out. Names must be identifiers."""
    coded = []
    for name, value in facts.items():
        if not name.isidentifier():
            raise ValueError(f"attribute name {name!r} is not an identifier")
        if value is None:
            continue
        target.attrs[name] = stored = _stored(value)
        if isinstance(stored, str) and not isinstance(value, str):
            coded.append(name)
    if coded:
        target.attrs[JSON_NAMES] = json.dumps(coded)


def _stored(value: Any) -> str | np.int64 | np.float64:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Written):
        return storable(value.text)
    if isinstance(value, float):
        return np.float64(value)
    if isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64:
        return np.int64(value)
    return storable(json.dumps(plain(value), ensure_ascii=False))


_HDF5_OWN = frozenset({"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_FillValue", JSON_NAMES})


def get(source: Any, where: str) -> dict[str, Any]:
    """Return the attributes of an HDF5 object as `put` took them; ResultsError when a JSON one is malformed."""
    facts = {name: _loaded(source.attrs[name]) for name in source.attrs if name not in _HDF5_OWN}
    try:
        for name in json.loads(source.attrs.get(JSON_NAMES, "[]")):
            facts[name] = json.loads(facts[name])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ResultsError(f"{where}: an attribute is not valid JSON ({error}); write the file again.") from error
    return facts


def _loaded(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value

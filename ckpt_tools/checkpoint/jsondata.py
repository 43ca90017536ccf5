"""JSON from a stranger's file: strict, bounded, data only.

The standard parser is lenient where an attacker needs it: it keeps the last of two equal keys, accepts UTF-16 and lone
surrogates, and raises RecursionError on deep nesting.
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

from ..errors import FormatError
from .location import Location, open_file
from .magic import describe

MAX_JSON = 64 * 2**20


def parse_value(data: bytes) -> Any:
    """Return the JSON in `data` (UTF-8). Raises FormatError that says what is wrong, without the file's name."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_distinct)
    except RecursionError:
        raise FormatError("the JSON is nested too deeply") from None
    except ValueError as error:
        raise FormatError(f"not valid JSON: {error}") from None


def parse_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data` (UTF-8); errors as of `parse_value`."""
    value = parse_value(data)
    if not isinstance(value, dict):
        raise FormatError(f"the JSON holds {type(value).__name__}, expected an object")
    return value


def read_object(path: Location, limit: int = MAX_JSON) -> dict[str, Any]:
    """Return the JSON object stored in a file of at most `limit` bytes; errors name the file."""
    data = read_small(path, limit)
    try:
        return parse_object(data)
    except FormatError as error:
        kind = describe(data[:512])
        raise FormatError(f"{path} is {kind if kind != 'JSON text' else error}.") from None


def read_small(path: Location, limit: int = MAX_JSON) -> bytes:
    """Return a file's bytes; raises FormatError when there are more than `limit`, SourceError when unreadable."""
    with closing(open_file(path)) as file:
        if file.size > limit:
            raise FormatError(f"{path} has {file.size:,} bytes; at most {limit:,} are read of such a file.")
        return file.read(0, file.size)


def short(value: Any) -> str:
    """Return a stranger's value as text of at most 80 characters, control characters escaped."""
    try:
        text = repr(value)
    except RecursionError:
        return "something deeply nested"
    return text if len(text) <= 80 else text[:76] + " ..."


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        again = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {short(again)} occurs twice")
    return found

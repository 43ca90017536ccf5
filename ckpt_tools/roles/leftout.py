"""What frameworks store beside trained weights."""

from __future__ import annotations

from ..checkpoint.source import TensorInfo

_BUFFERS = {
    "running_mean", "running_var", "num_batches_tracked", "inv_freq", "original_inv_freq", "masked_bias", "IGNORE",
    "rotary_sin", "rotary_cos", "position_ids", "token_type_ids", "freqs_cis", "freqs_cos", "freqs_sin",
}  # fmt: skip


def is_buffer(name: str) -> bool:
    """Return whether a tensor of this name is a buffer: a mask, a frequency table, running statistics, a counter."""
    last = name.rpartition(".")[2]
    return last in _BUFFERS or last.endswith("mask") or "rotary_emb." in name


def left_out(info: TensorInfo) -> str:
    """Return why a tensor is not a weight, or ""."""
    if is_buffer(info.name):
        return "buffer, not a trained weight"
    if not info.dtype.startswith(("float", "bfloat")):
        return f"{info.dtype} values, not a float weight"
    if info.size == 0:
        return "empty tensor"
    return "scalar" if not info.shape else ""

"""Small trajectories on disk that a conforming analyzer must handle: ordinary ones and degenerate ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PluginError
from ..registry import Registry
from ..run import RunWriter

Array = np.ndarray[Any, np.dtype[Any]]
Tensors = dict[str, Array]
Change = Callable[[str, Array], Array]

STEPS = (0, 1, 2, 5)
FORWARD_FAMILY = "transformer"
_TOKENS, _EXAMPLES, _LENGTH = 7, 4, 6


def plain_tensors(step: int) -> Tensors:
    """Return three matrices with biases under names no family knows: nothing couples one to another."""
    rng = np.random.default_rng(100 + step)
    shapes = {"first": (12, 8), "second": (8, 12), "third": (8, 8)}
    tensors: Tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = rng.standard_normal(shape).astype("f4")
        tensors[f"{name}.bias"] = rng.standard_normal(shape[0]).astype("f4")
    return tensors


def attention_tensors(step: int) -> Tensors:
    """Return one LLaMA layer with two heads that share one key-value head, embedding and head tied."""
    rng = np.random.default_rng(200 + step)
    d, shared = 8, 4
    rows = {"self_attn.q_proj": d, "self_attn.k_proj": shared, "self_attn.v_proj": shared, "self_attn.o_proj": d}
    tensors = {f"model.layers.0.{n}.weight": rng.standard_normal((r, d)).astype("f4") for n, r in rows.items()}
    for name in ("gate_proj", "up_proj"):
        tensors[f"model.layers.0.mlp.{name}.weight"] = rng.standard_normal((12, d)).astype("f4")
    tensors["model.layers.0.mlp.down_proj.weight"] = rng.standard_normal((d, 12)).astype("f4")
    tensors["model.embed_tokens.weight"] = rng.standard_normal((11, d)).astype("f4")
    tensors["model.norm.weight"] = np.ones(d, "f4")
    return tensors


ATTENTION_CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "hidden_size": 8,
}


def write_folders(
    folder: Path, make: Callable[[int], Tensors], config: Mapping[str, Any], *, dtype: str = "", steps: tuple[int, ...]
) -> Path:
    """Write `checkpoint-N` folders with `config.json` and return their parent; `dtype` "bfloat16" rounds the floats."""
    for step in steps:
        target = folder / f"checkpoint-{step}"
        target.mkdir(parents=True)
        (target / "config.json").write_text(json.dumps(dict(config)))
        _save(make(step), target / "model.safetensors", dtype)
    return folder


def _save(tensors: Tensors, path: Path, dtype: str) -> None:
    if dtype != "bfloat16":
        from safetensors.numpy import save_file

        save_file(tensors, path)
        return
    # Plain numpy has no bfloat16: the upper half of a float32 is its truncation, which is all a specimen needs.
    header: dict[str, Any] = {}
    body = b""
    for name, array in tensors.items():
        data = (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": array.shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def one_row(name: str, array: Array) -> Array:
    """Keep the first row of matrices and the first entry of vectors."""
    return array[:1]


def zeroed(name: str, array: Array) -> Array:
    """Return zeros of the same shape."""
    return np.zeros_like(array)


def poisoned(name: str, array: Array) -> Array:
    """Return the array with one NaN in it."""
    changed = array.copy()
    changed.flat[0] = np.nan
    return changed


def write_run(folder: Path, registry: Registry, change: Change | None = None) -> Path:
    """Write a run of a small model that can be rebuilt and run, for analyzers that need forward passes or a loss."""
    try:
        family = registry.family(FORWARD_FAMILY)
    except PluginError as error:
        raise PluginError(f"Checking an analyzer that runs models needs family {FORWARD_FAMILY!r}: {error}") from None
    config = family.Config.parse(
        {"layers": 1, "heads": 2, "d_model": 8, "d_ff": 12, "vocabulary": _TOKENS, "context": _LENGTH, "std": 0.5}
    ).as_dict()
    module = family.build(config)
    rng = np.random.default_rng(300)
    shapes = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    probe = {
        "tokens": rng.integers(0, _TOKENS, (_EXAMPLES, _LENGTH)),
        "targets": rng.integers(0, _TOKENS, (_EXAMPLES, _LENGTH)),
        "weights": np.full((_EXAMPLES, _LENGTH), 1 / (_EXAMPLES * _LENGTH), "f4"),
    }
    with RunWriter(folder, family=family.name, family_version=family.version, config=config, probe=probe) as writer:
        for step in STEPS:
            tensors = {name: rng.standard_normal(shape).astype("f4") / 2 for name, shape in shapes.items()}
            if change is not None:
                tensors = {n: change(n, t) if t.ndim > 1 else t for n, t in tensors.items()}
            writer.save(step, tensors)
    return folder

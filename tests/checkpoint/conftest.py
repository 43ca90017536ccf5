"""Safetensors bytes made by hand, so that tests can also make what no library would write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def pack() -> Callable[..., bytes]:
    """`pack(header, data)`: length, header (object or bytes), data."""

    def make(header: Any, data: bytes = b"") -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    return make


@pytest.fixture
def save() -> Callable[..., Path]:
    """`save(path, {name: array}, metadata=None)`: a file by the reference library."""
    from safetensors.numpy import save_file

    def write(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata)
        return path

    return write


@pytest.fixture
def sharded(save: Callable[..., Path]) -> Callable[..., Path]:
    """`sharded(folder, {shard: {name: array}})`: shards and their index."""

    def write(folder: Path, shards: dict[str, dict[str, np.ndarray]]) -> Path:
        for shard, tensors in shards.items():
            save(folder / shard, tensors)
        weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return folder

    return write

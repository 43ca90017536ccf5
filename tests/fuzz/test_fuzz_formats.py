"""Valid files of every format, damaged at random: each opens, or ends in a CkptError; nothing else may come out.

Seconds by default. `CKPT_FUZZ_SECONDS=600 pytest tests/fuzz` goes on for that long, divided over the formats.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import h5py
import msgpack
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.errors import CkptError

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("CKPT_FUZZ_SECONDS", "0"))
LIMIT = 2**28
"""Bytes that a damaged file of a few kilobytes may take while it is read."""
_MAX_READ = 2**24

STATE = {"model": {"a.weight": torch.arange(24.0).reshape(4, 6), "b": torch.ones(3).half()}, "epoch": 3}
ARRAYS = {"a": np.arange(24.0).reshape(4, 6), "b": np.ones(3, np.float32), "c": np.arange(400.0)}


def made(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def torchscript() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        with zipfile.ZipFile(io.BytesIO(made(lambda b: torch.save(STATE, b)))) as saved:
            for name in saved.namelist():
                archive.writestr(name, saved.read(name))
        archive.writestr("archive/constants.pkl", pickle.dumps((), 2))
    return buffer.getvalue()


def flax() -> bytes:
    def extension(value: np.ndarray) -> msgpack.ExtType:
        return msgpack.ExtType(1, msgpack.packb((value.shape, value.dtype.name, value.tobytes())))

    return bytes(msgpack.packb({"params": ARRAYS, "step": 3}, default=extension))


def gguf_file(folder: Path) -> bytes:
    writer = gguf.GGUFWriter(folder / "seed.gguf", "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b"])
    weight = np.ones((3, 64), np.float32)
    writer.add_tensor("plain", weight)
    quantised = gguf.GGMLQuantizationType.Q4_0
    writer.add_tensor("packed", gguf.quants.quantize(weight, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (folder / "seed.gguf").read_bytes()


def hdf5() -> bytes:
    def write(buffer: io.BytesIO) -> None:
        with h5py.File(buffer, "w") as file:
            file["layers/dense/vars/0"] = ARRAYS["a"]
            file.create_dataset("packed", data=ARRAYS["c"], chunks=(50,), compression="gzip")

    return made(write)


def llama2c() -> bytes:
    sizes = (16, 32, 1, 4, 2, 5, 4)
    count = 5 * 16 + 16 + 16 * 16 * 2 + 16 * 8 * 2 + 16 + 3 * 32 * 16 + 16 + 4 * 4
    return struct.pack("<7i", *sizes) + np.zeros(count, np.float32).tobytes()


def safetensors() -> bytes:
    from safetensors.numpy import save

    return bytes(save(ARRAYS))


SEEDS: dict[str, Callable[[Path], bytes]] = {
    "torch": lambda folder: made(lambda b: torch.save(STATE, b)),
    "legacy": lambda folder: made(lambda b: torch.save(STATE, b, _use_new_zipfile_serialization=False)),
    "module": lambda folder: made(lambda b: torch.save(torch.nn.Linear(2, 3), b)),
    "torchscript": lambda folder: torchscript(),
    "pickle": lambda folder: pickle.dumps({"params": ARRAYS, "step": 3}),
    "old pickle": lambda folder: pickle.dumps(ARRAYS, 2),
    "tensors in a pickle": lambda folder: pickle.dumps(STATE),
    "npz": lambda folder: made(lambda b: np.savez(b, **ARRAYS)),
    "deflated npz": lambda folder: made(lambda b: np.savez_compressed(b, **ARRAYS)),
    "npy": lambda folder: made(lambda b: np.save(b, ARRAYS["a"])),
    "hdf5": lambda folder: hdf5(),
    "flax": lambda folder: flax(),
    "gguf": gguf_file,
    "llama2c": lambda folder: llama2c(),
    "safetensors": lambda folder: safetensors(),
}

edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "cut", "insert", "repeat", "large"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def damage(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    """Apply edits; positions are shares of the length, half of them within the first kilobyte, where headers are."""
    for how, where, data in changes:
        span = len(content) if data[0] % 2 else min(len(content), 1024)
        at = int(where * span)
        if how == "flip":
            content = content[:at] + bytes([content[at] ^ 1 << data[0] % 8]) + content[at + 1 :] if content else content
        elif how == "set":
            content = content[:at] + data + content[at + len(data) :]
        elif how == "cut":
            content = content[:at] + content[at + data[0] :] if data[0] < 128 else content[:at]
        elif how == "insert":
            content = content[:at] + data + content[at:]
        elif how == "large":
            content = content[:at] + b"\xff" * (data[0] % 8 + 1) + content[at + data[0] % 8 + 1 :]
        else:
            content = content[:at] + content[at : at + data[0]] * 2 + content[at + data[0] :]
    return content


def survive(path: Path) -> None:
    """Open, list, and read what is small; a CkptError is a fine end of it."""
    try:
        with open_checkpoint(path) as checkpoint:
            repr(checkpoint.config), checkpoint.layout_key
            for name, info in checkpoint.tensors.items():
                name.encode()
                if info.size * 16 < _MAX_READ:
                    assert checkpoint.read(name).shape == info.shape
                    if info.shape:
                        checkpoint.read(name, slice(0, 1))
    except CkptError as error:
        assert len(str(error)) < 2_000 + len(str(path))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SEEDS)
def test_damaged_files_open_or_end_in_an_error(tmp_path, kind):
    whole = SEEDS[kind](tmp_path)
    path = tmp_path / "x.bin"
    path.write_bytes(whole)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors
    deadline = time.monotonic() + SECONDS / len(SEEDS)
    turn = 0

    def attack() -> None:
        @seed(turn)
        @settings(
            max_examples=500 if turn else 40,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(changes=edits)
        def once(changes: list[tuple[str, float, bytes]]) -> None:
            path.write_bytes(damage(whole, changes))
            survive(path)

        once()

    attack()
    tracemalloc.start()  # slows everything down, so only what goes on after the first round is watched
    try:
        while time.monotonic() < deadline:
            turn += 1
            attack()
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()


def index_folder(folder: Path) -> Path:
    import torch.distributed.checkpoint as dcp

    dcp.save(STATE, checkpoint_id=str(folder / "dcp"))
    return folder / "dcp" / ".metadata"


@pytest.mark.filterwarnings("ignore")
def test_damaged_indices_of_a_distributed_checkpoint(tmp_path):
    index = index_folder(tmp_path)
    whole = index.read_bytes()
    deadline = time.monotonic() + SECONDS / len(SEEDS)

    @settings(
        max_examples=10_000 if SECONDS else 40, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(changes=edits)
    def once(changes: list[tuple[str, float, bytes]]) -> None:
        if SECONDS and time.monotonic() > deadline:
            return
        index.write_bytes(damage(whole, changes))
        survive(index.parent)

    once()

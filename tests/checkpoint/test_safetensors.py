"""Round trips through the reference library, ranges of rows, digests, and what is read when."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.checkpoint.dtypes import SAFETENSORS
from ckpt_tools.checkpoint.localfile import LocalFile
from ckpt_tools.checkpoint.raw import BLOCK
from ckpt_tools.checkpoint.safetensors import _cached, open_safetensors
from ckpt_tools.errors import FormatError, SourceError

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda n: n != "__metadata__")
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
tables = st.dictionaries(names, st.tuples(st.sampled_from(sorted(SAFETENSORS.values())), shapes), max_size=5)


def tensor_of(dtype: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Random bit patterns of a type."""
    width = getattr(torch, dtype).itemsize
    count = int(np.prod(shape, dtype=int)) * width
    if not count:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    raw = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 256, count, dtype=np.uint8)
    return torch.from_numpy(raw).view(getattr(torch, dtype)).reshape(shape)


def upcast(tensor: torch.Tensor) -> np.ndarray:
    name = str(tensor.dtype).removeprefix("torch.")
    small = name in ("float16", "bfloat16") or name.startswith("float8")
    return (tensor.to(torch.float32) if small else tensor).numpy()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables, seed=st.integers(0, 2**32))
def test_reads_what_the_reference_library_wrote(tmp_path, table, seed):
    tensors = {name: tensor_of(dtype, shape, seed + i) for i, (name, (dtype, shape)) in enumerate(table.items())}
    save_file(tensors, tmp_path / "x.bin", metadata={"format": "pt"})
    with open_checkpoint(tmp_path / "x.bin", hashing=True) as checkpoint:
        assert set(checkpoint.tensors) == set(tensors)
        for name, tensor in tensors.items():
            info = checkpoint.tensors[name]
            assert (info.dtype, info.shape) == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            assert (info.nbytes, info.size) == (tensor.nbytes, tensor.numel())
            np.testing.assert_array_equal(checkpoint.read(name), upcast(tensor))
            raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            assert checkpoint.digest(name) == hashlib.sha256(raw).hexdigest()
        assert checkpoint.bytes_read == sum(tensor.nbytes for tensor in tensors.values())
        assert checkpoint.metadata == {"format": "pt"}
        assert checkpoint.format == "safetensors"


@given(
    dtype=st.sampled_from(["float32", "bfloat16", "float8_e5m2", "int64"]),
    bounds=st.tuples(st.integers(-12, 12), st.integers(-12, 12)),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_those_of_a_slice(tmp_path, dtype, bounds):
    tensor = tensor_of(dtype, (10, 3, 2), 1)
    save_file({"before": torch.zeros(7), "x": tensor}, tmp_path / "x")
    rows = slice(*bounds)
    with open_checkpoint(tmp_path / "x") as checkpoint:
        expected = upcast(tensor)[rows]
        np.testing.assert_array_equal(checkpoint.read("x", rows), expected)
        assert checkpoint.bytes_read == expected.size * tensor.itemsize
        out = np.empty(expected.shape, expected.dtype)
        checkpoint.read_into("x", out, rows)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_decoding_in_blocks_leaves_no_seam(tmp_path, extra):
    tensor = tensor_of("bfloat16", (BLOCK // 2 + extra,), 2)
    save_file({"x": tensor}, tmp_path / "x")
    with open_checkpoint(tmp_path / "x", hashing=True) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("x"), upcast(tensor))
        assert checkpoint.digest("x") == hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()


@pytest.fixture
def one(tmp_path: Path) -> Path:
    save_file({"a.weight": torch.arange(12.0).reshape(4, 3), "scalar": torch.tensor(2.0)}, tmp_path / "one")
    return tmp_path / "one"


def test_opening_reads_no_tensor_and_holds_no_handle(one):
    before = len(os.listdir("/proc/self/fd"))
    checkpoint = open_checkpoint(one)
    assert checkpoint.bytes_read == 0
    assert len(os.listdir("/proc/self/fd")) == before
    checkpoint.read("scalar")
    assert len(os.listdir("/proc/self/fd")) == before + 1
    checkpoint.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert checkpoint.read("scalar") == 2.0


def test_rows_in_order_give_the_digest_without_another_read(one):
    for reads in ([slice(0, 2), slice(2, 3), slice(3, 4)], [slice(0, 1), slice(0, 4)]):
        with open_checkpoint(one, hashing=True) as checkpoint:
            for rows in reads:
                checkpoint.read("a.weight", rows)
            before = checkpoint.bytes_read
            digest = checkpoint.digest("a.weight")
            assert checkpoint.bytes_read == before
            assert digest == hashlib.sha256(np.arange(12, dtype="<f4").tobytes()).hexdigest()


@pytest.mark.parametrize("reads", [[slice(2, 4), slice(0, 2)], [slice(0, 2), slice(3, 4)], [slice(0, 0)]])
def test_rows_out_of_order_give_no_false_digest(one, reads):
    with open_checkpoint(one, hashing=True) as checkpoint:
        for rows in reads:
            checkpoint.read("a.weight", rows)
        assert checkpoint.digest("a.weight") == hashlib.sha256(np.arange(12, dtype="<f4").tobytes()).hexdigest()


def test_names_ranges_and_buffers_that_do_not_fit_are_explained(one):
    with open_checkpoint(one) as checkpoint:
        with pytest.raises(SourceError, match=r"no tensor 'a.wieght'. Did you mean 'a.weight'"):
            checkpoint.read("a.wieght")
        with pytest.raises(SourceError, match="scalar and has no rows"):
            checkpoint.read("scalar", slice(0, 1))
        with pytest.raises(SourceError, match="stride of 2"):
            checkpoint.read("a.weight", slice(0, 4, 2))
        with pytest.raises(SourceError, match=r"float32 array of shape \(4, 3\). Got float64 \(4, 3\)"):
            checkpoint.read_into("a.weight", np.empty((4, 3)))


def test_a_file_truncated_or_replaced_after_opening_is_noticed(one):
    checkpoint = open_checkpoint(one)
    checkpoint.read("scalar")
    os.truncate(one, one.stat().st_size - 8)
    with pytest.raises(FormatError, match=r"truncated: bytes .* are needed"):
        checkpoint.read("a.weight")
    checkpoint.close()
    with pytest.raises(FormatError, match="replaced or rewritten while it was in use"):
        checkpoint.read("scalar")


def test_a_file_that_cannot_be_opened_or_ends_early_is_named(tmp_path, one):
    for path, message in ((tmp_path / "none", "none: No such file"), (tmp_path, "not a regular file")):
        with pytest.raises(SourceError, match=message):
            LocalFile(path)
    file = LocalFile(one)
    with pytest.raises(FormatError, match="is truncated: bytes 0 to 10,000 are needed"):
        file.read(0, 10_000)
    os.close(file._fd)
    for read in (lambda: file.read(0, 4), lambda: file.read_into(0, memoryview(bytearray(4)))):
        with pytest.raises(SourceError, match=r"Cannot read .*: Bad file descriptor"):
            read()
    file._fd = -1


def test_a_tensor_larger_than_memory_is_an_error_in_one_line(tmp_path, pack):
    header = {"a": {"dtype": "BF16", "shape": [2**30, 2**8], "data_offsets": [0, 2**39]}}
    with (tmp_path / "x").open("wb") as file:
        file.write(pack(header))
        file.truncate(file.tell() + 2**39)
    code = f"""
import resource; resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.errors import SourceError
try: open_checkpoint({str(tmp_path / "x")!r}).read("a")
except SourceError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no memory for 'a' (1024.0 GiB); read rows" in done.stdout


def test_a_header_is_parsed_once_for_all_steps(tmp_path):
    files = [tmp_path / f"step-{i}" for i in range(20)]
    for i, file in enumerate(files):
        save_file({"w": torch.full((2, 2), float(i)), "only.here": torch.zeros(3)}, file)
    before = _cached.cache_info().misses
    checkpoints = [open_checkpoint(file) for file in files]
    assert _cached.cache_info().misses == before + 1
    assert [c.read("w")[0, 0] for c in checkpoints] == list(range(20))
    assert {str(c.tensors["w"].file) for c in checkpoints} == {str(file) for file in files}


def test_a_header_longer_than_the_first_read(tmp_path):
    tensors = {f"layer.{i:04d}.{'x' * 40}": torch.full((1,), float(i)) for i in range(400)}
    save_file(tensors, tmp_path / "x")
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert len(checkpoint.tensors) == 400
        assert checkpoint.read(f"layer.0399.{'x' * 40}") == 399.0


def test_a_file_inside_a_larger_one(tmp_path, one):
    inner = one.read_bytes()
    log = tmp_path / "log"
    log.write_bytes(b"record 0" + inner + b"record 1")
    source = open_safetensors(LocalFile(log), base=8, size=len(inner))
    assert source.read("a.weight").tolist() == np.arange(12.0).reshape(4, 3).tolist()
    source.close()


def test_packed_and_unknown_types_are_skipped_with_the_reason(tmp_path, pack):
    header = {
        "half.byte": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]},
        "new": {"dtype": "F128", "shape": [1], "data_offsets": [2, 18]},
        "huge": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [18, 18]},
        "deep": {"dtype": "F32", "shape": [0] * 65, "data_offsets": [18, 18]},
        "good": {"dtype": "F32", "shape": [1], "data_offsets": [18, 22]},
    }
    (tmp_path / "x").write_bytes(pack(header, b"\0" * 18 + np.float32(7).tobytes()))
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert list(checkpoint.tensors) == ["good"] and checkpoint.read("good") == 7.0
        reasons = {skip.name: skip.reason for skip in checkpoint.skipped}
    assert "packs several elements" in reasons["half.byte"] and "'F128' is unknown" in reasons["new"]
    assert "too large for an array" in reasons["huge"] and "65 dimensions" in reasons["deep"]


def test_ties_recorded_by_save_model_become_aliases(tmp_path):
    from safetensors.torch import save_model

    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    save_model(model, str(tmp_path / "x"))
    stored = next(iter(load_file(tmp_path / "x")))
    (alias,) = {"embed.weight", "head.weight"} - {stored}
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert checkpoint.aliases == {alias: stored}
        np.testing.assert_array_equal(checkpoint.read(alias), model["head"].weight.detach().numpy())
        assert checkpoint.digest(alias) == checkpoint.digest(stored)


def test_a_checkpoint_that_was_read_can_be_sent_to_a_worker(one):
    checkpoint = open_checkpoint(one)
    checkpoint.read("scalar")
    with pickle.loads(pickle.dumps(checkpoint)) as copy:
        assert copy.read("scalar") == 2.0
    checkpoint.close()


def test_real_files(shared_data):
    files = [
        *shared_data.glob("models/stories260k/hf_bf16_sharded/*.safetensors"),
        shared_data / "models/stories260k/hf_fp32/model.safetensors",
        shared_data / "models/stories260k-formats/float8_e4m3.safetensors",
        *shared_data.glob("models/reader-zoo/**/*.safetensors"),
        *shared_data.glob("trajectories/hf-layouts/*/checkpoint-64/model.safetensors"),
    ]
    assert len(files) >= 11
    for file in files:
        expected = load_file(file)
        with open_checkpoint(file) as checkpoint:
            assert set(checkpoint.tensors) == set(expected), file
            for name, tensor in expected.items():
                np.testing.assert_array_equal(checkpoint.read(name), upcast(tensor))

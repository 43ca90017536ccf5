"""Samples of tensors, and the part of the checks that costs no reading."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ckpt_tools import open_checkpoint, open_trajectory
from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.verify import Sighting, Watcher, sample
from ckpt_tools.verify.sighting import Held, telling

RNG = np.random.default_rng(0)


@pytest.fixture
def file(tmp_path):
    """A checkpoint with tensors of several shapes and dtypes."""
    tensors = {
        "matrix": RNG.standard_normal((700, 300)).astype(np.float32),
        "half": RNG.standard_normal((300, 50)).astype(np.float16),
        "vector": RNG.standard_normal(90).astype(np.float64),
        "scalar": np.array(3.5, np.float32),
        "count": np.arange(12, dtype=np.int64),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", tensors


@pytest.mark.parametrize("block", [1 << 10, 1 << 16, 1 << 24])
def test_a_sample_is_the_same_however_it_is_read(file, monkeypatch, block):
    monkeypatch.setattr(sample, "BLOCK_BYTES", block)
    path, tensors = file
    with open_checkpoint(path, hashing=True) as checkpoint:
        for name, tensor in tensors.items():
            glance = sample.read_whole(checkpoint, checkpoint.tensors[name], 500)
            assert glance.digest == hashlib.sha256(tensor.tobytes()).hexdigest() and glance.nonfinite == 0
            if name == "count":
                assert glance.entries is None
                continue
            positions = sample._positions(name, tensor.shape, 500)
            assert np.array_equal(glance.entries, tensor.reshape(-1)[positions].astype(np.float32))
        assert checkpoint.bytes_read == sum(t.nbytes for t in tensors.values())


@given(st.text(max_size=8), st.integers(1, 5000), st.integers(1, 600))
def test_positions_are_distinct_ascending_and_reproducible(name, size, count):
    positions = sample._positions(name, (size,), count)
    assert len(positions) == min(size, count) and (np.diff(positions) > 0).all()
    assert positions[0] >= 0 and positions[-1] < size
    sample._positions.cache_clear()
    assert np.array_equal(positions, sample._positions(name, (size,), count))


def test_nonfinite_entries_are_counted(tmp_path):
    sick = np.ones((300, 100), np.float32)
    sick[7, 3], sick[250, 0], sick[250, 1] = np.nan, np.inf, -np.inf
    save_file({"w": sick}, tmp_path / "x.safetensors")
    with open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        assert sample.read_whole(checkpoint, checkpoint.tensors["w"], 10).nonfinite == 3


def test_a_peek_reads_little_and_the_same_rows(tmp_path):
    for step, value in enumerate((0.0, 1.0)):
        save_file({"w": np.full((6000, 200), value, np.float32), "b": np.ones(3, np.float32)}, tmp_path / f"{step}.st")
    glances = []
    for step in (0, 1, 1):
        with open_checkpoint(tmp_path / f"{step}.st") as checkpoint:
            glances.append(sample.peek(checkpoint, checkpoint.tensors["w"], 100))
            assert 0 < checkpoint.bytes_read <= sample.PEEKS * sample.PEEK_BYTES
    assert glances[0].digest == sample.ZEROS and glances[1].digest == glances[2].digest != sample.ZEROS
    assert len(glances[1].entries) == 100


def test_watching_reads_nothing_that_was_read(write, dense):
    trajectory = open_trajectory(write(dense))
    watcher = Watcher(trajectory)
    for step in trajectory.steps:
        with trajectory.checkpoint(step) as checkpoint:
            checkpoint.read("layers.0.weight")
            before = checkpoint.bytes_read
            watcher.see(step, checkpoint, ["layers.0.weight"])
            assert checkpoint.bytes_read == before
    assert watcher.findings() == []


def test_a_watcher_finds_what_bytes_and_names_tell(write, runs, dense):
    grown = {**dense[300], "new": dense[0]["layers.0.weight"]}
    trajectory = open_trajectory(write(runs.tampered(dense, s40=dense[60], s300=grown)))
    watcher = Watcher(trajectory)
    for step in (s for s in reversed(trajectory.steps) if s != 50):
        with trajectory.checkpoint(step) as checkpoint:
            watcher.see(step, checkpoint, nonfinite=["layers.0.bias"] if step == 100 else ())
    from ckpt_tools.errors import FormatError

    watcher.failed(50, FormatError("x is truncated"))
    found = [(f.kind, f.severity, f.steps) for f in watcher.findings()]
    assert found == [
        ("damaged", "error", (50,)),
        ("nonfinite", "warning", (100,)),
        ("identical", "warning", (40, 60)),
        ("shape_change", "note", (290, 300)),
    ]


def test_a_sighting_travels(file):
    path, _ = file
    with open_checkpoint(path) as checkpoint:
        seen = Sighting.of(checkpoint, nonfinite=["half"])
    assert Sighting.parse(seen.text()) == seen == pickle.loads(pickle.dumps(seen))
    assert seen.tensors["half"] == Held("float16", (300, 50), "model.safetensors", True)
    assert len(seen.text()) < 1500


@pytest.mark.parametrize(
    ("dtype", "shape", "each", "tells"),
    [
        ("float32", (8, 8), 4, True), ("float32", (7, 9), 4, False), ("int64", (99, 99), 8, False),
        ("bfloat16", (64, 64), 2, True), ("bfloat16", (9000,), 2, False), ("float16", (60, 60), 2, False),
        ("float8_e4m3fn", (64, 64), 1, True), ("bool", (99, 99), 1, False), ("float64", (64,), 8, True),
        ("float32", (0, 4), 4, False),
    ],
)  # fmt: skip
def test_which_tensors_tell(dtype, shape, each, tells):
    assert telling(TensorInfo("x", dtype, shape, each * int(np.prod(shape)), Path("f"))) is tells

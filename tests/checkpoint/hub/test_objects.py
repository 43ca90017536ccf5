"""Object stores, through fsspec's store in memory: what is read, in which parts, and what when it changes or fails."""

from __future__ import annotations

import pickle

import fsspec
import numpy as np
import pytest

from ckpt_tools import analyze
from ckpt_tools.checkpoint import open_checkpoint, open_trajectory
from ckpt_tools.checkpoint.remote import objects, retries
from ckpt_tools.errors import FetchError, SourceError

W = np.random.default_rng(5).standard_normal((128, 256)).astype(np.float32)


@pytest.fixture
def store(packed, monkeypatch):
    """`memory://bucket/run` with two checkpoints; returns the file system and the ranges asked of it."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    for step in (1, 20):
        system.pipe(f"/bucket/run/step-{step}/model.safetensors", packed({"a": W * step, "b": W}))
        system.pipe(f"/bucket/run/step-{step}/config.json", b'{"model_type": "x"}')
    asked: list[tuple[str, int, int]] = []
    read = type(system).cat_file

    def cat_file(self, path, start=None, end=None, **rest):
        asked.append((path, start, end))
        return read(self, path, start=start, end=end, **rest)

    monkeypatch.setattr(type(system), "cat_file", cat_file)
    monkeypatch.setattr(retries, "pause", lambda seconds, stop: stop.is_set())
    yield system, asked
    system.store.clear()


def test_a_trajectory_in_a_bucket(store):
    _, asked = store
    trajectory = open_trajectory("memory://bucket/run")
    assert trajectory.steps == [1, 20] and str(trajectory.path) == "memory://bucket/run"
    with trajectory.checkpoint(20) as checkpoint:
        asked.clear()
        assert np.array_equal(checkpoint.read("a"), W * 20)
        assert [(stop - start) for _, start, stop in asked] == [W.nbytes]
        assert checkpoint.config == {"model_type": "x"} and set(checkpoint.metadata["etag"]) == {"model.safetensors"}


def test_a_lone_object_and_a_missing_one(store):
    checkpoint = open_checkpoint("memory://bucket/run/step-1/model.safetensors")
    assert np.array_equal(checkpoint.read("b"), W) and checkpoint.config == {"model_type": "x"}
    assert checkpoint.step == 1
    with pytest.raises(FetchError, match=r"memory://bucket/run/step-2 cannot be fetched: FileNotFoundError"):
        open_checkpoint("memory://bucket/run/step-2")


def test_an_object_that_changes_is_refused(store, packed):
    system, _ = store
    checkpoint = open_checkpoint("memory://bucket/run/step-1")
    system.pipe("/bucket/run/step-1/model.safetensors", packed({"a": -W, "b": W}))
    with pytest.raises(FetchError, match=r"has changed while it was being read. Open it again"):
        checkpoint.read("a")


@pytest.mark.parametrize("error", [OSError("reset"), TimeoutError(), ConnectionError("gone")])
def test_passing_trouble_is_sat_out_and_lasting_trouble_is_not(store, monkeypatch, error):
    system, _ = store
    checkpoint = open_checkpoint("memory://bucket/run/step-1")
    read, left = type(system).cat_file, [2]

    def cat_file(self, *args, **rest):
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return read(self, *args, **rest)

    monkeypatch.setattr(type(system), "cat_file", cat_file)
    assert np.array_equal(checkpoint.read("a"), W)
    left[0] = 99
    with pytest.raises(FetchError, match=rf"model.safetensors cannot be fetched: {type(error).__name__}.*6 attempts"):
        checkpoint.read("b")


def test_a_short_answer_is_asked_for_again(store, monkeypatch):
    system, _ = store
    checkpoint = open_checkpoint("memory://bucket/run/step-1")
    read, short = type(system).cat_file, [True]

    def cat_file(self, *args, **rest):
        data = read(self, *args, **rest)
        return data[:-1] if short and short.pop() else data

    monkeypatch.setattr(type(system), "cat_file", cat_file)
    assert np.array_equal(checkpoint.read("a"), W)


def test_a_driver_that_is_missing_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for url, driver in (("s3://bucket/x", "s3fs"), ("gs://bucket/x", "gcsfs")):
        with pytest.raises(SourceError, match=rf"is read through {driver}: pip install 'ckpt-tools\[hf\]' {driver}"):
            open_trajectory(url)


def test_it_pickles_and_analyzes(store, tmp_path):
    trajectory = open_trajectory("memory://bucket/run")
    again = pickle.loads(pickle.dumps(trajectory))
    assert np.array_equal(again.checkpoint(20).read("a"), W * 20)
    outcome = analyze("memory://bucket/run", ["rank"], output=tmp_path / "r.h5", matrices=["a"])
    assert outcome.steps == [1, 20] and outcome.matrices == 1


def test_a_long_object_is_read_in_pieces(store, packed, monkeypatch):
    system, asked = store
    monkeypatch.setattr(objects, "PIECE", 2**16)
    system.pipe("/bucket/x.safetensors", packed({"a": W, "b": W}))
    checkpoint = open_checkpoint("memory://bucket/x.safetensors")
    asked.clear()
    assert np.array_equal(checkpoint.read("a"), W)
    assert [stop - start for _, start, stop in asked] == [2**16, 2**16]

"""Copies of files that cannot be read in parts: whole or not there, within the limit, never removed in use."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from ckpt_tools.checkpoint import open_checkpoint, open_trajectory, opener
from ckpt_tools.checkpoint.localfile import LocalFile
from ckpt_tools.checkpoint.remote import cache
from ckpt_tools.checkpoint.remote.cache import Cache, parse_size
from ckpt_tools.checkpoint.safetensors import open_safetensors
from ckpt_tools.errors import FetchError, OptionError, SourceError

MARK = b"COPYONLY"
W = np.random.default_rng(3).standard_normal((256, 256)).astype(np.float32)


@pytest.fixture(autouse=True)
def copied_format(monkeypatch):
    """A format that is read from a local file only: safetensors behind eight bytes."""

    def read(file, head):
        assert isinstance(file, LocalFile) and isinstance(file.path, Path)
        return open_safetensors(file, base=len(MARK))

    known = opener.FileFormat("marked", lambda head: head.startswith(MARK), read)
    monkeypatch.setattr(opener, "FILE_FORMATS", (*opener.FILE_FORMATS, known))


@pytest.fixture
def copies(tmp_path):
    """Return the sizes of the files in the cache, by name."""
    return lambda: {f"{p.parent.name[:4]}/{p.name}": p.stat().st_size for p in (tmp_path / "ckpt-cache").glob("*/*")}


@pytest.fixture
def steps(hub, packed):
    """Five revisions of a `.bin` of 256 KiB."""
    for step in range(5):
        hub.commit("org/name", {"pytorch_model.bin": MARK + packed({"w": W + step})}, branch=f"step{step}")
    return hub


def test_a_format_without_ranges_is_copied_once(steps, copies):
    checkpoint = open_checkpoint("hf://org/name@step3")
    assert np.array_equal(checkpoint.read("w"), W + 3)
    size = next(iter(copies().values()))
    assert size == W.nbytes + 8 + 80 and checkpoint.bytes_transferred >= size
    before = len(steps.asked("cdn/"))
    assert before == 2  # its first bytes, and all of it
    again = open_checkpoint("hf://org/name@step3")
    assert np.array_equal(again.read("w"), W + 3) and again.bytes_transferred == 2**16
    assert len(copies()) == 1 and len(steps.asked("cdn/")) == before + 1


def test_the_limit_holds_and_the_longest_unused_goes_first(steps, copies, tmp_path):
    size = W.nbytes + 88
    trajectory = open_trajectory("hf://org/name@step*", cache_size=3 * size)
    order = [trajectory.entries[s].path.store.listing("")["pytorch_model.bin"].sha256[:4] for s in range(5)]
    for step in (0, 1, 2, 0, 3):  # 1 is now the one not used for the longest time
        with trajectory.checkpoint(step) as checkpoint:
            assert np.array_equal(checkpoint.read("w"), W + step)
        del checkpoint
        assert sum(copies().values()) <= 3 * size
    assert {name[:4] for name in copies()} == {order[0], order[2], order[3]}


def test_a_copy_in_use_is_not_removed(steps, copies):
    size = W.nbytes + 88
    held = open_checkpoint("hf://org/name@step0", cache_size=2 * size)
    held.close()  # closed, yet it may be read again
    for step in (1, 2, 3):
        open_checkpoint(f"hf://org/name@step{step}", cache_size=2 * size)
    assert np.array_equal(held.read("w"), W)
    with pytest.raises(FetchError, match=rf"{size:,} of the {size:,} that copies may take are in use. Raise --cache-s"):
        open_checkpoint("hf://org/name@step4", cache_size=size)
    assert len(copies()) == 1
    del held
    gc.collect()
    open_checkpoint("hf://org/name@step4", cache_size=size)
    assert len(copies()) == 1


def test_a_file_larger_than_the_cache_is_refused_before_it_is_fetched(steps, copies):
    with pytest.raises(FetchError, match=r"has 262,232 bytes and .* at most 1,000. Raise --cache-size"):
        open_checkpoint("hf://org/name@step0", cache_size=1000)
    assert copies() == {} and len(steps.asked("cdn/")) == 1


def test_a_cut_download_goes_on_in_the_next_call(steps, copies, tmp_path):
    steps.fault("cdn/", after=1, cut=100_000)
    steps.fault("hub/org", after=1, times=99, status=403)
    steps.fault("cdn/", after=1, times=99, status=403)
    with pytest.raises(FetchError):
        open_checkpoint("hf://org/name@step0")
    kept = sum(copies().values())
    assert all(name.endswith(".partial") for name in copies())
    steps.faults.clear()
    before = len(steps.asked("cdn/"))
    assert np.array_equal(open_checkpoint("hf://org/name@step0").read("w"), W)
    assert [name[5:] for name in copies()] == ["pytorch_model.bin"]
    assert steps.asked("cdn/")[before + 1].range == f"bytes={kept}-{W.nbytes + 87}" and kept == 100_000


def test_bytes_that_do_not_fit_their_hash_never_appear(steps, copies):
    name = "pytorch_model.bin"
    for files in steps.repos["org/name"].commits.values():
        blob = files[name]
        blob.pieces = (blob.part(0, blob.size - 1), b"!")  # the content rots; listing and hash stay
    with pytest.raises(FetchError, match=r"the bytes received have SHA-256 .*, the hub says"):
        open_checkpoint("hf://org/name@step0")
    assert copies() == {}


def test_a_full_or_forbidden_disk_is_named(steps, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CKPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(SourceError, match=r"cannot be kept in .*file: .*\. Set CKPT_CACHE to another folder"):
        open_checkpoint("hf://org/name@step0")
    monkeypatch.setenv("CKPT_CACHE", str(tmp_path / "fine"))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "pwrite", full)
    with pytest.raises(SourceError, match=r"No space left on device. Set CKPT_CACHE"):
        open_checkpoint("hf://org/name@step0")


def test_several_readers_make_one_copy(steps, copies):
    found = []

    def read() -> None:
        found.append(np.array_equal(open_checkpoint("hf://org/name@step1").read("w"), W + 1))

    threads = [Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 6 and len(copies()) == 1
    assert len([s for s in steps.asked("cdn/") if s.sent > 2**17]) == 1


def test_another_process_keeps_its_copies(steps, copies, tmp_path):
    size = W.nbytes + 88
    open_checkpoint("hf://org/name@step0", cache_size=size)
    path = next((tmp_path / "ckpt-cache").glob("*/*"))
    code = f"import fcntl; f = open({str(path)!r}); fcntl.flock(f, fcntl.LOCK_SH); print('ok', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"ok\n"
        with pytest.raises(FetchError, match="are in use"):
            open_checkpoint("hf://org/name@step1", cache_size=size)
    finally:
        other.communicate(b"\n")
    assert np.array_equal(open_checkpoint("hf://org/name@step1", cache_size=size).read("w"), W + 1)
    assert len(copies()) == 1


def test_the_environment_sets_the_limit(steps, monkeypatch):
    monkeypatch.setenv("CKPT_CACHE_SIZE", "1kB")
    with pytest.raises(FetchError, match="at most 1,000"):
        open_checkpoint("hf://org/name@step0")
    assert np.array_equal(open_checkpoint("hf://org/name@step0", cache_size=2**20).read("w"), W)


def test_a_copied_checkpoint_pickles(steps):
    size = W.nbytes + 88
    text = pickle.dumps(open_checkpoint("hf://org/name@step2", cache_size=size))
    open_checkpoint("hf://org/name@step3", cache_size=size)  # takes the place of the copy
    assert np.array_equal(pickle.loads(text).read("w"), W + 2)


def test_the_cache_is_made_for_its_user_alone(steps, tmp_path):
    held = open_checkpoint("hf://org/name@step0")
    path = next((tmp_path / "ckpt-cache").glob("*/*"))
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.name == hashlib.sha256(path.read_bytes()).hexdigest()
    handle = os.open(path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handle)
    held.close()


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20 * 10**9), ("512MiB", 2**29), ("1000", 1000), ("1.5 k", 1500), ("2TiB", 2**41), ("0", 0)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "20XB", "1 0", "²"])
def test_what_is_no_size(text):
    with pytest.raises(OptionError, match="is no size; write for example 20GB"):
        parse_size(text)


def test_default_folder(monkeypatch):
    monkeypatch.delenv("CKPT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert Cache.of(7) == Cache(Path("/x/ckpt-tools"), 7)
    assert Cache.of(None).limit == cache.DEFAULT_SIZE

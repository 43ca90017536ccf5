"""The log's writer: records of exact safetensors bytes, rotated, cut and continued."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from ckpt_tools.checkpoint import open_trajectory
from ckpt_tools.checkpoint.log import PAGE, record_fault, scan
from ckpt_tools.errors import RunError
from ckpt_tools.run import RunWriter
from ckpt_tools.run import log as log_module
from ckpt_tools.run.files import Sync
from ckpt_tools.run.log import LogStore


def store(path: Path, rotate: int = 2**30) -> LogStore:
    return LogStore(path, Sync("never"), rotate)


def data(step: int) -> list[memoryview]:
    return [memoryview(save({"w": torch.full((4, 4), float(step)), "odd": torch.ones(3, dtype=torch.int8)}))]


def logs(path: Path) -> dict[str, list[int]]:
    return {p.name: [r.step for r in scan(p).records] for p in sorted(path.glob("*.stlog"))}


def values(path: Path) -> dict[int, float]:
    trajectory = open_trajectory(path)
    return {step: float(trajectory.checkpoint(step).read("w")[0, 0]) for step in trajectory.steps}


def test_records_are_exact_safetensors_files(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(5, 3), "b": torch.randn(7).bfloat16(), "flag": torch.tensor([True, False, True])}
    with RunWriter(tmp_path / "run", family="", family_version=1, config={}, mode="log") as run:
        run.save(3, tensors)
    (path,) = (tmp_path / "run").glob("log-*.stlog")
    (record,) = scan(path).records
    assert record_fault(path, record) == ""
    back = load(path.read_bytes()[record.offset : record.offset + record.length])
    assert {name: tensor.dtype for name, tensor in back.items()} == {n: t.dtype for n, t in tensors.items()}
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(("width", "every"), [(10, 1), (300, PAGE)])
def test_all_words_of_small_records_are_summed_and_some_of_large_ones(tmp_path: Path, width: int, every: int) -> None:
    with RunWriter(tmp_path / "run", family="", family_version=1, config={}, mode="log") as run:
        for step in range(3):
            run.save(step, {"w": torch.randn(width, width), "b": torch.randn(3), "i": torch.ones(5, dtype=torch.int8)})
    (path,) = (tmp_path / "run").glob("log-*.stlog")
    for record in scan(path).records:
        assert (record.every, record_fault(path, record)) == (every, "")


def test_logs_rotate_and_are_named_by_their_first_step(tmp_path: Path) -> None:
    size = 48 + len(data(0)[0])
    writer = store(tmp_path, rotate=3 * size)
    for step in range(0, 14, 2):
        writer.put(step, data(step))
    writer.close()
    assert logs(tmp_path) == {
        "log-000000.stlog": [0, 2, 4],
        "log-000006.stlog": [6, 8, 10],
        "log-000012.stlog": [12],
    }
    assert values(tmp_path) == {step: step for step in range(0, 14, 2)}


def test_a_checkpoint_larger_than_a_log_has_one_of_its_own(tmp_path: Path) -> None:
    writer = store(tmp_path, rotate=10)
    for step in range(3):
        writer.put(step, data(step))
    writer.close()
    assert len(logs(tmp_path)) == 3


def test_a_torn_end_is_cut_before_going_on(tmp_path: Path) -> None:
    writer = store(tmp_path)
    writer.put(0, data(0))
    writer.put(1, data(1))
    writer.close()
    (path,) = tmp_path.glob("*.stlog")
    os.truncate(path, path.stat().st_size - 1)
    writer = store(tmp_path)
    writer.put(2, data(2))
    writer.close()
    assert logs(tmp_path) == {"log-000000.stlog": [0, 2]}
    assert scan(path).end == path.stat().st_size


def test_a_damaged_log_is_left_alone(tmp_path: Path) -> None:
    writer = store(tmp_path)
    for step in (0, 1):
        writer.put(step, data(step))
    writer.close()
    path = tmp_path / "log-000000.stlog"
    before = bytearray(path.read_bytes())
    before[scan(path).records[1].offset - 20] ^= 1
    path.write_bytes(before)
    writer = store(tmp_path)
    writer.put(1, data(7))
    writer.close()
    assert path.read_bytes() == bytes(before)
    assert logs(tmp_path) == {"log-000000.stlog": [0], "log-000001.stlog": [1]}
    assert values(tmp_path) == {0: 0, 1: 7}


def test_going_back_writes_steps_again_and_the_new_ones_count(tmp_path: Path) -> None:
    size = 48 + len(data(0)[0])
    writer = store(tmp_path, rotate=2 * size)
    for step in range(4):
        writer.put(step, data(step))
    writer.close()
    writer = store(tmp_path, rotate=2 * size)
    for step in (2, 3, 4):
        writer.put(step, data(10 + step))
    writer.close()
    assert logs(tmp_path) == {
        "log-000000.stlog": [0, 1],
        "log-000002.stlog": [2, 3],
        "log-000002-1.stlog": [2, 3],
        "log-000004.stlog": [4],
    }
    assert values(tmp_path) == {0: 0, 1: 1, 2: 12, 3: 13, 4: 14}


def test_a_record_replaces_the_folder_of_its_step(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", family="", family_version=1, config={}, mode="folders") as run:
        for step in range(3):
            run.save(step, {"w": torch.full((1, 1), float(step))})
    with RunWriter.resume(tmp_path / "run", step=1, mode="log") as run:
        run.save(1, {"w": torch.full((1, 1), 10.0)})
    assert sorted(p.name for p in (tmp_path / "run").glob("*step*")) == ["step-000000", "step-000002"]
    assert values(tmp_path / "run") == {0: 0, 1: 10, 2: 2}


def test_a_folder_replaces_the_record_of_its_step(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", family="", family_version=1, config={}, mode="log") as run:
        for step in range(3):
            run.save(step, {"w": torch.full((1, 1), float(step))})
    with RunWriter.resume(tmp_path / "run", step=1, mode="folders") as run:
        run.save(1, {"w": torch.full((1, 1), 10.0)})
    assert values(tmp_path / "run") == {0: 0, 1: 10, 2: 2}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_costs_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    writer = store(tmp_path)
    writer.put(0, data(0))
    whole = os.writev

    def full(descriptor: int, views: list[memoryview]) -> int:
        whole(descriptor, [b"".join(views)[:90]])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(RunError, match=r"step 1 into .*All checkpoints before it are whole; make room"):
        writer.put(1, data(1))
    monkeypatch.undo()
    path = tmp_path / "log-000000.stlog"
    assert scan(path).end == path.stat().st_size
    writer.put(2, data(2))
    writer.close()
    assert values(tmp_path) == {0: 0, 2: 2}


def test_reserved_room_is_given_back(tmp_path: Path) -> None:
    writer = store(tmp_path)
    writer.put(0, data(0))
    writer.close()
    status = (tmp_path / "log-000000.stlog").stat()
    assert status.st_blocks * 512 < 2**16
    assert status.st_size == 48 + len(data(0)[0])


def test_without_reserving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "reserve", lambda descriptor, offset, record: offset)
    writer = store(tmp_path)
    for step in range(3):
        writer.put(step, data(step))
    writer.close()
    assert values(tmp_path) == {0: 0, 1: 1, 2: 2}


def test_a_log_that_cannot_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_ = store(tmp_path)
    store_.put(0, data(0))
    store_.close()

    def refuse(path: object, *rest: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(log_module.os, "ftruncate", refuse)
    with pytest.raises(RunError, match=r"Cannot continue .*log-000000\.stlog: Permission denied"):
        store(tmp_path)

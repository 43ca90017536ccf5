"""Between folders and logs and back: byte for byte, and never less than before."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.checkpoint import open_trajectory
from ckpt_tools.checkpoint.log import scan
from ckpt_tools.errors import FormatError, RunError, SourceError
from ckpt_tools.run import RunWriter, check_run, pack, read_metrics, read_probe, read_run, unpack
from ckpt_tools.verify import verify

STEPS = (0, 1, 2, 5, 10, 100)


def tensors(step: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"w": np.full((6, 5), step, "f4"), "odd": np.arange(3, dtype="i1") + step % 50}


def make_run(path: Path, mode: str, steps: tuple[int, ...] = STEPS) -> Path:
    probe = {"tokens": np.arange(4)}
    with RunWriter(path, family="", family_version=1, config={}, mode=mode, probe=probe) as run:
        for step in steps:
            run.save(step, tensors(step), {"loss": step})
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def check_values(path: Path, steps: tuple[int, ...] = STEPS) -> None:
    trajectory = open_trajectory(path)
    assert trajectory.steps == list(steps)
    for step in steps:
        with trajectory.checkpoint(step) as checkpoint:
            assert all((checkpoint.read(name) == value).all() for name, value in tensors(step).items())
    assert check_run(path) == []


def test_there_and_back(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", "folders")
    before = contents(path)
    done = pack(path)
    assert (done.written, done.present, done.skipped, done.damaged) == (6, 0, [], [])
    assert done.bytes == sum(len(data) for name, data in before.items() if name.startswith("step"))
    assert sorted(p.name for p in path.iterdir()) == [
        "log-000000.stlog", "metrics.jsonl", "probe.safetensors", "run.json",
    ]  # fmt: skip
    check_values(path)
    done = unpack(path)
    assert (done.written, done.present) == (6, 0)
    assert contents(path) == before


@settings(max_examples=25, deadline=None)
@given(
    steps=st.sets(st.integers(0, 30), min_size=1, max_size=8),
    logged=st.sets(st.integers(0, 30), max_size=8),
    rotate=st.integers(1, 2000),
)
def test_any_mixture_packs_and_unpacks(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], logged: set[int], rotate: int
) -> None:
    path = make_run(tmp_path_factory.mktemp("packed") / "run", "folders", tuple(sorted(steps)))
    with RunWriter.resume(path, step=0, mode="log") as run:
        for step in sorted(logged):
            run.save(step, tensors(step))
    every = tuple(sorted(steps | logged))
    pack(path, rotate=rotate)
    assert not list(path.glob("step-*"))
    check_values(path, every)
    unpack(path)
    assert not list(path.glob("*.stlog"))
    check_values(path, every)


def test_logs_rotate(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", "folders")
    size = (path / "step-000000/model.safetensors").stat().st_size + 48
    pack(path, rotate=2 * size)
    assert {p.name: [r.step for r in scan(p).records] for p in path.glob("*.stlog")} == {
        "log-000000.stlog": [0, 1],
        "log-000002.stlog": [2, 5],
        "log-000010.stlog": [10, 100],
    }
    check_values(path)


def test_a_packed_run_is_continued_in_its_log(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", "folders")
    pack(path)
    with RunWriter.resume(path, step=100) as run:
        run.save(100, {name: value + 1 for name, value in tensors(100).items()})
        run.save(101, tensors(101))
    (log,) = path.glob("*.stlog")
    assert [r.step for r in scan(log).records] == [*STEPS, 100, 101]
    assert (open_trajectory(path).checkpoint(100).read("w") == 101).all()
    unpack(path)
    assert (open_trajectory(path).checkpoint(100).read("w") == 101).all()


def test_a_folder_newer_than_its_record_is_what_is_kept(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", "log")
    with RunWriter.resume(path, step=5, mode="folders") as run:
        run.save(5, {name: value + 1 for name, value in tensors(5).items()})
    copy = tmp_path / "copy"
    unpack(path, out=copy)
    assert (open_trajectory(copy).checkpoint(5).read("w") == 6).all()
    for act in (unpack, pack):
        act(path)
        assert (open_trajectory(path).checkpoint(5).read("w") == 6).all()
        assert open_trajectory(path).steps == list(STEPS)


def test_some_steps_into_a_run_of_their_own(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", "log")
    before = contents(path)
    done = unpack(path, steps="at:5,last", out=tmp_path / "some")
    assert done.written == 2
    assert contents(path) == before
    check_values(tmp_path / "some", (5, 100))
    assert read_run(tmp_path / "some").tensors == read_run(path).tensors
    assert read_metrics(tmp_path / "some")["loss"].tolist() == read_metrics(path)["loss"].tolist()
    assert read_probe(tmp_path / "some")["tokens"].tolist() == [0, 1, 2, 3]
    done = unpack(path, out=tmp_path / "some")
    assert (done.written, done.present) == (4, 2)
    check_values(tmp_path / "some")


def test_some_steps_in_place_keep_the_log(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", "log")
    assert unpack(path, steps="1:5").written == 3
    assert sorted(p.name for p in path.glob("step-*")) == ["step-000001", "step-000002", "step-000005"]
    assert len(list(path.glob("*.stlog"))) == 1
    check_values(path)
    done = unpack(path)
    assert (done.written, done.present) == (3, 3)
    assert not list(path.glob("*.stlog"))
    check_values(path)


def interrupted(monkeypatch: pytest.MonkeyPatch, name: str, at: int, act: Callable[[], Any]) -> None:
    """Call `act`, with the system call `name` failing from its `at`-th use on."""
    real, calls = getattr(os, name), 0

    def fail(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > at:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(KeyboardInterrupt):
            act()


@pytest.mark.parametrize("name", ["writev", "fsync", "rename", "rmdir", "preadv"])
@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_packing_interrupted_anywhere_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: int
) -> None:
    path = make_run(tmp_path / "run", "folders")
    before = contents(path)
    size = (path / "step-000000/model.safetensors").stat().st_size + 48
    try:
        interrupted(monkeypatch, name, at, lambda: pack(path, rotate=2 * size))
    except pytest.fail.Exception:
        assert at >= 3  # fewer calls than that were made
    check_values(path)
    pack(path, rotate=2 * size)
    assert not list(path.glob("*step*"))
    check_values(path)
    unpack(path)
    assert contents(path) == before


@pytest.mark.parametrize("name", ["writev", "fsync", "rename", "unlink", "preadv"])
@pytest.mark.parametrize("at", [0, 1, 5])
def test_unpacking_interrupted_anywhere_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: int
) -> None:
    path = make_run(tmp_path / "run", "log")
    try:
        interrupted(monkeypatch, name, at, lambda: unpack(path))
    except pytest.fail.Exception:
        assert at >= 1
    check_values(path)
    unpack(path)
    assert not list(path.glob("*.stlog"))
    assert not list(path.glob(".*"))
    check_values(path)


def test_a_folder_left_broken_by_a_power_cut_is_written_again(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", "log")
    unpack(path, steps="1")
    os.truncate(path / "step-000001/model.safetensors", 100)
    assert unpack(path).damaged == []
    check_values(path)


def damage(path: Path, step: int) -> str:
    (log,) = path.glob("*.stlog")
    record = next(r for r in scan(log).records if r.step == step)
    with log.open("r+b") as file:
        file.seek(record.offset + record.length - 1)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([last ^ 1]))
    return log.name


def test_damaged_records_are_named_and_their_log_kept(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", "log")
    name = damage(path, 5)
    (fault,) = check_run(path)
    assert f"{name}, step 5: the bytes from" in fault
    done = unpack(path)
    assert done.written == 5
    assert [f"{name}, step 5: the bytes are not those that were written" in text for text in done.damaged] == [True]
    assert (path / name).exists()
    assert not (path / "step-000005").exists()
    assert not list(path.glob(".*"))
    assert open_trajectory(path).steps == list(STEPS)


def test_verify_compares_checksums_unless_it_is_in_a_hurry(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", "log")
    damage(path, 5)
    found = [f for f in verify(path).findings if f.kind == "damaged"]
    assert [(f.kind, list(f.steps)) for f in found] == [("damaged", [5])]
    assert "step 5: the bytes from" in found[0].message
    assert not [f for f in verify(path, read="sample").findings if f.kind == "damaged"]
    with pytest.raises(FormatError, match="are not those that were written"):
        open_trajectory(path).check(5)
    open_trajectory(path).check(10)


def test_a_copy_that_reads_back_otherwise_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_run(tmp_path / "run", "folders")
    before = contents(path)
    real = os.fsync

    def spoil(descriptor: int) -> None:
        real(descriptor)
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if name.endswith(".stlog"):
            size = os.fstat(descriptor).st_size
            os.pwrite(descriptor, b"\xff", size - 1)

    monkeypatch.setattr(os, "fsync", spoil)
    with pytest.raises(RunError, match="reads back otherwise"):
        pack(path)
    assert contents(path) == before


def test_a_full_disk_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    for mode, act in (("folders", pack), ("log", unpack)):
        path = make_run(tmp_path / mode, mode)
        before = contents(path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", full)
            with pytest.raises(RunError, match="No space left on device"):
                act(path)
        assert contents(path) == before


def test_folders_with_more_in_them_are_left(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", "folders")
    (path / "step-000001/optimizer.pt").write_bytes(b"state")
    os.truncate(path / "step-000002/model.safetensors", 90)
    done = pack(path)
    assert done.written == 4
    assert [(skip.name, skip.reason) for skip in done.skipped] == [
        ("step-000001", "left as it is: it holds 'optimizer.pt'")
    ]
    assert [("step-000002" in text and "truncated" in text) for text in done.damaged] == [True]
    assert sorted(p.name for p in path.glob("step-*")) == ["step-000001", "step-000002"]


def test_a_torn_end_does_not_keep_a_log(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", "log")
    (log,) = path.glob("*.stlog")
    os.truncate(log, log.stat().st_size - 5)
    done = unpack(path)
    assert done.written == 5
    assert "cut short" in done.skipped[0].reason
    assert not log.exists()
    check_values(path, STEPS[:-1])


def test_a_run_that_is_being_written_is_left(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunWriter(path, family="", family_version=1, config={}, mode="log") as run:
        run.save(0, tensors(0))
        for act in (pack, unpack):
            with pytest.raises(RunError, match="is being written by another process"):
                act(path)
        unpack(path, out=tmp_path / "copy")
        run.save(1, tensors(1))
    check_values(tmp_path / "copy", (0,))
    check_values(path, (0, 1))


def test_bad_targets(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", "log")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    RunWriter(tmp_path / "other", family="", family_version=1, config={}, seed=3).finish()
    with pytest.raises(RunError, match="full is not empty"):
        unpack(path, out=tmp_path / "full")
    with pytest.raises(RunError, match="other holds another run"):
        unpack(path, out=tmp_path / "other")
    with pytest.raises(RunError, match="Cannot write into"):
        unpack(path, out=tmp_path / "full/notes.txt")
    with pytest.raises(SourceError, match="is not a run"):
        pack(tmp_path / "full")
    with pytest.raises(SourceError, match="there is no step 7"):
        unpack(path, steps="at:7")


def test_progress_and_checks(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", "folders")
    seen: list[tuple[int, int, str]] = []

    def note(done: int, total: int, detail: str) -> None:
        seen.append((done, total, detail))

    check_run(path, on_progress=note)
    pack(path, on_progress=note)
    unpack(path, on_progress=note)
    assert [row for row in seen if row[0] == row[1]] == [(6, 6, "step 100")] * 3
    os.truncate(path / "step-000002/model.safetensors", 90)
    (fault,) = check_run(path)
    assert "step-000002/model.safetensors" in fault and "truncated" in fault


def test_unpacked_files_open_anywhere(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    path = make_run(tmp_path / "run", "log")
    unpack(path)
    for step in STEPS:
        loaded = load_file(path / f"step-{step:06d}/model.safetensors")
        assert all((loaded[name] == value).all() for name, value in tensors(step).items())
    assert json.loads((path / "run.json").read_text())["status"] == "finished"

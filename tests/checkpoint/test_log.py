"""Logs: what is whole is found, what is not is named, and records read like files."""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save as safetensors_bytes

from ckpt_tools.checkpoint import open_checkpoint, open_trajectory
from ckpt_tools.checkpoint.log import (
    FRAME_BYTES,
    PAGE,
    LogFile,
    PageCheck,
    checksum,
    frame,
    latest,
    record_fault,
    scan,
    scan_folder,
)
from ckpt_tools.errors import FormatError, SourceError

Bytes = Callable[..., bytes]


def tensors(step: int) -> dict[str, np.ndarray]:
    return {"w": np.full((3, 5), step, "f4"), "b": np.arange(3, dtype="f8") + step}


def record(step: int, serial: int | None = None) -> bytes:
    data = safetensors_bytes(tensors(step))
    return frame(step if serial is None else serial, step, len(data), checksum(data)) + data


def log(path: Path, *records: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(records))
    return path


def reference_checksum(data: bytes, every: int) -> int:
    return zlib.crc32(b"".join(data[at : at + 8] for at in range(0, len(data), 8 * every)))


@given(st.binary(max_size=10_000), st.sampled_from([1, PAGE]))
def test_checksum(data: bytes, every: int) -> None:
    assert checksum(data, every) == reference_checksum(data, every)
    assert checksum(data[4096:], every, checksum(data[:4096], every)) == reference_checksum(data, every)
    assert checksum(data) == zlib.crc32(data)


blocks = st.builds(lambda size, fill: bytes([fill]) * size, st.integers(0, 9000), st.integers(0, 255))


@given(st.lists(st.one_of(st.binary(max_size=40), blocks), max_size=6))
def test_check_of_pages_is_that_of_the_joined_bytes(parts: list[bytes]) -> None:
    check = PageCheck()
    assert check([memoryview(p) for p in parts]) == reference_checksum(b"".join(parts), PAGE)


def test_check_of_pages_sees_bytes_that_changed_in_place() -> None:
    buffer = bytearray(range(256)) * 64
    parts = [memoryview(buffer)[:4000], memoryview(buffer)[4000:4104], memoryview(buffer)[4104:-3]]
    check = PageCheck()
    for at in (0, 4097, 8192):
        before = check(parts)
        buffer[at] ^= 1
        assert check(parts) == reference_checksum(bytes(buffer[:-3]), PAGE) != before


def test_a_lost_page_changes_the_sum() -> None:
    data = np.random.default_rng(0).integers(0, 256, 50_001, dtype=np.uint8).tobytes()
    for at in range(0, len(data), 4096):
        lost = data[:at] + bytes(min(4096, len(data) - at)) + data[at + 4096 :]
        assert checksum(lost, PAGE) != checksum(data, PAGE)


def test_records_read_like_folders(tmp_path: Path) -> None:
    log(tmp_path / "run/log-000001.stlog", *(record(step) for step in (1, 2, 5)))
    folder = tmp_path / "run/step-000000"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors(0)))
    trajectory = open_trajectory(tmp_path / "run")
    assert trajectory.steps == [0, 1, 2, 5]
    assert trajectory.skipped == []
    for step in trajectory.steps:
        with trajectory.checkpoint(step) as checkpoint:
            assert checkpoint.step == step
            assert list(checkpoint.tensors) == ["b", "w"]
            np.testing.assert_array_equal(checkpoint.read("w"), tensors(step)["w"])
            np.testing.assert_array_equal(checkpoint.read("w", slice(1, 2)), tensors(step)["w"][1:2])
            np.testing.assert_array_equal(checkpoint.read("b"), tensors(step)["b"])
    first, logged = trajectory.checkpoint(0), trajectory.checkpoint(1)
    assert first.layout_key == logged.layout_key
    assert (first.format, logged.format) == ("safetensors", "safetensors log")
    assert logged.label == "step-000001"


def test_equal_content_has_an_equal_hash(tmp_path: Path) -> None:
    log(tmp_path / "a/log-000003.stlog", record(3))
    file = tmp_path / "b/step-3/model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(safetensors_bytes(tensors(3)))
    hashes = {open_trajectory(tmp_path / name).checkpoint(3).content_hash() for name in "ab"}
    assert len(hashes) == 1


def test_the_last_record_of_a_step_counts(tmp_path: Path) -> None:
    changed = safetensors_bytes(tensors(70))
    again = frame(9, 7, len(changed), checksum(changed)) + changed
    log(tmp_path / "log-000007-1.stlog", again)
    log(tmp_path / "log-000007.stlog", record(7, serial=2), record(8, serial=3))
    with open_trajectory(tmp_path).checkpoint(7) as checkpoint:
        assert (checkpoint.read("w") == 70).all()
    assert [index.path.name for index in scan_folder(tmp_path, [p.name for p in tmp_path.iterdir()])] == [
        "log-000007.stlog",
        "log-000007-1.stlog",
    ]


def test_a_folder_counts_before_a_record(tmp_path: Path) -> None:
    log(tmp_path / "log-000007.stlog", record(7))
    file = tmp_path / "step-000007/model.safetensors"
    file.parent.mkdir()
    file.write_bytes(safetensors_bytes(tensors(70)))
    trajectory = open_trajectory(tmp_path)
    assert trajectory.steps == [7]
    assert (trajectory.checkpoint(7).read("w") == 70).all()


@pytest.mark.parametrize("keep", [1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 9, -1])
def test_a_torn_end_is_left_out_and_named(tmp_path: Path, keep: int) -> None:
    whole = record(0) + record(1)
    file = log(tmp_path / "log-000000.stlog", whole, record(2)[:keep])
    index = scan(file)
    assert [r.step for r in index.records] == [0, 1]
    assert (index.end, index.torn) == (len(whole), True)
    trajectory = open_trajectory(tmp_path)
    assert trajectory.steps == [0, 1]
    (skip,) = trajectory.skipped
    assert skip.name == "log-000000.stlog"
    assert "cut short or still being written" in skip.reason
    assert f"from {len(whole)} on" in skip.reason


@pytest.mark.parametrize("at", range(FRAME_BYTES))
def test_every_damaged_byte_of_a_frame_is_noticed(tmp_path: Path, at: int) -> None:
    first, bad = record(0), bytearray(record(1))
    bad[at] ^= 0x10
    index = scan(log(tmp_path / "log-000000.stlog", first, bytes(bad), record(2)))
    assert [r.step for r in index.records] == [0]
    assert not index.torn
    assert index.skip is not None
    assert "damaged: no record begins there" in index.skip.reason


def test_damaged_data_is_found_by_reading_it_whole(tmp_path: Path) -> None:
    bad = bytearray(record(1))
    bad[-1] ^= 1
    path = log(tmp_path / "log-000000.stlog", record(0), bytes(bad))
    index = scan(path)
    assert [record_fault(path, r) for r in index.records] == [
        "",
        f"{path}, step 1: the bytes from {index.records[1].offset:,} on are not those that were written",
    ]


def test_a_record_that_is_no_safetensors_file(tmp_path: Path) -> None:
    junk = b"\xff" * 64
    path = log(tmp_path / "log-000000.stlog", frame(0, 0, 64, checksum(junk)) + junk)
    with pytest.raises(FormatError, match=r"log-000000\.stlog: truncated or no safetensors file"):
        open_trajectory(tmp_path).checkpoint(0)
    assert "no safetensors file" in record_fault(path, scan(path).records[0])


@pytest.mark.parametrize(
    ("step", "length", "every"),
    [(10**18 + 1, 100, 1), (2**64 - 1, 100, 1), (0, 0, 1), (0, 9, 1), (0, 100, 0), (0, 100, 2), (0, 100, 2**32 - 1)],
)
def test_claims_that_no_writer_makes(tmp_path: Path, step: int, length: int, every: int) -> None:
    index = scan(log(tmp_path / "log-000000.stlog", frame(0, step, length, 0, every), bytes(length)))
    assert (index.records, index.torn) == ([], False)


def test_a_huge_length_is_a_torn_record(tmp_path: Path) -> None:
    index = scan(log(tmp_path / "log-000000.stlog", frame(0, 0, 2**64 - 1, 0), bytes(100)))
    assert (index.records, index.torn) == ([], True)


def test_a_log_may_grow_while_it_is_read(tmp_path: Path) -> None:
    path = log(tmp_path / "log-000000.stlog", record(0))
    trajectory = open_trajectory(tmp_path)
    checkpoint = trajectory.checkpoint(0)
    checkpoint.close()
    with path.open("ab") as file:
        file.write(record(1))
    assert (checkpoint.read("w") == 0).all()
    assert trajectory.steps == [0]
    assert open_trajectory(tmp_path).steps == [0, 1]


def test_a_log_that_was_replaced(tmp_path: Path) -> None:
    path = log(tmp_path / "log-000000.stlog", record(0))
    checkpoint = open_trajectory(tmp_path).checkpoint(0)
    checkpoint.close()
    log(tmp_path / "new", record(1)).replace(path)
    with pytest.raises(FormatError, match="was replaced or rewritten while it was in use"):
        checkpoint.read("w")


def test_a_lone_log_is_a_trajectory_with_its_run(tmp_path: Path) -> None:
    run = {"family": "transformer", "config": {"layers": 1}, "tied": {"u": "w"}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": 0.5}\n')
    path = log(tmp_path / "moved.bin", record(3), record(4))
    trajectory = open_trajectory(path)
    assert trajectory.steps == [3, 4]
    checkpoint = trajectory.checkpoint(4)
    assert checkpoint.config == {"layers": 1, "ckpt_family": "transformer"}
    assert checkpoint.aliases == {"u": "w"}
    np.testing.assert_array_equal(trajectory.metrics()["loss"], [np.nan, 0.5])


def test_a_log_is_no_single_checkpoint(tmp_path: Path) -> None:
    path = log(tmp_path / "log-000003.stlog", record(3), record(4))
    with pytest.raises(SourceError, match=r"is a log of 2 checkpoints, not one of them.*as a trajectory"):
        open_checkpoint(path)
    with pytest.raises(SourceError, match=r"is a run whose checkpoints lie in logs\. Open it as a trajectory"):
        open_checkpoint(tmp_path)
    with open_checkpoint(log(tmp_path / "one.stlog", record(5))) as only:
        assert (only.read("w") == 5).all()


def test_a_log_without_whole_records(tmp_path: Path) -> None:
    log(tmp_path / "log-000000.stlog", record(0)[:50])
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(SourceError, match="is a run without checkpoints yet"):
        open_trajectory(tmp_path)


def test_records_have_no_parts(tmp_path: Path) -> None:
    log(tmp_path / "log-000000.stlog", record(0))
    with pytest.raises(SourceError, match="one set of weights, so no part 'ema'"):
        open_trajectory(tmp_path, part="ema").checkpoint(0)


def test_files_of_another_name_are_no_logs(tmp_path: Path) -> None:
    for name in ("log.stlog", ".log-000000.stlog", "log-1.txt", "log-000000.stlog.tmp"):
        log(tmp_path / name, record(0))
    assert list(latest(scan_folder(tmp_path, [p.name for p in tmp_path.iterdir()]))) == []


def test_a_log_file_survives_pickling(tmp_path: Path) -> None:
    file = LogFile(log(tmp_path / "log-000000.stlog", record(0)))
    assert type(pickle.loads(pickle.dumps(file))) is LogFile


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=12))
def test_later_records_win(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, bool]]) -> None:
    folder = tmp_path_factory.mktemp("logs")
    expected: dict[int, int] = {}
    files: dict[bool, bytes] = {False: b"", True: b""}
    for serial, (step, second) in enumerate(rows):
        data = safetensors_bytes(tensors(serial))
        files[second] += frame(serial, step, len(data), checksum(data)) + data
        expected[step] = serial
    log(folder / "log-000000.stlog", files[False])
    log(folder / "log-000001.stlog", files[True])
    found = latest(scan_folder(folder, ["log-000000.stlog", "log-000001.stlog"]))
    assert {r.step: r.serial for _, r in found} == expected

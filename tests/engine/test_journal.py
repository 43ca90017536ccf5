"""The journal: what was acknowledged is there, whatever happens to the process."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckpt_tools.engine.journal import Journal, unit_key
from ckpt_tools.engine.records import decode, encode
from ckpt_tools.errors import ResultsError
from ckpt_tools.results import Record

RECORD = Record(
    7, {"x": np.array([1.5, np.nan]), "t": np.array([["a", "ü\0"]])}, {"m": ["p/q", "r"], "n": np.arange(2)}
)


def same(one: Record, other: Record) -> bool:
    if one.step != other.step or one.values.keys() != other.values.keys():
        return False
    values = all(
        a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in ((one.values[n], other.values[n]) for n in one.values)
    )
    return values and {d: list(v) for d, v in one.labels.items()} == {d: list(v) for d, v in other.labels.items()}


@given(
    hnp.arrays(
        st.sampled_from(["f8", "f4", "i8", "i1"]), hnp.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=4)
    )
)
def test_records_survive_encoding(array: np.ndarray) -> None:
    assert same(decode(encode(Record(3, {"x": array}, {}))), Record(3, {"x": array}, {}))


def test_texts_labels_and_nan_survive_encoding() -> None:
    assert same(decode(encode(RECORD)), RECORD)
    assert isinstance(decode(encode(RECORD)).labels["m"], list)


def test_hashes_and_paths_come_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_tools.engine.records._LOADED", 2)
    with Journal(tmp_path / "r.h5") as journal:
        for step in (1, 2, 4, 5, 9):
            journal.show("rank", step, f"key {step}")
            if step != 4:
                journal.see(step, hash=f"hash {step}", path=f"path {step}", sighting="")
        journal.see(7, hash="of a checkpoint without results", path="", sighting="")
        steps, hashes, paths = journal.checkpoints()
        assert list(steps) == [1, 2, 4, 5, 9]
        assert list(hashes) == ["hash 1", "hash 2", "", "hash 5", "hash 9"] and hashes[-1] == "hash 9"
        assert paths[1:4] == ["path 2", "", "path 5"] and paths[0] == "path 1" and paths[5:] == []


def test_units_are_found_by_key_and_failures_do_not_count(tmp_path: Path) -> None:
    with Journal(tmp_path / "r.h5") as journal:
        journal.put("a", "rank", RECORD)
        journal.put_failure("rank", 8, "unreadable")
    with Journal(tmp_path / "r.h5") as journal:
        assert journal.has(["a", "b", "c"]) == {"a"}
        assert journal.steps("rank").tolist() == [7] and journal.failures("rank") == {"8": "unreadable"}
        assert same(journal.record("rank", 7), RECORD)
        records = journal.records("rank")
        assert len(records) == 1 and same(records[0], RECORD) and len(records[0:2]) == 1
        with pytest.raises(ResultsError, match="lost rank at step 8"):
            journal.record("rank", 8)


def test_a_unit_is_acknowledged_while_the_next_one_takes_long(tmp_path: Path) -> None:
    with Journal(tmp_path / "r.h5") as journal:
        journal.put("a", "rank", RECORD)
        other = sqlite3.connect(journal.path)
        deadline = time.monotonic() + 20
        while not other.execute("SELECT 1 FROM unit").fetchall():
            assert time.monotonic() < deadline, "nobody committed"
            time.sleep(0.02)
        other.close()


def test_what_is_put_together_is_there_together_or_not_at_all(tmp_path: Path) -> None:
    with Journal(tmp_path / "r.h5") as journal:
        journal.put("a", "rank", RECORD)
        with pytest.raises(KeyboardInterrupt), journal.group():
            journal.put("b", "drift", RECORD)
            raise KeyboardInterrupt
    with Journal(tmp_path / "r.h5") as journal:
        assert journal.has(["a", "b"]) == {"a"} and journal.steps().tolist() == [7]


def test_keys_depend_on_every_part_and_not_on_order() -> None:
    assert unit_key(a=1, b={"x": 1, "y": 2}) == unit_key(b={"y": 2, "x": 1}, a=1)
    assert unit_key(a=1) != unit_key(a=2) and unit_key(a=1) != unit_key(b=1)


def test_a_second_writer_is_refused_and_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ckpt_tools.engine.journal import Journal\n"
        f"journal = Journal(Path({str(tmp_path / 'r.h5')!r})); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(ResultsError, match="Another ckpt analyze is writing"):
        Journal(tmp_path / "r.h5")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    Journal(tmp_path / "r.h5").close()


def test_acknowledged_units_survive_kill_9(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from ckpt_tools.engine.journal import Journal; from ckpt_tools.results import Record\n"
        f"journal = Journal(Path({str(tmp_path / 'r.h5')!r}))\n"
        "for i in range(10**6):\n"
        "    journal.put(str(i), 'x', Record(i, {'x': np.full(50, i * 1.0)}, {})); journal.commit()\n"
        "    print(i, flush=True)\n"
    )
    rng = np.random.default_rng(0)
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(float(rng.uniform(0.01, 0.3)))
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = [line for line in writer.stdout.read().split("\n")[:-1] if line]
        writer.wait()
        writer.stdout.close()
        with Journal(tmp_path / "r.h5") as journal:
            assert set(acknowledged) <= journal.has([str(i) for i in range(len(acknowledged) + 2)])
            if acknowledged:
                assert journal.record("x", int(acknowledged[-1])).values["x"][0] == float(acknowledged[-1])


def test_damage_and_other_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.h5.journal").write_bytes(b"not a database" * 100)
    with pytest.raises(ResultsError, match=r"Cannot keep the journal .*r\.h5\.journal"):
        Journal(tmp_path / "r.h5")
    with sqlite3.connect(tmp_path / "new.h5.journal") as db:
        db.execute("CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT)")
        db.execute("INSERT INTO fact VALUES ('format', '99')")
    db.close()
    with pytest.raises(ResultsError, match="format 99"):
        Journal(tmp_path / "new.h5")


def test_another_format_is_refused_and_replaced_when_asked(tmp_path: Path) -> None:
    with Journal(tmp_path / "r.h5") as journal:
        journal.put("a", "rank", RECORD)
        journal.put_facts({"format": "1"})
    with pytest.raises(ResultsError, match=r"journal of format 1; this version writes 2\. Add --force"):
        Journal(tmp_path / "r.h5")
    with Journal(tmp_path / "r.h5", fresh=True) as journal:
        assert journal.has(["a"]) == set()

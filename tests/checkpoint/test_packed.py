"""Rows of small things in little memory: what comes out is what went in."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools import open_trajectory
from ckpt_tools.checkpoint.log import Record
from ckpt_tools.checkpoint.packed import Entries, Entry, Texts
from ckpt_tools.errors import SourceError


@given(st.lists(st.text(max_size=6)), st.text(max_size=4))
def test_texts_come_back(texts: list[str], start: str) -> None:
    found = Texts([f"step-{text}" for text in texts], start)
    assert list(found) == found[:] == [f"{start}step-{text}" for text in texts]
    assert found[::-2] == list(found)[::-2] and len(found) == len(texts)
    if texts:
        assert found[-1] == f"{start}step-{texts[-1]}"


def test_names_that_are_no_utf8_come_back() -> None:
    names = [f"step-{i}-\udcff" for i in range(3)]
    assert list(Texts(names)) == names
    with pytest.raises(IndexError):
        Texts(names)[3]


def test_entries_of_folders_and_of_records() -> None:
    entries = [Entry(0, Path("run/step-0")), *(Entry(i, Path("run/log"), Record(i, i, 2**40, 9, 1, 5)) for i in (3, 9))]
    packed = Entries.of(entries)
    assert list(packed) == entries and packed[-1] == entries[-1] and packed[:2] == entries[:2]
    assert packed.at(3) == entries[1] and packed.at(4) is None and packed.at(10) is None and Entries().at(0) is None
    assert packed == pickle.loads(pickle.dumps(packed)) != Entries.of(entries[:2])


def test_a_long_trajectory_takes_little(tmp_path: Path) -> None:
    for step in range(500):
        (tmp_path / "a folder with a long name" / f"step-{step:06d}").mkdir(parents=True)
    trajectory = open_trajectory(tmp_path / "a folder with a long name")
    assert [entry.path.name for entry in trajectory.entries] == [f"step-{step:06d}" for step in range(500)]
    assert len(pickle.dumps(trajectory.entries)) < 500 * 25
    with pytest.raises(SourceError, match=r"there is no step 500; nearest: 499 \(500 steps from 0 to 499\)"):
        trajectory.entry(500)

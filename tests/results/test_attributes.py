import math
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.results.attributes import get, plain, put, storable

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)


def memory():
    """An HDF5 file that never touches the disk."""
    return h5py.File("memory", "w", driver="core", backing_store=False)


PLAIN = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True), PLAIN, max_size=5))
def test_facts_come_back_as_they_were(facts):
    with memory() as file:
        put(file, facts)
        found = get(file, "here")
    assert found == facts
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in facts.items()}


def test_attributes_are_types_netcdf_has():
    with memory() as file:
        put(file, {"flag": True, "many": [1, 2], "large": 2**70, "none": None, "number": np.float32(0.5)})
        assert dict(file.attrs) == {
            "flag": "true",
            "many": "[1, 2]",
            "large": str(2**70),
            "number": 0.5,
            "json_attributes": '["flag", "many", "large"]',
        }


def test_a_name_that_is_no_identifier_is_refused():
    with memory() as file, pytest.raises(ValueError, match="'a/b'"):
        put(file, {"a/b": 1})


def test_plain_data_has_no_numpy_no_paths_and_no_nan():
    value = {"a": np.arange(2), 3: {"z", "b"}, "p": Path("x/y"), "t": (None,)}
    value["n"] = [math.nan, math.inf, np.float32(1.5)]
    expected = {"a": [0, 1], "3": ["b", "z"], "p": "x/y", "n": [None, None, 1.5], "t": [None]}
    assert plain(value) == expected


def test_texts_hdf5_cannot_hold_are_escaped():
    assert storable("a\0b\ud800") == "a\\x00b\\ud800"
    assert storable("модель/слой") == "модель/слой"

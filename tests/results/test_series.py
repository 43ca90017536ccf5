import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.analyzer import Analyzer, Out
from ckpt_tools.errors import PluginError, ResultsError
from ckpt_tools.results import Series, check


class Share(Analyzer):
    """One number and one name per matrix, and a spectrum."""

    name = "share"
    outputs = {"share": Out(("matrix",)), "kind": Out(("matrix",), dtype="str"), "count": Out(("k",), dtype="i4")}


def record(step, cells, count=()):
    raw = {"matrix": list(cells), "share": list(cells.values()), "kind": [f"{c:g}" for c in cells.values()]}
    return check(Share(), {**raw, "count": list(count)}, "here", step=step)


def series(*records):
    return Series(Share.outputs, records)


def test_equal_records_are_stacked_in_step_order():
    found = series(record(10, {"a": 1.0, "b": 2.0}, [1]), record(0, {"a": 3.0, "b": 4.0}, [2]))
    assert found.steps.tolist() == [0, 10]
    assert found["share"].tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert found["count"].tolist() == [[2], [1]]
    assert found.labels("matrix") == ["a", "b"]
    assert found.labels("k") == [0]
    assert found.labels("step") == [0, 10]


def test_labels_are_joined_in_the_order_first_seen_and_absent_cells_filled():
    found = series(record(0, {"b": 1.0}, [5, 6]), record(1, {"a": 2.0, "b": 3.0}), record(2, {}, [7]))
    assert found.labels("matrix") == ["b", "a"]
    np.testing.assert_array_equal(found["share"], [[1, np.nan], [3, 2], [np.nan, np.nan]])
    assert found["kind"].tolist() == [["1", ""], ["3", "2"], ["", ""]]
    assert found["count"].tolist() == [[5, 6], [-1, -1], [7, -1]]


@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.floats(allow_nan=False), max_size=6), max_size=6))
def test_every_cell_is_found_again_under_its_label(rows):
    found = series(*(record(step, row) for step, row in enumerate(rows)))
    labels = found.labels("matrix")
    assert labels == list(dict.fromkeys(label for row in rows for label in row))
    assert found["share"].shape == found.shape("share") == (len(rows), len(labels))
    for step, row in enumerate(rows):
        got = dict(zip(labels, found["share"][step].tolist(), strict=True))
        assert {label: got[label] for label in row} == row
        assert all(np.isnan(value) for label, value in got.items() if label not in row)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 4))
def test_blocks_joined_are_the_whole(lengths, size):
    rows = [record(i, {c: float(i) for c in "abcd"[:n]}, range(n)) for i, n in enumerate(lengths)]
    found = series(*rows)
    blocks = [found.block(i, min(i + size, len(found))) for i in range(0, len(found), size)]
    for name in found:
        np.testing.assert_array_equal(np.concatenate([b[name] for b in blocks]), found[name])


def test_records_may_come_from_a_sequence_that_loads_them_on_demand():
    class Store:
        """Counts how many records are held at once."""

        def __init__(self):
            self.loaded = 0

        def __len__(self):
            return 6

        def __getitem__(self, index):
            if index >= len(self):
                raise IndexError(index)
            self.loaded += 1
            return record(index, {"a": float(index)})

    store = Store()
    found = Series(Share.outputs, store)
    assert store.loaded == 6
    assert found.block(2, 4)["share"].tolist() == [[2.0], [3.0]]
    assert store.loaded == 8


def test_arrays_are_read_only_because_they_are_shared():
    found = series(record(0, {"a": 1.0}))
    with pytest.raises(ValueError, match="read-only"):
        found["share"][0] = 0


def test_an_empty_series_has_its_outputs():
    found = series()
    assert (len(found), found["share"].shape, found["kind"].dtype.kind) == (0, (0, 0), "U")
    assert list(found) == ["share", "kind", "count"] and "share" in found and "x" not in found


def test_unknown_names_get_the_nearest():
    found = series(record(0, {"a": 1.0}))
    with pytest.raises(PluginError, match=r"no output 'shares'\. Did you mean 'share'\?"):
        found["shares"]
    with pytest.raises(PluginError, match=r"no dimension 'matrx'\. Did you mean 'matrix'\?"):
        found.labels("matrx")


def test_a_step_may_occur_once():
    with pytest.raises(ResultsError, match="more than one record of step 3"):
        series(record(3, {"a": 1.0}), record(3, {"a": 1.0}))


@pytest.mark.parametrize(
    ("labels", "kinds"),
    [(["x"], "labelled by texts at step 1 but numbered at step 0"), ([5], "labelled by numbers at step 1")],
)
def test_a_dim_keeps_its_kind_of_labels(labels, kinds):
    class One(Analyzer):
        """One output."""

        name = "one"
        outputs = {"x": Out(("i",))}

    first = check(One(), {"x": [1.0]}, "here", step=0)
    second = check(One(), {"x": [1.0], "i": labels}, "here", step=1)
    with pytest.raises(PluginError, match=kinds):
        Series(One.outputs, [first, second])


def test_numeric_labels_are_joined_too():
    class One(Analyzer):
        """One output."""

        name = "one"
        outputs = {"x": Out(("i",))}

    rows = [check(One(), {"x": [1.0, 2.0], "i": i}, "here", step=s) for s, i in enumerate(([3, 1], [2.5, 3]))]
    found = Series(One.outputs, rows)
    assert found.labels("i") == [3.0, 1.0, 2.5]
    np.testing.assert_array_equal(found["x"], [[1, 2, np.nan], [2, np.nan, 1]])


def test_long_series_are_joined_whatever_their_parts_hold():
    """Records are loaded a few dozen at a time: widths of texts, labels and lengths may differ between the lots."""
    records = [record(s, {"a": 10.0**s, **({"late": 1.0} if s > 100 else {})}, range(s % 3)) for s in range(130)]
    found = series(*records)
    assert found["kind"][:, 0].tolist() == [f"{10.0**s:g}" for s in range(130)]
    assert found["share"][:, 0].tolist() == [10.0**s for s in range(130)]
    assert np.isnan(found["share"][:101, 1]).all() and (found["share"][101:, 1] == 1).all()
    assert found["kind"][:101, 1].tolist() == [""] * 101 and found["count"].shape == (130, 2)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.integers(0, 9), st.integers(0, 9))
def test_a_part_is_cut_from_the_whole(lengths, start, stop):
    found = series(*(record(-i, {c: float(i) for c in "ab"[:n]}, range(n)) for i, n in enumerate(lengths)))
    start, stop = sorted((min(start, len(lengths)), min(stop, len(lengths))))
    for name in found:
        part = found.part(name, start, stop)
        np.testing.assert_array_equal(part, found[name][start:stop])
        assert part.dtype == found[name].dtype or (part.dtype.kind == "U" and not part.size) or name == "kind"


def test_more_steps_than_are_loaded_at_once():
    found = series(*(record(i, {"a": float(i), "b" * (i % 3 + 1): -1.0}) for i in range(200)))
    assert found["share"][:, 0].tolist() == list(range(200)) and found["kind"][199, 0] == "199"
    assert found.part("share", 60, 140)[:, 0].tolist() == list(range(60, 140))


def test_what_is_forgotten_is_made_again():
    found = series(record(0, {"a": 1.0}), record(1, {"a": 2.0}))
    before = found["share"]
    assert found["share"] is before
    found.forget()
    assert found["share"] is not before and np.array_equal(found["share"], before)

import pickle

import numpy as np
import pytest

from ckpt_tools.analyzer import Analyzer, Out
from ckpt_tools.errors import PluginError
from ckpt_tools.results import check, check_batch, check_summary


class Rank(Analyzer):
    """Ranks of matrices."""

    name = "rank"
    outputs = {"share": Out(("matrix",)), "spectrum": Out(("matrix", "k")), "count": Out(dtype="i4")}


class One(Analyzer):
    """One output of a chosen kind."""

    name = "one"

    def __init__(self, dtype, dims=("i",)):
        super().__init__()
        self.outputs = {"x": Out(dims, dtype=dtype)}


def good():
    return {"matrix": ["a", "b"], "share": [0.5, 1.0], "spectrum": [[3.0, 1.0], [2.0, 2.0]], "count": 7}


def faults(analyzer, raw):
    with pytest.raises(PluginError) as caught:
        check(analyzer, raw, "step 4 of run")
    head, *lines = str(caught.value).split("\n  - ")
    assert repr(analyzer.name) in head and "step 4 of run" in head
    return lines


def test_a_sound_record_keeps_values_dtypes_and_labels():
    record = check(Rank(), good(), "here", step=4)
    assert record.step == 4
    assert record.labels == {"matrix": ["a", "b"]}
    assert {n: (v.dtype.name, v.shape) for n, v in record.values.items()} == {
        "share": ("float64", (2,)),
        "spectrum": ("float64", (2, 2)),
        "count": ("int32", ()),
    }
    assert record.values["spectrum"].tolist() == [[3.0, 1.0], [2.0, 2.0]]


def test_arrays_are_copied_because_analyzers_may_return_reused_buffers():
    buffer = np.ones(2)
    record = check(One("f8"), {"x": buffer}, "here")
    buffer[:] = 9
    assert record.values["x"].tolist() == [1.0, 1.0]


def test_all_faults_are_told_at_once():
    raw = {"matrx": ["a"], "spectrum": [1.0, 2.0], "count": 2.5}
    lines = faults(Rank(), raw)
    assert len(lines) == 4
    assert "'matrx'" in lines[0] and "Did you mean 'matrix'?" in lines[0]
    assert lines[1] == "missing output 'share' (dims matrix)"
    assert "shape (2,)" in lines[2] and "matrix, k" in lines[2]
    assert "2.5" in lines[3] and "int32" in lines[3]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"share": [1.0, 2.0, 3.0]}, "'share' has 3 entries along 'matrix', but its labels have 2"),
        ({"matrix": ["a", "a"]}, "'a' occurs more than once"),
        ({"matrix": "ab"}, "no list of texts or numbers"),
        ({"matrix": ["a", 1]}, "mixed"),
        ({"matrix": [1.0, float("nan")]}, "finite"),
        ({"matrix": [True, False]}, "neither text nor number"),
        ({"share": [None, 1.0]}, "Python objects such as None"),
        ({"share": ["1", "2"]}, "holds text such as '1', declared is float64"),
        ({"share": [1 + 2j, 0]}, "complex128"),
        ({"share": {"a": 1.0}}, "Python objects"),
        ({"share": [[1.0], [2.0, 3.0]]}, "different lengths"),
        ({"share": np.ma.masked_equal([1.0, 2.0], 2.0)}, "masked"),
        ({"count": 2**31}, "does not fit"),
        ({"count": float("nan")}, "does not fit"),
        ({"spectrum": [[1.0, 2.0], ["x"]]}, "holds text"),
    ],
)
def test_each_fault_is_named(change, expected):
    lines = faults(Rank(), {**good(), **change})
    assert len(lines) == 1
    assert expected in lines[0]


def test_lengths_without_labels_must_agree_between_outputs():
    raw = {"share": [1.0, 2.0], "spectrum": np.ones((3, 2)), "count": 0}
    assert "'spectrum' has 3 entries along 'matrix', but output 'share' has 2" in faults(Rank(), raw)[0]


@pytest.mark.parametrize(
    ("dtype", "value", "stored"),
    [
        ("f8", [1, True, 2.5], [1.0, 1.0, 2.5]),
        ("f4", [1.5, float("inf"), 0], [1.5, float("inf"), 0.0]),
        ("i8", [1.0, -3.0], [1, -3]),
        ("i4", np.array([1, 2], dtype=">u2"), [1, 2]),
        ("i1", [True, False], [1, 0]),
        ("str", ["ü/x", ""], ["ü/x", ""]),
        ("str", [], []),
        ("f8", np.array([1, 2], dtype=np.float16), [1.0, 2.0]),
    ],
)
def test_values_become_the_declared_dtype_when_nothing_is_lost(dtype, value, stored):
    values = check(One(dtype), {"x": value}, "here").values["x"]
    assert values.tolist() == stored
    assert values.dtype.kind == "U" if dtype == "str" else values.dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    ("dtype", "value"), [("f4", [1e300]), ("i8", [np.uint64(2**63)]), ("i1", [128]), ("i8", [0.5]), ("str", [1])]
)
def test_values_that_would_change_are_refused(dtype, value):
    assert len(faults(One(dtype), {"x": value})) == 1


@pytest.mark.parametrize(("dtype", "missing"), [("f8", np.nan), ("i4", -1), ("str", "")])
def test_ragged_rows_are_padded(dtype, missing):
    one = np.array([1, 2, 3]).astype("U" if dtype == "str" else dtype)
    values = check(One(dtype, ("i", "j")), {"x": [one, one[:1], []]}, "here").values["x"]
    expected = [[*one.tolist()], [one[0].item(), missing, missing], [missing] * 3]
    np.testing.assert_array_equal(values, np.array(expected).astype(values.dtype))


def test_nested_ragged_rows_are_padded_along_every_inner_dim():
    raw = {"x": [[[1.0, 2.0], [3.0]], [[4.0]]]}
    values = check(One("f8", ("i", "j", "k")), raw, "here").values["x"]
    expected = [[[1, 2], [3, np.nan]], [[4, np.nan], [np.nan, np.nan]]]
    np.testing.assert_array_equal(values, expected)


def test_padded_rows_widen_to_the_length_other_outputs_give_but_never_beyond_labels():
    class Two(Analyzer):
        """Two outputs that share a dim."""

        name = "two"
        outputs = {"rows": Out(("i", "k")), "width": Out(("k",))}

    values = check(Two(), {"rows": [[1.0], [1.0, 2.0]], "width": [0.0] * 3}, "here").values["rows"]
    np.testing.assert_array_equal(values, [[1, np.nan, np.nan], [1, 2, np.nan]])
    assert "padded rows reach 2" in faults(Two(), {"rows": [[1.0], [1.0, 2.0]], "width": [0.0]})[0]
    labelled = {"rows": [[1.0], [1.0, 2.0]], "width": [0.0] * 3, "k": [1, 2, 4]}
    assert "its labels have 3" in faults(Two(), labelled)[0]


def test_nothing_found_is_a_record_too():
    record = check(Rank(), {"matrix": [], "share": [], "spectrum": [], "count": 0}, "here")
    assert record.values["spectrum"].shape == (0, 0)
    assert record.labels["matrix"] == []


def test_numeric_labels_keep_their_kind():
    def kind(labels):
        return check(One("f8"), {"i": labels, "x": [0.0, 0.0]}, "here").labels["i"].dtype.name

    assert (kind([3, 1]), kind([0.1, 1]), kind(np.array([1, 2], dtype=np.uint8))) == ("int64", "float64", "int64")


def test_labels_may_be_any_iterable_of_texts():
    for labels in ({"a": 0, "b": 1}.keys(), ("a", "b"), np.array(["a", "b"])):
        found = check(One("f8"), {"i": labels, "x": [0.0, 0.0]}, "here").labels["i"]
        assert found == ["a", "b"] and all(type(label) is str for label in found)


def test_something_else_than_a_dict_is_named():
    assert faults(Rank(), [1, 2]) == ["analyze returned list, expected a dict of outputs and labels"]


def test_a_batch_becomes_one_record_per_step():
    raw = {"matrix": ["a", "b"], "share": [[1, 2], [3, 4], [5, 6]], "spectrum": np.zeros((3, 2, 4)), "count": [7, 8, 9]}
    records = check_batch(Rank(), raw, "steps 0 to 20", steps=[0, 10, 20])
    assert [r.step for r in records] == [0, 10, 20]
    assert [r.values["share"].tolist() for r in records] == [[1, 2], [3, 4], [5, 6]]
    assert [r.values["count"].item() for r in records] == [7, 8, 9]
    assert records[0].values["count"].shape == ()


def test_a_batch_must_have_as_many_entries_as_steps():
    raw = {"share": np.zeros((3, 2)), "spectrum": np.zeros((2, 2, 4)), "count": [0, 0]}
    with pytest.raises(PluginError, match=r"'share' has 3 entries along 'step', but the step axis has 2"):
        check_batch(Rank(), raw, "here", steps=[0, 1])


def test_a_summary_becomes_plain_data():
    raw = {"onset": np.int64(120), "stages": (1, np.float64("nan")), "curve": np.arange(2), "name": "I"}
    assert check_summary(Rank(), raw, "run") == {"onset": 120, "stages": [1, None], "curve": [0, 1], "name": "I"}
    with pytest.raises(PluginError, match=r"summary 'x': object cannot be stored") as caught:
        check_summary(Rank(), {"x": object(), "y": lambda: 0}, "run")
    assert str(caught.value).count("\n") == 2
    with pytest.raises(PluginError, match="expected a dict of facts"):
        check_summary(Rank(), None, "run")


def test_records_travel_between_processes():
    record = check(Rank(), good(), "here", step=4)
    copy = pickle.loads(pickle.dumps(record))
    assert (copy.step, copy.labels) == (record.step, record.labels)
    assert all(np.array_equal(copy.values[name], value) for name, value in record.values.items())

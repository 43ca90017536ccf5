import numpy as np
import pytest

from ckpt_tools.report.timeline import lanes
from ckpt_tools.results.reader import ResultGroup


def group(summary, events=None, last=40):
    return ResultGroup("some", {"summary": summary, "events": events or {}}, {"step": np.array([0, last])}, {})


def told(summary, events=None):
    return [(e.step, e.stop, e.name, e.text) for lane in lanes(group(summary, events)) for e in lane.events]


def test_declared_sentences_name_what_stands_beside_the_step():
    summary = {"token": [1, 2], "mass": [0.75, 0.5], "on": 0, "focus_step": [10, 20]}
    events = {"focus_step": "focus of {token}: on {on}, with {mass}, {unknown}."}
    assert told(summary, events) == [
        (10, None, "focus of 1", "on 0, with 0.75, ?."),
        (20, None, "focus of 2", "on 0, with 0.5, ?."),
    ]


def test_a_pair_of_facts_is_a_span_and_one_without_end_lasts():
    summary = {"a_step": [10, 20, -1], "b_step": [30, -1, -1]}
    assert told(summary, {"a_step..b_step": "on: and off."}) == [(10, 30, "on", "and off."), (20, 40, "on", "and off.")]


def test_spans_that_overlap_lie_in_rows_of_their_own():
    rows = lanes(group({"a_step": [0, 10], "b_step": [30, 20], "c_step": 35}, {"a_step..b_step": "x", "c_step": "y"}))
    assert [[e.step for e in row.events] for row in rows] == [[0, 35], [10]]
    assert [row.name for row in rows] == ["some", ""]


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ({"loss_onset": 5}, [(5, None, "loss onset", "loss onset")]),
        ({"fastest_step": 5, "fastest": 3.0}, [(5, None, "fastest", "fastest")]),
        ({"order": [{"group": "embed", "step": 3}]}, [(3, None, "order", "embed")]),
        ({"onset_step": {"input": {"q": 7, "k": None}}}, [(7, None, "onset", "input, q")]),
        ({"ratio": 5, "steps_taken": 9}, []),
        ({"x_step": [True, "5", None, float("nan"), float("inf"), -1, 10**400]}, []),
        ({"x_step": {"a": {"b": {"c": {"d": {"e": 5}}}}}}, []),
    ],
)
def test_without_declaration_names_decide(summary, expected):
    assert told(summary) == expected


def test_columns_of_a_curve_are_its_segments():
    summary = {"loss_kind": ["plateau", "descent"], "loss_start": [0, 20], "loss_stop": [20, 40], "loss_onset": 5}
    first, second = lanes(group(summary))
    assert first.segments and first.name == "loss"
    assert [(e.step, e.stop, e.name) for e in first.events] == [(0, 20, "1 plateau"), (20, 40, "2 descent")]
    assert [e.name for e in second.events] == ["loss onset"]


@pytest.mark.parametrize("summary", [None, [], {"a_kind": 3, "a_start": None, "a_stop": {}}, {"a_kind": [1]}])
def test_odd_summaries_give_nothing(summary):
    assert lanes(group(summary)) == []


def test_many_events_are_counted():
    (row,) = lanes(group({"x_step": {f"m{i}": i for i in range(100)}}))
    assert len(row.events) == 60 and row.more == 40

"""Schedules: unions of rules, always with the first and the last step."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.errors import OptionError
from ckpt_tools.run.schedule import Schedule, log_steps


@pytest.mark.parametrize(
    ("text", "last", "steps"),
    [
        ("every:20", 50, [0, 20, 40, 50]),
        ("every:20,every:30", 60, [0, 20, 30, 40, 60]),
        ("at:0,1,2", 5, [0, 1, 2, 5]),
        ("at:7", 5, [0, 5]),
        (" every:4 , at: 1,2 ", 9, [0, 1, 2, 4, 8, 9]),
        ("log:2", 100, [0, 100]),
        ("log:4", 100, [0, 1, 10, 100]),
        ("log:50", 3, [0, 1, 2, 3]),
        ("every:3,at:1,4,log:3", 8, [0, 1, 3, 4, 6, 8]),
        ("every:5", 0, [0]),
    ],
)
def test_steps(text: str, last: int, steps: list[int]) -> None:
    assert Schedule.parse(text).steps(last) == steps


@given(count=st.integers(2, 400), last=st.integers(0, 100_000))
def test_log_steps_are_as_many_as_asked(count: int, last: int) -> None:
    steps = log_steps(count, last)
    assert len(steps) == min(count, last + 1)
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, last)


def test_log_steps_grow_by_a_constant_factor() -> None:
    steps = log_steps(42, 10**8)[20:]
    factors = [b / a for a, b in pairwise(steps)]
    assert max(factors) / min(factors) < 1.01


rules = st.lists(st.integers(1, 50), max_size=2).map(tuple)
schedules = st.builds(
    Schedule, rules, rules.map(lambda t: tuple(n + 1 for n in t)), st.lists(st.integers(0, 99)).map(tuple)
)


@given(schedule=schedules, last=st.integers(0, 200))
def test_due_agrees_with_steps(schedule: Schedule, last: int) -> None:
    steps = schedule.steps(last)
    assert [s for s in range(last + 1) if schedule.due(s, last)] == steps
    assert {0, last} <= set(steps)
    if str(schedule):
        assert Schedule.parse(str(schedule)) == schedule


def test_due_without_a_known_end() -> None:
    schedule = Schedule.parse("every:4,at:1,6")
    assert [s for s in range(9) if schedule.due(s)] == [0, 1, 4, 6, 8]
    with pytest.raises(OptionError, match="'log' needs the number of the last step"):
        Schedule.parse("log:5").due(3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("evry:20", "has no rule 'evry'. Did you mean 'every'?"),
        ("20", "'20' names no rule"),
        ("every:20,30", "'30' names no rule"),
        ("every:0", "'every:' needs an integer of at least 1. Got '0'"),
        ("log:1", "'log:' needs an integer of at least 2. Got '1'"),
        ("at:1,-2", "'at:' needs an integer of at least 0. Got '-2'"),
        ("at:", "Got ''"),
        ("every:2.5", "Got '2.5'"),
        ("every:²", "Got '²'"),
        ("", "'' names no rule"),
    ],
)
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Schedule.parse(text)
    assert message in str(caught.value)


def test_negative_end() -> None:
    with pytest.raises(OptionError, match="cannot end at step -1"):
        Schedule().steps(-1)

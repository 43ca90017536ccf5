"""Numbers in names, and the language of `--steps`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.checkpoint.steps import folder_step, gaps, select_steps, step_in_name
from ckpt_tools.errors import SourceError

steps = st.lists(st.integers(0, 10**6), min_size=1, max_size=60, unique=True).map(sorted)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-128", 128), ("step-000007", 7), ("step0", 0), ("step_12", 12), ("global_step1000", 1000),
        ("Step-3", 3), ("epoch_4", 4), ("iter_0000100", 100), 
        ("checkpoint", None), ("checkpoint-best", None), ("checkpoint-5-old", None),
        (".step-5", None), ("step-5.tmp", None), ("my-step-5", None), ("step--5", None), ("step-1e3", None),
        ("step-" + "9" * 5000, None), ("step-٣", None),
    ],
)  # fmt: skip
def test_step_of_a_folder(name, step):
    assert folder_step(name) == step


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("dcp_step7", 7), ("checkpoint-128", 128), ("model_epoch_10.pt", 10), ("pythia-70m-step3000", 3000),
        ("epoch=3-step=500.ckpt", 500), ("model.safetensors", None), ("llama-7b", None), ("iter_0000100", 100),
    ],
)  # fmt: skip
def test_step_mentioned_by_a_name(name, step):
    assert step_in_name(name) == step


SPARSE = [0, 1, 2, 5, 10, 20, 50, 100]


@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        ("all", SPARSE), ("first", [0]), ("last", [100]), ("first,last", [0, 100]),
        ("0:100:10", [0, 10, 20, 50, 100]), ("2:10", [2, 5, 10]), (":5", [0, 1, 2, 5]), ("20:", [20, 50, 100]),
        (":", SPARSE), ("1::9", [1, 10, 100]), ("::50", [0, 50, 100]), ("0:99:50", [0, 50]), ("3:9", [5]),
        ("at:0,1,20", [0, 1, 20]), ("at:5", [5]), ("20, 10", [10, 20]), ("every:5", [0, 5, 10, 20, 50, 100]),
        ("at:1,last,50:60", [1, 50, 100]), ("log:2", [0, 100]), ("log:3", [0, 1, 100]), ("log:50", SPARSE),
    ],
)  # fmt: skip
def test_choices(spec, chosen):
    assert select_steps(SPARSE, spec) == chosen


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("at:3", "there is no step 3; nearest: 2 and 5"), ("500", "nearest: 100 "), ("0:1000:0", "is not understood"),
        ("frist", "'frist' is not understood. Did you mean 'first'"), ("lgo:5", "Did you mean 'log'"),
        ("log:1", "is not understood"), ("every:0", "is not understood"), ("-5:", "is not understood"),
        ("", "'' is not understood"), ("1,,2", "'' is not understood"), ("log:x", "Write for example"),
        ("3:4", "none of the 8 steps from 0 to 100 is meant"), ("1:2:3:4", "is not understood"),
        ("last:5", "is not understood"), ("at:", "is not understood"), ("٣", "is not understood"),
    ],
)  # fmt: skip
def test_mistakes(spec, message):
    with pytest.raises(SourceError, match=message):
        select_steps(SPARSE, spec)


@given(steps=steps, count=st.integers(2, 70))
def test_log_gives_as_many_as_asked_with_both_ends(steps, count):
    chosen = select_steps(steps, f"log:{count}")
    assert len(chosen) == min(count, len(steps))
    assert chosen == sorted(set(chosen)) and set(chosen) <= set(steps)
    assert (chosen[0], chosen[-1]) == (steps[0], steps[-1])


def test_log_leaves_room_for_the_picks_to_come():
    assert select_steps([1, 2, 9, 10, 1000], "log:4") == [1, 9, 10, 1000]


def test_log_is_evenly_spaced_in_the_logarithm():
    chosen = select_steps(range(100_001), "log:32")
    ratios = [b / a for a, b in zip(chosen[-15:], chosen[-14:], strict=False)]
    assert max(ratios) / min(ratios) < 1.02


@given(steps=steps, a=st.integers(0, 10**6), b=st.integers(0, 10**6), stride=st.integers(1, 9))
def test_a_range_is_a_filter_with_both_ends(steps, a, b, stride):
    expected = [s for s in steps if s in range(a, b + 1, stride)]
    if expected:
        assert select_steps(steps, f"{a}:{b}:{stride}") == expected
    else:
        with pytest.raises(SourceError, match="is meant"):
            select_steps(steps, f"{a}:{b}:{stride}")


@pytest.mark.parametrize(
    ("steps", "missing"),
    [
        ([10, 20, 40, 50], [30]), ([0, 10, 20, 60, 70], [30, 40, 50]), ([10, 20, 40, 60, 70], [30, 50]),
        ([0, 1, 2, 4, 8, 16, 32], []), ([0, 10, 20, 50, 100, 200, 500], []), ([1, 2, 3, 10, 20, 30], []),
        ([*range(10), *range(10, 200, 10)], []), ([0, 10, 20, 35, 45], []), ([5], []), ([0, 5], []), ([0, 5, 15], []),
        ([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000, 5000, 6000, 7000], [4000]),
        ([0, 1, 2, 4, 8, 16, 32, 64, 128, 192, 256], []),
    ],
)  # fmt: skip
def test_gaps_of_a_regular_grid(steps, missing):
    assert gaps(steps) == missing


@given(start=st.integers(0, 99), width=st.integers(1, 50), count=st.integers(6, 40), hole=st.integers(0, 99))
def test_a_hole_is_found_and_a_full_grid_has_none(start, width, count, hole):
    grid = [start + i * width for i in range(count)]
    assert gaps(grid) == []
    at = 2 + hole % (count - 4)
    assert gaps(grid[:at] + grid[at + 1 :]) == [grid[at]]

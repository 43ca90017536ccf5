import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.cli.tables import BLOCKS, number, sparkline
from ckpt_tools.results.names import printable, row_names


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.integers(1, 20))
def test_a_sparkline_has_one_block_per_stretch_and_spans_its_range(values, width):
    line = sparkline(np.array(values), width)
    assert len(line) == min(width, len(values)) and set(line) <= set(BLOCKS)
    if width >= len(values) and max(values) - min(values) > 1e-6 * max(map(abs, values)):
        assert line[int(np.argmin(values))] == BLOCKS[0]
        assert line[int(np.argmax(values))] == BLOCKS[-1]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (np.arange(8), BLOCKS),
        (np.full(3, 0.1) + np.array([0, 1e-17, 0]), "▄▄▄"),
        (np.array([0, np.nan, np.inf, 7]), "▁  █"),
        (np.array([np.nan, np.nan]), "  "),
        (np.array([]), ""),
        (np.zeros(2), "▄▄"),
    ],
)
def test_sparklines_of_odd_series(values, line):
    assert sparkline(values, 16) == line


def test_long_series_are_averaged_over_stretches():
    assert sparkline(np.array([0, 0, np.nan, 1, 0.5, 0.5]), 3, "abc") == "acb"


def test_numbers_have_four_digits():
    assert [number(x) for x in (1.23456, 1e-9, np.int64(123456), np.float32(0.5), np.nan, "a\n")] == [
        "1.235",
        "1e-09",
        "123456",
        "0.5",
        "nan",
        "a\\n",
    ]


def test_control_characters_are_escaped_and_letters_kept():
    assert printable("x\x1b[2J\0 модель") == "x\\x1b[2J\\x00 модель"


def test_rows_are_named_by_texts_then_numbers():
    assert row_names(["layer", "matrix"], [np.array([0, 1]), ["q"]]) == ["q [layer 0]", "q [layer 1]"]
    assert row_names(["layer"], [np.array([0.5])]) == ["layer 0.5"]
    assert row_names(["a", "b"], [["x"], ["y"]]) == ["x, y"]

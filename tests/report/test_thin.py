import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckpt_tools.report.thin import extremes, shares, thinned

FLOATS = st.floats(-1e6, 1e6, width=32) | st.just(float("nan"))


@given(arrays(np.float32, st.tuples(st.integers(40, 200), st.integers(1, 4)), elements=FLOATS), st.integers(1, 12))
def test_extremes_of_every_cell_survive_at_their_steps(values, stretches):
    index = extremes(values, stretches)
    assert index.shape == (values.shape[1], 2 * stretches + 2)
    assert (np.diff(index, axis=1) >= 0).all()
    assert (index[:, 0] == 0).all() and (index[:, -1] == len(values) - 1).all()
    kept = np.take_along_axis(values, index.T, axis=0)
    for cell in range(values.shape[1]):
        if not np.isnan(values[:, cell]).all():
            assert np.nanmin(kept[:, cell]) == np.nanmin(values[:, cell])
            assert np.nanmax(kept[:, cell]) == np.nanmax(values[:, cell])


def test_a_single_spike_is_kept_whatever_the_stretch():
    values = np.zeros((10_000, 2), dtype=np.float32)
    values[7777, 1] = 1.0
    kept = thinned(values, 400, curves=True)
    assert kept.by_cell and kept.values.shape[1] <= 200
    at = kept.values[1].argmax()
    assert kept.values[1, at] == 1.0 and kept.index[1, at] == 7777
    assert not kept.values[0].any()


def test_short_series_stay_whole():
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    kept = thinned(values, 12, curves=True)
    assert kept.values is values and kept.index.tolist() == list(range(6))


def test_maps_keep_whole_steps_with_the_last():
    values = np.arange(1000, dtype=np.float32).reshape(100, 10)
    kept = thinned(values, 50, curves=False)
    assert not kept.by_cell and len(kept.values) == 5
    assert kept.index[-1] == 99
    assert (kept.values == values[kept.index]).all()


def test_what_does_not_fit_even_once_is_left_out():
    assert thinned(np.zeros((3, 100), dtype=np.float32), 99, curves=False) is None


@given(st.lists(st.integers(0, 10_000), max_size=12), st.integers(0, 20_000))
def test_shares_stay_within_the_budget_and_give_nobody_more_than_wanted(wanted, budget):
    given_ = shares(wanted, budget)
    assert sum(given_) <= max(budget, 0)
    assert all(g <= w for g, w in zip(given_, wanted, strict=True))
    if sum(wanted) <= budget:
        assert given_ == wanted


@pytest.mark.parametrize(
    ("wanted", "budget", "expected"), [([5, 5], 20, [5, 5]), ([1000, 2, 1000], 202, [100, 2, 100])]
)
def test_little_ones_come_first(wanted, budget, expected):
    assert shares(wanted, budget) == expected

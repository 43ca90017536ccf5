"""Distances, descent and detours against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.verify.detours import FLOOR, detours_in, nearest
from ckpt_tools.verify.geometry import Geometry, build
from ckpt_tools.verify.kin import chains
from ckpt_tools.verify.paths import Paths, jump_scores

RNG = np.random.default_rng(0)


def geometry(*tensors, steps=None):
    """The geometry of tensors given as `[step, entry]`."""
    stacks = [np.asarray(t, np.float32) for t in tensors]
    names = [str(i) for i in range(len(stacks))]
    every = list(range(len(stacks)))
    return Geometry(steps or list(range(len(stacks[0]))), names, stacks, every, every)


def line(positions, noise=0.0, size=400):
    """Points on a line through a random start, at the given positions along a random direction."""
    rng = np.random.default_rng(1)
    start, direction = rng.standard_normal((2, size))
    return start + np.outer(positions, direction) + noise * rng.standard_normal((len(positions), size))


def test_distances_are_relative_and_symmetric():
    points = RNG.standard_normal((4, 50))
    found = geometry(points).distances(range(4))
    for i in range(4):
        for j in range(4):
            a, b = points[i].astype(np.float32).astype(float), points[j].astype(np.float32).astype(float)
            expected = np.linalg.norm(a - b) / np.sqrt((a @ a + b @ b) / 2)
            assert found[i, j] == pytest.approx(expected, abs=1e-7)


def test_small_distances_keep_their_digits():
    points = line([0, 1e-6, 3e-6]) + 100
    found = geometry(points.astype(np.float64)).distances([0, 1, 2])
    exact = geometry(points).along([0, 1, 2])[0]
    assert found[0, 1] == pytest.approx(exact[0], rel=1e-3) and found[1, 2] == pytest.approx(exact[1], rel=1e-3)


def test_the_median_over_tensors_is_not_moved_by_one():
    same = line([0, 1, 2])
    odd = same.copy()
    odd[1] = 50
    assert geometry(same, same, odd).distances([0, 1])[0, 1] == geometry(same).distances([0, 1])[0, 1]


def test_along_is_the_diagonal_of_the_matrix():
    one, two = geometry(line([0, 1, 3, 6])), geometry(line([0, 1, 3, 6]))
    assert np.allclose(one.along(range(4))[0], np.diag(two.distances(range(4)), 1))
    assert np.allclose(one.along(range(4), 2)[0], np.diag(two.distances(range(4)), 2))


@pytest.mark.parametrize("grown", [1.0, 10.0, 1000.0])
def test_what_descends_retains_all_whatever_its_growth(grown):
    a = RNG.standard_normal(200_000)
    b = a + grown * RNG.standard_normal(200_000)
    found = geometry(np.stack([a, b]))
    value, error = found.retained(0, 1)
    assert abs(value - 1) < 4 * grown / np.sqrt(200_000) and error == pytest.approx(np.hypot(1, grown) / 447, rel=0.02)
    assert found.related(0, 1) > 0.5 and found.related(1, 0) > 0.5


def test_what_does_not_descend_retains_nothing():
    a, b = RNG.standard_normal((2, 50_000)) + 3.0  # a mean in common is no descent
    value, error = geometry(np.stack([a, b])).retained(0, 1)
    assert abs(value) < 4 * error and error == pytest.approx(50_000**-0.5, rel=0.02)
    assert geometry(np.stack([a, b])).related(0, 1) < 0.1


def test_the_error_is_the_spread_over_independent_pairs():
    pairs = RNG.standard_normal((400, 2, 300))
    values, errors = zip(*(geometry(p).retained(0, 1) for p in pairs), strict=True)
    assert np.std(values) == pytest.approx(np.mean(errors), rel=0.15)


def test_chains_of_descent():
    a = line([0, 0.1, 0.2, 0.3, 0.4], size=40_000)
    b = RNG.standard_normal(40_000) + RNG.standard_normal((5, 40_000)) * 0.01
    points = np.stack([a[0], b[1], a[2], b[3], a[4]])
    assert chains(geometry(points), range(5)) == [[0, 2, 4], [1, 3]]
    assert chains(geometry(a), range(5)) == [[0, 1, 2, 3, 4]]


def places(positions, floor=FLOOR):
    points = line(0.1 * np.asarray(positions))
    return [d.positions for d in detours_in(geometry(points).distances(range(len(points))), floor)]


@pytest.mark.parametrize(
    ("positions", "out"),
    [
        ([0, 1, 2, 3, 4, 5], []),
        ([0, 0.01, 0.1, 1, 10, 100], []),
        ([0, 1, 9, 3, 4, 9.1], [(2,)]),
        ([0, 1, 9, 9.1, 2, 3, 4], [(2, 3)]),
        ([9, 1, 2, 3, 4, 9], [(0,)]),
        ([0, 1, 2, 3, 4, 0.1], [(5,)]),
        ([0, 5, 0.1, 5.1, 0.2, 5.2, 0.3], [(1,), (3,), (5,)]),
        ([0, 1], []),
        ([0, 9, 0.1], [(1,)]),
    ],
)
def test_detours_on_a_line(positions, out):
    assert places(positions) == out


def test_a_small_detour_is_passed_over():
    assert places([0, 1, 9, 3, 4, 9.1], floor=2.0) == []


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=25))
def test_a_path_that_never_turns_has_no_detour(widths):
    assert places(np.cumsum([0, *widths])) == []


@given(st.lists(st.floats(0.5, 1), min_size=9, max_size=20), st.integers(1, 100))
def test_a_stranger_on_an_even_path_is_found(widths, where):
    positions = np.cumsum([0, *widths])
    at = 1 + where % (len(positions) - 2)
    points = line(positions / positions[-1])
    points[at] = np.random.default_rng(7).standard_normal(400) * 2
    found = detours_in(geometry(points).distances(range(len(points))), FLOOR)
    assert [d.positions for d in found] == [(at,)]


def test_nearest_leaves_out_the_neighbours():
    rows = np.array([[9.0, 1.0, 0.0, 1.0, 5.0, 3.0]])
    assert nearest(rows, [2]) == (3.0, 5)


def test_jumps_stand_out_of_the_trend():
    steps = np.arange(0, 210, 10.0)
    moved = 0.1 * np.sqrt(np.diff(np.log1p(steps)))
    scores, ratios = jump_scores(steps, moved)
    assert np.abs(scores).max() < 2
    moved[12] *= 30
    scores, ratios = jump_scores(steps, moved)
    assert scores.argmax() == 12 and scores[12] > 8 and ratios[12] == pytest.approx(30, rel=0.3)


def test_a_jump_is_a_note():
    steps = list(range(0, 200, 10))
    places = np.cumsum([0.02] * 20) + np.where(np.arange(20) > 12, 1.0, 0)
    search = Paths(geometry(line(places), steps=steps)).search()
    assert [(f.kind, f.severity, f.steps) for f in search.findings] == [("jump", "note", (120, 130))]


def test_long_trajectories_are_searched_in_windows():
    points = line(np.linspace(0, 3, 700), noise=1e-3)
    points[[5, 255, 256, 511, 640]] = np.random.default_rng(3).standard_normal((5, 400)) * 2
    search = Paths(geometry(points)).search()
    assert search.astray == {5, 255, 256, 511, 640}


def test_samples_that_not_all_have_are_left_out():
    key, rare = ("w", (4, 4)), ("rare", (4, 4))
    seen = [{key: np.full(16, i, np.float32)} for i in range(5)]
    seen[1][rare] = np.zeros(16, np.float32)
    seen[3] = {key: np.full(16, np.nan, np.float32)}
    found = build([0, 10, 20, 30, 40], seen)
    assert found.steps == [0, 10, 20, 40] and found.names == ["w"] and found.main == found.matrices == [0]
    still = build([0, 1], [{key: np.ones(16, np.float32)} for _ in range(2)])
    assert still.names == [] and len(Paths(still).search().findings) == 0

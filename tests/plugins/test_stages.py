"""Segments of curves made of known pieces, and the analyzer on runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_plugins.stages import Stages, onset, segments, slopes
from ckpt_tools import OptionError, Series, analyze, read_results
from ckpt_tools.results import check, check_summary
from ckpt_tools.testing import analyzer_checks
from ckpt_trainers.transformer import Transformer

STEPS = list(range(0, 1000, 10))


def staircase(noise: float = 0.0, seed: int = 0) -> np.ndarray[Any, Any]:
    """Return a plateau to 300, a descent by e^-2 to 400, a plateau to 700, a descent by e^-1 to 800, a plateau."""
    x = np.array(STEPS)
    y = -2 * np.clip((x - 300) / 100, 0, 1) - np.clip((x - 700) / 100, 0, 1)
    return np.exp(y + noise * np.random.default_rng(seed).standard_normal(len(x)))


@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_staircase_comes_apart_at_its_steps(noise: float) -> None:
    found = segments(STEPS, staircase(noise))
    assert [s.kind for s in found] == ["plateau", "descent", "plateau", "descent", "plateau"]
    for segment, (start, stop) in zip(found, [(0, 300), (300, 400), (400, 700), (700, 800), (800, 990)], strict=True):
        assert abs(segment.start - start) <= 20 and abs(segment.stop - stop) <= 20
        assert segment.margin > 0.3
    assert found[1].change == pytest.approx(-2, abs=0.2) and found[3].change == pytest.approx(-1, abs=0.2)


def test_wild_points_make_no_stage() -> None:
    curve = staircase()
    curve[[10, 50, 90]] *= 5
    assert [s.kind for s in segments(STEPS, curve)] == ["plateau", "descent", "plateau", "descent", "plateau"]


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(1, 50))
def test_units_do_not_matter(scale: float, stretch: int) -> None:
    plain = segments(STEPS, staircase(0.01))
    moved = segments([stretch * s for s in STEPS], scale * staircase(0.01))
    assert [(s.kind, stretch * s.start, stretch * s.stop) for s in plain] == [(s.kind, s.start, s.stop) for s in moved]


def test_rises_and_flat_curves_have_their_names() -> None:
    assert [s.kind for s in segments(STEPS, 1 / staircase())] == ["plateau", "rise", "plateau", "rise", "plateau"]
    flat = segments(STEPS, np.linspace(1, 1.005, 100))
    assert [(s.kind, s.start, s.stop) for s in flat] == [("plateau", 0, 990)]
    assert segments(STEPS, np.full(100, np.nan)) == [] and segments([0, 1], np.array([1.0, 2.0])) == []


def test_power_laws_are_one_descent_over_log_steps() -> None:
    steps = [2**i for i in range(16)]
    curve = np.array(steps, dtype=float) ** -0.5
    assert [s.kind for s in segments(steps, curve, log_steps=True)] == ["descent"]
    assert [s.kind for s in segments(steps, curve)] != ["descent"]


def test_slope_is_the_median_of_all_pairs() -> None:
    scipy = pytest.importorskip("scipy.stats")
    x, y = np.arange(5.0) ** 1.5, np.random.default_rng(0).standard_normal(5)
    assert slopes(x, y, 5)[2] == pytest.approx(scipy.theilslopes(y, x)[0])


def test_onset_ignores_what_does_not_last() -> None:
    curve = np.array([0.0, 0, 1, 0, 0, 0.5, 0.6, 1, 1])
    assert onset(range(9), curve) == 5
    assert onset(range(9), curve, share=0.55) == 6
    assert onset(range(9), np.zeros(9)) == -1 and onset([0], np.array([np.nan])) == -1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("markov") / "run"
    Transformer.train("markov", {"steps": 600, "save": "every:20"}, path)
    return path


def test_loss_of_a_run_is_read_where_its_checkpoints_are(run: Path, tmp_path: Path) -> None:
    analyze(run, [Stages(run=str(run))], output=tmp_path / "out.h5", strict=True)
    with read_results(tmp_path / "out.h5") as results:
        group = results["stages"]
        facts, distance = group.attrs["summary"], group["distance"].read()
    # Weights of size 1e-4 leave the loss at ln 4 for long.
    assert facts["loss_kind"][:2] == ["plateau", "descent"] and facts["loss_stop"][-1] == 600
    assert facts["loss_start"][1] == pytest.approx(facts["loss_onset"], abs=60) and facts["loss_onset"] > 40
    assert distance[0] == 0 and (np.diff(distance) > 0).all()


def test_summary_of_known_norms() -> None:
    def record(step: int, norm: float) -> Any:
        raw = {"matrix": ["w"], "norm": norm, "distance": abs(norm - 1), "relative_distance": [norm - 1]}
        return check(Stages(), raw, "here", step=step)

    series = Series(Stages.outputs, [record(s, 1 / v) for s, v in zip(STEPS, staircase(), strict=True)])
    facts = check_summary(Stages(), Stages().summarize(series), "here")
    assert facts["norm_kind"] == ["plateau", "rise", "plateau", "rise", "plateau"]
    # The norm itself has come a twentieth of its way, from 1 to e^3, when its logarithm has come a third of it.
    assert facts["norm_onset"] == 340 and facts["distance_onset"] == facts["norm_onset"]


def test_metrics_that_were_not_logged_are_named(run: Path) -> None:
    raw = {"matrix": ["w"], "norm": 1.0, "distance": 0.0, "relative_distance": [0.0]}
    series = Series(Stages.outputs, [check(Stages(), raw, "here", step=0)])
    with pytest.raises(OptionError, match="Did you mean 'loss'"):
        Stages(run=str(run), metrics=("los",)).summarize(series)


@pytest.mark.parametrize("check_", analyzer_checks(Stages), ids=str)
def test_conforms(check_: Any) -> None:
    check_()

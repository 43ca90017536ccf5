"""Comparisons against numbers worked out by hand and tests by scipy on the bare arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner

from ckpt_tools import Analyzer, Out
from ckpt_tools.cli.compare import compare as command
from ckpt_tools.compare import compare, effects
from ckpt_tools.errors import OptionError, ResultsError
from ckpt_tools.results import Group, Trajectory, check, write_results


class Probe(Analyzer):
    """A few numbers."""

    name = "probe"
    outputs: ClassVar = {
        "rank": Out(("matrix",)),
        "rank_error": Out(("matrix",), error_of="rank"),
        "total": Out(unit="nat"),
    }


def written(path: Path, rank: Any, *, matrices: Any = ("a", "b"), error: float = 0.0, **facts: Any) -> Path:
    """Results whose ranks at step i are `rank[i]`; total is their sum."""
    records = [
        check(
            Probe(),
            {"matrix": list(matrices), "rank": row, "rank_error": np.full(len(row), error), "total": np.nansum(row)},
            "here",
            step=10 * i,
        )
        for i, row in enumerate(rank)
    ]
    hashes = [str(row) for row in rank]
    trajectory = Trajectory([10 * i for i in range(len(rank))], hashes)
    return write_results(path, [Group.of(Probe(), records)], facts, trajectory=trajectory)


def test_the_same_file_has_no_difference(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", [[1.0, np.nan], [2.0, 3.0]])
    found = compare(path, path)
    assert found.same and not found.notes
    assert {one.output: one.cells for one in found.outputs} == {
        "probe.rank": 3,
        "probe.rank_error": 4,
        "probe.total": 2,
    }


def test_differences_are_counted_measured_and_placed(tmp_path: Path) -> None:
    a = written(tmp_path / "a.h5", [[1.0, 2.0], [3.0, 4.0]], error=0.1)
    b = written(tmp_path / "b.h5", [[1.0, 2.0 + 1e-9], [3.0, 5.0]], error=0.1)
    rank = next(one for one in compare(a, b).outputs if one.output == "probe.rank")
    assert (rank.cells, rank.differing, rank.largest, rank.largest_relative) == (4, 1, 1.0, 0.2)
    assert rank.where == "step 10, b" and rank.beyond_errors == 1
    assert not compare(a, b).same and compare(a, b, atol=1.0).same and compare(a, b, rtol=0.25).same
    strict = next(one for one in compare(a, b, rtol=0).outputs if one.output == "probe.rank")
    assert strict.differing == 2
    assert compare(a, b).notes == ["the checkpoints differ at 2 of 2 shared steps"]


def test_a_value_against_none_differs_and_infinities_are_equal(tmp_path: Path) -> None:
    a = written(tmp_path / "a.h5", [[1.0, np.inf]])
    b = written(tmp_path / "b.h5", [[np.nan, np.inf]])
    rank = compare(a, b, what=["probe.rank"]).outputs[0]
    assert (rank.cells, rank.differing, rank.where) == (2, 1, "step 0, a")


def test_only_what_is_shared_is_compared_and_the_rest_is_said(tmp_path: Path) -> None:
    a = written(tmp_path / "a.h5", [[1.0, 2.0], [3.0, 4.0]])
    b = written(tmp_path / "b.h5", [[2.0, 7.0]], matrices=("b", "c"))
    found = compare(a, b, what=["probe.rank"])
    assert found.same and found.outputs[0].cells == 1
    assert "probe: 1 of 2 and 2 along 'matrix' are shared" in found.notes
    assert "probe: 1 of 2 and 1 along 'step' are shared" in found.notes


def test_other_options_are_said(tmp_path: Path) -> None:
    class Other(Probe):
        """The same in another version."""

        version = "2"

    a = written(tmp_path / "a.h5", [[1.0, 2.0]])
    records = [check(Other(), {"matrix": ["a", "b"], "rank": [1, 2], "rank_error": [0, 0], "total": 3}, "here")]
    b = write_results(tmp_path / "b.h5", [Group.of(Other(), records)])
    assert "probe: analyzer_version is '1' and '2'" in compare(a, b).notes


def runs(folder: Path, name: str, values: Any, seeds: Any) -> list[Path]:
    made = []
    for value, seed in zip(values, seeds, strict=True):
        facts = {"run": {"family": "mlp", "seed": seed}}
        made.append(written(folder / f"{name}{seed}.h5", [[0.0, 0.0], value], **facts))
    return made


A = np.array([[1.0, 10.0], [1.2, 12.0], [0.9, 11.0]])
B = np.array([[2.0, 10.5], [2.5, 11.5], [2.1, 11.6]])


def test_runs_with_the_same_seeds_are_paired(tmp_path: Path) -> None:
    from scipy import stats

    a = runs(tmp_path, "a", A, (0, 1, 2))
    b = runs(tmp_path, "b", B[[2, 0, 1]], (2, 0, 1))
    found = effects(a, b, what=["probe.rank"])
    assert found.paired and found.step == 10 and found.count == (3, 3)
    first, second = found.cells
    gap = B[:, 0] - A[:, 0]
    half = stats.t.ppf(0.975, 2) * gap.std(ddof=1) / np.sqrt(3)
    assert (first.cell, first.difference) == ("a", pytest.approx(gap.mean()))
    assert (first.low, first.high) == pytest.approx((gap.mean() - half, gap.mean() + half))
    t = gap.mean() / (gap.std(ddof=1) / np.sqrt(3))
    assert first.p == pytest.approx(2 * stats.t.sf(abs(t), 2))
    assert first.p_adjusted == pytest.approx(2 * first.p)
    assert second.p_adjusted == pytest.approx(max(2 * first.p, second.p))


def test_runs_with_other_seeds_are_not(tmp_path: Path) -> None:
    from scipy import stats

    a, b = runs(tmp_path, "a", A, (0, 1, 2)), runs(tmp_path, "b", B, (3, 4, 5))
    found = effects(a, b, what=["probe.rank"], matrices=["a"])
    assert not found.paired
    (only,) = found.cells
    assert only.p == pytest.approx(stats.ttest_ind(B[:, 0], A[:, 0], equal_var=False).pvalue)


def test_what_never_varies_has_no_test(tmp_path: Path) -> None:
    same = np.array([[1.0, 2.0]] * 3)
    a = runs(tmp_path, "a", same, (0, 1, 2))
    b = runs(tmp_path, "b", same + np.array([0.0, 1.0]), (0, 1, 2))
    zero, one = effects(a, b, what=["probe.rank"]).cells
    assert (zero.difference, zero.p) == (0.0, 1.0) and (one.low, one.high, one.p) == (1.0, 1.0, 0.0)


def test_the_step_can_be_chosen_and_must_be_shared(tmp_path: Path) -> None:
    a, b = runs(tmp_path, "a", A, (0, 1, 2)), runs(tmp_path, "b", B, (0, 1, 2))
    assert effects(a, b, what=["probe.rank"], at=0).cells[0].mean_b == 0.0
    with pytest.raises(ResultsError, match="do not all have step 7"):
        effects(a, b, at=7)
    with pytest.raises(ResultsError, match="at least two files"):
        effects(a[:1], b)


def test_the_command_exits_with_one_when_files_differ(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a.h5", [[1.0, 2.0]]), written(tmp_path / "b.h5", [[1.0, 3.0]])
    run = CliRunner().invoke
    same = run(command, [str(a), str(a)], standalone_mode=False)
    assert same.return_value == 0 and "3 of 3 outputs are the same" in same.output
    other = run(command, [str(a), str(b)], standalone_mode=False)
    assert other.return_value == 1
    line = next(line for line in other.output.splitlines() if line.startswith("probe.rank "))
    assert line.split() == ["probe.rank", "1", "of", "2", "1", "0.333", "1", "step", "0,", "b"]
    data = json.loads(run(command, [str(a), str(b), "--json"], standalone_mode=False).output)
    assert data["same"] is False and data["outputs"][0]["differing"] == 1


def test_the_command_takes_two_sets(tmp_path: Path) -> None:
    a, b = runs(tmp_path, "a", A, (0, 1, 2)), runs(tmp_path, "b", B, (0, 1, 2))
    args = [*map(str, a), "vs", *map(str, b), "--what", "probe.rank"]
    output = CliRunner().invoke(command, args, standalone_mode=False).output
    assert "step 10, 3 and 3 runs, paired by seed" in output and "probe.rank a" in output
    with pytest.raises(OptionError, match="3 files: give two, or two sets with `vs`"):
        CliRunner().invoke(command, [str(path) for path in a], catch_exceptions=False, standalone_mode=False)

"""Studies of reasoning and memorizing, shrunk to seconds: all they measure and draw comes out of saved runs."""

from __future__ import annotations

import importlib.util
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from ckpt_tools.study import Loaded, load_study, perform, verdicts, write_report
from ckpt_tools.study.judge import write_claims
from ckpt_tools.study.load import check_settings

FOLDER = Path(__file__).parents[2] / "samples" / "studies"
NAMES = (
    "complexity_control",
    "composite_reasoning",
    "identity_bridge",
    "init_bias",
    "mamba_asymmetry",
    "ntp_bias",
    "scalable_complexity",
)
SMALL: dict[str, Any] = {
    "batch": 8,
    "steps": 2,
    "warmup": 0,
    "save": "every:1",
    "d_model": 16,
    "d_ff": 16,
    "probes": 300,
}


def shrunk(name: str) -> Loaded:
    """The study with two updates of tiny models; widths that a figure goes over stay as they are."""
    loaded = load_study(FOLDER / f"{name}.py")
    registry, runs = loaded.registry(), {}
    for run, declared in loaded.study.runs.items():
        settings = declared.chosen("mini")
        assert settings is not None
        known = registry.family(declared.family).settings(declared.task)
        fits = {key: value for key, value in SMALL.items() if key in known and not (key == "batch" and "ood" in known)}
        runs[run] = replace(declared, mini={**settings, **fits})
    return replace(loaded, study=replace(loaded.study, runs=runs))


def quiet(label: str) -> AbstractContextManager[Any]:
    return nullcontext(lambda *_: None)


@pytest.mark.parametrize("name", NAMES)
def test_settings_of_all_presets_exist(name: str) -> None:
    loaded = load_study(FOLDER / f"{name}.py")
    presets = ["mini", *(["paper"] if any(run.paper for run in loaded.study.runs.values()) else [])]
    for preset in presets:
        check_settings(loaded, preset, loaded.registry())
    assert any(claim.control for claim in loaded.study.claims)
    assert any(claim.control is False for claim in loaded.study.claims)


@pytest.mark.parametrize("name", NAMES)
def test_everything_declared_is_measured_and_drawn(name: str, tmp_path: Path) -> None:
    loaded = shrunk(name)
    text = tmp_path / "text"
    text.write_text("the cat sat on the mat and the dog ate the hat\n" * 60)
    reads = {run.data for run in loaded.study.runs.values()} - {""}
    done = perform(loaded, tmp_path, seeds=(0,), data=dict.fromkeys(reads, text), reporter=quiet)
    assert (done.failed, done.skipped) == ({}, {})
    judged = verdicts(loaded.study.claims, done.found)
    assert all(verdict.holds is not None for verdict in judged), [v.reason for v in judged]
    report = write_report(loaded, judged, done, tmp_path, preset="mini", command="ckpt study").read_text("utf-8")
    assert all((tmp_path / "figures" / f"{figure.name}.png").stat().st_size > 5000 for figure in loaded.study.figures)
    assert all(table.title in report for table in loaded.study.tables)
    written = json.loads(write_claims(loaded, judged, tmp_path).read_text("utf-8"))
    assert len({row["claim"] for row in written}) == len(loaded.study.claims)


def test_text_is_asked_for_by_name(tmp_path: Path) -> None:
    loaded = shrunk("scalable_complexity")
    done = perform(loaded, tmp_path, seeds=(0,), reporter=quiet)
    assert done.failed == {}
    assert done.skipped.keys() == {run for run, one in loaded.study.runs.items() if one.data}
    judged = {verdict.claim.name: verdict for verdict in verdicts(loaded.study.claims, done.found)}
    assert judged["text, width 128: stable rank of W_Q, gamma .8 / fixed std"].holds is None
    assert judged["composite task, controlled: mean inferential share"].holds is not None


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sample_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_line_and_its_uncertainty() -> None:
    """Against numpy's own covariance of a fitted line."""
    rng = np.random.default_rng(0)
    x = np.repeat([8.0, 9.0, 10.0], 3)
    y = 2.0 - 0.05 * x + 0.01 * rng.standard_normal(9)
    (slope, intercept), covariance = np.polyfit(x, y, 1, cov=True)
    found = module("scalable_complexity").line(np.stack([x, y], axis=1))
    assert found == pytest.approx((slope, intercept, covariance[0, 0] ** 0.5), rel=1e-9)


def test_rank_correlation_with_ties() -> None:
    scipy = pytest.importorskip("scipy.stats")
    x, y = np.array([1.0, 2.0, 2.0, 5.0, 4.0]), np.array([3.0, 3.0, 1.0, 0.5, 3.0])
    found = module("complexity_control").rank_correlation(x, y)
    assert found == pytest.approx(scipy.spearmanr(x, y).statistic, abs=1e-12)


def test_logit_blocks_of_a_planted_table() -> None:
    """Subjects 0 and 1 lead to 3 and 4 with logit 2 over the other, and to nothing else."""
    table = np.zeros((6, 6))
    table[3, 0], table[4, 1] = 2.0, 2.0
    block = module("identity_bridge")._block
    assert block(table, {0: 3, 1: 4}, [3, 4]) == 2.0
    assert block(table, {0: 4, 1: 3}, [3, 4]) == -2.0
    assert block(table, {0: 5, 1: 5}, [3, 4, 5]) == -1.0

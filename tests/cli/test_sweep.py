"""Sweeps: which runs they are, and that they continue."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ckpt_tools.cli.main import main
from ckpt_tools.cli.sweep import combinations, parse_sweeps
from ckpt_tools.errors import OptionError
from ckpt_tools.run import read_run

MARKOV = ["transformer", "--task", "markov", "--steps", "2"]
KNOWN = ["gamma", "seed", "data", "lr"]


def ckpt(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["ckpt", "train", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_values_and_ranges() -> None:
    found = parse_sweeps(["gamma=0.3, 0.5", "seed=0:3", "lr=0:9:4,20"], {}, KNOWN)
    assert found == {"gamma": ["0.3", "0.5"], "seed": ["0", "1", "2"], "lr": ["0", "4", "8", "20"]}


def test_names_of_runs() -> None:
    named = dict(combinations({"gamma": ["0.3", "0.5"], "seed": ["0", "1"]}))
    assert list(named) == ["gamma=0.3_seed=0", "gamma=0.3_seed=1", "gamma=0.5_seed=0", "gamma=0.5_seed=1"]
    assert named["gamma=0.5_seed=0"] == {"gamma": "0.5", "seed": "0"}
    assert [name for name, _ in combinations({"data": ["../a b"]})] == ["data=..-a-b"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["seed"], "expected NAME=VALUE,VALUE or NAME=FIRST:END"),
        (["sead=1,2"], "there is no setting 'sead'. Did you mean 'seed'?"),
        (["seed=1,2", "seed=3"], "Setting 'seed' is given twice"),
        (["lr=1,2"], "Setting 'lr' is given twice"),
        (["seed=3:3"], "expected different values"),
        (["seed=1,1"], "expected different values"),
        (["seed=1,,2"], "expected different values"),
    ],
)
def test_bad_sweeps(texts: list[str], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_sweeps(texts, {"lr": "1"}, KNOWN)
    assert message in str(caught.value)


def test_sibling_runs_that_continue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sweep = ["--sweep", "lam=0.2,0.5", "--sweep", "seed=0:2"]
    assert ckpt(monkeypatch, *MARKOV, *sweep, "--out", tmp_path / "runs", "--json") == 0
    outcomes = json.loads(capsys.readouterr().out)
    assert [Path(o["run"]).name for o in outcomes] == [f"lam={lam}_seed={s}" for lam in (0.2, 0.5) for s in (0, 1)]
    infos = [read_run(outcome["run"]) for outcome in outcomes]
    assert [(i.task_config["lam"], i.seed, i.status) for i in infos] == [
        (lam, seed, "finished") for lam in (0.2, 0.5) for seed in (0, 1)
    ]
    more = ["--sweep", "lam=0.2,0.5,0.9", "--sweep", "seed=0:2"]
    assert ckpt(monkeypatch, *MARKOV, *more, "--out", tmp_path / "runs", "--resume") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert [line.endswith("is already finished.") for line in lines] == [True] * 4 + [False] * 2
    assert len(list((tmp_path / "runs").iterdir())) == 6


def test_speed_in_tokens(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sampled = ["--set", "form=sampled", "--set", "samples=8", "--set", "length=5"]
    assert ckpt(monkeypatch, *MARKOV, *sampled, "--out", tmp_path / "run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tokens_per_second"] > 0


def test_only_the_first_process_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert ckpt(monkeypatch, *MARKOV, "--preset", "mini", "--out", tmp_path / "run") == 0
    assert capsys.readouterr().out == ""

"""docs/figures.md is true: its commands and Python run, its tables name what there is, its pictures exist."""

from __future__ import annotations

import glob
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from ckpt_tools.analyzer import FIGURES, Analyzer, Figure, declaration_faults
from ckpt_tools.cli.main import cli

from .conftest import Declared, run_facts, written

pytestmark = pytest.mark.slow

pytest.importorskip("matplotlib")
DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "figures.md").read_text("utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def rank_results(path: Path, gamma: float, seed: int) -> Path:
    """Results of an analyzer `rank`, made from those of the probe."""
    import h5py

    written(path, Declared, scale=1 + gamma + seed / 10, **run_facts(gamma, seed))
    with h5py.File(path, "r+") as file:
        file.move("declared", "rank")
        file.move("rank/rank", "rank/effective_rank")
        file["rank"].attrs["analyzer"] = "rank"
        file["rank"].attrs["figures"] = '[{"output": "effective_rank"}]'
    return path


def test_commands_and_python_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    rank_results(tmp_path / "results.h5", 0.5, 0)
    for side, gamma in (("a", 0.4), ("b", 0.8)):
        for seed in (0, 1):
            rank_results(tmp_path / "runs" / f"{side}_{seed}.h5", gamma, seed)
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks("console")).splitlines():
        words = [found for word in shlex.split(line)[1:] for found in (sorted(glob.glob(word)) or [word])]
        cli.main(words, standalone_mode=False)
    python = next(block for block in blocks("python") if "open_results" in block)
    capsys.readouterr()
    exec(compile(python, "docs/figures.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == ["('step', 'matrix')", "rank.svg []"]


def test_the_plugin_shown_is_sound() -> None:
    scope: dict[str, type[Analyzer]] = {}
    exec(next(block for block in blocks("python") if "class Sparsity" in block), scope)
    assert declaration_faults(scope["Sparsity"]) == ["analyze(self, view) is not defined"]


def test_the_tables_name_every_kind_and_field() -> None:
    kinds = re.findall(r"^\| `(\w+)` \| (?!what|the dimension that|labels|for|`)", PAGE, re.MULTILINE)
    assert {*kinds} == {*filter(None, FIGURES)}
    told = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE.split("| field of")[1], re.MULTILINE)))
    assert {*told} == {field.name for field in fields(Figure)}


@pytest.mark.parametrize("page", ["figures.md", "analyzers.md"])
def test_pictures_exist_and_are_small(page: str) -> None:
    for name in re.findall(r"!\[[^\]]+\]\((images/[^)]+)\)", (DOCS / page).read_text("utf-8")):
        assert 0 < (DOCS / name).stat().st_size < 200_000, name

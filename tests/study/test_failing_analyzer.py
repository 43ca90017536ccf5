"""What `ckpt study` makes of an analyzer that fails at every step of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

TINY = Path(__file__).with_name("tiny.py")
Broken = tuple[Path, subprocess.CompletedProcess[str]]
BREAKS = (
    ('        return {"matrix"', '        raise ValueError("no\\nway")\n        return {"matrix"'),
    ('Analysis("rank", runs', 'Analysis("largest", runs'),
    ('steps, one["learns"]["trajectory"]("loss")', 'steps, one["learns"]["largest"]("largest")'),
    ("(f.seed, fall(f))", "(f.seed, growth(f))"),
    ('shown="The loss falls."', "shown=lambda found: str(growth(found[0]))"),
)


def rows(out: Path) -> dict[tuple[str, int | None], dict[str, Any]]:
    return {(row["claim"], row["seed"]): row for row in json.loads((out / "claims.json").read_text("utf-8"))}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Broken:
    """The study with an analyzer that fails at every step, which claims, the figure, its text and the table ask for."""
    folder = tmp_path_factory.mktemp("broken")
    text = TINY.read_text("utf-8")
    for before, after in BREAKS:
        assert before in text
        text = text.replace(before, after, 1)
    (folder / "tiny.py").write_text(text, "utf-8")
    command = [sys.executable, "-m", "ckpt_tools.cli", "study", folder / "tiny.py", "--seeds", "2", "-o", folder / "o"]
    return folder / "o", subprocess.run(command, capture_output=True, text=True)


REASON = "run learns: largest failed at every step, at step 0 with ValueError: no way"


def test_claims_about_an_analyzer_that_failed_at_every_step(broken: Broken) -> None:
    out, ended = broken
    found, report = rows(out), (out / "report.md").read_text("utf-8")
    assert ended.returncode == 3 and "failed: learns, seed 1: largest at step" in ended.stderr
    for name, reason in {
        "the embedding grows tenfold": REASON,
        "rank at the start": "run learns: largest at step 0 failed: ValueError: no way",
        "control: without a learning rate the loss stays": "run still: largest at step 0 failed: ValueError: no way",
    }.items():
        for seed in (0, 1):
            row = found[name, seed]
            assert (row["measured"], row["holds"], row["reason"]) == (None, None, reason)
        line = next(line for line in ended.stdout.splitlines() if line.startswith(name))
        assert line.endswith(f"  not measured: {reason}")
        assert f" | – | – |  | not measured: {reason} |" in report


def test_what_an_analyzer_that_failed_leaves_alone(broken: Broken) -> None:
    found = rows(broken[0])
    for name, seed in (("the loss falls", 0), ("the loss falls", 1), ("mean fall", None)):
        assert found[name, seed]["holds"] is True and "reason" not in found[name, seed]


def test_figures_and_tables_of_an_analyzer_that_failed_are_left_out(broken: Broken) -> None:
    out, report = broken[0], (broken[0] / "report.md").read_text("utf-8")
    for what in ("What they show", "Figure `loss`", "The table"):
        assert f"\n{what} was left out: {REASON}\n" in report
    assert "![loss]" not in report and not (out / "figures" / "loss.png").exists()

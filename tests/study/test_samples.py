"""The studies shipped as samples: each can be performed, and the page of claims is theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckpt_tools.errors import ResultsError
from ckpt_tools.study import load_study
from ckpt_tools.study.load import check_settings
from ckpt_tools.study.table import BEGIN, END, main, page, spliced

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted((ROOT / "samples" / "studies").glob("*.py"))
KEPT = ROOT / "docs" / "studies"


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_can_be_performed(file: Path) -> None:
    loaded = load_study(file)
    check_settings(loaded, "mini", loaded.registry())
    study = loaded.study
    assert any(claim.control for claim in study.claims), "a study has negative controls"
    assert study.trained.strip() and study.claimed.strip() and study.figures


@pytest.mark.parametrize("file", sorted(KEPT.glob("*.json")), ids=lambda file: file.stem)
def test_kept_claims_are_those_the_study_declares(file: Path) -> None:
    declared = load_study(ROOT / "samples" / "studies" / f"{file.stem}.py").study.claims
    kept = {(row["claim"], row["direction"], row["threshold"]) for row in json.loads(file.read_text("utf-8"))}
    assert kept == {(claim.label, claim.direction, claim.threshold) for claim in declared}


def test_the_page_shows_the_kept_claims() -> None:
    text = (ROOT / "docs" / "studies.md").read_text("utf-8")
    assert text == spliced(text, page(KEPT)), "run `make studies`, or python -m ckpt_tools.study.table"


def test_claims_are_collected_and_shown(tmp_path: Path) -> None:
    claims = tmp_path / "out" / "toy" / "claims.json"
    claims.parent.mkdir(parents=True)
    row = {"study": "toy", "claim": "a | b", "direction": ">=", "threshold": 0.5}
    found = [{**row, "seed": 0, "measured": 0.25, "holds": False}, {**row, "seed": 1, "measured": 1.0, "holds": True}]
    claims.write_text(json.dumps(found), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    target = tmp_path / "docs" / "studies.md"
    target.write_text(f"before\n{BEGIN}\nformer\n{END}\nafter\n", encoding="utf-8")
    main(tmp_path / "out", tmp_path / "docs" / "studies")
    text = target.read_text("utf-8")
    assert "| a \\| b | >= 0.5 | 0.25 ✗ | 1 | **1 of 2** |" in text and "former" not in text
    assert text.startswith("before\n") and text.endswith(f"{END}\nafter\n") and "1 of 2 checks hold." in text
    with pytest.raises(ResultsError, match="lacks the lines"):
        spliced("no markers", "x")

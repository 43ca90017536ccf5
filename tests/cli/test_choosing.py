"""Options that choose what is read: another set of weights, a role table of the user's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ckpt_tools.cli.main import main

Command = Callable[..., int]

TABLE = """
signature = ["net.{i}.mix.weight"]

[modules]
"net.{i}.mix" = "layers.{i}.attn.q"
"""


@pytest.fixture
def ckpt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*args: object) -> int:
        monkeypatch.setattr("sys.argv", ["ckpt", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    return run


@pytest.fixture
def averaged(tmp_path: Path) -> Path:
    both = {"model": {"a.weight": torch.eye(4)}, "ema": {"a.weight": torch.diag(torch.tensor([3.0, 0, 0, 0]))}}
    torch.save(both, tmp_path / "both.pt")
    return tmp_path / "both.pt"


@pytest.mark.parametrize(("part", "rank"), [((), 4.0), (("--part", "ema"), 1.0)])
def test_part_chooses_the_weights(ckpt: Command, averaged: Path, part: tuple[str, ...], rank: float) -> None:
    results = averaged.with_name("r.h5")
    assert ckpt("analyze", averaged, *part, "--plugin", "rank", "-o", results, "--quiet") == 0
    with h5py.File(results) as file:
        assert np.asarray(file["rank/effective_rank"]).ravel() == pytest.approx([rank])


def test_inspect_takes_the_part(ckpt: Command, averaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ckpt("inspect", averaged, "--part", "em") == 2
    assert "ema" in capsys.readouterr().err


def test_role_table_of_the_user(ckpt: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"net.0.mix.weight": torch.eye(4), "net.1.mix.weight": torch.eye(4)}, tmp_path / "m.safetensors")
    (tmp_path / "mine.toml").write_text(TABLE)
    assert ckpt("inspect", tmp_path / "m.safetensors", "--plugin-file", tmp_path / "mine.toml", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["family"] == "mine"
    assert [w["role"] for w in facts["weights"]] == ["layers.0.attn.q", "layers.1.attn.q"]


def test_faulty_role_table_is_named(ckpt: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text("tensors = [")
    assert ckpt("inspect", tmp_path, "--plugin-file", tmp_path / "mine.toml") == 2
    assert "mine.toml" in capsys.readouterr().err

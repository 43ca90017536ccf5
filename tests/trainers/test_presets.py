"""Shipped settings: all of them fit, and what is given wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.errors import OptionError
from ckpt_tools.run import read_run
from ckpt_trainers.attn_mlp import AttnMLP
from ckpt_trainers.emb_mlp import EmbMLP
from ckpt_trainers.family import TrainedFamily
from ckpt_trainers.gpt import GPT
from ckpt_trainers.mamba import Mamba
from ckpt_trainers.mlp import MLP
from ckpt_trainers.presets import preset, presets
from ckpt_trainers.settings import declared, plan
from ckpt_trainers.tasks import TASKS, task_class
from ckpt_trainers.transformer import Transformer

FAMILIES: dict[str, type[TrainedFamily]] = {f.name: f for f in (Transformer, MLP, EmbMLP, GPT, Mamba)}
ALL = [(task, name) for task in TASKS for name in presets(task)]


def meant_for(task: str, name: str) -> list[type[TrainedFamily]]:
    """The families that a preset has a table for, else one that reads what the task gives."""
    named = [FAMILIES[key] for key, value in presets(task)[name].items() if isinstance(value, dict)]
    readers: dict[str, type[TrainedFamily]] = {"tokens": Transformer, "vectors": MLP, "sequences": AttnMLP}
    return named or [readers[task_class(task).gives]]


@pytest.mark.parametrize(("task", "name"), ALL)
def test_every_preset_is_made_of_settings(task: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("some words\n" * 3000)
    extra = {"data": str(tmp_path / "text")} if task == "text" else {}
    for family in meant_for(task, name):
        known = declared(family, task_class(task))
        general = {k: v for k, v in presets(task)[name].items() if not isinstance(v, dict)}
        wanted = {**general, **presets(task)[name].get(family.name, {})}
        assert not wanted.keys() - known.keys()
        chosen = plan(family, task, {"preset": name, **extra}).flat()
        assert chosen["preset"] == name
        for key, value in wanted.items():
            assert chosen[key] == (None if value == "none" and key == "shown" else value), key


def test_every_task_has_a_miniature() -> None:
    assert all("mini" in presets(task) for task in TASKS)


def test_given_settings_win_and_others_are_left_out() -> None:
    chosen = plan(Transformer, "anchor", {"preset": "mini", "d_model": "32"}).flat()
    assert (chosen["d_model"], chosen["d_ff"], chosen["gamma"]) == (32, 128, 0.65)
    assert plan(Mamba, "anchor", {"preset": "mini"}).flat()["gamma"] == 1.0
    assert preset("transformer", "anchor", None, ["lr"]) == {}
    assert preset("transformer", "anchor", "mini", ["lr"]) == {"lr": 2e-3}


@pytest.mark.parametrize(("name", "message"), [("minni", "Did you mean 'mini'"), ("huge", "no preset 'huge'")])
def test_unknown_presets(name: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        plan(Transformer, "markov", {"preset": name})


def test_a_run_remembers_its_preset_and_resumes(tmp_path: Path) -> None:
    values: dict[str, Any] = {"preset": "stages", "steps": 2}
    Transformer.train("markov", values, tmp_path / "run")
    info = read_run(tmp_path / "run")
    assert (info.train["preset"], info.task_config["lam"], info.train["lr"]) == ("stages", 0.2, 0.5)
    assert Transformer.train("markov", {}, tmp_path / "run", resume=True) == "finished"

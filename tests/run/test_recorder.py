"""Anybody's training loop becomes a run by three lines."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ckpt_tools import Recorder, analyze, open_trajectory
from ckpt_tools.errors import OptionError, RunError
from ckpt_tools.run import read_metrics, read_probe, read_run
from ckpt_tools.run.recorder import config_of
from ckpt_tools.run.tensors import ModuleTensors, ties, unwrapped


def make_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))


class Loop:
    """Somebody's training; keeps what the weights were after every update."""

    def __init__(self, module: nn.Module | None = None) -> None:
        self.module = module or make_module()
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=0.01)
        self.seen = [self.weights()]

    def weights(self) -> dict[str, np.ndarray[Any, Any]]:
        return {name: value.detach().numpy().copy() for name, value in self.module.state_dict().items()}

    def update(self) -> torch.Tensor:
        loss: torch.Tensor = self.module(torch.randn(8, 4)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.seen.append(self.weights())
        return loss


@pytest.mark.parametrize("mode", ["folders", "log", "auto"])
@pytest.mark.parametrize("queue", [0, 10**7])
def test_every_update_is_recorded(tmp_path: Path, mode: str, queue: int) -> None:
    loop, losses = Loop(), []
    recorder = Recorder(loop.module, tmp_path / "run", mode=mode, queue=queue)
    for _ in range(30):
        loss = loop.update()
        recorder.step(loss=loss, rate=0.1)
        losses.append(loss.item())
    recorder.close()
    trajectory = open_trajectory(tmp_path / "run")
    assert trajectory.steps == list(range(31))
    for step in trajectory.steps:
        with trajectory.checkpoint(step) as checkpoint:
            assert checkpoint.tensors.keys() == loop.seen[step].keys()
            assert all((checkpoint.read(name) == value).all() for name, value in loop.seen[step].items())
    metrics = read_metrics(tmp_path / "run")
    assert metrics["step"].tolist() == list(range(1, 31))
    assert metrics["loss"].tolist() == losses
    info = read_run(tmp_path / "run")
    assert (info.family, info.config, info.status, info.schedule) == ("", {}, "finished", "every:1")


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"save": "every:4"}, [0, 4, 8, 10]),
        ({"save": "at:1,2"}, [0, 1, 2, 10]),
        ({"save": "log:4", "steps": 10}, [0, 1, 3, 10]),
        ({"save": "every:100"}, [0, 10]),
    ],
)
def test_schedules(tmp_path: Path, options: dict[str, Any], steps: list[int]) -> None:
    loop = Loop()
    with Recorder(loop.module, tmp_path / "run", **options) as recorder:
        for _ in range(10):
            loop.update()
            recorder.step()
    trajectory = open_trajectory(tmp_path / "run")
    assert trajectory.steps == steps
    assert (trajectory.checkpoint(10).read("0.weight") == loop.seen[10]["0.weight"]).all()


def test_a_schedule_that_needs_an_end(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'log' needs the number of the last step\. Give it as steps=N"):
        Recorder(make_module(), tmp_path / "run", save="log:10")
    assert not (tmp_path / "run").exists()


def test_analyzers_take_a_model_of_no_family(tmp_path: Path) -> None:
    loop = Loop()
    with Recorder(loop.module, tmp_path / "run", mode="log") as recorder:
        for _ in range(3):
            loop.update()
            recorder.step()
    outcome = analyze(tmp_path / "run", ["rank"], output=tmp_path / "r.h5")
    assert (outcome.steps, outcome.matrices) == ([0, 1, 2, 3], 2)


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    module = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    module["head"].weight = module["embed"].weight
    with Recorder(module, tmp_path / "run") as recorder:
        recorder.step()
        module["head"].weight = nn.Parameter(torch.ones(5, 3))
        with pytest.raises(RunError, match=r"step 2: 'head.weight' was tied to 'embed.weight' and no longer is"):
            recorder.step()
        module["head"].weight = module["embed"].weight
    checkpoint = open_trajectory(tmp_path / "run").checkpoint(1)
    assert list(checkpoint.tensors) == ["embed.weight"]
    assert checkpoint.aliases == {"head.weight": "embed.weight"}


def test_ties_are_equal_views_of_equal_memory() -> None:
    flat = torch.arange(6.0)
    tensors = {
        "a": flat.view(2, 3),
        "b": flat.view(2, 3),
        "t": flat.view(2, 3).T,
        "part": flat[:3],
        "same part": flat[0:3],
        "copy": flat.view(2, 3).clone(),
        "bits": flat.view(torch.int32),
        "none": torch.ones(0),
        "nothing": torch.ones(0),
    }
    assert ties(tensors) == {"b": "a", "same part": "part"}


def test_names_inside_wrappers() -> None:
    module = make_module()
    assert unwrapped(nn.DataParallel(module)) is module
    compiled = type("OptimizedModule", (nn.Module,), {})()
    compiled._orig_mod = module
    assert unwrapped(nn.DataParallel(compiled)) is module
    assert unwrapped(module) is module


def changes(module: Any) -> Iterator[str]:
    """Change a module in ways that `state_dict` would show."""
    module[0].weight = nn.Parameter(torch.ones(6, 4))
    yield "a parameter replaced"
    module[0].weight.data = torch.zeros(6, 4)
    yield "its data replaced"
    module[1].running_mean = torch.full((6,), 3.0)
    yield "a buffer replaced"
    module[3] = nn.Linear(6, 2)
    yield "a module replaced"
    module[3].weight.data.mul_(2)
    yield "changed in place"
    module.append(nn.Linear(2, 2))
    yield "a module added"
    module[4].bias = None
    yield "a parameter removed"
    module[4].register_buffer("hidden", torch.ones(2), persistent=False)
    yield "a buffer that is not kept"


def test_tensors_are_always_those_of_the_module() -> None:
    module = make_module()
    tensors = ModuleTensors(module)
    assert tensors() is tensors()
    for change in changes(module):
        expected = module.state_dict()
        found = tensors()
        assert found.keys() == expected.keys(), change
        assert all(torch.equal(found[name], expected[name]) for name in expected), change


class Own(nn.Module):
    """A module with its own idea of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.calls = 0

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return {"number": torch.tensor(float(self.calls)), "note": "text"}


def test_own_rules_of_state_are_followed(tmp_path: Path) -> None:
    tensors = ModuleTensors(Own())
    with pytest.warns(UserWarning, match="not recorded, as they are no tensors: note"):
        assert tensors()["number"] == 1
    assert tensors()["number"] == 2
    hooked = make_module()
    hooked.register_state_dict_post_hook(lambda module, state, prefix, local: state.update(extra=torch.ones(1)))
    assert ModuleTensors(hooked)()["extra"] == 1


def test_a_model_that_changes_shape(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    with Recorder(module, tmp_path / "run") as recorder:
        module.append(nn.Linear(2, 2))
        with pytest.raises(RunError, match=r"step 1: Tensor '1\.bias' is new; all checkpoints of a run hold the same"):
            recorder.step()
        del module[1]
    assert open_trajectory(tmp_path / "run").steps == [0, 1]


def test_an_exception_interrupts_the_run(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Recorder(make_module(), tmp_path / "run", save="every:5") as recorder:
        recorder.step()
        raise ZeroDivisionError
    assert read_run(tmp_path / "run").status == "interrupted"
    assert open_trajectory(tmp_path / "run").steps == [0]


def test_closing_twice_changes_nothing(tmp_path: Path) -> None:
    recorder = Recorder(make_module(), tmp_path / "run")
    recorder.close()
    recorder.close("interrupted")
    assert read_run(tmp_path / "run").status == "finished"
    with pytest.raises(RunError, match="is finished: nothing can be added"):
        recorder.step(loss=1.0)


def test_a_forgotten_recorder_closes_its_run(tmp_path: Path) -> None:
    recorder = Recorder(make_module(), tmp_path / "run")
    recorder.step()
    del recorder
    gc.collect()
    assert read_run(tmp_path / "run").status == "interrupted"
    assert open_trajectory(tmp_path / "run").steps == [0, 1]


def test_a_training_that_goes_on(tmp_path: Path) -> None:
    loop = Loop()
    recorder = Recorder(loop.module, tmp_path / "run", mode="log")
    for _ in range(5):
        loop.update()
        recorder.step(loss=1.0)
    recorder.close("interrupted")
    recorder = Recorder(loop.module, tmp_path / "run", start=3)
    assert recorder.now == 3
    recorder.step(loss=2.0)
    recorder.close()
    trajectory = open_trajectory(tmp_path / "run")
    assert trajectory.steps == [0, 1, 2, 3, 4, 5]
    assert (trajectory.checkpoint(4).read("0.weight") == loop.seen[5]["0.weight"]).all()
    assert read_metrics(tmp_path / "run")["loss"].tolist() == [1, 1, 1, 2]


def test_a_run_may_begin_later(tmp_path: Path) -> None:
    with Recorder(make_module(), tmp_path / "run", start=1000) as recorder:
        recorder.step()
        recorder.step(2000, loss=0.5)
    assert open_trajectory(tmp_path / "run").steps == [1000, 1001, 2000]


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    Recorder(make_module(), tmp_path / "run").close()
    with pytest.raises(RunError, match="is not empty"):
        Recorder(make_module(), tmp_path / "run")


@pytest.mark.parametrize("value", ["high", None, torch.ones(2)])
def test_metrics_must_be_numbers(tmp_path: Path, value: Any) -> None:
    with (
        Recorder(make_module(), tmp_path / "run") as recorder,
        pytest.raises(
            RunError, match=r"Metrics must be numbers or tensors of one element\. Got loss \(\w+\) at step 1"
        ),
    ):
        recorder.step(loss=value)


@dataclass
class Config:
    width: int
    act: Any


class Listed:
    def to_dict(self) -> dict[str, Any]:
        return {"model_type": "llama", "layers": 2, "dtype": torch.float32}


def test_configuration_is_found_where_json_can_hold_it(tmp_path: Path) -> None:
    module = make_module()
    assert config_of(module) == {}
    module.config = Config(4, "tanh")
    assert config_of(module) == {"width": 4, "act": "tanh"}
    module.config = {"a": 1, 2: 3}
    assert config_of(module) == {"a": 1}
    module.config = object()
    assert config_of(module) == {}
    module.config = Listed()
    with pytest.warns(UserWarning, match="config entry 'dtype' is left out"):
        Recorder(module, tmp_path / "run").close()
    assert read_run(tmp_path / "run").config == {"model_type": "llama", "layers": 2}


def test_probe_and_facts(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"family": "f", "family_version": 3, "config": {"n": 1}, "task": "t", "seed": 5}
    with Recorder(make_module(), tmp_path / "run", **facts, train={"lr": 0.1}, probe={"tokens": torch.arange(3)}):
        pass
    stored = json.loads((tmp_path / "run/run.json").read_text())
    assert {name: stored[name] for name in facts} == facts
    assert stored["train"] == {"lr": 0.1}
    assert read_probe(tmp_path / "run")["tokens"].tolist() == [0, 1, 2]


def test_signals_are_left_to_those_who_handle_them(tmp_path: Path) -> None:
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with Recorder(make_module(), tmp_path / "a"):
        ours = signal.getsignal(signal.SIGTERM)
        assert callable(ours)
        with Recorder(make_module(), tmp_path / "b"):
            assert signal.getsignal(signal.SIGTERM) is ours
        assert signal.getsignal(signal.SIGTERM) is ours
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Recorder(make_module(), tmp_path / "c"):
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_last_checkpoint_that_fails_interrupts_the_run(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    recorder = Recorder(module, tmp_path / "run", save="every:10")
    recorder.step()
    module.append(nn.Linear(2, 2))
    with pytest.raises(RunError, match="is new; all checkpoints of a run hold the same"):
        recorder.close()
    assert read_run(tmp_path / "run").status == "interrupted"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


IN_A_THREAD = """
import os, signal, sys, threading, torch
from ckpt_tools import Recorder
from ckpt_tools.run.writer import RunWriter
recorder = Recorder(torch.nn.Linear(2, 2), sys.argv[1])
save = RunWriter.save
def slow(self, *arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    main.wait(0.5)
    save(self, *arguments)
main = threading.Event()
RunWriter.save = slow
thread = threading.Thread(target=recorder.step)
thread.start()
thread.join()
main.wait(5)
"""


@pytest.mark.parametrize("threaded", [True, False])
def test_a_signal_while_saving_waits_for_its_end(tmp_path: Path, threaded: bool) -> None:
    code = IN_A_THREAD if threaded else IN_A_THREAD.partition("thread = ")[0] + "recorder.step()\nmain.wait(5)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], timeout=60)
    assert done.returncode == -signal.SIGTERM
    assert open_trajectory(tmp_path / "run").steps == [0, 1]
    assert read_run(tmp_path / "run").status == "interrupted"


def test_a_forked_process_does_not_end_the_run(tmp_path: Path) -> None:
    recorder = Recorder(make_module(), tmp_path / "run")
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert os.waitpid(child, 0)[1] == signal.SIGTERM
    assert read_run(tmp_path / "run").status == "running"
    recorder.step()
    recorder.close()
    assert read_run(tmp_path / "run").status == "finished"

"""The loop: deterministic, interruptible, and continued bit for bit."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ckpt_tools.errors import OptionError, RunError
from ckpt_tools.run import read_metrics, read_probe, read_run
from ckpt_trainers import loop, training
from ckpt_trainers.tasks import take
from ckpt_trainers.transformer import Transformer

pytestmark = pytest.mark.slow

FULL: dict[str, Any] = {"steps": 12, "save": "every:3"}
SAMPLED: dict[str, Any] = {
    "form": "sampled",
    "samples": 40,
    "length": 6,
    "optimizer": "adamw",
    "lr": 0.01,
    "weight_decay": 0.1,
    "batch": 8,
    "dtype": "float32",
    "norm": "pre",
    "positions": "learned",
    "std": "none",
    **FULL,
}
SETTINGS = {
    "gd": FULL,
    "sgd": {**FULL, "optimizer": "sgd", "momentum": 0.9, "form": "sampled", "samples": 30, "batch": 5},
    "adamw": SAMPLED,
    "fresh": {**SAMPLED, "samples": 0},
    "scheduled": {
        **SAMPLED,
        "lr_schedule": "warmup-cosine",
        "warmup": 5,
        "clip": 0.5,
        "no_decay": "embeddings,vectors",
    },
}
every_kind = pytest.mark.parametrize("values", SETTINGS.values(), ids=SETTINGS.keys())

OnStep = Callable[[int, int, Mapping[str, float]], None]


def train(out: Path, values: Mapping[str, Any], *, resume: bool = False, on_step: OnStep | None = None) -> str:
    return Transformer.train("markov", values, out, resume=resume, on_step=on_step)


def at(step: int, act: Callable[[], Any]) -> OnStep:
    def on_step(now: int, last: int, metrics: Mapping[str, float]) -> None:
        if now == step:
            act()

    return on_step


def interrupt(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def contents(run: Path) -> dict[str, bytes]:
    """All bytes of a run but its paths and status."""
    return {str(f.relative_to(run)): f.read_bytes() for f in run.rglob("*") if f.is_file()}


@every_kind
def test_same_seed_same_bytes(tmp_path: Path, values: dict[str, Any]) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert train(tmp_path / name, {**values, "seed": seed}) == "finished"
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert set(a) == {
        "run.json",
        "metrics.jsonl",
        "probe.safetensors",
        *(f"step-{s:06d}/model.safetensors" for s in (0, 3, 6, 9, 12)),
    }
    assert not {name for name in a if name.startswith("step") and a[name] == c[name]}


@every_kind
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path, values: dict[str, Any], number: int) -> None:
    train(tmp_path / "whole", values)
    assert train(tmp_path / "cut", values, on_step=at(4, lambda: interrupt(number))) == "interrupted"
    assert read_run(tmp_path / "cut").status == "interrupted"
    assert read_metrics(tmp_path / "cut")["step"].tolist() == [0, 1, 2, 3, 4]
    seen: list[int] = []
    again = train(tmp_path / "cut", values, resume=True, on_step=lambda step, last, metrics: seen.append(step))
    assert again == "finished"
    assert seen == list(range(5, 13))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_resuming_needs_no_settings(tmp_path: Path) -> None:
    train(tmp_path / "whole", SAMPLED)
    train(tmp_path / "cut", SAMPLED, on_step=at(3, interrupt))
    assert train(tmp_path / "cut", {}, resume=True) == "finished"
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_a_crash_costs_only_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    def crash() -> None:
        raise MemoryError

    monkeypatch.setattr(loop, "RESUME_SECONDS", seconds)
    train(tmp_path / "whole", SAMPLED)
    with pytest.raises(MemoryError):
        train(tmp_path / "cut", SAMPLED, on_step=at(7, crash))
    assert read_run(tmp_path / "cut").status == "interrupted"
    seen: list[int] = []
    train(tmp_path / "cut", SAMPLED, resume=True, on_step=lambda step, last, metrics: seen.append(step))
    assert seen[0] == (6 if seconds == 0 else 0)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    assert train(tmp_path / "run", FULL, on_step=at(2, lambda: (interrupt(), interrupt()))) == "interrupted"
    assert read_metrics(tmp_path / "run")["step"].tolist() == [0, 1, 2]
    assert train(tmp_path / "run", FULL, resume=True) == "finished"


def test_signal_at_the_last_step_changes_nothing(tmp_path: Path) -> None:
    assert train(tmp_path / "run", FULL, on_step=at(12, interrupt)) == "finished"


def test_caller_gets_handlers_and_threads_back(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    seen: list[int] = []
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(tmp_path / "run", FULL, on_step=at(1, lambda: seen.append(torch.get_num_threads())))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert (seen, torch.get_num_threads()) == ([1], 2)
    torch.set_num_threads(1)


def test_trains_outside_the_main_thread(tmp_path: Path) -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(train(tmp_path / "run", FULL)))
    thread.start()
    thread.join()
    assert found == ["finished"]


def test_finished_run_is_left_alone(tmp_path: Path) -> None:
    train(tmp_path / "run", FULL)
    before = contents(tmp_path / "run")
    assert train(tmp_path / "run", FULL, resume=True) == "finished"
    assert contents(tmp_path / "run") == before


def test_resume_starts_what_is_not_there(tmp_path: Path) -> None:
    assert train(tmp_path / "new", FULL, resume=True) == "finished"


def test_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    train(tmp_path / "run", FULL)
    with pytest.raises(RunError, match="Continue its run with --resume, or choose another --out"):
        train(tmp_path / "run", FULL)


def test_resume_with_other_settings(tmp_path: Path) -> None:
    train(tmp_path / "run", FULL, on_step=at(3, interrupt))
    with pytest.raises(RunError, match=r"was begun with lr = 0\.2, not 0\.3\. Leave lr out to continue it"):
        train(tmp_path / "run", {"lr": 0.3}, resume=True)


def test_resume_of_another_family(tmp_path: Path) -> None:
    train(tmp_path / "run", FULL, on_step=at(3, interrupt))
    text = (tmp_path / "run/run.json").read_text().replace('"family": "transformer"', '"family": "mamba"')
    (tmp_path / "run/run.json").write_text(text)
    with pytest.raises(RunError, match="is a run of mamba version 1 on markov, not of transformer version 1 on markov"):
        train(tmp_path / "run", {}, resume=True)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize(
    "state", [b"", b"PK\x03\x04", {"module": {}}, {"module": Payload()}], ids=["empty", "torn", "foreign", "hostile"]
)
def test_damaged_side_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Any) -> None:
    train(tmp_path / "run", FULL, on_step=at(3, interrupt))
    file = tmp_path / "run" / loop.RESUME_FILE
    file.write_bytes(state) if isinstance(state, bytes) else torch.save(state, file)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RunError, match=r"resume\.pt does not fit this run \(\w+\)\. Delete it to start again at step 0"
    ):
        train(tmp_path / "run", {}, resume=True)
    assert not (tmp_path / "executed").exists()


def test_divergence_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"The loss is (nan|inf) at step \d+: lower lr, which is 100000\.0"):
        train(tmp_path / "run", {"lr": 1e5, "steps": 200, "std": 1.0})
    assert read_run(tmp_path / "run").status == "interrupted"


def test_fresh_examples_need_a_batch_size(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"say how many with --set batch=N"):
        train(tmp_path / "run", {**SAMPLED, "samples": 0, "batch": 0})
    assert not (tmp_path / "run").exists()


def test_loss_belongs_to_the_checkpoint(tmp_path: Path) -> None:
    train(tmp_path / "run", {**FULL, "std": 0.5})
    metrics, probe = read_metrics(tmp_path / "run"), read_probe(tmp_path / "run")
    assert metrics["step"].tolist() == list(range(13))
    assert np.isnan(metrics["excess"]).tolist() == [step % 3 != 0 for step in range(13)]
    module = Transformer.build(read_run(tmp_path / "run").config).double()
    for step in (0, 6, 12):
        module.load_state_dict(load_file(tmp_path / f"run/step-{step:06d}/model.safetensors"))
        loss = Transformer.loss(module, {name: torch.from_numpy(array) for name, array in probe.items()})
        assert loss.item() == metrics["loss"][step]


def test_tied_embedding_is_stored_once(tmp_path: Path) -> None:
    train(tmp_path / "run", {**FULL, "tied": True})
    assert read_run(tmp_path / "run").tied == {"unembed.weight": "embed.weight"}
    assert "unembed.weight" not in load_file(tmp_path / "run/step-000003/model.safetensors")


def test_streams_are_independent() -> None:
    draws = {
        torch.rand(1, generator=training.generator(seed, name)).item() for seed in (0, 1) for name in training.STREAMS
    }
    assert len(draws) == 2 * len(training.STREAMS)
    assert training.generator(3, "data").initial_seed() == training.generator(3, "data").initial_seed()


def test_taking_examples_keeps_weights_normal() -> None:
    batch = {
        "tokens": torch.arange(6).view(3, 2),
        "targets": torch.arange(6).view(3, 2),
        "weights": torch.tensor([[0.1, 0.1], [0.2, 0.2], [0.3, 0.1]]),
        "key_log_weight": torch.zeros(2),
    }
    taken = take(batch, torch.tensor([2, 0, 0]))
    assert taken["tokens"].tolist() == [[4, 5], [0, 1], [0, 1]]
    torch.testing.assert_close(taken["weights"], torch.tensor([[0.3, 0.1], [0.1, 0.1], [0.1, 0.1]]) / 0.8)
    assert taken["key_log_weight"] is batch["key_log_weight"]

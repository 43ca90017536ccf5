"""Callbacks of the real libraries record what the library trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ckpt_tools import analyze, open_trajectory
from ckpt_tools.callbacks import lightning_callback, transformers_callback
from ckpt_tools.errors import PluginError, SourceError
from ckpt_tools.run import read_metrics, read_run


@pytest.fixture(autouse=True)
def libraries_may_warn() -> Iterator[None]:
    """Other people's warnings are not ours to fix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def weights(module: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def check_recorded(path: Path, seen: dict[int, dict[str, np.ndarray[Any, Any]]]) -> None:
    trajectory = open_trajectory(path)
    assert trajectory.steps == sorted(seen)
    for step, expected in seen.items():
        with trajectory.checkpoint(step) as checkpoint:
            assert checkpoint.tensors.keys() | checkpoint.aliases.keys() == expected.keys()
            assert all((checkpoint.read(name) == value).all() for name, value in expected.items())


def llama() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, vocab_size=32, tie_word_embeddings=True)
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


def trainer(model: Any, out: Path, callback: Any, steps: int, **more: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    rows = [{"input_ids": torch.arange(i, i + 8) % 32, "labels": torch.arange(i, i + 8) % 32} for i in range(40)]
    arguments = transformers.TrainingArguments(
        output_dir=str(out), max_steps=steps, per_device_train_batch_size=4, logging_steps=2, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, learning_rate=0.01, **more,
    )  # fmt: skip
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback])


def watching(seen: dict[int, Any]) -> Any:
    transformers = pytest.importorskip("transformers")

    class Watch(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
            seen[state.global_step] = weights(model)

        on_step_end = on_train_begin

    return Watch()


def test_transformers_trainer(tmp_path: Path) -> None:
    seen: dict[int, Any] = {}
    model = llama()
    work = trainer(model, tmp_path / "out", transformers_callback(tmp_path / "run", save="every:1"), 6)
    work.add_callback(watching(seen))
    work.train()
    assert sorted(seen) == list(range(7))
    check_recorded(tmp_path / "run", seen)
    info = read_run(tmp_path / "run")
    assert (info.status, info.family, info.config["model_type"]) == ("finished", "", "llama")
    assert info.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    metrics = read_metrics(tmp_path / "run")
    logged = [row for row in work.state.log_history if "loss" in row]
    assert (
        dict(zip(metrics["step"], metrics["loss"], strict=True)).items()
        >= {row["step"]: row["loss"] for row in logged}.items()
    )
    analyze(tmp_path / "run", ["rank"], output=tmp_path / "r.h5", matrices=["layers.0.attn.q"])


def test_transformers_schedule_takes_the_trainers_last_step(tmp_path: Path) -> None:
    trainer(llama(), tmp_path / "out", transformers_callback(tmp_path / "run", save="log:4"), 9).train()
    assert open_trajectory(tmp_path / "run").steps == [0, 1, 3, 9]


def test_transformers_with_accumulated_gradients(tmp_path: Path) -> None:
    callback = transformers_callback(tmp_path / "run")
    trainer(llama(), tmp_path / "out", callback, 3, gradient_accumulation_steps=2).train()
    assert open_trajectory(tmp_path / "run").steps == [0, 1, 2, 3]


lightning_name = pytest.mark.parametrize("library", ["lightning.pytorch", "pytorch_lightning"])


def fit(library: str, callback: Any, out: Path, **more: Any) -> dict[int, Any]:
    """Train 2 epochs of 5 batches, then save `last.ckpt`; return the weights after every update."""
    lightning = pytest.importorskip(library)
    seen: dict[int, Any] = {}

    class Regression(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

        def training_step(self, batch: Any, index: int) -> Any:
            if more.get("fail_at") == self.global_step:
                raise ZeroDivisionError
            return self.net(batch[0]).square().mean()

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val", self.net(batch[0]).square().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Watch(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_train_start(self, trainer: Any, module: Any) -> None:
            seen[trainer.global_step] = weights(module)

        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            seen[trainer.global_step] = weights(module)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(20, 3)), batch_size=4)
    work = lightning.Trainer(
        max_epochs=more.get("epochs", 2), accumulate_grad_batches=more.get("accumulate", 1), accelerator="cpu",
        callbacks=[callback, Watch()], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(out),
    )  # fmt: skip
    work.fit(Regression(), data, data, ckpt_path=more.get("continued"))
    work.save_checkpoint(out / "last.ckpt")
    return seen


@lightning_name
def test_lightning(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    seen = fit(library, lightning_callback(tmp_path / "run"), tmp_path)
    assert sorted(seen) == list(range(11))
    check_recorded(tmp_path / "run", seen)
    assert read_run(tmp_path / "run").status == "finished"
    metrics = read_metrics(tmp_path / "run")
    assert metrics["step"].tolist() == list(range(1, 11))
    assert np.isfinite(metrics["loss"]).all()
    assert np.isfinite(metrics["val"]).tolist() == [step in (5, 10) for step in range(1, 11)]


@lightning_name
def test_lightning_records_a_part(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    seen = fit(library, lightning_callback(tmp_path / "run", module="net", save="log:3"), tmp_path)
    kept = {step: {name.removeprefix("net."): v for name, v in seen[step].items()} for step in (0, 1, 10)}
    check_recorded(tmp_path / "run", kept)
    with pytest.raises(SourceError, match="Regression has no part 'ne' to record"):
        fit(library, lightning_callback(tmp_path / "other", module="ne"), tmp_path)


@lightning_name
def test_lightning_with_accumulated_gradients(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    fit(library, lightning_callback(tmp_path / "run"), tmp_path, accumulate=2)
    assert open_trajectory(tmp_path / "run").steps == list(range(7))


@lightning_name
def test_lightning_continues_its_run(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    seen = fit(library, lightning_callback(tmp_path / "run"), tmp_path, epochs=1)
    assert sorted(seen) == list(range(6))
    more = fit(library, lightning_callback(tmp_path / "run"), tmp_path, continued=str(tmp_path / "last.ckpt"))
    assert sorted(more) == list(range(5, 11))
    check_recorded(tmp_path / "run", seen | more)
    assert read_run(tmp_path / "run").status == "finished"
    assert read_metrics(tmp_path / "run")["step"].tolist() == list(range(1, 11))


@lightning_name
def test_lightning_interrupted_by_an_error(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    with pytest.raises(ZeroDivisionError):
        fit(library, lightning_callback(tmp_path / "run"), tmp_path, fail_at=3)
    assert read_run(tmp_path / "run").status == "interrupted"
    assert open_trajectory(tmp_path / "run").steps == [0, 1, 2, 3]


def test_a_library_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckpt_tools import callbacks

    monkeypatch.setattr(callbacks, "LIGHTNING", ("no_such_lightning.pytorch", "no_such_lightning"))
    with pytest.raises(PluginError, match="needs a library that is not installed: no_such_lightning"):
        lightning_callback(tmp_path / "run")

"""Record the training of other libraries: `transformers.Trainer` and Lightning.

    Trainer(..., callbacks=[transformers_callback("runs/x", save="every:10")])
    lightning.Trainer(..., callbacks=[lightning_callback("runs/x", save="every:10")])

Both make a `Recorder` when training begins, so `path` becomes a run; with a library's own resuming it is continued. The
process of rank 0 records. Weights that a library keeps in pieces (FSDP, DeepSpeed ZeRO-3) are not put together.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import PluginError, SourceError
from .run import Recorder

if TYPE_CHECKING:
    from torch import nn

LIGHTNING = ("lightning.pytorch", "pytorch_lightning")


class _Recording:
    """A recorder that lives from the beginning of a training to its end."""

    def __init__(self, path: Path | str, options: Mapping[str, Any]) -> None:
        self._path, self._options = path, options
        self._recorder: Recorder | None = None

    def begin(self, module: nn.Module, step: int, last: float) -> None:
        """Start or continue the run at a number of updates; `last` counts when it is a positive number."""
        known = int(last) if math.isfinite(last) and last > 0 else None
        self._recorder = Recorder(module, self._path, start=step, **{"steps": known, **self._options})

    def step(self, number: int, **metrics: Any) -> None:
        """Record an update, once."""
        if self._recorder is not None and number > self._recorder.now:
            self._recorder.step(number, **metrics)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Note the metrics that are numbers."""
        numbers = {name: value for name, value in metrics.items() if _is_number(value)}
        if self._recorder is not None and numbers:
            self._recorder.log(**numbers)

    def end(self, status: str = "finished") -> None:
        """Close the run."""
        if self._recorder is not None:
            self._recorder.close(status)
            self._recorder = None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or getattr(value, "numel", lambda: 0)() == 1


def transformers_callback(path: Path | str, **options: Any) -> Any:
    """Return a `transformers.TrainerCallback` that records the training into the run `path`.

    `options` are those of `Recorder`; what the trainer logs becomes metrics. Raises PluginError without transformers.
    """
    base = _imported(["transformers"]).TrainerCallback
    recording = _Recording(path, options)

    class RecordTraining(base):  # type: ignore[misc, valid-type]
        """Records into a run."""

        def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                recording.begin(model, state.global_step, state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recording.step(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, *, logs: Mapping[str, Any], **kwargs: Any) -> None:
            recording.log(logs)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recording.end()

    return RecordTraining()


def lightning_callback(path: Path | str, *, module: str = "", **options: Any) -> Any:
    """Return a Lightning `Callback` that records the training into the run `path`.

    `module` names the part of the LightningModule to record ("model", "net.encoder"; default: all of it), whose tensors
    then have the names they have in that part. `options` are those of `Recorder`. The loss of every batch and what is
    logged in validation become metrics. Raises PluginError without lightning or pytorch_lightning.
    """
    base = _imported(sorted(LIGHTNING, key=lambda name: name not in sys.modules)).Callback
    recording = _Recording(path, options)

    class RecordTraining(base):  # type: ignore[misc, valid-type]
        """Records into a run."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.is_global_zero:
                recording.begin(_part(pl_module, module), trainer.global_step, trainer.estimated_stepping_batches)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            recording.step(trainer.global_step, **({"loss": loss} if _is_number(loss) else {}))

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            recording.log(trainer.callback_metrics)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            recording.end()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            recording.end("interrupted")

    return RecordTraining()


def _imported(names: list[str]) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):
                raise
    raise PluginError(f"This callback needs a library that is not installed: {names[0].partition('.')[0]}.")


def _part(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise SourceError(f"{type(module).__name__} has no part {name!r} to record: {error}.") from None

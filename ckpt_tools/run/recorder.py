"""Record any training loop as a run: `Recorder(module, path)`, `step()` after every update, `close()`."""

from __future__ import annotations

import dataclasses
import json
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..errors import OptionError, RunError
from .reader import is_run
from .schedule import Schedule
from .tensors import ModuleTensors, ties, unwrapped
from .terminate import Terminator
from .writer import RunWriter

if TYPE_CHECKING:
    from torch import nn


class Recorder:
    """Writes the tensors of a torch module into a run while somebody else trains it.

        rec = Recorder(model, "runs/x", save="every:1")
        for batch in data:
            ...
            rec.step(loss=loss)  # after the optimizer's step
        rec.close()

    `save` is a schedule (`every:20,log:50`); one with `log` needs `steps`, the number of the last step. The first
    checkpoint is saved at once. `start` is the number of updates already done: if it is not 0 and `path` is a run, that
    run is continued.
    `family` and `config` say how to rebuild the model; without them tensors keep their own names and analyzers that run
    the model do not work, except that a configuration like those of `transformers` is found by itself. `probe` is the
    batch on which analyzers run the model. `mode`, `fsync` and `queue` are those of `RunWriter`.

    Tied tensors are written once. As a context manager it closes the run, "interrupted" after an exception. SIGTERM
    and leaving the interpreter write what waits too. In a distributed training make one, in the process of rank 0.
    """

    def __init__(
        self,
        module: nn.Module,
        path: Path | str,
        *,
        save: str = "every:1",
        steps: int | None = None,
        start: int = 0,
        family: str = "",
        family_version: int = 1,
        config: Mapping[str, Any] | None = None,
        task: str = "",
        train: Mapping[str, Any] | None = None,
        seed: int = 0,
        probe: Mapping[str, Any] | None = None,
        mode: str = "auto",
        fsync: str | float = "never",
        queue: int | None = None,
    ) -> None:
        self._schedule, self._last = _schedule(save, steps), steps
        self._each = 1 in self._schedule.every
        module = unwrapped(module)
        self._tensors = ModuleTensors(module)
        self._tied = ties(self._tensors())
        saving: dict[str, Any] = {"mode": mode, "fsync": fsync, "queue": queue}
        continued = start > 0 and is_run(path)
        if continued:
            self.run = RunWriter.resume(path, step=start + 1, **saving)
        else:
            self.run = RunWriter(
                path,
                family=family,
                family_version=family_version,
                config=config_of(module) if config is None else config,
                task=task,
                train=train,
                seed=seed,
                schedule=self._schedule,
                tied=self._tied,
                probe=probe,
                **saving,
            )
        self._now, self._saved = start, -1
        self._terminator = Terminator(self.run)
        self._finalizer = weakref.finalize(self, self._terminator.interrupt)
        if not continued:
            self._save()

    @property
    def now(self) -> int:
        """The number of updates recorded."""
        return self._now

    def step(self, number: int | None = None, /, **metrics: Any) -> None:
        """Count an update, note metrics (numbers or tensors of one element) under its number, save when it is due.

        `number` is the number of updates so far, one more than before if left out. Raises RunError when saving fails.
        """
        self._now = self._now + 1 if number is None else number
        self._terminator.busy = True
        try:
            if self._each or self._schedule.due(self._now, self._last):
                self._save()
            if metrics:
                self.log(**metrics)
        finally:
            self._terminator.end()

    def log(self, **metrics: Any) -> None:
        """Note metrics of the current step; several notes of one step are merged. Raises RunError for no number."""
        try:
            numbers = {name: _number(value) for name, value in metrics.items()}
        except (TypeError, ValueError, RuntimeError):
            kinds = ", ".join(f"{name} ({type(value).__name__})" for name, value in metrics.items())
            raise RunError(
                f"Metrics must be numbers or tensors of one element. Got {kinds} at step {self._now}."
            ) from None
        self.run.log(self._now, numbers)

    def close(self, status: str = "finished") -> None:
        """Save the last step, write what waits and close the run; a later call changes nothing.

        Raises RunError when something could not be written.
        """
        if not self._finalizer.detach():
            return
        self._terminator.busy = True
        try:
            try:
                if status == "finished" and self._saved != self._now:
                    self._save()
            except BaseException:
                status = "interrupted"
                raise
            finally:
                self.run.finish(status)
        finally:
            self._terminator.end()
            self._terminator.release()

    def _save(self) -> None:
        tensors = self._tensors()
        for alias, name in self._tied.items():
            if tensors[alias].data_ptr() != tensors[name].data_ptr():
                raise RunError(f"{self.run.path}, step {self._now}: {alias!r} was tied to {name!r} and no longer is.")
        self.run.save(self._now, tensors)
        self._saved = self._now

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        try:
            self.close("finished" if kind is None else "interrupted")
        except RunError:
            if kind is None:  # else the error on its way says more
                raise


def _number(value: Any) -> float:
    return float(value.detach() if hasattr(value, "detach") else value)


def _schedule(text: str, steps: int | None) -> Schedule:
    schedule = Schedule.parse(text)
    if schedule.log and steps is None:
        raise OptionError(f"Schedule {text!r}: 'log' needs the number of the last step. Give it as steps=N.")
    return schedule


def config_of(module: nn.Module) -> dict[str, Any]:
    """Return the configuration a module carries as `module.config`, as far as JSON can hold it; {} without one."""
    config: Any = getattr(module, "config", None)
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    elif dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    if not isinstance(config, Mapping):
        return {}
    return {name: value for name, value in config.items() if isinstance(name, str) and _is_json(name, value)}


def _is_json(name: str, value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        warnings.warn(f"config entry {name!r} is left out of run.json: JSON cannot hold it", stacklevel=4)
        return False
    return True

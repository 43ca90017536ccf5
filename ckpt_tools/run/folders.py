"""Checkpoints in folders of their own, which any safetensors reader opens: `step-000128/model.safetensors`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..errors import RunError
from .files import Sync, write_new

MODEL_FILE = "model.safetensors"


def folder_name(step: int) -> str:
    """Return the name of the folder of a step."""
    return f"step-{step:06d}"


class FolderStore:
    """Writes each checkpoint under a hidden name and renames it; creating and renaming is what takes the time."""

    def __init__(self, path: Path, sync: Sync) -> None:
        self.path, self.sync = path, sync

    def put(self, step: int, buffers: Sequence[memoryview]) -> None:
        """Put the bytes of one checkpoint on disk, replacing what its folder held. Raises RunError."""
        final = self.path / folder_name(step)
        draft = self.path / f".{final.name}"
        try:
            draft.mkdir()
            write_new(draft / MODEL_FILE, buffers)
            if final.exists():
                os.replace(draft / MODEL_FILE, final / MODEL_FILE)
                draft.rmdir()
            else:
                draft.rename(final)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise cannot_write(self.path, step, error) from error
        self.sync.wrote(final / MODEL_FILE, final, self.path)

    def close(self) -> None:
        """Flush what the rule says."""
        self.sync.flush()


def remove_folder(folder: Path) -> None:
    """Delete a step folder so that no moment shows half of it."""
    hidden = folder.with_name(f".{folder.name}")
    try:
        folder.rename(hidden)
    except OSError as error:
        raise RunError(f"Cannot remove {folder}: {error.strerror}.") from error
    shutil.rmtree(hidden, ignore_errors=True)


def remove_drafts(path: Path) -> None:
    """Delete what a killed process left half written in a run."""
    for leftover in [*path.glob(".step-*"), *path.glob(".log-*")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def cannot_write(path: Path, step: int, error: OSError) -> RunError:
    """Return the error of a checkpoint that did not fit or could not be written."""
    return RunError(
        f"Cannot write the checkpoint of step {step} into {path}: {error.strerror}. "
        "All checkpoints before it are whole; make room or raise the limit, then resume the run."
    )

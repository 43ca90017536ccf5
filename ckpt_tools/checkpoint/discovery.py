"""Which of the names in a folder are the checkpoints of one run.

Names propose (`series.py`), content decides where names leave room: a number without a word such as `step` counts only
when the checkpoints at both ends of its series hold the same tensors. So shards, ranks and seeds are never steps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ..errors import CkptError, SourceError, nearest
from .aliases import ALIAS, explain
from .folder import INDEX, WEIGHTS
from .location import Location
from .opener import open_checkpoint
from .packed import Members
from .series import Series, find_series
from .source import Skip

UNFINISHED = re.compile(r"\..*|.*[._-](tmp|temp|partial|part|incomplete|lock)|(tmp|temp)[._-].*", re.IGNORECASE)
_PIECE = re.compile(r".*-\d+-of-\d+(\..*)?|.*\.distcp|\.metadata")
_STATE = re.compile(
    r"(?<![a-z])(optimizers?|optim|optim_states?|sched|schedulers?|scaler|rng|rng_states?|random_states|training_args|"
    r"trainer_state)(?![a-z])",
    re.IGNORECASE,
)
_WEIGHT_LIKE = re.compile(
    r"\.(safetensors|bin|pt|pth|pth\.tar|ckpt|h5|hdf5|keras|msgpack|gguf|npz|pkl|pickle|model|params)$", re.IGNORECASE
)
_ALIASES_OPENED = 8


@dataclass
class Found:
    """The checkpoints of a folder by ascending step, what the number counts, and what was left out and why."""

    entries: Sequence[tuple[int, Location]]
    unit: str
    skipped: list[Skip] = field(default_factory=list)


def discover(folder: Location, children: Mapping[str, bool], choice: str | None = None) -> Found | None:
    """Return the trajectory in a folder, None when it holds none (then it may be a lone checkpoint).

    `children` are the names in it, True for folders. `choice` picks one of several runs by its label or a glob. Raises
    SourceError that lists the runs when there are several and none is chosen.
    """
    of_kind = [{name for name, is_folder in children.items() if is_folder is kind} for kind in (True, False)]
    folders, files = _Folders(folder, *of_kind), _Files(folder, *of_kind)
    of_folders, of_files = folders.series(), files.series()
    if of_files:  # `batch_1/` beside `model_epoch_1.pt`
        of_folders = [series for series in of_folders if alike(folder, series.names)]
    for kind, series in ((folders, of_folders), (files, of_files)):
        chosen = _chosen(folder, series, choice)
        if chosen is not None:
            return Found(Members(folder, chosen), chosen.unit, kind.skipped(chosen))
    if choice is not None:
        raise SourceError(f"{folder} holds no series of checkpoints of which {choice!r} could choose one.")
    return None


class _Folders:
    """Steps that are folders."""

    def __init__(self, folder: Location, folders: set[str], files: set[str]) -> None:
        self.folder, self.folders, self.files = folder, folders, files

    def _holds_one(self) -> bool:
        """Return whether the folder is a checkpoint itself, whatever else is in it."""
        return any(name in WEIGHTS or INDEX.fullmatch(name) or _PIECE.fullmatch(name) for name in self.files)

    def series(self) -> list[Series]:
        """Return the series of step folders; those whose name alone does not tell must hold checkpoints."""
        found = find_series(name for name in self.folders if not UNFINISHED.fullmatch(name))
        if self._holds_one() and all(name.startswith("global_step") for series in found for name in series.names):
            return []  # a checkpoint, with DeepSpeed's optimizer state in a folder
        if len(found) == 1 and len(found[0]) == 1 and found[0].label and any(map(_WEIGHT_LIKE.search, self.files)):
            return []  # one model among others, `tiny-step7/` beside `other.pt`
        return [s for s in found if s.keyed or (len(s) > 1 and alike(self.folder, s.names) is True)]

    def skipped(self, chosen: Series) -> list[Skip]:
        """Return folders that are no steps, files named like steps, and weights that lie beside them."""
        used, entries = set(chosen.names), Members(self.folder, chosen)
        found = []
        for name in sorted(self.folders - used):
            if UNFINISHED.fullmatch(name):
                found.append(Skip(name, "temporary or unfinished"))
            elif ALIAS.search(name) or (self.folder / name).is_symlink():
                found.append(Skip(name, explain(self.folder / name, entries, chosen.unit)))
            else:
                found.append(Skip(name, "a folder whose name holds no step of this run"))
        steps = {name for series in find_series(self.files) if series.keyed for name in series.names}
        found += [Skip(name, "a file, where steps are folders") for name in sorted(steps)]
        beside = sorted(name for name in self.files - steps if name in WEIGHTS or INDEX.fullmatch(name))
        return found + [Skip(name, explain(self.folder / name, entries, chosen.unit)) for name in beside]


class _Files(_Folders):
    """Steps that are files."""

    def series(self) -> list[Series]:
        """Return the series of two and more files that hold weights."""
        names = [name for name in self.files if not UNFINISHED.fullmatch(name) and not _PIECE.fullmatch(name)]
        found = find_series(name for name in names if name not in WEIGHTS and not _state(name))
        told = [s for s in found if s.keyed or (len(s) > 1 and not self._holds_one())]
        kept = [series for series in told if self._holds_weights(series)]
        return kept if any(len(series) > 1 for series in kept) or len(kept) > 1 else []

    def _holds_weights(self, series: Series) -> bool:
        weight_like = _WEIGHT_LIKE.search(series.names[0]) is not None
        if series.keyed and weight_like:
            return True
        same = alike(self.folder, series.names)
        return weight_like if same is None else same

    def skipped(self, chosen: Series) -> list[Skip]:
        """Return the other files that may hold weights, and the folders."""
        used, entries = set(chosen.names), Members(self.folder, chosen)
        found: list[Skip] = []
        opened = 0
        found += [Skip(n, "a folder, where steps are files") for n in sorted(self.folders) if not n.startswith(".")]
        for name in sorted(self.files - used):
            if UNFINISHED.fullmatch(name) and not name.startswith("."):
                found.append(Skip(name, "temporary or unfinished"))
            elif _state(name):
                found.append(Skip(name, "state of the training loop, not weights"))
            elif _WEIGHT_LIKE.search(name):
                opened += 1
                few = opened <= _ALIASES_OPENED
                found.append(Skip(name, explain(self.folder / name, entries if few else [], chosen.unit)))
        return found


def _state(name: str) -> bool:
    return _STATE.search(name) is not None


def alike(folder: Location, names: Sequence[str]) -> bool | None:
    """Return whether the first and the last checkpoint hold mostly the same tensors; None when none can be opened."""
    tables = []
    for name in (names[0], names[-1]):
        try:
            with open_checkpoint(folder / name) as checkpoint:
                tables.append(set(checkpoint.tensors))
        except CkptError:
            continue
    if not tables:
        return None
    shared = set.intersection(*tables)
    return 2 * len(shared) >= max(map(len, tables)) > 0


def _chosen(folder: Location, found: Sequence[Series], choice: str | None) -> Series | None:
    """Return the one series that is meant: the chosen one, else the only one, else the only one of several steps."""
    if not found:
        return None
    if choice is not None:
        return _by_choice(folder, found, choice)
    long = [series for series in found if len(series) > 1]
    if len(found) == 1 or len(long) == 1:
        return (long or found)[0]
    raise several(str(folder), found)


def _by_choice(folder: Location, found: Sequence[Series], choice: str) -> Series:
    for fits in (
        [s for s in found if choice in (s.label, s.pattern)],
        [s for s in found if any(fnmatchcase(name, choice) for name in s.names)],
        [s for s in found if s.pattern.startswith(choice)],
    ):
        if len(fits) == 1:
            return fits[0]
    names = [series.label or series.pattern for series in found]
    raise SourceError(f"{folder} holds no single run {choice!r}.{nearest(choice, names)}")


def several(source: str, found: Sequence[Series], *, glob: bool = False) -> SourceError:
    """Return the error that lists the runs which a source mixes and says how to choose one."""
    plain = len({series.label for series in found}) == len(found) and all(series.label for series in found)
    names = [series.label if plain else series.pattern for series in found]
    listed = ", ".join(f"{name!r} ({_span(series)})" for name, series in zip(names[:8], found, strict=False))
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    how = "Narrow the glob to one of them" if glob else f"Choose one with '{source}::{names[0]}'"
    also = "" if glob else f" or with a glob such as '{source}/{found[0].pattern}'"
    return SourceError(f"{source} holds {len(found)} runs: {listed}{more}. {how}{also}.")


def _span(series: Series) -> str:
    first, last = series.numbers[0], series.numbers[-1]
    if len(series) == 1:
        return f"{series.unit} {first}"
    return f"{len(series)} checkpoints, {series.unit} {first} to {last}"

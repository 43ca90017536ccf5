"""Numbers in the names of checkpoints, and which of them counts the steps.

A number is judged by the word before it: `step=1200` counts steps, `epoch_10` epochs, `seed0` and `mp_rank_00` nothing,
`loss=0.83` is a measurement. Without such a word (`27-0.83.hdf5`, `1000.pt`) the integer may count, and its neighbours
in the folder decide.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["step", "checkpoint", "epoch", "bare", "measure", "fixed"]

_KINDS: dict[Kind, str] = {
    "step": "step steps iter iters iteration iterations it update updates globalstep batch batches",
    "checkpoint": "checkpoint checkpoints ckpt chkpt chk snapshot save",
    "epoch": "epoch epochs ep",
    "bare": "model net weights weight params state policy agent dump",
    "measure": "loss acc accuracy ppl perplexity score bleu reward error err metric auc map psnr ssim wer top f tokens"
    " bpb",
    "fixed": "seed rank shard part layer head run fold worker gpu node mp tp pp dp stage v version trial try exp"
    " experiment split job task group of consolidated expert block arr zero",
}
_WORDS: dict[str, Kind] = {word: kind for kind, words in _KINDS.items() for word in words.split()}
RANKS: dict[Kind, int] = {"step": 0, "checkpoint": 1, "epoch": 2}
"""Which kind wins where a name has several: `epoch=3-step=1200` is step 1200."""

_NUMBER = re.compile(
    r"(?P<word>[A-Za-z]+)?(?P<gap>[-_=. ]?)(?<![0-9])(?<![0-9]\.)"
    r"(?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE]-?[0-9]+)?)(?P<unit>[kKMBT](?![A-Za-z]))?(?![A-Za-z0-9])"
)
_KNOWN_ENDINGS = r"(?:pth\.tar|weights\.h5|h5|hdf5|mp4|bz2|7z)"
_ENDING = re.compile(rf"\.(?:{_KNOWN_ENDINGS}|[A-Za-z_]{{1,12}})$")
_UNITS = {None: 1, "k": 10**3, "K": 10**3, "M": 10**6}
_LONGEST = 18


@dataclass(frozen=True, slots=True)
class Number:
    """A number at `name[start:end]`; `begin` is where its word starts. `value` is None for one that cannot count."""

    begin: int
    start: int
    end: int
    value: int | None
    kind: Kind


def numbers_in(name: str) -> list[Number]:
    """Return the numbers in a file's or folder's name, left to right; those in its ending (`.h5`) are none."""
    return [_number(found) for found in _NUMBER.finditer(name[: len(name) - len(ending(name))])]


def ending(name: str) -> str:
    """Return the ending of a file name with its dot (`.pt`, `.pth.tar`), empty when there is none."""
    found = _ENDING.search(name)
    return found[0] if found else ""


def _number(found: re.Match[str]) -> Number:
    text, unit = found["number"], found["unit"]
    kind = _kind(found["word"], glued=not found["gap"])
    if not text.isdigit() and kind != "fixed":
        kind = "measure"
    elif len(text) > _LONGEST or (unit and (kind == "bare" or unit not in _UNITS) and kind != "measure"):
        kind = "fixed"
    value = None if kind in ("fixed", "measure") else int(text) * _UNITS[unit]
    return Number(found.start(), found.start("number"), found.end(), value, kind)


def _kind(word: str | None, *, glued: bool) -> Kind:
    """Return what a number after `word` counts; an unknown word glued to it (`wd0`, `resnet18`) is part of a name."""
    if word is None:
        return "bare"
    lower = word.lower()
    if lower in _WORDS:
        return _WORDS[lower]
    if not glued:
        return "bare"
    return "epoch" if lower == "e" else "fixed"


def keyed(numbers: list[Number]) -> Number | None:
    """Return the number whose word says that it counts steps, checkpoints or epochs; the last of the first kind."""
    known = [number for number in numbers if number.kind in RANKS]
    return min(reversed(known), key=lambda number: RANKS[number.kind], default=None)

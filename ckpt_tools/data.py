"""What models are run on: the probe batch of a run, or a file of text or token ids.

A batch is a dict of torch tensors. Every batch has `tokens` int64 `[B, T]`; batches of our own runs also have `targets`
and, where not all positions count alike, `weights` that sum to 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .checkpoint.jsondata import read_small
from .checkpoint.localfile import LocalFile
from .errors import OptionError, SourceError
from .run import read_probe
from .text import find_encoder

if TYPE_CHECKING:
    import torch

    Batch = dict[str, torch.Tensor]

Array = np.ndarray[Any, Any]

TOKENS = 512
"""How many tokens a file gives unless another number is asked for."""
MAX_FILE = 2**30
_NPY = b"\x93NUMPY"
PER_EXAMPLE = ("tokens", "targets", "weights")
_VOCABULARY = ("vocab_size", "vocabulary", "n_vocab")
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "context", "seq_length", "max_seq_len")


@dataclass(frozen=True)
class ProbeSource:
    """The batch that a run keeps beside its checkpoints for this purpose."""

    run: Path

    @cached_property
    def identity(self) -> str:
        """SHA-256 (hex) of the batch."""
        arrays = read_probe(self.run)
        digest = hashlib.sha256()
        for name in sorted(arrays):
            array = arrays[name]
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def batch(self, config: Mapping[str, Any]) -> Batch:
        """Return the run's probe batch; raises SourceError when it has none."""
        import torch

        arrays = read_probe(self.run)
        if not arrays:
            raise SourceError(f"{self.run} has no probe batch to run the model on. Give --data FILE.")
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


@dataclass(frozen=True)
class DataSource:
    """Tokens of a file: `.npy` ids `[N]` or `[B, T]`, `.jsonl` lists of ids of one length, else text in UTF-8.

    A stream is cut to `tokens` ids in rows of `sequence` (default: the model's context, at most `tokens`); rows are
    kept as they are, as many as hold `tokens` ids. `tokenizer` and the folders `beside` say how text becomes ids, or
    `characters`. With `targets`, rows lose their last id and `targets` holds the next id of each position, as in
    batches of our own runs.
    """

    path: Path
    tokens: int = TOKENS
    sequence: int | None = None
    tokenizer: Path | None = None
    beside: tuple[Path, ...] = ()
    characters: str | None = None
    targets: bool = False

    @cached_property
    def identity(self) -> str:
        """SHA-256 (hex) of file, vocabulary and options."""
        digest = hashlib.sha256(read_small(self.path, MAX_FILE))
        options = [self.tokens, self.sequence, self.characters, self.targets]
        if self._kind == "text":
            options += [find_encoder(self.tokenizer, self.beside, self.characters)[1]]
        digest.update(json.dumps(options).encode())
        return digest.hexdigest()

    def batch(self, config: Mapping[str, Any]) -> Batch:
        """Return the tokens as a batch for a model of this configuration; raises SourceError when they do not fit."""
        import torch

        rows = self._rows(_first(config, _CONTEXT))
        self._check(rows, _first(config, _VOCABULARY))
        tokens = torch.from_numpy(rows.astype(np.int64))
        if self.targets:
            return {"tokens": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}
        return {"tokens": tokens}

    @cached_property
    def _kind(self) -> str:
        """How the file is read; only lists of ids and other text cannot be told apart by content."""
        with closing(LocalFile(self.path)) as file:
            if file.head(len(_NPY)) == _NPY:
                return "npy"
        return "jsonl" if self.path.suffix == ".jsonl" else "text"

    def _rows(self, context: int | None) -> Array:
        """Return ids `[B, T]`."""
        if self.tokens < 2:
            raise OptionError(f"--tokens must be at least 2, one to read and one to predict. Got {self.tokens}.")
        ids = self._ids()
        if ids.ndim == 2:
            ids = ids[: max(1, -(-self.tokens // max(1, ids.shape[1])))]
            return ids if self.sequence is None else ids[:, : self.sequence]
        # With targets a row gives one position less than it has ids.
        longest = None if context is None else context + self.targets
        length = self.sequence or min(self.tokens, ids.size, longest or ids.size)
        usable = min(self.tokens, ids.size) // length * length
        if not usable:
            raise SourceError(f"{self.path} gives {ids.size} token(s), fewer than the sequence length {length}.")
        return ids[:usable].reshape(-1, length)

    def _ids(self) -> Array:
        readers = {"npy": self._from_npy, "jsonl": self._from_jsonl, "text": self._from_text}
        return readers[self._kind]()

    def _from_npy(self) -> Array:
        try:
            ids = np.load(self.path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise SourceError(f"{self.path} is no .npy array of token ids: {error}.") from None
        if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu" or ids.ndim not in (1, 2):
            raise SourceError(f"{self.path}: expected integer token ids [N] or [B, T]. Got {_described(ids)}.")
        return ids

    def _from_jsonl(self) -> Array:
        rows: list[list[int]] = []
        for number, line in enumerate(read_small(self.path, MAX_FILE).splitlines(), start=1):
            if not line.strip() or len(rows) * len(rows[0] if rows else ()) >= self.tokens:
                continue
            rows.append(self._row(number, line))
            if len(rows[-1]) != len(rows[0]):
                raise SourceError(
                    f"{self.path}, line {number} has {len(rows[-1])} tokens, the first line {len(rows[0])}. "
                    "Give all sequences one length."
                )
        if not rows or not rows[0]:
            raise SourceError(f"{self.path} holds no tokens.")
        return np.array(rows)

    def _row(self, number: int, line: bytes) -> list[int]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        row = row.get("tokens") if isinstance(row, dict) else row
        if not isinstance(row, list) or not all(type(i) is int and abs(i) < 2**31 for i in row):
            raise SourceError(f"{self.path}, line {number}: expected a list of token ids. Got {line[:60]!r}.")
        return row

    def _from_text(self) -> Array:
        data = read_small(self.path, MAX_FILE)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{self.path} is no text in UTF-8 (byte {error.start}). Token ids go in .npy or .jsonl."
            ) from None
        encode, _ = find_encoder(self.tokenizer, self.beside, self.characters)
        # Encoding a prefix may change its last tokens only; a few to spare keeps them out of the batch.
        size = 16 * self.tokens
        while True:
            ids = encode(text[:size])
            if len(ids) >= self.tokens + 8 or size >= len(text):
                return np.array(ids, dtype=np.int64)
            size *= 2

    def _check(self, rows: Array, vocabulary: int | None) -> None:
        if rows.shape[1] < 2:
            raise SourceError(f"{self.path} gives sequences of {rows.shape[1]} token(s), with no next one to predict.")
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or (vocabulary is not None and high >= vocabulary):
            bad = low if low < 0 else high
            raise SourceError(
                f"{self.path}: token id {bad} lies outside the model's vocabulary of {vocabulary or 'unknown size'}. "
                "These tokens come from another tokenizer."
            )


def split_batch(batch: Mapping[str, torch.Tensor], rows: int) -> list[tuple[float, Mapping[str, torch.Tensor]]]:
    """Return (share, batch) pairs of at most `rows` examples; the loss is the sum of share times the parts' losses.

    Weights are scaled to sum to 1 in each part. A batch without `tokens`, or `rows` 0, stays whole.
    """
    count = len(batch["tokens"]) if "tokens" in batch else 0
    if not rows or count <= rows:
        return [(1.0, dict(batch))]
    parts: list[tuple[float, Mapping[str, torch.Tensor]]] = []
    for start in range(0, count, rows):
        part = {k: v[start : start + rows] if k in PER_EXAMPLE else v for k, v in batch.items()}
        share = len(part["tokens"]) / count
        if "weights" in part:
            total = part["weights"].sum()
            share = float(total / batch["weights"].sum())
            part["weights"] = part["weights"] / total
        if share:
            parts.append((share, part))
    return parts


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((v for k in keys if type(v := config.get(k)) is int), None)


def _described(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__

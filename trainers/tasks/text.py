"""Task `text`: the next token of a text file, by character or by byte pairs learned from the file.

The last share of the file is for validation and never trained on. Rows of `length` tokens begin anywhere in the rest;
those of the probe batch, which is also what validation numbers are about, lie at equal distances in the last share.

- `score` = all: the next-token loss, over all tokens.
- `score` = answers: the critical-token loss of arXiv 2502.02007, over tokens of answers only. An answer is what follows
  the text `marker` in its line, so that `Tom is a cat. Is Tom an animal? => yes` has the answer ` yes`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ckpt_tools import OptionError, option

from . import Batch, Task


class Text(Task):
    """Predict the next token of a text."""

    name = "text"
    data: str | None = option(None, help="Text file in UTF-8.")
    tokenizer: str = option("char", help="One token per character, or byte pairs.", choices=("char", "bpe"))
    pairs: int = option(1024, help="Largest vocabulary of byte pairs.", min=257)
    length: int = option(64, help="Tokens per row.", min=1)
    validation: float = option(0.1, help="Share of the file, at its end, for validation.", min=0.0, max=0.9)
    probes: int = option(64, help="Rows of the probe batch, on which validation numbers are taken.", min=1)
    score: str = option("all", help="Tokens that count in the loss.", choices=("all", "answers"))
    marker: str = option("=>", help="What stands before an answer; it ends with the line.")
    digest: str | None = option(None, help="SHA-256 of the file; none: whatever it is.")

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.data is None:
            return
        found = hashlib.sha256(self._bytes).hexdigest()
        if self.digest not in (None, found):
            raise OptionError(f"{self.data} is not the text that this run was begun with: its SHA-256 differs.")
        self.digest = found

    def defaults(self) -> Mapping[str, Any]:
        """Return the miniature: a few minutes on a text of a million characters."""
        return {
            "batch": 32,
            "lr": 1e-3,
            "lr_schedule": "warmup-cosine",
            "lr_last": 0.1,
            "warmup": 100,
            "beta2": 0.99,
            "weight_decay": 0.1,
            "no_decay": ("vectors",),
            "clip": 1.0,
            "steps": 2000,
            "save": "log:40",
        }

    @cached_property
    def _bytes(self) -> bytes:
        if self.data is None:
            raise OptionError("Task text needs a text. Give --data FILE, or --set data=FILE.")
        try:
            return Path(self.data).read_bytes()
        except OSError as error:
            raise OptionError(f"The text {self.data} cannot be read: {error.strerror}.") from None

    @cached_property
    def text(self) -> str:
        """The whole text; raises OptionError when it is not UTF-8."""
        try:
            return self._bytes.decode("utf-8")
        except UnicodeDecodeError as error:
            raise OptionError(f"{self.data} is no text in UTF-8 (byte {error.start}).") from None

    @cached_property
    def characters(self) -> str | None:  # type: ignore[override]
        """The alphabet in order of tokens, or None for byte pairs."""
        return "".join(sorted(set(self.text))) if self.tokenizer == "char" else None

    @property
    def vocabulary(self) -> int:  # type: ignore[override]
        """Number of tokens."""
        return len(self.characters) if self.characters is not None else int(self._byte_pairs.get_vocab_size())

    @property
    def context(self) -> int:  # type: ignore[override]
        """Tokens per row."""
        return self.length

    @cached_property
    def _byte_pairs(self) -> Any:
        try:
            import tokenizers
        except ImportError:
            raise OptionError("tokenizer=bpe needs the tokenizers library: pip install 'ckpt-tools[hf]'.") from None
        learned = tokenizers.Tokenizer(tokenizers.models.BPE())
        learned.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        learned.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=self.pairs, initial_alphabet=sorted(alphabet), show_progress=False
        )
        learned.train_from_iterator(self.text.splitlines(keepends=True), trainer)
        return learned

    def files(self) -> Mapping[str, bytes]:
        """Return the learned byte pairs as `tokenizer.json`, so that other text can be encoded alike."""
        return {} if self.tokenizer == "char" else {"tokenizer.json": self._byte_pairs.to_str().encode()}

    @cached_property
    def ids(self) -> Tensor:
        """The tokens of the whole text, int64 [N]."""
        return self._encoded[0]

    @cached_property
    def _encoded(self) -> tuple[Tensor, Tensor]:
        """Tokens, and the character at which each begins, int64 [N]."""
        if self.characters is not None:
            codes = np.frombuffer(self.text.encode("utf-32-le"), dtype=np.uint32)
            alphabet = np.array([ord(c) for c in self.characters], dtype=np.uint32)
            return torch.from_numpy(np.searchsorted(alphabet, codes)), torch.arange(len(codes))
        ids: list[int] = []
        starts: list[int] = []
        done = 0
        # Line by line: what is learned never joins two words, and one long call needs much memory.
        for line in self.text.splitlines(keepends=True):
            coded = self._byte_pairs.encode(line)
            ids += coded.ids
            starts += [done + first for first, _ in coded.offsets]
            done += len(line)
        return torch.tensor(ids), torch.tensor(starts)

    @cached_property
    def answers(self) -> Tensor:
        """Whether each token belongs to an answer, bool [N]."""
        pattern = re.compile(re.escape(self.marker) + r"([^\n]+)")
        inside = np.zeros(len(self.text) + 1, dtype=bool)
        for match in pattern.finditer(self.text):
            inside[match.start(1) : match.end(1)] = True
        return torch.from_numpy(inside)[self._encoded[1]]

    @cached_property
    def boundary(self) -> int:
        """The first token for validation; raises OptionError when either part is shorter than a row."""
        total = len(self.ids)
        at = total - round(self.validation * total)
        held_out = total - at if self.validation else at
        if min(at, held_out) <= self.length:
            raise OptionError(
                f"{self.data} has {total} tokens: {at} to train on and {total - at} for validation, but a row needs "
                f"{self.length + 1} of each. Lower length, or choose another validation."
            )
        return at

    @cached_property
    def starts(self) -> Tensor:
        """Where rows of training may begin: with `score` = answers, those that hold part of an answer."""
        last = self.boundary - self.length
        if self.score == "all":
            return torch.arange(last)
        before = torch.cat([torch.zeros(1, dtype=torch.int64), self.answers.cumsum(0)])
        found = torch.nonzero(before[self.length + 1 : self.boundary + 1] > before[1 : last + 1]).squeeze(1)
        if not len(found):
            raise OptionError(f"{self.data} has no answer: no line holds text behind {self.marker!r}. Set marker.")
        return found

    def rows(self, starts: Tensor) -> Batch:
        """Return the rows that begin at these tokens, their next tokens, and with `score` = answers their weights."""
        places = starts[:, None] + torch.arange(self.length + 1)
        ids = self.ids[places]
        batch = {"tokens": ids[:, :-1].contiguous(), "targets": ids[:, 1:].contiguous()}
        if self.score == "all":
            return batch
        weights = self.answers[places[:, 1:]].double()
        return {**batch, "weights": weights / weights.sum()}

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return `size` rows of the training part."""
        return self.rows(self.starts[torch.randint(len(self.starts), (size,), generator=generator)])

    def evaluation(self, generator: torch.Generator) -> Batch:
        """Return rows at equal distances in the validation part; in the training part where there is none."""
        first = self.boundary if self.validation else 0
        last = (len(self.ids) if self.validation else self.boundary) - self.length - 1
        starts = torch.linspace(first, last, min(self.probes, last - first + 1), dtype=torch.float64).long()
        if self.score == "answers":
            near = self.answers.cumsum(0)
            starts = starts[near[starts + self.length] > near[starts]]
            if not len(starts):
                raise OptionError(
                    f"{self.data}: no answer lies in the rows for validation. Raise validation or probes."
                )
        return self.rows(starts)

    def probe(self, examples: Batch | None, generator: torch.Generator) -> Batch:
        """Return the rows for validation."""
        return self.evaluation(generator)

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """Return `validation`, the loss in nats on the rows for validation, and `accuracy` there."""
        targets = batch["targets"].flatten()
        losses = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
        weights = batch["weights"].flatten() if "weights" in batch else torch.ones_like(losses) / len(losses)
        right = (logits.flatten(0, 1).argmax(-1) == targets).to(losses.dtype)
        return {"validation": (weights * losses).sum().item(), "accuracy": (weights * right).sum().item()}

"""Task `signal`: find the one vector of a sequence that tells its label; a binary task on which attention is studied
(arXiv 2510.06954).

A sequence has `length` vectors of `dimension` d. One of them, anywhere but at the end, is 2 y e_1 + e_2 and gives away
the label y; the last one is e_3, and all others are 2 e_1 or -2 e_1 at random. Each carries noise of standard
deviation `noise` / sqrt(d). Test sequences are as many fresh ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ckpt_tools import option

from . import Batch, Task


class Signal(Task):
    """Tell the sign that the marked vector of a sequence carries."""

    name = "signal"
    gives = "sequences"
    probe_size = 1 << 20  # all: what analyzers say about the data is then exact
    dimension: int = option(32, help="Length of a vector.", min=3)
    length: int = option(8, help="Vectors in a sequence.", min=2)
    samples: int = option(512, help="Training sequences.", min=1)
    noise: float = option(0.2, help="Size of the noise in each vector.", min=0.0)

    @property
    def inputs(self) -> int:  # type: ignore[override]
        """Length of a vector."""
        return self.dimension

    def defaults(self) -> Mapping[str, Any]:
        """Return the miniature: small weights that condense within seconds, in float64."""
        return {"gamma": 2.0, "optimizer": "gd", "lr": 0.5, "steps": 3000, "dtype": "float64"}

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return `size` sequences [size, length, dimension] and their labels [size], -1 or 1."""
        signs = self._signs((size, self.length), generator)
        labels = self._signs((size,), generator)
        place = torch.randint(self.length - 1, (size,), generator=generator)
        noise = torch.randn(size, self.length, self.dimension, generator=generator, dtype=torch.float64)
        x = noise * self.noise / self.dimension**0.5
        rows = torch.arange(size)
        signs[rows, place] = labels
        x[:, :-1, 0] += 2 * signs[:, :-1]
        x[rows, place, 1] += 1
        x[:, -1, 2] += 1
        return {"inputs": x, "targets": labels}

    def _signs(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randint(2, shape, generator=generator).double() * 2 - 1

    def examples(self, generator: torch.Generator) -> Batch:
        """Return the training sequences."""
        return self.draw(self.samples, generator)

    def evaluation(self, generator: torch.Generator) -> Batch:
        """Return fresh sequences."""
        return self.draw(self.samples, generator)

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """Return `accuracy`, the share of fresh sequences whose sign is right."""
        return {"accuracy": (logits[:, 0, 0].sign() == batch["targets"]).double().mean().item()}

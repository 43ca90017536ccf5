"""Task `regression`: the functions on which small networks show condensation and the stages of the loss.

- `teacher` (arXiv 2402.15958): y = tanh(2 <x, w>) + 1/2 sin(2 x_1), x ~ N(0, I) in 5 dimensions, w a unit vector
- `sines` (arXiv 2410.20119): y = sin x + sin 2x at equal distances on [-pi, pi]
- `waves` (arXiv 2105.11686): y = sum_k 3.5 sin(5 x_k + 1), x uniform on [-4, 2]^5

Test points are drawn from the same distribution; those of `sines` are uniform on the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ckpt_tools import option

from . import Batch, Task

# Dimension and number of points in the papers.
SIZES = {"teacher": (5, 100), "sines": (1, 60), "waves": (5, 80)}
DEFAULTS: dict[str, dict[str, Any]] = {
    "teacher": {"hidden": (50, 50), "std": 1e-3, "optimizer": "gd", "lr": 0.1, "steps": 3500},
    "sines": {"hidden": (100,), "bias": True, "std": 1e-2, "optimizer": "gd", "lr": 0.05, "steps": 12000},
    "waves": {"hidden": (50,), "bias": True, "std": 5e-3, "optimizer": "adamw", "lr": 1e-3, "steps": 100},
}


class Regression(Task):
    """Fit a function of a few real numbers."""

    name = "regression"
    gives = "vectors"
    function: str = option("teacher", help="What to fit.", choices=tuple(SIZES))
    samples: int | None = option(None, help="Training points; none: as in the paper.", min=1)
    dimension: int | None = option(None, help="Length of an input; none: as in the paper.", min=1)
    tests: int = option(1000, help="Test points.", min=1)
    squares: str = option("half", help="Half the mean square, or the mean square.", choices=("half", "mean"))
    target_seed: int = option(0, help="Decides the direction w of the teacher.", min=0)

    outputs = 1

    @property
    def inputs(self) -> int:  # type: ignore[override]
        """Length of an input."""
        return self.dimension or SIZES[self.function][0]

    def defaults(self) -> Mapping[str, Any]:
        """Return the miniature of the function's paper, in float64."""
        return {"activation": "tanh", "dtype": "float64", **DEFAULTS[self.function]}

    def value(self, x: Tensor) -> Tensor:
        """Return the function at points [B, d], [B, 1]."""
        if self.function == "teacher":
            return (torch.tanh(2 * x @ self.direction()) + torch.sin(2 * x[:, 0]) / 2)[:, None]
        if self.function == "sines":
            return (torch.sin(x) + torch.sin(2 * x)).sum(1, keepdim=True)
        return 3.5 * torch.sin(5 * x + 1).sum(1, keepdim=True)

    def direction(self) -> Tensor:
        """Return the unit vector w of the teacher, [d]."""
        draw = torch.Generator().manual_seed(self.target_seed)
        w = torch.randn(self.inputs, generator=draw, dtype=torch.float64)
        unit: Tensor = w / w.norm()
        return unit

    def points(self, size: int, generator: torch.Generator, *, grid: bool = False) -> Tensor:
        """Return points [size, d]; those of `sines` in one dimension lie at equal distances if `grid`."""
        if self.function == "teacher":
            return torch.randn(size, self.inputs, generator=generator, dtype=torch.float64)
        if self.function == "sines" and self.inputs == 1 and grid:
            return torch.linspace(-math.pi, math.pi, size, dtype=torch.float64)[:, None]
        low, high = (-math.pi, math.pi) if self.function == "sines" else (-4.0, 2.0)
        return low + (high - low) * torch.rand(size, self.inputs, generator=generator, dtype=torch.float64)

    def examples(self, generator: torch.Generator) -> Batch:
        """Return the training points and values, and the loss's `factor`."""
        return self._valued(self.points(self.samples or SIZES[self.function][1], generator, grid=True))

    def evaluation(self, generator: torch.Generator) -> Batch:
        """Return test points and values."""
        return self._valued(self.points(self.tests, generator))

    def _valued(self, x: Tensor) -> Batch:
        factor = torch.tensor(0.5 if self.squares == "half" else 1.0, dtype=torch.float64)
        return {"inputs": x, "targets": self.value(x), "factor": factor}

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """Return `test_loss`, in the form of the training loss."""
        return {"test_loss": (batch["factor"] * (logits[:, 0] - batch["targets"]).square().mean()).item()}

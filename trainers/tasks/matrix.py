"""Task `matrix`: a matrix of low rank, given whole or in part, for deep matrix factorization.

    M = U diag(s) V^T        L = 1/2 sum over the observed (i, j) of (W_ij - M_ij)^2

U and V are random orthonormal columns and s the `spectrum`. The network is given unit vectors, so that its outputs are
the columns of the matrix W that it stands for, W = W_L ... W_1 for a linear one. From small weights the singular values
are learned one after the other, the largest first (arXiv 1905.13655; 2402.15958 relates this to condensation).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ckpt_tools import OptionError, option

from . import Batch, Task


class Matrix(Task):
    """Recover a matrix of low rank from its entries."""

    name = "matrix"
    gives = "vectors"
    rows: int = option(20, help="Rows of the matrix.", min=1)
    columns: int = option(20, help="Columns of the matrix.", min=1)
    spectrum: tuple[float, ...] = option((4.0, 2.0, 1.0), help="Singular values, as many as the rank.", min=0.0)
    observed: float = option(1.0, help="Share of the entries that are given; 1: all.", min=0.0, max=1.0)
    squares: str = option("half-sum", help="Half the sum of squares, or their mean.", choices=("half-sum", "mean"))
    target_seed: int = option(0, help="Decides the matrix and which entries are given.", min=0)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        least = min(self.rows, self.columns)
        if not 1 <= len(self.spectrum) <= least:
            raise OptionError(f"matrix: spectrum must hold 1 to {least} values. Got {len(self.spectrum)} instead.")
        if not self.given().any():
            raise OptionError(f"matrix: observed {self.observed} gives no entry at all. Raise it.")

    @property
    def inputs(self) -> int:  # type: ignore[override]
        """Length of an input: a unit vector for each column."""
        return self.columns

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """Length of an output: a column."""
        return self.rows

    def defaults(self) -> Mapping[str, Any]:
        """Return a miniature: a product of three square matrices that starts small."""
        width = min(self.rows, self.columns)
        return {
            "hidden": (width, width),
            "activation": "linear",
            "bias": False,
            "std": 0.03,
            "optimizer": "gd",
            "lr": 0.05,
            "steps": 3000,
            "dtype": "float64",
        }

    def target(self) -> Tensor:
        """Return M, float64 [rows, columns]."""
        draw = torch.Generator().manual_seed(self.target_seed)
        u, v = (
            torch.linalg.qr(torch.randn(n, len(self.spectrum), generator=draw, dtype=torch.float64))[0]
            for n in (self.rows, self.columns)
        )
        product: Tensor = u * torch.tensor(self.spectrum, dtype=torch.float64) @ v.T
        return product

    def given(self) -> Tensor:
        """Return which entries are given, bool [rows, columns]: the share `observed`, rounded to a whole number."""
        draw = torch.Generator().manual_seed(self.target_seed + 1)
        order = torch.randperm(self.rows * self.columns, generator=draw)
        return (order < round(self.observed * self.rows * self.columns)).view(self.rows, self.columns)

    def examples(self, generator: torch.Generator) -> Batch:
        """Return unit vectors and columns, with equal weights on given entries and none on others."""
        given = self.given().T.double()
        total = given.sum()
        factor = total / 2 if self.squares == "half-sum" else torch.ones((), dtype=torch.float64)
        return {**self.evaluation(generator), "weights": given / total, "factor": factor}

    def evaluation(self, generator: torch.Generator) -> Batch:
        """Return unit vectors and all of the matrix."""
        return {
            "inputs": torch.eye(self.columns, dtype=torch.float64),
            "targets": self.target().T.contiguous(),
            "given": self.given().T.contiguous(),
        }

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, float]:
        """Return `error`, ||W - M||_F / ||M||_F, and `hidden_error`, the same over entries that are not given."""
        gap, hidden = logits[:, 0] - batch["targets"], ~batch["given"]
        found = {"error": (gap.norm() / batch["targets"].norm()).item()}
        if hidden.any():
            found["hidden_error"] = (gap[hidden].norm() / batch["targets"][hidden].norm()).item()
        return found

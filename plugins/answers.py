"""What a model answers: how often it is right, and how often it gives one of two candidate answers.

Batches of our tasks tell their examples apart by `split`: trained, held out, out of distribution. Where a task
distinguishes composing known operations from mirroring a known pair (arXiv 2405.05409), the batch also holds both
candidate answers, `inferential` and `symmetric`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ckpt_tools import Analyzer, Out, SourceError, hookimpl, to_numpy

if TYPE_CHECKING:
    from torch import Tensor

    from ckpt_tools import View

    Batch = Mapping[str, Tensor]

Floats = NDArray[np.float64]

SPLIT = ("split",)
CANDIDATES = ("inferential", "symmetric")


class Answers(Analyzer):
    """Share of right answers and loss by split, and shares of candidate answers.

    A batch without `split` is split 0. Candidates are NaN in batches that name none.
    """

    name = "answers"
    needs = "forward"
    reading = (
        "How often the model is right, for each part of its test by itself: examples as in training, held-out ones, "
        "and others. Where two rules explain the training data, `inferential` is the share of answers that come from "
        "composing what was learned, and `symmetric` that of answers that mirror a pair seen before."
    )

    outputs: ClassVar[Mapping[str, Out]] = {
        "accuracy": Out(SPLIT, "1", "Share of right answers"),
        "loss": Out(SPLIT, "nat", "Mean cross entropy of the answers"),
        "inferential": Out(SPLIT, "1", "Share of inferential answers"),
        "symmetric": Out(SPLIT, "1", "Share of symmetric answers"),
        "examples": Out(SPLIT, "1", "Number of examples", dtype="i8"),
    }

    def analyze(self, view: View) -> Mapping[str, Any]:
        """Return the shares of each split; raises SourceError for a batch without token ids to answer."""
        batch = view.batch()
        answer, loss = answers(view.model().forward(batch).logits, batch)
        given = batch["split"] if "split" in batch else batch["targets"].new_zeros(len(batch["targets"]))
        split = to_numpy(given).astype(np.int64)
        known = np.isfinite(loss)  # the likeliest token among NaN is none
        shares = {name: _share(answer, known, batch, name) for name in ("targets", *CANDIDATES)}
        parts = [split == i for i in np.unique(split)]
        return {
            "split": np.unique(split),
            "accuracy": [_mean(shares["targets"], part, batch) for part in parts],
            "loss": [_mean(loss, part, batch) for part in parts],
            **{name: [_mean(shares[name], part, batch) for part in parts] for name in CANDIDATES},
            "examples": [int(part.sum()) for part in parts],
        }


def answers(logits: Tensor, batch: Batch) -> tuple[NDArray[np.int64], Floats]:
    """Return the likeliest tokens and their targets' losses in nats, both of the targets' shape `[B]` or `[B, T]`."""
    targets = batch.get("targets")
    if targets is None or targets.is_floating_point():
        raise SourceError("answers: the batch has no token ids as targets, so that nothing is right or wrong.")
    scored = logits[:, -1] if targets.ndim == 1 else logits
    log_p = scored.double().log_softmax(-1)
    loss = -log_p.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    return to_numpy(log_p.argmax(-1)), to_numpy(loss)


def _share(answer: NDArray[np.int64], known: NDArray[np.bool_], batch: Batch, name: str) -> Floats:
    """Return 1 where the answer is what the batch has under `name`, else 0; NaN where it has no such thing."""
    if name not in batch or batch[name].shape != batch["targets"].shape:
        return np.full(answer.shape, np.nan)
    return np.where(known, answer == to_numpy(batch[name]), np.nan)


def _mean(values: NDArray[Any], part: NDArray[np.bool_], batch: Batch) -> float:
    """Return the mean over examples `part`, and over those of their positions that have a target."""
    there = (to_numpy(batch["targets"]) >= 0)[part]
    return float(values[part][there].mean()) if there.any() else float("nan")


@hookimpl
def ckpt_analyzers() -> list[type[Analyzer]]:
    """Provide the analyzer `answers`."""
    return [Answers]

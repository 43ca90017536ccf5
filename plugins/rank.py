"""Rank and condensation of weight matrices, from their singular values s_1 >= s_2 >= ...

- effective rank (Roy & Vetterli, EUSIPCO 2007): exp(-sum p log p) with p = s / sum(s);
- energy-entropy rank: the same with q = s^2 / sum(s^2); smaller numbers, never to be mixed up with the former;
- stable rank: sum(s^2) / s_1^2;
- participation ratio: (sum s^2)^2 / sum(s^4);
- numerical rank: how many s exceed tau * s_1;
- nuclear, Frobenius and spectral norm: sum(s), sqrt(sum s^2), s_1.

The summary says which rank the normalized matrix W / ||W||_F tends to and what became of each measure (`rank_limits`).

The effective rank of a Gaussian d x d matrix is about 0.8 d, so read it
beside its value at the first step; bfloat16 rounding alone can raise it by a quarter on steep spectra, which is why
every value carries the stored dtype. Stable rank, participation ratio and energy-entropy rank do not notice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ckpt_tools import Analyzer, Figure, Out, Spectrum, hookimpl, option

from .rank_limits import embedding_product, trajectory_facts
from .rank_measures import (
    effective_rank,
    energy_entropy_rank,
    frobenius_norm,
    nuclear_norm,
    numerical_rank,
    participation_ratio,
    spectral_norm,
    stable_rank,
    turns,
)
from .rank_products import head_products

if TYPE_CHECKING:
    from ckpt_tools import BatchView, Series

Array = NDArray[Any]
Floats = NDArray[np.float64]

_MEASURES: Mapping[str, Out] = {
    "effective_rank": Out(long_name="effective rank (Roy & Vetterli)"),
    "energy_entropy_rank": Out(long_name="energy-entropy rank"),
    "stable_rank": Out(long_name="stable rank"),
    "participation_ratio": Out(long_name="participation ratio of squared singular values"),
    "numerical_rank": Out(long_name="number of singular values above tau times the largest", dtype="i8"),
    "full_rank": Out(long_name="largest possible rank", dtype="i8"),
    "nuclear_norm": Out(long_name="nuclear norm"),
    "nuclear_error": Out(long_name="bound on the error of the nuclear norm", error_of="nuclear_norm"),
    "frobenius_norm": Out(long_name="Frobenius norm"),
    "spectral_norm": Out(long_name="spectral norm"),
    "singular_values": Out(dims=("sv_index",), long_name="leading singular values"),
    "singular_values_error": Out(
        dims=("sv_index",), long_name="bound on the error of each singular value", error_of="singular_values"
    ),
    "stored_dtype": Out(long_name="dtype in the checkpoint", dtype="str"),
}


def _outputs(dim: str, prefix: str, what: str) -> dict[str, Out]:
    return {
        prefix + key: Out(
            dims=(dim, *out.dims),
            long_name=f"{out.long_name} of {what}",
            dtype=out.dtype,
            error_of=out.error_of and prefix + out.error_of,
        )
        for key, out in _MEASURES.items()
    }


class Rank(Analyzer):
    """Ranks, norms and leading singular values of every weight matrix, and of W_Q W_K^T and W_V W_O per head.

    A product is taken head by head as the map it makes of the residual stream (`layers.3.attn.qk.0` is
    `W_Q W_K^T` of head 0 in layer 3, `layers.3.attn.vo.0` is `W_V W_O`); with grouped queries each query head meets the
    keys and values of its group. The symmetries are those of the network: an orthogonal change of basis of the
    residual stream, a permutation of hidden neurons, a change of sign.
    """

    name = "rank"
    version = "2"
    needs = "weights"
    batched = True
    invariant_to = frozenset({"rotation", "sign", "neuron_permutation"})
    reading = (
        "A weight matrix passes some directions of its input on and suppresses others; its singular values say by how "
        "much. The effective rank counts the directions that matter. A matrix of random numbers uses nearly all of "
        "them, and one that has learned a single thing uses one: its rank falls towards 1. When the rank rises again, "
        "the matrix has begun to use a further direction. Read every curve beside its first value."
    )
    events: ClassVar[Mapping[str, str]] = {
        "collapse_step": "collapse: {label} is down to its fewest directions.",
        "regrowth_step": "new direction: {label} begins to use a further one.",
    }
    outputs: ClassVar[Mapping[str, Out]] = {
        **_outputs("matrix", "", "the matrix"),
        **_outputs("product", "product_", "the product"),
        "spectrum": Out(dims=("matrix", "spectrum_index"), long_name="all singular values of the matrix, if asked for"),
    }
    figures = (
        Figure("effective_rank", log="y"),
        Figure("stable_rank", log="y"),
        Figure("singular_values", "profile", log="y"),
        Figure("product_effective_rank", log="y"),
    )
    k: int = option(8, help="How many leading singular values to store.", min=1)
    tau: float = option(
        1e-3, help="A singular value counts to the numerical rank above tau times the largest.", min=0.0, max=1.0
    )
    products: bool = option(True, help="Also W_Q W_K^T and W_V W_O of every head, where the roles are known.")
    embedding: bool = option(False, help="Also the product of unembedding and embedding, both in memory at a time.")
    spectrum: bool = option(False, help="Store all singular values of every matrix.")
    limit: float = option(
        0.05, help="A singular value counts to the limit rank above so much of the Frobenius norm.", min=0.0, max=1.0
    )

    def analyze(self, view: BatchView) -> Mapping[str, Any]:
        """Return every measure of every matrix and product at every step of the block."""
        names = view.matrix_names()
        stored = {name: view.info(name).dtype for name in names}
        heads = list(head_products(view.attention())) if self.products else []
        labels = [f"{path}.{head}" for path, spectrum in heads for head in range(spectrum.values.shape[1])]
        extra = embedding_product(view) if self.embedding else []
        whole = [view.spectrum(name) for name in names]
        products = [*(spectrum for _, spectrum in heads), *(spectrum for _, spectrum, _ in extra)]
        dtypes = [*(_dtypes(label, stored) for label in labels), *(dtype for *_, dtype in extra)]
        return {
            "matrix": names,
            "product": [*labels, *(label for label, *_ in extra)],
            "spectrum": _whole(whole, len(view)) if self.spectrum else np.zeros((len(view), len(names), 0)),
            **self._measures("", len(view), whole, list(stored.values())),
            **self._measures("product_", len(view), products, dtypes),
        }

    def summarize(self, series: Series) -> Mapping[str, Any]:
        """Return, per matrix, the lowest effective rank, the step of its collapse and that of a new direction after it.

        None where a rank does not halve, or does not grow to one and a half times its lowest value again. Also the
        limit rank and the growth of every measure from the first step to the last (`rank_limits`).
        """
        if len(series) < 2:
            return {}
        ranks, steps = series["effective_rank"], series.steps.tolist()
        found = {name: turns(steps, ranks[:, at]) for at, name in enumerate(series.labels("matrix"))}
        keys = ("lowest_rank", "collapse_step", "regrowth_step")
        facts = {key: {name: turn[at] for name, turn in found.items()} for at, key in enumerate(keys)}
        return {**facts, **trajectory_facts(series, self.limit)}

    def _measures(self, prefix: str, steps: int, spectra: Sequence[Spectrum], dtypes: list[str]) -> dict[str, Any]:
        s, error, count = _rows(spectra, steps)
        measures = {
            "effective_rank": effective_rank(s),
            "energy_entropy_rank": energy_entropy_rank(s),
            "stable_rank": stable_rank(s),
            "participation_ratio": participation_ratio(s),
            "numerical_rank": numerical_rank(s, self.tau),
            "full_rank": np.broadcast_to(count, s.shape[:2]),
            "nuclear_norm": nuclear_norm(s),
            "nuclear_error": error.sum(axis=-1),
            "frobenius_norm": frobenius_norm(s),
            "spectral_norm": spectral_norm(s),
            "singular_values": _leading(s, count, self.k),
            "singular_values_error": _leading(error, count, self.k),
            "stored_dtype": np.broadcast_to(np.array(dtypes, dtype=np.str_), s.shape[:2]),
        }
        return {prefix + key: value for key, value in measures.items()}


def _dtypes(label: str, stored: Mapping[str, str]) -> str:
    """Return the stored dtype of a product's factors, both when they differ: `float32+bfloat16`."""
    path, pair, _ = label.rsplit(".", 2)
    return "+".join(dict.fromkeys(stored[f"{path}.{part}"] for part in pair))


def _rows(spectra: Sequence[Spectrum], steps: int) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return values and errors `[step, row, width]`, padded with zeros (which change no measure), and row lengths.

    Spectra are `[step, k]` for one row or `[step, row, k]` for several.
    """
    rows = [(s.values.reshape(steps, -1, s.values.shape[-1]), s.error) for s in spectra]
    count = np.array([values.shape[2] for values, _ in rows for _ in range(values.shape[1])], dtype=np.int64)
    table = np.zeros((2, steps, len(count), max(count, default=0)))
    at = 0
    for values, error in rows:
        here = slice(at, at := at + values.shape[1])
        table[0, :, here, : values.shape[2]] = values
        table[1, :, here, : values.shape[2]] = error.reshape(values.shape)
    return table[0], table[1], count


def _whole(spectra: Sequence[Spectrum], steps: int) -> Floats:
    """Return all singular values `[step, row, width]`, NaN beyond the row's own length."""
    rows, _, count = _rows(spectra, steps)
    return _leading(rows, count, rows.shape[2])


def _leading(rows: Floats, count: NDArray[np.int64], k: int) -> Floats:
    """Return the first `k` of each row `[step, row, k]`, NaN beyond the row's own length."""
    out = np.full((*rows.shape[:2], k), np.nan)
    width = min(k, rows.shape[2])
    out[..., :width] = np.where(np.arange(width) < count[:, None], rows[..., :width], np.nan)
    return out


@hookimpl
def ckpt_analyzers() -> list[type[Analyzer]]:
    """Offer the analyzer `rank`."""
    return [Rank]

"""Measures of attention maps: what each query looks at, averaged over queries.

With a_qk the weight that query q gives key k, rows summing to 1:

- entropy -sum_k a_qk ln a_qk in nats, maximum max_k a_qk, effective number of keys 1 / sum_k a_qk^2;
- mass on the first position, on the query itself, on the position before it, and ahead of it;
- mass by distance |q - k|, by the frequency of the key's token, and by key token, for each query token if wanted;
- effective rank of the whole map, exp(-sum_i p_i ln p_i) with p its singular values over their sum.

Averages are over examples and queries. Where a batch stands for a population, so that each position is a token with a
weight of its own (`key_log_weight`), queries count by that weight; else all positions count alike. Linear attention may
have negative weights: it then has no entropy (NaN).

The population form of a layer without positions needs no model (arXiv 2605.01199): `population_attention`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ckpt_tools import to_numpy

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]


def population_attention(phi: Floats, pi: Floats) -> Floats:
    """Return A `[query, key]`, A_ik = softmax_k(ln pi_k + phi_ik): attention in the limit of long sequences.

    `phi` are the scores of every pair of tokens, W0 W_Q W_K^T W0^T for an embedding W0 `[token, d]`, and `pi` the
    frequencies of the tokens; leading axes of `phi` are kept. Raises ValueError for frequencies that are not positive.

    >>> population_attention(np.zeros((2, 2)), np.array([0.75, 0.25])).tolist()
    [[0.75, 0.25], [0.75, 0.25]]
    """
    pi = np.asarray(pi, dtype=np.float64)
    if not (pi > 0).all():
        raise ValueError(f"Frequencies must be positive. Got {pi.tolist()} instead.")
    scores = np.log(pi) + phi
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def entropy(p: Tensor) -> Tensor:
    """Return -sum p ln p over the last axis in nats; NaN where an entry is negative."""
    import torch

    found = torch.special.entr(p).sum(-1)
    return torch.where(torch.isinf(found), torch.nan, found)


def effective_rank(maps: Tensor) -> Tensor:
    """Return the effective rank of matrices `[..., query, key]`; NaN where an entry is not finite, 0 for zeros."""
    import torch

    bad = ~torch.isfinite(maps).all(-1).all(-1)
    s = torch.linalg.svdvals(torch.where(bad[..., None, None], 0.0, maps))
    total = s.sum(-1, keepdim=True)
    rank = torch.where(total[..., 0] > 0, entropy(s / total.clamp(min=1e-300)).exp(), 0.0)
    return torch.where(bad, torch.nan, rank)


def distance_edges(length: int) -> list[int]:
    """Return the lower ends of bins of distances 0, 1, 2-3, 4-7, 8-15, ... below `length`.

    >>> distance_edges(6)
    [0, 1, 2, 4]
    """
    return [0, *(2**i for i in range(length.bit_length()) if 2**i < length)]


@dataclass(frozen=True)
class Positions:
    """What is known of the positions of a batch: all `[B, T]`.

    `tokens`, the `share` of each position, summing to 1, and the `frequency` of its token: the share of all positions
    that hold it.
    """

    tokens: Tensor
    share: Tensor
    frequency: Tensor

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> Positions:
        """Return those of a batch: equal shares, or by `key_log_weight` `[T]` if the batch is a population."""
        import torch

        tokens = batch["tokens"]
        share = torch.ones(tokens.shape, dtype=torch.float64, device=tokens.device)
        if "key_log_weight" in batch:
            share = share * batch["key_log_weight"].double().exp()
        share /= share.sum()
        ids, place = torch.unique(tokens, return_inverse=True)
        counts = share.new_zeros(len(ids)).index_add(0, place.flatten(), share.flatten())
        return cls(tokens, share, counts[place])

    def rows(self, start: int, stop: int) -> Positions:
        """Return those of examples `start` to `stop`, shares and frequencies still of the whole batch."""
        return Positions(self.tokens[start:stop], self.share[start:stop], self.frequency[start:stop])

    def of_tokens(self, ids: Tensor) -> Tensor:
        """Return the frequency of each token `[len(ids)]`."""
        return ((self.tokens[..., None] == ids) * self.share[..., None]).sum((0, 1))

    def most_frequent(self, count: int) -> Tensor:
        """Return the ids of the most frequent tokens, descending; of equals the lower id first."""
        import torch

        ids: Tensor = torch.unique(self.tokens)
        return ids[torch.argsort(self.of_tokens(ids), descending=True, stable=True)[:count]]


def sums(maps: Tensor, at: Positions, keys: Tensor, queries: Tensor, bins: tuple[float, ...]) -> dict[str, Tensor]:
    """Return the measures of maps `[B, head, T, T]`, each led by a head axis and summed by the positions' shares.

    Sums over all rows of a batch are means, but for `position_entropy` and `mass`, which `means` divides. `keys` and
    `queries` are the tokens told apart, `bins` the lower ends of the bins of frequency.
    """
    import torch

    maps = maps.double()
    q = torch.arange(maps.shape[-1], device=maps.device)
    ahead = q[None, :] - q[:, None]
    edges = q.new_tensor(distance_edges(len(q)))
    lower = maps.new_tensor(bins)

    def total(x: Tensor) -> Tensor:
        return (at.share[:, None] * x).sum((0, -1))

    def into(cells: Tensor, count: Tensor) -> Tensor:
        """Return the mass `[B, head, T, len(count)]` of each query on keys by their cell `[B, T]`."""
        return maps @ (cells[..., None] == count).double()[:, None]

    spread = entropy(maps)
    distance_bin = torch.bucketize(ahead.abs(), edges, right=True) - 1
    by_distance = (distance_bin[..., None] == torch.arange(len(edges), device=maps.device)).double()
    to_key = into(at.tokens, keys)
    to_bin = into(torch.bucketize(at.frequency, lower, right=True) - 1, torch.arange(len(bins), device=maps.device))
    from_query = ((at.tokens[..., None] == queries) * at.share[..., None])[:, None]
    return {
        "entropy": total(spread),
        "position_entropy": (at.share[:, None] * spread).sum(0),
        "maximum": total(maps.amax(-1)),
        "effective_keys": total(1 / maps.square().sum(-1)),
        "first_mass": total(maps[..., 0]),
        "diagonal_mass": total(maps.diagonal(dim1=-2, dim2=-1)),
        "previous_mass": total(torch.nn.functional.pad(maps.diagonal(-1, -2, -1), (1, 0))),
        "ahead_mass": total((maps * (ahead > 0)).sum(-1)),
        "distance_mass": torch.einsum("bq,bhqk,qkd->hd", at.share, maps, by_distance),
        "frequency_mass": torch.einsum("bq,bhqf->hf", at.share, to_bin),
        "token_mass": torch.einsum("bq,bhqv->hv", at.share, to_key),
        "mass": (from_query.transpose(-1, -2) @ to_key).sum(0),
    }


def means(totals: Mapping[str, Tensor], at: Positions, queries: Tensor) -> dict[str, Any]:
    """Return the measures as arrays from their sums over the whole batch, with the entropy of each query token."""
    found = dict(totals)
    found["position_entropy"] = totals["position_entropy"] / at.share.sum(0)
    found["mass"] = totals["mass"] / at.of_tokens(queries)[:, None]
    found["query_entropy"] = entropy(found["mass"])
    return {name: to_numpy(value) for name, value in found.items()}

"""What attention looks at, layer by layer and head by head, and when it focuses and dilutes.

The measures are defined in `attention_maps`, the cycles of the summary in `attention_cycles`. Maps are those the model
records itself (`attn_implementation="eager"` for models of the transformers library), key weights of a population
included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ckpt_tools import Analyzer, Figure, Out, Series, SourceError, hookimpl, option, to_numpy

from .attention_cycles import Thresholds, cycle_facts
from .attention_maps import population_attention

if TYPE_CHECKING:
    from torch import Tensor

    from ckpt_tools import Model, View

    from .attention_maps import Positions

    Batch = Mapping[str, Tensor]

__all__ = ["Attention", "population_attention"]

HEAD = ("layer", "head")


class Attention(Analyzer):
    """Entropy, sharpness, rank and targets of every head's attention maps; focus and dilution of query tokens.

    `mass` and `query_entropy` tell query tokens apart where the batch has at most `vocabulary` different tokens.
    """

    name = "attention"
    needs = "forward"
    reading = (
        "Attention lets a token look at others: each query token spreads a weight of 1 over the key tokens. Low "
        "entropy means that it looks at few of them, high entropy at many; `mass` says at which. Focus is when a "
        "token's attention gathers on the most frequent token; dilution is when it lets go again and spreads over "
        "the others, below where it started. In models that learn in stages the first often comes right before the "
        "second, and a cycle ends when the embedding opens a further direction."
    )
    events: ClassVar[Mapping[str, str]] = {
        "focus_step..dilution_step": "focus of token {cycle_query_token}: its attention gathers on token {focus_on}, "
        "with a mass of up to {peak_mass} (layer {cycle_layer}, head {cycle_head}).",
        "dilution_step": "dilution of token {cycle_query_token}: its attention has let go of token {focus_on} and "
        "spread over the others (layer {cycle_layer}, head {cycle_head}).",
    }
    vocabulary: int = option(32, help="Up to so many different tokens, give curves for every query token.", min=0)
    top: int = option(16, help="Of a larger vocabulary, how many of the most frequent key tokens to tell apart.", min=1)
    frequency: tuple[float, ...] = option(
        (0.0, 0.001, 0.01, 0.1), help="Lower ends of the bins of token frequency, ascending from 0.", min=0.0, max=1.0
    )
    rank_examples: int = option(8, help="Examples whose maps get an effective rank; 0: none.", min=0)
    rows: int = option(16, help="Examples in memory at a time; 0: all.", min=0)
    focus_rise: float = option(0.015, help="Focus: mass on the most frequent token rises by so much.", min=0.0)
    focus_fall: float = option(0.96, help="Focus: entropy falls to so much of its base.", min=0.0)
    dilution_drop: float = option(0.03, help="Dilution: mass falls so far below its base.", min=0.0)
    dilution_spread: float = option(1.08, help="Dilution: entropy rises to so much of its base.", min=0.0)

    figures = (
        Figure("entropy", lines="head"),
        Figure("query_entropy", lines="query_token"),
        Figure("mass", lines="query_token"),
        Figure("mass", "map"),
        Figure("distance_mass", "heatmap"),
    )
    outputs: ClassVar[Mapping[str, Out]] = {
        "entropy": Out(HEAD, "nat", "Mean entropy of a query's attention"),
        "position_entropy": Out((*HEAD, "position"), "nat", "Mean entropy of the query at a position"),
        "maximum": Out(HEAD, "1", "Mean largest weight of a query"),
        "effective_keys": Out(HEAD, "1", "Mean of 1 / sum of squared weights of a query"),
        "first_mass": Out(HEAD, "1", "Mean mass on the first position"),
        "diagonal_mass": Out(HEAD, "1", "Mean mass on the query's own position"),
        "previous_mass": Out(HEAD, "1", "Mean mass on the position before the query"),
        "ahead_mass": Out(HEAD, "1", "Mean mass on positions after the query"),
        "distance_mass": Out((*HEAD, "distance"), "1", "Mean mass by distance, up to the next bin"),
        "frequency_mass": Out((*HEAD, "frequency"), "1", "Mean mass by frequency of the key's token"),
        "token_mass": Out((*HEAD, "key_token"), "1", "Mean mass on a key token"),
        "token_frequency": Out(("key_token",), "1", "Share of positions in the batch that hold a token"),
        "mass": Out((*HEAD, "query_token", "key_token"), "1", "Mean mass of a query token on a key token"),
        "query_entropy": Out((*HEAD, "query_token"), "nat", "Entropy over key tokens of a query token's mean mass"),
        "map_rank": Out(HEAD, "1", "Mean effective rank of a map"),
    }

    def analyze(self, view: View) -> Mapping[str, Any]:
        """Return the measures of all maps; raises SourceError for a model that records none."""
        import torch

        from .attention_maps import Positions, distance_edges, means

        batch = view.batch()
        at = Positions.of(batch)
        seen: Tensor = torch.unique(at.tokens)
        small = len(seen) <= self.vocabulary
        keys = seen if small else at.most_frequent(self.top)
        queries = keys if small else keys[:0]
        layers = [means(layer, at, queries) for layer in self._layers(view.model(), batch, at, keys, queries)]
        return {
            "distance": distance_edges(at.tokens.shape[1]),
            "frequency": list(self.frequency),
            "key_token": keys.tolist(),
            "query_token": queries.tolist(),
            "token_frequency": to_numpy(at.of_tokens(keys)),
            **{name: [layer[name] for layer in layers] for name in layers[0]},
        }

    def _layers(
        self, model: Model, batch: Batch, at: Positions, keys: Tensor, queries: Tensor
    ) -> list[dict[str, Tensor]]:
        """Return the sums of every layer over the batch."""
        from .attention_maps import effective_rank, sums

        count, start = len(at.tokens), 0
        ranked = min(self.rank_examples, count)
        layers: list[dict[str, Tensor]] = []
        # Weights say what the loss scores; attention is that of all examples.
        for _, part in model.split({key: t for key, t in batch.items() if key != "weights"}, self.rows):
            maps = model.forward(part, record=True).attention
            stop = start + len(part["tokens"])
            for layer, recorded in enumerate(maps):
                found = sums(recorded, at.rows(start, stop), keys, queries, self.frequency)
                rank = effective_rank(recorded[: max(0, ranked - start)].double()).sum(0)
                found["map_rank"] = rank / ranked if ranked else rank * np.nan
                if start:
                    layers[layer] = {name: value + found[name] for name, value in layers[layer].items()}
                else:
                    layers.append(found)
            start = stop
        if not layers:
            raise SourceError(f"The models of family {model.family.name!r} record no attention: leave `attention` out.")
        return layers

    def summarize(self, series: Series) -> Mapping[str, Any]:
        """Return cycles of focus and dilution on the batch's most frequent token, one entry of each list per cycle.

        `dilution_step` is -1 where a cycle has not come to its end. Empty where query tokens are not told apart.
        """
        if not series.labels("query_token"):
            return {}
        limits = Thresholds(self.focus_rise, self.focus_fall, self.dilution_drop, self.dilution_spread)
        target = int(np.nanargmax(series["token_frequency"][0]))
        tokens = [int(token) for token in series.labels("query_token")]
        return cycle_facts(series.steps.tolist(), series["mass"], series["query_entropy"], tokens, target, limits)


@hookimpl
def ckpt_analyzers() -> list[type[Analyzer]]:
    """Provide the analyzer `attention`."""
    return [Attention]

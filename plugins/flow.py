"""Which ways information takes through attention: what happens when edges between positions are cut.

The effect of a cut is loss with it minus loss without, and likewise for the share of right answers and for the contrast
between two candidate answers, one that composes the operations and one that mirrors a known pair (arXiv 2405.05409).
How edges are cut, and which classes of positions a batch may name, `flow_cuts` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ckpt_tools import Analyzer, Figure, Out, SourceError, hookimpl, option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ckpt_tools import Model, View

    Batch = Mapping[str, Tensor]

EDGE = ("layer", "query_position", "key_position")
CLASS = ("layer", "query_class", "key_class")
MEASURES = ("loss", "accuracy", "contrast")


class Flow(Analyzer):
    """Effect of cutting attention edges on loss, accuracy and the contrast of two candidate answers.

    Every edge is one pass over the batch. An effect is NaN where there is no edge, or where it is a query's only one.
    """

    name = "flow"
    needs = "loss"
    reading = (
        "Which ways information takes: one connection of attention, from a key position to a query position, is cut"
        " at a time, and the loss or the accuracy is measured again. A large effect means that the model relies on "
        "it."
    )
    span: int = option(16, help="Edges among so many last positions; 0: all.", min=0)
    heads: bool = option(False, help="Also cut every edge in one head at a time.")

    figures = (
        Figure("contrast_effect", "map"),
        Figure("loss_effect", "map"),
        Figure("class_accuracy_effect", "map"),
    )
    outputs: ClassVar[Mapping[str, Out]] = {
        "loss": Out((), "nat", "Loss with nothing cut"),
        "accuracy": Out((), "1", "Share of right answers with nothing cut"),
        "contrast": Out((), "nat", "Mean log-probability of the inferential answer over that of the symmetric one"),
        "loss_effect": Out(EDGE, "nat", "Change of the loss by cutting an edge in all heads"),
        "accuracy_effect": Out(EDGE, "1", "Change of the accuracy by cutting an edge in all heads"),
        "contrast_effect": Out(EDGE, "nat", "Change of the contrast by cutting an edge in all heads"),
        "class_loss_effect": Out(CLASS, "nat", "Change of the loss by cutting all edges between classes of positions"),
        "class_accuracy_effect": Out(CLASS, "1", "Change of the accuracy by cutting all edges between classes"),
        "class_contrast_effect": Out(CLASS, "nat", "Change of the contrast by cutting all edges between classes"),
        "head_loss_effect": Out(("layer", "head", *EDGE[1:]), "nat", "Change of the loss by cutting an edge in a head"),
    }

    def analyze(self, view: View) -> Mapping[str, Any]:
        """Return the effect of every cut; raises SourceError for a model whose attention cannot be cut."""
        from .flow_cuts import attention_modules, classes

        model, batch = view.model(), view.batch()
        modules = attention_modules(model)
        recorded = model.forward(batch, record=True).attention
        if len(recorded) < len(modules):
            raise SourceError(f"The models of family {model.family.name!r} do not record their attention.")
        maps = dict(zip(modules, recorded, strict=False))
        base = _measured(model, batch, modules, {})
        known = classes(batch)
        effects = [self._edges(model, batch, modules, layer, maps[layer]) for layer in modules]
        between = [_classes(model, batch, modules, layer, known) for layer in modules]
        start = _start(self.span, recorded[0].shape[-1])
        places = list(range(start, recorded[0].shape[-1]))
        return {
            "layer": list(modules),
            "query_position": places,
            "key_position": places,
            "query_class": list(known),
            "key_class": list(known),
            **dict(zip(MEASURES, base, strict=True)),
            **{f"{name}_effect": [e[..., i] - base[i] for e in effects] for i, name in enumerate(MEASURES)},
            **{f"class_{name}_effect": [e[..., i] - base[i] for e in between] for i, name in enumerate(MEASURES)},
            "head_loss_effect": [self._heads(model, batch, modules, n, maps[n]) - base[0] for n in modules],
        }

    def _edges(
        self, model: Model, batch: Batch, modules: Mapping[int, nn.Module], layer: int, maps: Tensor
    ) -> NDArray[np.float64]:
        """Return the measures `[query, key, measure]` with each edge cut in all heads."""
        import torch

        from .flow_cuts import visible_edges

        length = maps.shape[-1]
        start = _start(self.span, length)
        found = np.full((length - start, length - start, len(MEASURES)), np.nan)
        for q, k in visible_edges(maps)[start:, start:].nonzero().tolist():
            edges = torch.zeros(length, length, dtype=torch.bool)
            edges[start + q, start + k] = True
            found[q, k] = _measured(model, batch, modules, {layer: edges[None, None]})
        return found

    def _heads(
        self, model: Model, batch: Batch, modules: Mapping[int, nn.Module], layer: int, maps: Tensor
    ) -> NDArray[np.float64]:
        """Return the loss `[head, query, key]` with each edge cut in one head; no heads unless asked for."""
        import torch

        from .flow_cuts import visible_edges

        count, length = maps.shape[1], maps.shape[-1]
        start = _start(self.span, length)
        found = np.full((count if self.heads else 0, length - start, length - start), np.nan)
        for head in range(len(found)):
            for q, k in visible_edges(maps[:, head : head + 1])[start:, start:].nonzero().tolist():
                edges = torch.zeros(1, count, length, length, dtype=torch.bool)
                edges[0, head, start + q, start + k] = True
                found[head, q, k] = _measured(model, batch, modules, {layer: edges})[0]
        return found


def _start(span: int, length: int) -> int:
    return max(0, length - span) if span else 0


def _classes(
    model: Model, batch: Batch, modules: Mapping[int, nn.Module], layer: int, known: Mapping[str, Tensor]
) -> NDArray[np.float64]:
    """Return the measures `[query class, key class, measure]` with all edges between two classes cut."""
    from .flow_cuts import between

    found = np.empty((len(known), len(known), len(MEASURES)))
    for i, queries in enumerate(known.values()):
        for j, keys in enumerate(known.values()):
            found[i, j] = _measured(model, batch, modules, {layer: between(queries, keys)})
    return found


def _measured(
    model: Model, batch: Batch, modules: Mapping[int, nn.Module], edges: Mapping[int, Tensor]
) -> tuple[float, float, float]:
    """Return loss, accuracy and contrast with edges cut."""
    import torch

    from .flow_cuts import accuracy, contrast, cut

    with torch.no_grad(), cut(modules, edges):
        loss, logits = model.loss_and_logits(batch)
    logits = logits.to(batch["tokens"].device)
    return float(loss), accuracy(logits, batch), contrast(logits, batch)


@hookimpl
def ckpt_analyzers() -> list[type[Analyzer]]:
    """Provide the analyzer `flow`."""
    return [Flow]

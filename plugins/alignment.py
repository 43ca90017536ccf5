"""How alike two groups of hidden states are, layer by layer, and when a fact's bridge and answer can be read off.

For knowledge in two hops (head, relation 1) -> bridge, (bridge, relation 2) -> tail the groups are the states that end
the first hop and those of the bridge itself, whose alignment lets the hops compose (arXiv 2509.24653); any two groups
of prompts will do. Measures are defined in `alignment_measures`, groups in `alignment_groups`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from ckpt_tools import (
    Analyzer,
    Figure,
    OptionError,
    Out,
    PluginError,
    SourceError,
    hookimpl,
    load_encoder,
    option,
    product_singular_values,
    to_numpy,
)

from .alignment_measures import (
    cka,
    cka_debiased,
    logit_lens_rank,
    mean_cosine,
    mismatched_cosine,
    procrustes,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ckpt_tools import Model, View

    from .alignment_groups import Groups, Places

__all__ = ["Alignment", "cka", "cka_debiased", "logit_lens_rank", "mean_cosine", "mismatched_cosine", "procrustes"]

Floats = NDArray[np.float64]

GROUP = ("layer", "position")


class Alignment(Analyzer):
    """CKA, cosine and Procrustes distance of two groups of hidden states; logit-lens ranks of bridge and answer.

    Layer i is the residual stream before layer i, the last one that after all layers. Position 0 is the one a group
    names (the end of a prompt), -1 the one before it.
    """

    name = "alignment"
    needs = "forward"
    reading = (
        "Whether two groups of hidden states mean the same to the model: CKA and cosine are 1 for states alike up "
        "to rotation or length, and near 0 for unrelated ones. Ranks of tokens, read off each layer as if it were "
        "the last, say from where on an answer is there: 0 is the top."
    )
    facts: str = option("", help="JSONL file of facts; none: groups of the batch, else each position and the next.")
    tokenizer: str = option("", help="Vocabulary file for facts given as text.")
    a: str = option("", help="Group a of the batch as tensor=value, such as split=0; with b and pair.")
    b: str = option("", help="Group b, such as split=3.")
    pair: str = option("", help="Tensor of the batch whose equal entries pair the groups, such as bridge.")
    positions: int = option(1, help="How many positions, counted back from the group's own.", min=1)
    estimator: Literal["debiased", "biased"] = option("debiased", help="Which CKA.")
    most: int = option(512, help="Most pairs of neighbouring positions, where nothing names groups.", min=4)
    rows: int = option(64, help="Examples in memory at a time.", min=1)

    figures = (
        Figure("cosine", lines="layer"),
        Figure("mismatched_cosine", lines="layer"),
        Figure("cka", lines="layer"),
        Figure("bridge_top", lines="layer"),
    )
    outputs: ClassVar[Mapping[str, Out]] = {
        "cka": Out(GROUP, "1", "CKA of the groups"),
        "cosine": Out(GROUP, "1", "Mean cosine of pairs"),
        "mismatched_cosine": Out(GROUP, "1", "Mean cosine of states that are no pair"),
        "procrustes": Out(GROUP, "1", "Orthogonal Procrustes distance of the groups"),
        "pairs": Out((), "1", "Number of pairs", dtype="i8"),
        "bridge_rank": Out(("layer",), "1", "Median rank of the bridge in the logit lens, 0 at the top"),
        "bridge_top": Out(("layer",), "1", "Share of facts whose bridge is at the top of the logit lens"),
        "answer_rank": Out(("layer",), "1", "Median rank of the answer in the logit lens, 0 at the top"),
        "answer_top": Out(("layer",), "1", "Share of facts whose answer is at the top of the logit lens"),
        "nuclear_norm": Out((), "1", "Nuclear norm of unembedding times embedding"),
    }

    def files(self) -> tuple[str, ...]:
        """Return the facts and their vocabulary, if any."""
        return tuple(path for path in (self.facts, self.tokenizer) if self.facts and path)

    def analyze(self, view: View) -> Mapping[str, Any]:
        """Return the alignment of the groups at every layer, ranks where tokens are named, NaN where they are not."""
        model, groups = view.model(), self._groups(view)
        shared = {} if self.facts else {k: t for k, t in view.batch().items() if k == "key_log_weight"}
        a, b = (states(model, places, self.positions, self.rows, shared) for places in (groups.a, groups.b))
        measures = {
            "cka": cka_debiased if self.estimator == "debiased" else cka,
            "cosine": mean_cosine,
            "mismatched_cosine": mismatched_cosine,
            "procrustes": procrustes,
        }
        return {
            "position": list(range(1 - self.positions, 1)),
            "pairs": len(groups.a.at),
            **{
                name: [[measure(x, y) for x, y in zip(xs, ys, strict=True)] for xs, ys in zip(a, b, strict=True)]
                for name, measure in measures.items()
            },
            **self._ranks(model, groups, len(a), shared),
            "nuclear_norm": nuclear_norm(view),
        }

    def _groups(self, view: View) -> Groups:
        from .alignment_groups import Selection, groups_of_batch, groups_of_facts

        if not self.facts:
            if self.a or self.b or self.pair:
                return Selection.parse(self.a, self.b, self.pair).groups(view.batch())
            return groups_of_batch(view.batch(), self.most)
        groups = groups_of_facts(Path(self.facts), _encoder(self.tokenizer) if self.tokenizer else None)
        groups.check(self.facts, _vocabulary(view.model()))
        return groups

    def _ranks(self, model: Model, groups: Groups, layers: int, shared: Mapping[str, Tensor]) -> dict[str, Any]:
        ids = {"bridge": groups.bridge, "answer": groups.answer}
        found: dict[str, Any] = {f"{name}_{what}": np.full(layers, np.nan) for name in ids for what in ("rank", "top")}
        if groups.lens is None or all(tokens is None for tokens in ids.values()):
            return found
        lens = lens_logits(model, states(model, groups.lens, 1, self.rows, shared))
        for name, tokens in ids.items():
            if tokens is not None:
                ranks = [logit_lens_rank(logits, tokens) for logits in lens]
                found[f"{name}_rank"] = [np.median(rank) for rank in ranks]
                found[f"{name}_top"] = [np.where(np.isnan(rank), np.nan, rank == 0).mean() for rank in ranks]
        return found


def _encoder(path: str) -> Any:
    if not Path(path).is_file():
        raise OptionError(
            f"alignment.tokenizer: there is no file {path}. Give a tokenizer.json, or token ids as facts."
        )
    return load_encoder(Path(path))


def states(model: Model, places: Places, positions: int, rows: int, shared: Mapping[str, Tensor]) -> Floats:
    """Return the residual stream `[layer, position, n, d]` at places and the `positions - 1` positions before each.

    `shared` is what all examples of the batch share. Raises OptionError where a prompt has fewer positions.
    """
    import torch

    if len(places.at) and positions > places.at[:, 1].min() + 1:
        row, position = places.at[places.at[:, 1].argmin()]
        raise OptionError(f"alignment.positions is {positions}, but prompt {row} has only {position + 1} up to there.")
    found: dict[int, Floats] = {}
    for length in sorted({len(places.rows[i]) for i in places.at[:, 0]}):
        alike = [i for i in dict.fromkeys(places.at[:, 0].tolist()) if len(places.rows[i]) == length]
        for start in range(0, len(alike), rows):
            part = alike[start : start + rows]
            batch = {**shared, "tokens": torch.tensor([places.rows[i] for i in part])}
            hidden = model.forward(batch, record=True).hidden
            if not hidden:
                raise SourceError(f"The models of family {model.family.name!r} record no hidden states to compare.")
            stacked = np.stack([to_numpy(h).astype(np.float64) for h in hidden])
            found |= {i: stacked[:, at] for at, i in enumerate(part)}
    back = np.arange(1 - positions, 1)
    return np.stack([found[i][:, _present(found[i], len(places.rows[i]), t + back)] for i, t in places.at], axis=2)


def _present(states: Floats, length: int, at: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return where positions of a prompt lie in states `[layer, position, d]` that may begin later than the prompt.

    A model that sums its tokens has one state, which counts as that at the last position.
    """
    there = np.asarray(at - (length - states.shape[1]))
    if there.min(initial=0) < 0:
        raise OptionError(
            f"This model has states for the last {states.shape[1]} of {length} positions only; compare groups there: "
            "set alignment.positions to 1 and name them with alignment.a and alignment.b."
        )
    return there


def lens_logits(model: Model, hidden: Floats) -> Floats:
    """Return logits `[layer, n, v]` of the residual stream `[layer, 1, n, d]`: final norm, then unembedding.

    Raises PluginError for a model whose unembedding is not found.
    """
    import torch

    def lens(module: nn.Module) -> Tensor:
        x = torch.from_numpy(hidden[:, 0]).to(model.dtype).to(model.device)
        norm = _path(model, "norm")
        unembed = _unembedding(model, module)
        out: Tensor = unembed(module.get_submodule(norm)(x) if norm else x)
        return out

    with torch.no_grad():
        return to_numpy(model.call(lens)).astype(np.float64)


def _path(model: Model, role: str) -> str:
    """Return the path of the submodule whose weight has a role, "" when there is none."""
    return next((name.rpartition(".")[0] for name, roles in model.roles.items() if role in roles), "")


def _vocabulary(model: Model) -> int | None:
    """Return how many tokens the model knows, None when its embedding is not known."""
    return next((len(model.tensors[name]) for name, roles in model.roles.items() if "embed" in roles), None)


def _unembedding(model: Model, module: Any) -> Any:
    if hasattr(module, "get_output_embeddings"):
        return module.get_output_embeddings()
    path = _path(model, "unembed")
    if not path:
        embed = f"{_path(model, 'embed')}.weight"
        path = next((n.rpartition(".")[0] for n, one in model.tied.items() if one == embed and n != embed), "")
    if not path:
        raise PluginError(
            f"Family {model.family.name!r} names no unembedding: the logit lens has nothing to read with."
        )
    return module.get_submodule(path)


def nuclear_norm(view: View) -> float:
    """Return the nuclear norm of unembedding times embedding `[token, token]`; NaN where a role is not known."""
    matrices = view.matrices()
    if "embed" not in matrices:
        return float("nan")
    embed = matrices["embed"]
    unembed = matrices.get("unembed", embed)
    if unembed.shape[1] != embed.shape[1] or not (np.isfinite(embed).all() and np.isfinite(unembed).all()):
        return float("nan")
    return float(product_singular_values(unembed, embed.T).values.sum())


@hookimpl
def ckpt_analyzers() -> list[type[Analyzer]]:
    """Provide the analyzer `alignment`."""
    return [Alignment]

"""What an analyzer sees of one checkpoint: only what it declared to need."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .analyzer import NEEDS, REFERENCES, Analyzer, reference_kinds
from .errors import PluginError, SourceError
from .roles import WeightInfo
from .spectra import Spectrum
from .weights import Array, AttentionWeights, Lazy, Weights

if TYPE_CHECKING:
    from .host import ModelHost
    from .model import Batch, Model


class View:
    """One checkpoint as one analyzer may see it; handed to `Analyzer.analyze`.

    `step` is the checkpoint's step, `config` its configuration as plain data, `reference` the second checkpoint's view
    when the analyzer declares one, `references` those of all it declares by name.
    """

    def __init__(
        self,
        weights: Weights,
        analyzer: Analyzer,
        *,
        step: int,
        config: Mapping[str, Any],
        seed: str,
        reference: View | None = None,
        references: Mapping[str, View] | None = None,
        host: ModelHost | None = None,
    ) -> None:
        self.step = step
        self.config = config
        self._weights = weights
        self._analyzer = analyzer
        self._seed = seed
        given = {} if reference is None else dict.fromkeys(reference_kinds(analyzer), reference)
        self._references = references if references is not None else given
        self._host = host

    @property
    def reference(self) -> View:
        """The view of the one reference checkpoint the analyzer declared."""
        if len(self._references) != 1:
            declared = ", ".join(self._references) or "none"
            raise PluginError(
                f"Analyzer {self._analyzer.name!r} asked for view.reference but declares {declared}; "
                f"set reference to one of {', '.join(REFERENCES)}, or use view.references[name]."
            )
        return next(iter(self._references.values()))

    @property
    def references(self) -> Mapping[str, View]:
        """The views of all reference checkpoints the analyzer declared, by name.

        At the start of a trajectory "previous" and "before_previous" are its first checkpoint: compare their `step`.
        """
        return self._references

    @property
    def rng(self) -> np.random.Generator:
        """A generator seeded by (run, analyzer, step): the same call sees the same numbers on every machine."""
        text = f"{self._seed}/{self._analyzer.name}/{self.step}"
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little"))

    def require(self, need: str) -> None:
        """Refuse what the analyzer did not declare."""
        if NEEDS.index(self._analyzer.needs) < NEEDS.index(need):
            raise PluginError(
                f"Analyzer {self._analyzer.name!r} declares needs={self._analyzer.needs!r} but used the {need}; "
                f"declare needs={need!r}."
            )

    def matrix_names(self) -> list[str]:
        """Names of the selected canonical matrices, in model order."""
        return list(self._weights.names)

    def matrices(self) -> Mapping[str, Array]:
        """Canonical matrices `[out, in]` by name, float32 or float64, read-only, read on access one at a time."""
        return Lazy(self._weights.names, self._weights.read, "matrix")

    def vectors(self) -> Mapping[str, Array]:
        """Biases, norm gains and other 1-D weights by name, read on access; the biases of a selection of matrices."""
        return Lazy(self._weights.vector_names, self._weights.read, "vector")

    def bias(self, name: str) -> Array | None:
        """Return the bias `[out]` that belongs to a matrix, or None."""
        bias = self._weights.bias_name(name)
        return None if bias is None else self._weights.read(bias)

    def info(self, name: str) -> WeightInfo:
        """Return role, stored tensor, stored dtype, shape and layer of a weight without reading it."""
        return self._weights.info(name)

    def spectrum(self, name: str) -> Spectrum:
        """Return the singular values of a matrix; computed once and shared by all analyzers of the pass."""
        return self._weights.spectrum(name)

    def attention(self) -> Iterator[AttentionWeights]:
        """Yield q, k, v, o by head, layer by layer, where roles and head count are known."""
        return self._weights.attention()

    def model(self, *, dtype: Literal["float32", "float64"] | None = None) -> Model:
        """Return the model with this checkpoint's tensors, by default float64 if any is stored so, else float32.

        Its `loss` needs `needs = "loss"`. Raises SourceError when the model cannot be rebuilt.
        """
        self.require("forward")
        found = self._runs().model(self._weights.checkpoint, self._weights.layout, dtype)
        return found.guarded(self.require)

    def batch(self) -> Batch:
        """Return the run's probe batch, or that of `--data`: tensors by name, the same for every checkpoint."""
        self.require("forward")
        return self._runs().batch()

    def _runs(self) -> ModelHost:
        if self._host is None:
            raise SourceError(f"Analyzer {self._analyzer.name!r} needs a model; this view was made for weights only.")
        return self._host


class BatchView:
    """A block of checkpoints of one layout, as a `batched` analyzer sees it: every array leads with a step axis.

    `steps` are the steps of the block; `reference` is the block of reference checkpoints, one per step. `block[i]` is
    the view of a single step, and iterating gives them in order.
    """

    def __init__(self, views: Sequence[View]) -> None:
        self._views = list(views)
        self.steps = [view.step for view in views]
        self.config = views[0].config

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, index: int) -> View:
        return self._views[index]

    def __iter__(self) -> Iterator[View]:
        return iter(self._views)

    @property
    def reference(self) -> BatchView:
        """The reference checkpoint of every step."""
        return BatchView([view.reference for view in self._views])

    def matrix_names(self) -> list[str]:
        """Names of the selected canonical matrices, in model order."""
        return self._views[0].matrix_names()

    def matrices(self) -> Mapping[str, Array]:
        """Canonical matrices `[step, out, in]` by name, stacked on access."""
        return Lazy(self.matrix_names(), self._stack, "matrix")

    def vectors(self) -> Mapping[str, Array]:
        """Biases, norm gains and other 1-D weights `[step, n]` by name, stacked on access."""
        return Lazy(list(self._views[0].vectors()), self._stack, "vector")

    def _stack(self, name: str) -> Array:
        weights = [view._weights for view in self._views]
        members = weights[0].block.members
        if len(members) == len(weights) and all(a is b for a, b in zip(members, weights, strict=True)):
            return weights[0].block.stacked(name)
        return np.stack([each.read(name) for each in weights])

    def bias(self, name: str) -> Array | None:
        """Return the biases `[step, out]` that belong to a matrix, or None."""
        bias = self._views[0]._weights.bias_name(name)
        return None if bias is None else self._stack(bias)

    def info(self, name: str) -> WeightInfo:
        """Return role, stored tensor, stored dtype, shape and layer of a weight: the same at every step of a block."""
        return self._views[0].info(name)

    def spectrum(self, name: str) -> Spectrum:
        """Return the singular values `[step, k]` of a matrix."""
        found = [view.spectrum(name) for view in self._views]
        routes = {s.route for s in found}
        route = routes.pop() if len(routes) == 1 else "mixed"
        return Spectrum(np.stack([s.values for s in found]), np.stack([s.error for s in found]), route)

    def attention(self) -> Iterator[list[AttentionWeights]]:
        """Yield q, k, v, o by head of one layer at every step, layer by layer."""
        yield from (list(layer) for layer in zip(*(view.attention() for view in self._views), strict=True))

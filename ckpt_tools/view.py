"""What an analyzer sees of one checkpoint: only what it declared to need."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .analyzer import NEEDS, REFERENCES, Analyzer, reference_kinds
from .errors import PluginError
from .roles import WeightInfo
from .spectra import Spectrum
from .weights import Array, AttentionWeights, Lazy, Weights


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
    ) -> None:
        self.step = step
        self.config = config
        self._weights = weights
        self._analyzer = analyzer
        self._seed = seed
        given = {} if reference is None else dict.fromkeys(reference_kinds(analyzer), reference)
        self._references = references if references is not None else given

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
        """Biases, norm gains and other 1-D weights by name, read on access."""
        return Lazy(list(self._weights.layout.vectors), self._weights.read, "vector")

    def bias(self, name: str) -> Array | None:
        """Return the bias `[out]` that belongs to a matrix, or None."""
        role = self._weights.info(name).role
        candidate = f"{role}.bias" if role else name.removesuffix("weight") + "bias"
        return self._weights.read(candidate) if candidate in self._weights.layout.vectors else None

    def info(self, name: str) -> WeightInfo:
        """Return role, stored tensor, stored dtype, shape and layer of a weight without reading it."""
        return self._weights.info(name)

    def spectrum(self, name: str) -> Spectrum:
        """Return the singular values of a matrix; computed once and shared by all analyzers of the pass."""
        return self._weights.spectrum(name)

    def attention(self) -> Iterator[AttentionWeights]:
        """Yield q, k, v, o by head, layer by layer, where roles and head count are known."""
        return self._weights.attention()

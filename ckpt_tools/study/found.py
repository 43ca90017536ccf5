"""What claims and figures see: the numbers in the results files of one seed, by run, analyzer and output."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ResultsError, nearest
from ..results import read_results
from ..results.reader import ResultGroup

TRAJECTORY = "trajectory"


class Missing(ResultsError):
    """The results that a claim is about are not there, with the reason on one line, as tables need it."""

    def __init__(self, reason: str) -> None:
        super().__init__(" ".join(reason.split()))


class Measures:
    """One analyzer's outputs over a run; `measures("effective_rank", matrix="embed")` is an array, steps first."""

    def __init__(self, path: Path, group: str) -> None:
        self.path, self.group = path, group
        self._arrays: dict[str, NDArray[Any]] = {}
        with read_results(path) as results:
            found = results.trajectory if group == TRAJECTORY else results[group]
            if found is None:
                raise ResultsError(f"{path} holds no {TRAJECTORY} group.")
            self.labels: dict[str, list[Any]] = {dim: list(labels) for dim, labels in found.labels.items()}
            self.dims = {name: variable.dims for name, variable in found.variables.items()}
            self.summary: Mapping[str, Any] = found.attrs.get("summary", {})

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """The steps, ascending."""
        return np.asarray(self.labels["step"], dtype=np.int64)

    def __call__(self, output: str, **labels: Any) -> NDArray[Any]:
        """Return an output where dimensions have the given labels; the other dimensions stay, in their order.

        Raises ResultsError for an output, dimension or label that is not there.
        """
        if output not in self._arrays:
            self._arrays[output] = self._read(output)
        values, dims = self._arrays[output], self.dims[output]
        unknown = sorted(labels.keys() - set(dims))
        if unknown:
            raise ResultsError(f"{self.group}.{output} has no dimension {unknown[0]!r}.{nearest(unknown[0], dims)}")
        return values[tuple(self._place(dim, labels[dim]) if dim in labels else slice(None) for dim in dims)]

    def _read(self, output: str) -> NDArray[Any]:
        with read_results(self.path) as results:
            group = results.trajectory if self.group == TRAJECTORY else results[self.group]
            assert isinstance(group, ResultGroup)  # it was there when this object was made
            return group[output].read()

    def _place(self, dim: str, label: Any) -> int:
        if label not in self.labels[dim]:
            raise ResultsError(
                f"{self.path}: {self.group} has no {dim} {label!r}.{nearest(str(label), map(str, self.labels[dim]))}"
            )
        return self.labels[dim].index(label)


class RunResults:
    """The results of one run: `results["rank"]` by analyzer or label, `results["trajectory"]` what training logged.

    `settings` are those that the study gives the run; `absent` says, by the same names, why there are no results.
    """

    def __init__(
        self, path: Path, labelled: Mapping[str, Path], settings: Mapping[str, Any], absent: Mapping[str, str]
    ) -> None:
        self.path, self.settings, self.absent = path, settings, absent
        self._labelled = labelled
        self._known: dict[str, Measures] = {}

    def __getitem__(self, name: str) -> Measures:
        if name in self.absent:
            raise Missing(self.absent[name])
        if name not in self._known:
            path = self._labelled.get(name, self.path)
            group = _only(path) if name in self._labelled else name
            self._known[name] = Measures(path, group)
        return self._known[name]


def _only(path: Path) -> str:
    """Return the one analyzer of a labelled results file."""
    with read_results(path) as results:
        return next(iter(results.groups))


class Found:
    """All results of one seed: `found["three"]["rank"]("effective_rank", matrix="embed")`."""

    def __init__(self, seed: int, runs: Mapping[str, RunResults], absent: Mapping[str, str]) -> None:
        self.seed, self.absent = seed, absent
        self._runs = runs

    def __getitem__(self, run: str) -> RunResults:
        if run in self.absent:
            raise Missing(f"run {run} {self.absent[run]}")
        if run not in self._runs:
            raise ResultsError(f"The study has no run {run!r}.{nearest(run, self._runs)}")
        return self._runs[run]

    def __contains__(self, run: str) -> bool:
        return run in self._runs

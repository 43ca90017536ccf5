"""Results as tables: a row for each cell, columns for the step, the labels of each dimension, and the outputs.

Cells without a value are empty; rows without any are left out. `columns.csv` says what each column is, and its unit.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ResultsError
from ..results.choose import Chosen
from ..results.reader import Variable

_ABOUT = ("table", "column", "unit", "long_name", "error_of")


@dataclass(frozen=True)
class Table:
    """Outputs of one analyzer that share their dimensions."""

    name: str
    chosen: Chosen
    dims: tuple[str, ...]
    variables: tuple[Variable, ...]

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return columns of equal length: labels, then values, masked where there is none."""
        sizes = [len(self.chosen.labels(d)) for d in self.dims]
        every = [np.ones(prod(sizes), dtype=bool)]
        columns: dict[str, NDArray[Any]] = {}
        for axis, dim in enumerate(self.dims):
            labels = np.array(self.chosen.labels(dim))
            shape = [-1 if i == axis else 1 for i in range(len(sizes))]
            columns[dim] = np.broadcast_to(labels.reshape(shape), sizes).ravel()
        for variable in self.variables:
            values = self.chosen.values(variable).ravel()
            columns[variable.name] = np.ma.masked_array(values, ~_known(variable, values))
            every.append(_known(variable, values))
        kept = np.any(every[1:], axis=0)
        return {name: column[kept] for name, column in columns.items()}

    def about(self) -> list[dict[str, str]]:
        """Return what each output column is."""
        facts = ((v.name, v.unit, v.long_name, v.error_of) for v in self.variables)
        return [dict(zip(_ABOUT, (self.name, *fact), strict=True)) for fact in facts]


def _known(variable: Variable, values: NDArray[Any]) -> NDArray[np.bool_]:
    if variable.is_text:
        return np.asarray(values != "")
    padding = variable.attrs.get("padding")
    return np.asarray(values != padding if padding is not None else ~np.isnan(values))


def tables(chosen: Sequence[Chosen]) -> list[Table]:
    """Return the tables of the chosen outputs, named `rank`, `rank.matrix`, `rank.matrix-sv_index`."""
    found = []
    for one in chosen:
        by_dims: dict[tuple[str, ...], list[Variable]] = {}
        for variable in one.variables:
            by_dims.setdefault(variable.dims, []).append(variable)
        for dims, variables in by_dims.items():
            name = ".".join(filter(None, (one.group.name, "-".join(dims[1:]))))
            found.append(Table(name, one, dims, tuple(variables)))
    return found


def write_csv(chosen: Sequence[Chosen], target: Path) -> list[Path]:
    """Write tables as CSV, UTF-8, numbers with all their digits; return the files."""
    written = []
    for table, path in _places(tables(chosen), target, ".csv"):
        columns = table.columns()
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(columns)
            out.writerows(zip(*(_cells(column) for column in columns.values()), strict=True))
        written.append(path)
    if target.is_dir():
        written.append(target / "columns.csv")
        with written[-1].open("w", newline="", encoding="utf-8") as file:
            about = csv.DictWriter(file, _ABOUT, lineterminator="\n")
            about.writeheader()
            about.writerows(row for table in tables(chosen) for row in table.about())
    return written


def _cells(column: NDArray[Any]) -> list[Any]:
    values = np.ma.getdata(column).tolist()
    missing = np.ma.getmaskarray(column).tolist()
    return ["" if gone else value for value, gone in zip(values, missing, strict=True)]


def write_parquet(chosen: Sequence[Chosen], target: Path) -> list[Path]:
    """Write tables as Parquet with unit and meaning in each column's metadata; return the files.

    Raises ResultsError when pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ResultsError('Writing Parquet needs pyarrow: pip install "ckpt-tools[report]"') from error
    written = []
    for table, path in _places(tables(chosen), target, ".parquet"):
        facts = {row["column"]: {k: v for k, v in row.items() if k in _ABOUT[2:] and v} for row in table.about()}
        columns = table.columns()
        arrays = [pyarrow.array(np.ma.getdata(column), mask=np.ma.getmaskarray(column)) for column in columns.values()]
        fields = [
            pyarrow.field(name, array.type, metadata=facts.get(name))
            for name, array in zip(columns, arrays, strict=True)
        ]
        parquet.write_table(pyarrow.table(arrays, schema=pyarrow.schema(fields)), path)
        written.append(path)
    return written


def _places(found: Sequence[Table], target: Path, suffix: str) -> list[tuple[Table, Path]]:
    """Return where each table goes: into a folder, or the one table into a file of that suffix."""
    if target.suffix != suffix:
        target.mkdir(parents=True, exist_ok=True)
        return [(table, target / f"{table.name}{suffix}") for table in found]
    if len(found) != 1:
        names = ", ".join(table.name for table in found[:6])
        raise ResultsError(
            f"{len(found)} tables ({names}, ...) do not fit into one file. Choose one output with --what, or "
            f"name a folder with -o."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    return [(found[0], target)]

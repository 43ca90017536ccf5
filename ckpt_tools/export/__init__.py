"""Results in other tools' formats: tables as CSV or Parquet, netCDF, TensorBoard events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import OptionError, ResultsError, nearest
from ..results import Results, read_results
from ..results.choose import Chosen, select

__all__ = ["FORMATS", "export"]

Written = tuple[list[Path], list[str]]
Writer = Callable[[Results, list[Chosen], Path], Written]


def _csv(found: Results, chosen: list[Chosen], target: Path) -> Written:
    from .tables import write_csv

    return write_csv(chosen, target), []


def _parquet(found: Results, chosen: list[Chosen], target: Path) -> Written:
    from .tables import write_parquet

    return write_parquet(chosen, target), []


def _netcdf(found: Results, chosen: list[Chosen], target: Path) -> Written:
    from .netcdf import write_netcdf

    return write_netcdf(found.path, chosen, target), []


def _tensorboard(found: Results, chosen: list[Chosen], target: Path) -> Written:
    from .events import write_events

    return write_events(found, chosen, target)


FORMATS: dict[str, Writer] = {"csv": _csv, "parquet": _parquet, "netcdf": _netcdf, "tensorboard": _tensorboard}


def export(
    results: str | Path,
    to: str,
    output: str | Path | None = None,
    *,
    what: Sequence[str] = (),
    matrices: Sequence[str] = (),
    force: bool = False,
) -> Written:
    """Write a results file in another format; return the files written and notes on what was left out.

    `csv` and `parquet` make one table for all outputs of an analyzer with the same dimensions: a file when there is one
    table and `output` has that suffix, else a folder. `netcdf` is one file, `tensorboard` a folder. `what` and
    `matrices` choose as in `ckpt show`. Raises ResultsError when the target exists and not `force`, and when a needed
    package is missing.
    """
    if to not in FORMATS:
        raise OptionError(f"There is no export to {to!r}.{nearest(to, FORMATS)}")
    source = Path(results)
    target = Path(output) if output is not None else source.with_name(source.stem + _ENDINGS[to])
    if target.exists() and not force:
        raise ResultsError(f"{target} exists already. Add --force to write into it, or name another with -o.")
    with read_results(source) as found:
        return FORMATS[to](found, select(found, what, matrices, everything=True), target)


_ENDINGS = {"csv": "-csv", "parquet": "-parquet", "netcdf": ".nc", "tensorboard": "-tensorboard"}

"""Results as a netCDF4 file of their own: the chosen part, written by xarray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..results import open_results
from ..results.choose import Chosen


def write_netcdf(source: Path, chosen: Sequence[Chosen], target: Path) -> list[Path]:
    """Write the chosen groups and outputs; return the one file. Raises ResultsError when xarray is not installed."""
    with open_results(source) as tree:
        import xarray

        groups = {"/": tree.to_dataset()}
        for one in chosen:
            kept = tree[one.group.name].to_dataset()[[v.name for v in one.variables]]
            groups[f"/{one.group.name}"] = kept.isel({d: at for d, at in one.keep.items() if d in kept.dims})
        target.parent.mkdir(parents=True, exist_ok=True)
        xarray.DataTree.from_dict(groups).to_netcdf(target, engine="h5netcdf", mode="w")
    return [target]

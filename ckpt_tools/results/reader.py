"""Read results files: as an `xarray.DataTree`, or lightly through h5py alone.

A results file may come from a stranger, so links out of the file and external storage are refused, and sizes are
checked before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import ResultsError, nearest
from .attributes import get
from .origin import TRAJECTORY
from .record import Labels
from .writer import SCHEMA, SCHEMA_VERSION

if TYPE_CHECKING:
    import xarray

_LARGE_BYTES = 2**30
_MOST_COMPRESSED = 1000
_OUTPUT_FACTS = {"units": "1", "long_name": "", "error_of": ""}


@dataclass(frozen=True, eq=False)
class Variable:
    """One dataset of a group; `dims` are in axis order, `step` first. `read()` gets the values."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    unit: str
    long_name: str
    error_of: str
    attrs: Mapping[str, Any]
    _source: Any

    @property
    def is_text(self) -> bool:
        """Whether the values are texts."""
        return bool(self._source.dtype.kind == "O")

    @property
    def is_count(self) -> bool:
        """Whether the values are integers."""
        return bool(self._source.dtype.kind in "iu")

    def read(self) -> NDArray[Any]:
        """Return all values, numbers in their stored dtype, texts as a `str` array; ResultsError when damaged."""
        return safe_values(self._source)


@dataclass(frozen=True, eq=False)
class ResultGroup:
    """One analyzer's results: its attributes (JSON ones decoded), steps, labels per dim, and datasets."""

    name: str
    attrs: Mapping[str, Any]
    labels: Mapping[str, Labels]
    variables: Mapping[str, Variable]

    @property
    def steps(self) -> NDArray[np.int64]:
        """The steps, ascending."""
        return np.asarray(self.labels["step"], dtype=np.int64)

    def __getitem__(self, name: str) -> Variable:
        if name not in self.variables:
            raise ResultsError(f"{self.name} holds no output {name!r}.{nearest(name, self.variables)}")
        return self.variables[name]


class Results:
    """An open results file: `attrs` of the root, `groups` by analyzer name, `trajectory` when it is there.

    Values are read on demand. Close it, or use it in a `with` block; a file that is replaced meanwhile stays readable.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self.path = path
        self._file = file
        self.attrs = get(file, str(path))
        found = {name: _group(path, name, group) for name, group in _children(path, file) if _is_group(group)}
        self.trajectory = found.pop(TRAJECTORY, None)
        self.groups: dict[str, ResultGroup] = found

    def __getitem__(self, name: str) -> ResultGroup:
        if name not in self.groups:
            raise ResultsError(f"{self.path} holds no analyzer {name!r}.{nearest(name, self.groups)}")
        return self.groups[name]

    def close(self) -> None:
        """Close the file; values not read by then are gone."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_results(path: str | Path) -> xarray.DataTree:
    """Return a results file as an `xarray.DataTree`, one node per analyzer, values loaded on demand.

    Raises ResultsError when the file is missing, no results file, or newer than this version reads, and when xarray
    is not installed.
    """
    _opened(Path(path)).close()
    try:
        import h5netcdf  # noqa: F401 - the engine named below
        import xarray
    except ImportError as error:
        raise ResultsError(f'Opening as a DataTree needs {error.name}: pip install "ckpt-tools[report]"') from error
    return xarray.open_datatree(path, engine="h5netcdf", decode_times=False, decode_timedelta=False)


def read_results(path: str | Path) -> Results:
    """Return a results file opened through h5py alone.

    Raises ResultsError when the file is missing, damaged, no results file, or newer than this version reads.
    """
    file = _opened(Path(path))
    try:
        return Results(Path(path), file)
    except ResultsError:
        file.close()
        raise


def _opened(path: Path) -> Any:
    """Return the open `h5py.File`, schema checked."""
    import h5py

    if not path.is_file():
        what = "is a folder, not a results file" if path.is_dir() else "does not exist"
        raise ResultsError(f"{path} {what}. Results are what `ckpt analyze ... -o results.h5` writes.")
    try:
        is_hdf5 = h5py.is_hdf5(path)
        file = h5py.File(path, "r") if is_hdf5 else None
    except OSError as error:
        raise ResultsError(f"{path} cannot be opened: it is damaged or not readable ({error}).") from error
    if file is None:
        raise ResultsError(f"{path} is not an HDF5 file. Results are what `ckpt analyze ... -o results.h5` writes.")
    try:
        _require_schema(path, file)
    except ResultsError:
        file.close()
        raise
    return file


def _require_schema(path: Path, file: Any) -> None:
    schema, version = file.attrs.get("schema"), file.attrs.get("schema_version")
    if schema != SCHEMA or not isinstance(version, np.integer):
        raise ResultsError(f"{path} is HDF5 but no ckpt results file (attribute schema is {schema!r}, not {SCHEMA!r}).")
    if version > SCHEMA_VERSION:
        raise ResultsError(
            f"{path} uses version {version} of the results schema, this ckpt reads up to {SCHEMA_VERSION}. "
            "Upgrade: pip install -U ckpt-tools"
        )


def _is_group(item: Any) -> bool:
    import h5py

    return isinstance(item, h5py.Group)


def _children(path: Path, group: Any) -> Iterator[tuple[str, Any]]:
    import h5py

    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ResultsError(f"{path}: {name!r} is a link, which results files do not have; it was not followed.")
        try:
            yield name, group[name]
        except (OSError, KeyError) as error:
            raise ResultsError(f"{path}: {name!r} is damaged ({error}). Write the file again.") from error


def _group(path: Path, name: str, group: Any) -> ResultGroup:
    labels: dict[str, Labels] = {}
    variables = {}
    for key, item in _children(path, group):
        if _is_group(item):
            continue
        if item.is_scale:
            values = safe_values(item)
            labels[key] = values.tolist() if values.dtype.kind == "U" else values
        else:
            variables[key] = _variable(f"{path}:{name}/{key}", key, item)
    missing = {d for v in variables.values() for d in v.dims}.union({"step"}).difference(labels)
    if missing:
        raise ResultsError(f"{path}: group {name!r} has no scale {sorted(missing)[0]!r}; write the file again.")
    return ResultGroup(name, get(group, f"{path}:{name}"), labels, variables)


def _variable(where: str, name: str, item: Any) -> Variable:
    if any(len(dim) != 1 for dim in item.dims):
        raise ResultsError(f"{where} has a dimension without a scale; write the file again.")
    dims = tuple(dim[0].name.rsplit("/", 1)[-1] for dim in item.dims)
    attrs = get(item, where)
    facts = {key: str(attrs.get(key, default)) for key, default in _OUTPUT_FACTS.items()}
    return Variable(name, dims, item.shape, facts["units"], facts["long_name"], facts["error_of"], attrs, item)


def safe_values(item: Any) -> NDArray[Any]:
    """Return the values of an HDF5 dataset; ResultsError when they are damaged, elsewhere, or of an absurd size."""
    _require_safe(item)
    try:
        if item.dtype.kind == "O":
            return np.asarray(item.asstr(errors="backslashreplace")[()]).astype(str)
        return np.asarray(item[()])
    except (OSError, TypeError) as error:
        where = f"{item.file.filename}:{item.name}"
        raise ResultsError(f"{where} is damaged and cannot be read ({error}); write the file again.") from error


def _require_safe(item: Any) -> None:
    """Refuse data outside the file, and sizes that the bytes on disk cannot explain."""
    if item.is_virtual or item.external:
        raise ResultsError(f"{item.file.filename}:{item.name} keeps its data in other files; it was not read.")
    if item.nbytes > _LARGE_BYTES and item.nbytes > _MOST_COMPRESSED * item.id.get_storage_size():
        raise ResultsError(f"{item.file.filename}:{item.name} claims {item.nbytes} bytes the file does not hold.")

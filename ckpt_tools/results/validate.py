"""Whether a file keeps the results schema of `docs/results.md`: one function per rule, all faults at once.

Works on the bare HDF5 file, because a faulty one may not open otherwise. The rules are those of version 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ResultsError
from .attributes import JSON_NAMES
from .origin import TRAJECTORY
from .reader import safe_values
from .writer import SCHEMA, SCHEMA_VERSION

Found = Iterator[tuple[str, str]]
Rule = Callable[[Any], Found]

_TYPES = ("<f8", "<f4", "<i8", "<i4", "|i1", "|O")
_ROOT_FACTS = {
    "libraries": dict,
    "content_hashes": dict,
    "storage_dtypes": list,
    "notes": list,
    "skipped_checkpoints": dict,
}
_GROUP_FACTS = {"options": dict, "summary": dict, "skipped": list}
_GROUP_TEXTS = ("analyzer", "analyzer_version", "description", "needs", "distribution", "distribution_version")
_NEEDS = ("weights", "forward", "loss")


@dataclass(frozen=True)
class Fault:
    """A broken rule: its name, where in the file, and what was found and expected."""

    rule: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.rule}]"


def validate(path: str | Path) -> list[Fault]:
    """Return every fault of a results file, empty when it keeps the schema; ResultsError when it is no HDF5 file."""
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ResultsError(f"{path} cannot be opened as HDF5 ({error}).") from error
    with file:
        # What a link leads to is not looked at, and damaged values would end the other rules.
        for name, gate in GATES.items():
            faults = [Fault(name, where, message) for where, message in gate(file)]
            if faults:
                return faults
        return [Fault(name, where, message) for name, rule in RULES.items() for where, message in rule(file)]


def _groups(file: Any) -> Iterator[tuple[str, Any]]:
    yield from ((name, item) for name, item in file.items() if hasattr(item, "items"))


def _datasets(file: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the path of every dataset, the dataset and its group."""
    for name, group in _groups(file):
        yield from ((f"{name}/{key}", item, group) for key, item in group.items() if hasattr(item, "dims"))


def links(file: Any) -> Found:
    """No soft or external link, no value kept in another file, no dataset at the root, no group within a group."""
    import h5py

    for prefix, group in [("", file), *((f"{n}/", g) for n, g in _hard_groups(file))]:
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                yield f"{prefix}{name}", "is a link; results files have none"
            elif isinstance(group[name], h5py.Group) == bool(prefix):
                yield f"{prefix}{name}", "expected groups at the root and datasets within them"
            elif isinstance(group[name], h5py.Dataset) and group[name].external:
                yield f"{prefix}{name}", "keeps its values in other files"


def _hard_groups(file: Any) -> Iterator[tuple[str, Any]]:
    import h5py

    for name in file:
        if isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Group):
            yield name, file[name]


def schema(file: Any) -> Found:
    """The root says `schema`, a `schema_version` known here, `Conventions` and an ISO 8601 time `created`."""
    facts = dict(file.attrs)
    if facts.get("schema") != SCHEMA:
        yield "/", f"attribute schema is {facts.get('schema')!r}, not {SCHEMA!r}"
    version = facts.get("schema_version")
    if not isinstance(version, np.integer) or not 1 <= version <= SCHEMA_VERSION:
        yield "/", f"schema_version is {version!r}, not an integer from 1 to {SCHEMA_VERSION}"
    if not str(facts.get("Conventions", "")).startswith("CF-"):
        yield "/", f"Conventions is {facts.get('Conventions')!r}, not CF-1.11"
    try:
        datetime.fromisoformat(str(facts.get("created", "")))
    except ValueError:
        yield "/", f"created is {facts.get('created')!r}, not a time as 2026-01-31T12:00:00+00:00"


def json_facts(file: Any) -> Found:
    """Every attribute named in `json_attributes` is there and JSON, and the known ones have their structure."""
    for where, holder in [("/", file), *_groups(file), *((at, item) for at, item, _ in _datasets(file))]:
        decoded, bad = _decoded(holder.attrs)
        yield from ((where, message) for message in bad)
        kinds: Mapping[str, type] = _ROOT_FACTS if where == "/" else _GROUP_FACTS if where in file else {}
        for name, kind in kinds.items():
            if name in decoded and not isinstance(decoded[name], kind):
                yield where, f"{name} is {type(decoded[name]).__name__} as JSON, expected {kind.__name__}"


def _decoded(attrs: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the JSON attributes, and what is wrong with them."""
    try:
        names = json.loads(attrs.get(JSON_NAMES, "[]"))
    except ValueError:
        return {}, [f"{JSON_NAMES} is not JSON"]
    found, bad = {}, []
    for name in names:
        try:
            found[name] = json.loads(attrs[name])
        except (ValueError, KeyError, TypeError):
            bad.append(f"{name} is named in {JSON_NAMES} but is no JSON text")
    return found, bad


def group_facts(file: Any) -> Found:
    """A group says which analyzer, version, package and options it is of, and `needs` is a known one."""
    for name, group in _groups(file):
        if name == TRAJECTORY:
            continue
        missing = [key for key in _GROUP_TEXTS if not isinstance(group.attrs.get(key), str)]
        missing += [key for key in _GROUP_FACTS if key not in group.attrs]
        yield from ((name, f"lacks the attribute {key!r}") for key in missing)
        if group.attrs.get("analyzer", name) != name:
            yield name, f"is named {name!r} but says it is of analyzer {group.attrs['analyzer']!r}"
        if group.attrs.get("needs", "weights") not in _NEEDS:
            yield name, f"needs is {group.attrs['needs']!r}, none of {', '.join(_NEEDS)}"


def skipped(file: Any) -> Found:
    """Everything skipped has a name and a reason."""
    for name, group in _groups(file):
        listed = _decoded(group.attrs)[0].get("skipped", [])
        for item in listed if isinstance(listed, list) else []:
            if not (isinstance(item, dict) and item.get("name") and item.get("reason")):
                yield name, f"skipped holds {item!r:.60}, expected a name and a reason"


def figures(file: Any) -> Found:
    """Declared figures show outputs of their group."""
    for name, group in _groups(file):
        listed = _decoded(group.attrs)[0].get("figures", [])
        for item in listed if isinstance(listed, list) else []:
            if not (isinstance(item, dict) and item.get("output") in group):
                yield name, f"figures holds {item!r:.60}, which names no output of the group"


def types(file: Any) -> Found:
    """Values are float64, float32, int64, int32, int8 or variable-length UTF-8."""
    import h5py

    for where, item, _ in _datasets(file):
        text = h5py.check_string_dtype(item.dtype)
        if item.dtype.str not in _TYPES or (item.dtype.kind == "O" and (text is None or text.encoding != "utf-8")):
            yield where, f"has type {item.dtype}, which not all readers know"
        elif h5py.check_enum_dtype(item.dtype):
            yield where, "is an enumeration, which not all readers know"


def scales(file: Any) -> Found:
    """Every dimension has one scale, of its name and length, in the same group; `step` is the first."""
    for name, group in _groups(file):
        if "step" not in group or not group["step"].is_scale:
            yield name, "has no dimension scale 'step'"
    for where, item, group in _datasets(file):
        if item.is_scale:
            continue
        dims = [dim[0].name.rsplit("/", 1)[-1] if len(dim) == 1 else None for dim in item.dims]
        if None in dims:
            yield where, f"has {dims.count(None)} dimension(s) without a scale, or with several"
            continue
        if dims[:1] != ["step"]:
            yield where, f"has dimensions {dims}; the first must be 'step'"
        for dim, size in zip(dims, item.shape, strict=True):
            if dim not in group or group[dim].shape != (size,):
                yield where, f"has {size} entries along {dim!r}, which its scale does not have"


def steps(file: Any) -> Found:
    """Steps are int64, ascending, and within those of the trajectory."""
    known = file[f"{TRAJECTORY}/step"][()] if f"{TRAJECTORY}/step" in file else None
    for name, group in _groups(file):
        if "step" not in group:
            continue
        own = group["step"][()]
        if own.dtype.kind != "i" or (np.diff(own) <= 0).any():
            yield f"{name}/step", "is not a list of ascending integers"
        elif known is not None and not np.isin(own, known).all():
            yield f"{name}/step", f"has step {own[~np.isin(own, known)][0]}, which the trajectory does not have"


def labels(file: Any) -> Found:
    """Labels along a dimension are all different."""
    for where, item, _ in _datasets(file):
        if item.is_scale and item.dtype.kind in "Oif":
            values = item[()].tolist()
            if len(set(values)) < len(values):
                yield where, "has a label that occurs twice"


def units(file: Any) -> Found:
    """Every dataset says its unit and what it is."""
    for where, item, _ in _datasets(file):
        wanted = ("long_name",) if item.is_scale else ("units", "long_name")
        yield from ((where, f"lacks {key!r}") for key in wanted if not item.attrs.get(key))


def errors(file: Any) -> Found:
    """`error_of` and `ancillary_variables` name each other, within the group."""
    for where, item, group in _datasets(file):
        of = item.attrs.get("error_of")
        if of and (of not in group or item.name.rsplit("/", 1)[-1] not in _companions(group[of])):
            yield where, f"is the error of {of!r}, which does not name it among its ancillary_variables"
        for name in _companions(item):
            if name not in group or group[name].attrs.get("error_of") != item.name.rsplit("/", 1)[-1]:
                yield where, f"names {name!r} among its ancillary_variables, which is not its error"


def _companions(item: Any) -> list[str]:
    return str(item.attrs.get("ancillary_variables", "")).split()


def padding(file: Any) -> Found:
    """Outputs say what stands in cells without a value: NaN for floats, -1 for integers."""
    for where, item, _ in _datasets(file):
        if item.is_scale:
            continue
        fill = np.asarray(item.attrs.get("_FillValue", 0.0), dtype=object).ravel()
        if item.dtype.kind == "f" and not all(value != value for value in fill):
            yield where, "is of floats, but its _FillValue is not NaN"
        if item.dtype.kind == "i" and item.attrs.get("padding") != -1:
            yield where, "is of integers, but its padding is not -1"


def hashes(file: Any) -> Found:
    """The trajectory has a content hash for each step, the same as `content_hashes` of the root."""
    if TRAJECTORY not in file:
        return
    group = file[TRAJECTORY]
    if "content_hash" not in group or group["content_hash"].shape != group["step"].shape:
        yield TRAJECTORY, "has no content_hash for each step"
        return
    own = dict(zip(map(str, group["step"][()].tolist()), group["content_hash"].asstr()[()].tolist(), strict=True))
    if _parsed(file.attrs.get("content_hashes")) not in (None, own):
        yield TRAJECTORY, "has content hashes that differ from the attribute content_hashes of the root"


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        return None


def metrics(file: Any) -> Found:
    """What training logged says under which name."""
    for where, item, _ in _datasets(file):
        logged = where.startswith(f"{TRAJECTORY}/") and not item.is_scale and item.dtype.kind == "f"
        if logged and not item.attrs.get("metric"):
            yield where, "lacks 'metric', the name it was logged under"


def readable(file: Any) -> Found:
    """All values can be read."""
    for where, item, _ in _datasets(file):
        try:
            safe_values(item)
        except ResultsError as error:
            yield where, str(error)


GATES: Mapping[str, Rule] = {"links": links, "types": types, "readable": readable}
RULES: Mapping[str, Rule] = {
    "schema": schema,
    "json": json_facts,
    "group": group_facts,
    "skipped": skipped,
    "figures": figures,
    "scales": scales,
    "steps": steps,
    "labels": labels,
    "units": units,
    "errors": errors,
    "padding": padding,
    "hashes": hashes,
    "metrics": metrics,
}

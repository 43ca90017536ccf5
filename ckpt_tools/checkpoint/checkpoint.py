"""One checkpoint: the tensors of one or more sources under one roof."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any, Self

from ..errors import FormatError, SourceError, nearest
from .facts import COUNTERS
from .location import Location
from .source import Array, Skip, TensorInfo, TensorSource, key_of


@dataclass
class Opened:
    """What opening a path found: its sources, which of them serves each tensor (None: whichever has it), and notes.

    `origin` is what a remote store says of them: commit, hashes.
    """

    sources: Sequence[TensorSource]
    format: str
    owner: Mapping[str, TensorSource] | None = None
    skipped: list[Skip] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)


class Checkpoint:
    """Named tensors of one training step, none of them read until asked for.

    `tensors` lists them in file order, `aliases` maps a tied name to the stored one, `skipped` says what was left out
    and why, `config` is the model's configuration as data (shared: do not change it), `metadata` what the files say
    besides. `step` is the one given, else `name_step`, else the one stored inside (`metadata["step"]`); where these
    differ, `notes` says so. Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        path: Location,
        opened: Opened,
        *,
        step: int | None = None,
        name_step: int | None = None,
        label: str = "",
        hashing: bool = False,
    ) -> None:
        self.path, self.label = path, label or path.name
        self.format = opened.format
        self.config = opened.config or next((s.config for s in opened.sources if s.config), {})
        self._sources = opened.sources
        self._owner = _owner(opened)
        self.tensors = opened.sources[0].tensors if self._owner is None else _Merged(self._owner)
        self.aliases = _aliases(opened, self.tensors)
        said = {key: value for source in reversed(opened.sources) for key, value in source.metadata.items()}
        self.metadata: Mapping[str, Any] = {**said, **opened.origin}
        self.skipped: list[Skip] = [*(s for source in opened.sources for s in source.skipped), *opened.skipped]
        known = [n for n in (step, name_step, _count(self.metadata.get("step"))) if n is not None]
        self.step = known[0] if known else 0
        self.notes = [*step_notes(self.step, self.label, self.metadata)]
        for source in self._sources:
            source.hashing = hashing

    @property
    def bytes_read(self) -> int:
        """Bytes of tensor data read so far."""
        return sum(source.bytes_read for source in self._sources)

    @property
    def bytes_transferred(self) -> int:
        """Bytes that crossed a network for the files of weights so far; 0 for local ones."""
        return sum(source.bytes_transferred for source in self._sources)

    @cached_property
    def layout_key(self) -> str:
        """A text equal for two checkpoints with the same names, dtypes, shapes, ties and configuration."""
        table = self._sources[0].table_key() if self._owner is None else key_of(self.tensors.values())
        rest = json.dumps([table, dict(self.aliases), self.config], sort_keys=True)
        return hashlib.sha256(rest.encode()).hexdigest()

    def read(self, name: str, rows: slice | None = None) -> Array:
        """Return a tensor (or an alias of one), or the given range of its rows, up-cast exactly.

        Half, bfloat16 and float8 come as float32; everything else in its own numpy dtype. Raises SourceError for an
        unknown name, FormatError when the bytes are not there.
        """
        source, stored = self._find(name)
        return source.read(stored, rows)

    def read_into(self, name: str, out: Array, rows: slice | None = None) -> None:
        """Fill `out`, an array of the shape and dtype that `read` would return: no page faults for a reused one."""
        source, stored = self._find(name)
        source.read_into(stored, out, rows)

    def digest(self, name: str) -> str:
        """Return the SHA-256 (hex) of a tensor's stored bytes.

        Costs no second read when the checkpoint was opened with `hashing` and the tensor has been read since, whole
        or row after row.
        """
        source, stored = self._find(name)
        return source.digest(stored)

    def learn_digest(self, name: str, digest: str) -> None:
        """Take a digest that another process found for a tensor of this very file."""
        source, stored = self._find(name)
        source.digests[stored] = digest

    def content_hash(self, names: Iterable[str] | None = None) -> str:
        """Return the SHA-256 (hex) over the sorted (name, dtype, shape, digest) of the given tensors (default: all)."""
        infos = [self.tensors[self._find(name)[1]] for name in (self.tensors if names is None else names)]
        rows = sorted({(i.name, i.dtype, i.shape, self.digest(i.name)) for i in infos})
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def expect(self, names: Iterable[str]) -> None:
        """Announce the tensors that will be read: a remote checkpoint then fetches neighbours in one request."""
        wanted: dict[int, tuple[TensorSource, list[str]]] = {}
        for name in names:
            source, stored = self._find(name)
            wanted.setdefault(id(source), (source, []))[1].append(stored)
        for source, stored_names in wanted.values():
            source.expect(stored_names)

    def close(self) -> None:
        """Release file handles; reading again reopens them."""
        for source in self._sources:
            source.close()

    def _find(self, name: str) -> tuple[TensorSource, str]:
        stored = self.aliases.get(name, name)
        if stored not in self.tensors:
            raise SourceError(f"{self.path} (step {self.step}) has no tensor {name!r}.{nearest(name, self.tensors)}")
        return (self._sources[0] if self._owner is None else self._owner[stored]), stored

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Checkpoint {str(self.path)!r} step {self.step}, {len(self.tensors)} tensors, {self.format}>"


def step_notes(step: int, label: str, metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note when a checkpoint counts as another step than its file says inside, epochs apart from steps."""
    counters = {key: n for key in COUNTERS if (n := _count(metadata.get(key))) is not None}
    if metadata.get("step_key", "step") != "step":
        counters.pop("step", None)  # another one's value under the general name
    comparable = [n for key, n in counters.items() if ("epoch" in key) == ("epoch" in label.lower())]
    if comparable and step not in comparable:
        yield f"taken as step {step}, but the file says {', '.join(f'{key} {n}' for key, n in counters.items())}"


def _count(value: Any) -> int | None:
    """Return a counter, which safetensors keeps as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    return value if type(value) is int else None


class _Merged(Mapping[str, TensorInfo]):
    """The tensors of several sources; infos are built by the source that has them."""

    def __init__(self, owner: Mapping[str, TensorSource]) -> None:
        self._owner = owner

    def __getitem__(self, name: str) -> TensorInfo:
        return self._owner[name].tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._owner)

    def __len__(self) -> int:
        return len(self._owner)

    def __contains__(self, name: object) -> bool:
        return name in self._owner


def _owner(opened: Opened) -> Mapping[str, TensorSource] | None:
    """Return which source serves each tensor; None when a single one serves all of its own."""
    if opened.owner is not None or len(opened.sources) == 1:
        return opened.owner
    owner: dict[str, TensorSource] = {}
    for source in opened.sources:
        for name in source.tensors:
            if name in owner:
                raise FormatError(f"Tensor {name!r} is both in {owner[name].path} and in {source.path}; keep one.")
            owner[name] = source
    return owner


def _aliases(opened: Opened, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    pairs = [pair for source in opened.sources for pair in source.aliases.items()]
    pairs += opened.tied.items()
    return {alias: stored for alias, stored in pairs if alias not in tensors and stored in tensors}

"""Where a checkpoint lies: a local path, or a place in a remote store that answers the same few questions.

A `RemotePath` is to a store what a `Path` is to the disk, so folders, indices and shards are read by the same code
wherever they are. Nothing here touches a network; the stores themselves are in `remote/`, imported for a URL only.
"""

from __future__ import annotations

import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SourceError, nearest
from .localfile import ByteFile, LocalFile

SCHEMES = ("hf", "http", "https", "s3", "gs", "gcs", "az", "abfs", "memory")
_URL = re.compile(rf"({'|'.join(SCHEMES)}):/(/?)(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Item:
    """What a store's listing says of a name: `size` is None where it does not say, the hashes are empty."""

    folder: bool = False
    size: int | None = None
    sha256: str = ""
    blob: str = ""
    """The git hash (SHA-1) of a file kept in git itself."""


class Store(ABC):
    """Files in named folders; `url` stands before their names in messages, `label` names the root."""

    url: str
    label: str

    @abstractmethod
    def listing(self, folder: str) -> Mapping[str, Item]:
        """Return what is in a folder ("" is the root) by name. Raises SourceError when it is not there."""

    @abstractmethod
    def open(self, path: RemotePath) -> ByteFile:
        """Return the file at a path of this store, pinned to what it is now."""

    def find(self, inner: str) -> Item | None:
        """Return what a path is, None when there is no such thing."""
        if not inner:
            return Item(folder=True)
        folder, _, name = inner.rpartition("/")
        return self.listing(folder).get(name)

    def fingerprint(self, inner: str) -> list[str]:
        """Return what changes whenever the content of a path would; empty where that is not known without reading."""
        return []

    def facts(self, names: Iterable[str], folder: str) -> dict[str, Any]:
        """Return what the store knows of the files of these names in a folder: their provenance."""
        return {}


@dataclass(frozen=True, slots=True, eq=False)
class RemotePath:
    """A file or folder of a store; `inner` is its path there, "" for the root."""

    store: Store
    inner: str = ""

    @property
    def name(self) -> str:
        """The last part, or the label of the store for its root."""
        return self.inner.rpartition("/")[2] or self.store.label

    @property
    def parent(self) -> RemotePath:
        """The folder it is in; the root is in itself."""
        return RemotePath(self.store, self.inner.rpartition("/")[0])

    def __truediv__(self, name: str) -> RemotePath:
        if name == os.pardir and self.inner:
            return self.parent
        return RemotePath(self.store, f"{self.inner}/{name}" if self.inner else name)

    def __str__(self) -> str:
        return f"{self.store.url}/{self.inner}" if self.inner else self.store.url

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __lt__(self, other: RemotePath) -> bool:
        return str(self) < str(other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def item(self) -> Item | None:
        """Return what it is, None when there is no such thing; above the root there is nothing."""
        return None if os.pardir in self.inner.split("/") else self.store.find(self.inner)

    def exists(self) -> bool:
        """Return whether there is such a file or folder."""
        return self.item() is not None

    def is_dir(self) -> bool:
        """Return whether it is a folder."""
        item = self.item()
        return item is not None and item.folder

    def is_file(self) -> bool:
        """Return whether it is a file."""
        item = self.item()
        return item is not None and not item.folder

    def is_symlink(self) -> bool:
        """Return False: stores have no links."""
        return False

    def resolve(self) -> RemotePath:
        """Return the path itself: stores have no links."""
        return self

    def names(self) -> Mapping[str, Item] | None:
        """Return what is in the folder, None for a file. Raises SourceError when it is neither."""
        item = self.item()
        if item is None:
            raise SourceError(f"{self} does not exist.{nearest(self.name, self.store.listing(self.parent.inner))}")
        return self.store.listing(self.inner) if item.folder else None

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield what is in the folder."""
        yield from (self / name for name in self.names() or {})

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Return the content of a small file, as `Path.open` would."""
        from .jsondata import read_small

        return io.BytesIO(read_small(self))


Location = Path | RemotePath


def open_file(path: Location) -> ByteFile:
    """Return the file at a path; raises SourceError when it cannot be read."""
    return LocalFile(path) if isinstance(path, Path) else path.store.open(path)


def local_folder(folder: Location, name: str) -> Path | None:
    """Return a folder on this machine with the file `name` of `folder`, copied if need be; None without the file."""
    path = folder / name
    if not path.is_file():
        return None
    return folder if isinstance(folder, Path) else open_file(path).local().path.parent


def as_url(source: str | Location) -> str:
    """Return the URL that a source is, empty for a local path; a slash that `Path` has swallowed is put back."""
    if isinstance(source, RemotePath):
        return ""
    found = _URL.fullmatch(str(source))
    if found is None or (isinstance(source, Path) and source.exists()):
        return ""
    return f"{found[1]}://{found[3]}"


def located(source: str | Location, cache_size: int | None = None) -> Location:
    """Return where a source lies; a URL is looked up, which pins its revision. Raises SourceError for several."""
    if isinstance(source, RemotePath):
        return source
    url = as_url(source)
    if not url:
        return Path(source)
    from .remote import locate

    return locate(url, cache_size)

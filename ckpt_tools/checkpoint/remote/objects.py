"""Object stores, through fsspec: `s3://bucket/folder`, `gs://...`, `az://...`.

fsspec finds the credentials where each cloud keeps them; its driver for the cloud is a package of its own. An object is
pinned to the tag, version or date it has when it is opened, and asked for it again after every part that is fetched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from threading import Event, Lock
from typing import Any, TypeVar

from ...errors import FetchError, SourceError
from ..localfile import ByteFile, LocalFile
from ..location import Item, RemotePath, Store
from . import need
from .cache import Cache
from .reader import Heads, Part, RemoteFile
from .retries import Attempts, RetryLater

T = TypeVar("T")
PIECE = 2**24
_STAMPS = ("ETag", "etag", "generation", "version_id", "md5Hash", "LastModified", "last_modified", "mtime", "created")
_DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_FINAL = (FileNotFoundError, PermissionError, NotImplementedError, IsADirectoryError, NotADirectoryError)


class ObjectStore(Store):
    """What lies below a URL of an object store."""

    def __init__(self, url: str, cache_size: int | None = None) -> None:
        self.url, self.cache_size = url.rstrip("/"), cache_size
        self.label = self.url.rpartition("/")[2]
        self.heads = Heads()
        self._system, self._root = _connected(url)
        self._listings: dict[str, dict[str, Item]] = {}
        self._stamps: dict[str, str] = {}

    def listing(self, folder: str) -> Mapping[str, Item]:
        """Return what is below a prefix, one level deep."""
        if folder not in self._listings:
            ask: Callable[[], list[dict[str, Any]]] = partial(self._system.ls, self.key(folder), detail=True)
            found = patiently(ask, f"the listing of {RemotePath(self, folder)}")
            self._listings[folder] = {name: item for name, item in map(_item, found) if name}
        return self._listings[folder]

    def info(self, inner: str) -> Mapping[str, Any]:
        """Return what the store says of an object now, not what it said before."""
        key = self.key(inner)

        def asked() -> Mapping[str, Any]:
            self._system.invalidate_cache(self._system._parent(key))
            said: Mapping[str, Any] = self._system.info(key)
            return said

        return patiently(asked, str(RemotePath(self, inner)))

    def open(self, path: RemotePath) -> ByteFile:
        """Return an object, pinned to what it is now."""
        part = StoredObject(self, path)
        self._stamps[path.inner] = part.stamp

        def copy(whole: Part) -> LocalFile:
            key = hashlib.sha256(f"{path} {part.stamp} {part.size}".encode()).hexdigest()
            return Cache.of(self.cache_size).copy(key, path, whole, str(path))

        return RemoteFile(path, part, copy, self.heads, content=f"{path} {part.stamp}")

    def facts(self, names: Iterable[str], folder: str) -> dict[str, Any]:
        """Return tag, version or date of the objects of these names, as opened."""
        paths = {name: f"{folder}/{name}" if folder else name for name in names}
        return {"etag": {name: self._stamps[p] for name, p in paths.items() if p in self._stamps}}

    def key(self, inner: str) -> str:
        """Return what fsspec calls a file or folder."""
        return f"{self._root}/{inner}" if inner else self._root

    def bytes_of(self, inner: str, start: int, stop: int) -> bytes:
        """Return a range of an object."""
        data: bytes = self._system.cat_file(self.key(inner), start=start, end=stop)
        return data

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStore, (self.url, self.cache_size)


class StoredObject:
    """One object, read in parts."""

    def __init__(self, store: ObjectStore, path: RemotePath) -> None:
        self.store, self.path = store, path
        said = store.info(path.inner)
        if said.get("type") != "file" or type(said.get("size")) is not int:
            raise SourceError(f"Cannot read {path}: it is no object with a size.")
        self.size: int = said["size"]
        self.stamp = _stamp(said)
        self.transferred = 0
        self._lock = Lock()

    def chunks(self, offset: int, count: int, stop: Event | None = None) -> Iterator[bytes]:
        """Yield exactly `count` bytes from `offset`. Raises FetchError when they cannot be had, or have changed."""
        for start in range(offset, offset + count, PIECE):
            piece = partial(self._piece, start, min(start + PIECE, offset + count))
            yield patiently(piece, str(self.path), stop)

    def _piece(self, start: int, stop: int) -> bytes:
        data = self.store.bytes_of(self.path.inner, start, stop)
        with self._lock:
            self.transferred += len(data)
        if _stamp(self.store.info(self.path.inner)) != self.stamp:
            raise FetchError(f"{self.path} has changed while it was being read. Open it again.")
        if len(data) != stop - start:
            raise RetryLater(f"{len(data):,} bytes came instead of {stop - start:,}")
        return data


def open_objects(url: str, cache_size: int | None = None) -> RemotePath:
    """Return the folder or object at a URL; raises FetchError when the store does not give it."""
    store = ObjectStore(url, cache_size)
    if store.info("").get("type") == "directory":
        return RemotePath(store)
    folder, _, name = store.url.rpartition("/")
    return RemotePath(ObjectStore(folder, cache_size), name)


def patiently(ask: Callable[[], T], what: str, stop: Event | None = None) -> T:
    """Return what `ask` returns, asking again where the network or the service failed."""
    tries = Attempts(what, stop)
    while True:
        try:
            return ask()
        except _FINAL as error:
            raise FetchError(f"{what} cannot be fetched: {_words(error)}.") from None
        except (OSError, TimeoutError) as error:
            failure = RetryLater(_words(error))
        except RetryLater as error:
            failure = error
        tries.failed(failure)


def _connected(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    try:
        system, root = need("fsspec", url).core.url_to_fs(url)
    except ImportError:
        driver = _DRIVERS.get(scheme, scheme)
        raise SourceError(f"{url} is read through {driver}: pip install 'ckpt-tools[hf]' {driver}.") from None
    except (ValueError, OSError) as error:
        raise SourceError(f"{url} cannot be opened: {_words(error)}.") from None
    return system, root.rstrip("/")


def _item(said: Mapping[str, Any]) -> tuple[str, Item]:
    name = str(said.get("name", "")).rstrip("/").rpartition("/")[2]
    size = said.get("size")
    return name, Item(folder=said.get("type") == "directory", size=size if type(size) is int else None)


def _stamp(said: Mapping[str, Any]) -> str:
    return "; ".join([str(said.get("size")), *(str(said[key]).strip('"') for key in _STAMPS if said.get(key))])


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

"""Files and listed folders on a web server: `https://host/folder/` or `https://host/folder/model.safetensors`.

A folder is what answers with a page of links, as Apache, nginx and `python -m http.server` do; only links to its direct
children count. A file is pinned to the size and the entity tag (or date) it has when it is opened.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from ...errors import SourceError
from ..localfile import ByteFile, LocalFile
from ..location import Item, RemotePath, Store
from .cache import Cache
from .ranged import HttpFile
from .reader import FIRST, Heads, Part, RemoteFile
from .session import Refusal, Session, shown

MAX_PAGE = 16 * 2**20
_ABSENT = (401, 403, 404, 405, 410)
_PLAIN = re.compile(r"[^/\\:\x00-\x1f\x7f]+")


class WebStore(Store):
    """What lies below an address that ends in a slash; `query` goes with the requests for one file, `only`."""

    def __init__(self, root: str, cache_size: int | None = None, only: str = "", query: str = "") -> None:
        self.root, self.cache_size, self._only, self._query = root, cache_size, only, query
        self.url = shown(root).rstrip("/")
        self.label = unquote(urlsplit(root).path.rstrip("/").rpartition("/")[2]) or urlsplit(root).hostname or ""
        self.session = Session(self.url)
        self.heads = Heads()
        self._listings: dict[str, dict[str, Item]] = {}
        self._met: dict[str, tuple[HttpFile, bytes]] = {}
        self._known: dict[str, Item | None] = {"": Item(folder=True)}
        self._stamps: dict[str, dict[str, str]] = {}

    def listing(self, folder: str) -> Mapping[str, Item]:
        """Return what the page of a folder links to."""
        if folder not in self._listings:
            url = self.address(folder) + ("/" if folder else "")
            page, said = self.session.get(url, f"the listing of {shown(url)}", MAX_PAGE)
            if "text/html" not in said.get("content-type", ""):
                raise SourceError(f"{shown(url)} cannot be listed: the server answers with no page of links.")
            self._listings[folder] = children(page.decode("utf-8", "replace"), url)
        return self._listings[folder]

    def find(self, inner: str) -> Item | None:
        """Return what a path is: by the listing of its folder or, where there is none, by asking for it."""
        if inner not in self._known:
            folder, _, name = inner.rpartition("/")
            try:
                self._known[inner] = self.listing(folder).get(name)
            except SourceError:
                self.meet(inner)
        return self._known[inner]

    def meet(self, inner: str) -> Mapping[str, str] | None:
        """Ask for the beginning of a file; return the headers, None when there is no such file."""
        path = RemotePath(self, inner)
        part = HttpFile(self.session, self.address(inner), str(path))
        try:
            head, said = part.meet(max(FIRST, self.heads.guess(path.name)))
        except Refusal as refusal:
            if refusal.status not in _ABSENT:
                raise
            self._known[inner] = None
            return None
        self._met[inner], self._known[inner] = (part, head), Item(size=part.size)
        return said

    def open(self, path: RemotePath) -> ByteFile:
        """Return a file, pinned to what it is now."""
        if path.inner not in self._met and self.meet(path.inner) is None:
            raise SourceError(f"Cannot read {path}: the server has no such file, or does not give it.")
        part, head = self._met[path.inner]
        self._stamps[path.inner] = {"etag": part.stamp}

        def copy(whole: Part) -> LocalFile:
            key = hashlib.sha256(f"{path} {part.stamp} {part.size}".encode()).hexdigest()
            return Cache.of(self.cache_size).copy(key, path, whole, str(path))

        return RemoteFile(path, part, copy, self.heads, head=head)

    def facts(self, names: Iterable[str], folder: str) -> dict[str, Any]:
        """Return the entity tags (or dates) of the files of these names, as opened."""
        paths = {name: f"{folder}/{name}" if folder else name for name in names}
        return {"etag": {name: self._stamps[p]["etag"] for name, p in paths.items() if p in self._stamps}}

    def address(self, inner: str) -> str:
        """Return where a file or folder is asked for."""
        query = f"?{self._query}" if self._query and inner == self._only else ""
        return urljoin(self.root, quote(inner)) + query if inner else self.root

    def __reduce__(self) -> tuple[Any, ...]:
        return WebStore, (self.root, self.cache_size, self._only, self._query)


def open_web(url: str, cache_size: int | None = None) -> RemotePath:
    """Return the folder or file at an address; raises FetchError when the server does not give it."""
    parts = urlsplit(url)
    if parts.username or parts.password or not parts.hostname:
        raise SourceError(f"{shown(url)}: write the address without user and password; they belong into ~/.netrc.")
    folder, _, name = parts.path.rpartition("/")
    root = f"{parts.scheme}://{parts.netloc}{folder}/"
    if not name:
        return RemotePath(WebStore(root, cache_size))
    name = unquote(name)
    store = WebStore(root, cache_size, name, parts.query)
    said = store.meet(name)
    if said is None:
        raise SourceError(f"{shown(url)} does not exist, or the server does not give it.")
    if "text/html" in said.get("content-type", ""):
        return RemotePath(WebStore(f"{root}{quote(name)}/", cache_size))
    return RemotePath(store, name)


def children(page: str, url: str) -> dict[str, Item]:
    """Return the direct children that a page links to; a link that ends in a slash is a folder."""
    links = _Links()
    links.feed(page)
    base = shown(url)
    found: dict[str, Item] = {}
    for href in links.found:
        try:
            target = shown(urljoin(url, href))
        except ValueError:
            continue
        name = unquote(target.removeprefix(base).removesuffix("/"))
        if target.startswith(base) and target != base and _PLAIN.fullmatch(name) and name not in (".", ".."):
            found[name] = Item(folder=target.endswith("/"))
    return found


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]

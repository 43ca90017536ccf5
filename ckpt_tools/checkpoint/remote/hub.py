"""The Hugging Face Hub: `hf://org/name[@revision][/folder]`.

A revision is resolved to its commit once, when it is opened; everything is asked of that commit, so a branch that
moves under way changes nothing. Listings are asked of the hub's own interface rather than through `HfApi`, whose
requests have no time limit and whose listing of branches is not repeated when it fails.

Interface: https://huggingface.co/docs/hub/api, `resolve` as in `huggingface_hub.file_download`.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin

from ...errors import FetchError, FormatError, SourceError, nearest
from ..jsondata import parse_value
from ..localfile import ByteFile, LocalFile
from ..location import Item, RemotePath, Store
from . import need
from .cache import Cache
from .ranged import HttpFile
from .reader import Heads, MemoryFile, Part, RemoteFile
from .session import Refusal, Session, origin, shown

_PART = r"[A-Za-z0-9_](?:[\w.\-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_PART}(?:/{_PART})?", re.ASCII)
_SPECIAL = re.compile(r"refs/(?:pr/\d+|convert/[\w.-]+)", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLAIN = re.compile(r"[^/\\\x00-\x1f\x7f]+")
_NEXT = re.compile(r'<([^<>]+)>\s*;\s*rel="?next"?')
_MAIN = "main"
_OTHER_KINDS = ("datasets", "spaces", "buckets", "kernels")
MAX_PAGES = 100
SMALL = 16 * 2**20
"""Bytes up to which a file that is kept in git itself is fetched whole, and checked against its git hash."""
_KEPT_FILES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Address:
    """What an `hf://` URL says; `revision` is empty where it names none."""

    repository: str
    revision: str = ""
    folder: str = ""

    @property
    def is_pattern(self) -> bool:
        """Whether the revision is a pattern that may fit several."""
        return any(c in self.revision for c in "*?[")

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='*?[]')}" if self.revision else ""
        return f"hf://{self.repository}{revision}{'/' if self.folder else ''}{self.folder}"


def parse_address(url: str) -> Address:
    """Return what an `hf://` URL names; raises SourceError for one that is malformed."""
    rest = url.removeprefix("hf://").removeprefix("models/").strip("/")
    name, at, tail = rest.partition("@")
    if at and name.count("/") < 2:
        special = _SPECIAL.match(tail)
        revision = special[0] if special else tail.partition("/")[0]
        folder = tail[len(revision) :].strip("/")
    else:
        parts = rest.split("/")
        name, revision, folder, at = "/".join(parts[:2]), "", "/".join(parts[2:]), ""
    if name.split("/")[0] in _OTHER_KINDS:
        raise SourceError(f"{url}: only repositories of models are read; write hf://org/name[@revision][/folder].")
    steps = folder.split("/") if folder else []
    wrong = not _NAME.fullmatch(name) or (at and not revision) or any(not _PLAIN.fullmatch(p) for p in steps)
    if wrong or any(p in (".", "..") for p in [*steps, *unquote(revision).split("/")]) or re.search(r"\s", revision):
        raise SourceError(f"{url} is no address on the hub; expected hf://org/name[@revision][/folder].")
    return Address(name, unquote(revision), folder)


class HubSession(Session):
    """Requests to the hub, with its own words for what went wrong."""

    def explain(self, status: int, said: Mapping[str, str]) -> str:
        """Return what a refusal of the hub means and what to do."""
        code = said.get("x-error-code", "")
        page = f"{self.endpoint}/{parse_address(self.url).repository}"
        login = "log in with `hf auth login` or set HF_TOKEN"
        if code == "GatedRepo":
            return f"the repository is gated. Accept its terms at {page}, then {login} with that account"
        if status == 401 or code == "RepoNotFound":
            return f"there is no such repository, or it is private; check the name, or {login}"
        if status == 403:
            return f"access is denied; {login} with an account that may read {page}"
        meaning = {"RevisionNotFound": "there is no such revision", "EntryNotFound": "the revision has no such file"}
        return meaning.get(code) or super().explain(status, said)


class Repository:
    """One repository: what all its revisions share, such as files and headers that did not change between them."""

    def __init__(self, name: str, cache_size: int | None = None) -> None:
        self.name, self.cache_size = name, cache_size
        self.endpoint: str = need("huggingface_hub.constants", f"hf://{name}").ENDPOINT.rstrip("/")
        self.session = HubSession(f"hf://{name}", self.endpoint)
        self.heads = Heads()
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._saved = need("huggingface_hub", f"hf://{name}").try_to_load_from_cache

    def ask(self, path: str, what: str) -> tuple[Any, str]:
        """Return the answer of the hub's interface, parsed, and the address of its next page ("" for the last)."""
        url = urljoin(f"{self.endpoint}/api/models/{self.name}/", path)
        if origin(url) != origin(self.endpoint):
            raise FetchError(f"{what}: the hub sends its reader to another server ({shown(url)}).")
        data, said = self.session.get(url, what)
        try:
            answer = parse_value(data)
        except FormatError as error:
            raise FetchError(f"{what}: {shown(self.endpoint)} does not answer like the hub: {error}.") from None
        following = _NEXT.search(said.get("link", ""))
        return answer, urljoin(url, following[1]) if following else ""

    def refs(self) -> dict[str, str]:
        """Return the commit of every branch and tag by name; where both have a name, the branch counts."""
        answer, _ = self.ask("refs", f"the list of revisions of {self.name}")
        found: dict[str, str] = {}
        for kind in ("tags", "branches"):
            for ref in _objects(answer.get(kind) if isinstance(answer, dict) else None):
                name, commit = ref.get("name"), ref.get("targetCommit")
                if isinstance(name, str) and isinstance(commit, str) and _COMMIT.fullmatch(commit):
                    found[name] = commit
        return found

    def commit(self, revision: str) -> str:
        """Return the commit that a revision stands for now. Raises FetchError with the nearest name there is."""
        if _COMMIT.fullmatch(revision):
            return revision
        what = f"revision {revision!r} of {self.name}"
        try:
            answer, _ = self.ask(f"revision/{quote(revision, safe='')}", what)
        except Refusal as refusal:
            if refusal.status != 404 or refusal.code not in ("", "RevisionNotFound"):
                raise
            raise FetchError(f"{self.name} has no revision {revision!r}.{nearest(revision, self.refs())}") from None
        commit = answer.get("sha") if isinstance(answer, dict) else None
        if not (isinstance(commit, str) and _COMMIT.fullmatch(commit)):
            raise FetchError(f"{what}: the hub does not say which commit it is.")
        return commit

    def file_in_git(self, path: RemotePath, url: str, item: Item) -> bytes:
        """Return the content of a small file, fetched once for all revisions that share it."""
        if item.blob not in self._files:
            data, _ = self.session.get(url, str(path), limit=item.size or 0)
            found = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            if item.blob and found != item.blob:
                raise FetchError(f"{path} is not what the hub lists: its git hash is {found} instead of {item.blob}.")
            self._files[item.blob] = data
            while len(self._files) > 1 and sum(map(len, self._files.values())) > _KEPT_FILES:
                self._files.popitem(last=False)
        return self._files[item.blob]

    def saved(self, path: str, commit: str) -> LocalFile | None:
        """Return the file as huggingface_hub has saved it on this machine, if it has."""
        found = self._saved(self.name, path, revision=commit)
        return LocalFile(Path(found)) if isinstance(found, str) else None


class HubStore(Store):
    """The files of one commit; `revision` is the name under which it was asked for."""

    def __init__(self, repository: Repository, commit: str, revision: str) -> None:
        self.repository, self.commit, self.revision = repository, commit, revision
        self.url = f"hf://{repository.name}@{commit}"
        self.label = repository.name.rpartition("/")[2] if revision == _MAIN else revision
        self._listings: dict[str, dict[str, Item]] = {}

    def listing(self, folder: str) -> Mapping[str, Item]:
        """Return what is in a folder of the commit, with sizes and hashes."""
        if folder not in self._listings:
            self._listings[folder] = self._listed(folder)
        return self._listings[folder]

    def open(self, path: RemotePath) -> ByteFile:
        """Return a file of the commit: what huggingface_hub has saved, else one that is read in ranges."""
        item = path.item()
        if item is None or item.folder or item.size is None:
            raise SourceError(f"Cannot read {path} ({self.revision}): it is no file.")
        saved = self.repository.saved(path.inner, self.commit)
        if saved is not None:
            return saved
        url = f"{self.repository.endpoint}/{self.repository.name}/resolve/{self.commit}/{quote(path.inner)}"
        what = f"{path} ({self.revision})" if self.revision != self.commit else str(path)

        def copy(part: Part) -> LocalFile:
            key = item.sha256 or item.blob or hashlib.sha256(str(path).encode()).hexdigest()
            return Cache.of(self.repository.cache_size).copy(key, path, part, what, item.sha256)

        if not item.sha256 and item.blob and item.size <= SMALL:
            data = self.repository.file_in_git(path, url, item)
            return MemoryFile(path, data, len(data), copy)
        part = HttpFile(self.repository.session, url, what, size=item.size, sha256=item.sha256, commit=self.commit)
        return RemoteFile(path, part, copy, self.repository.heads, content=item.sha256)

    def fingerprint(self, inner: str) -> list[str]:
        """Return the commit: nothing in it ever changes."""
        return [self.commit]

    def facts(self, names: Iterable[str], folder: str) -> dict[str, Any]:
        """Return repository, revision, commit, and the SHA-256 of the files of these names."""
        listed = self.listing(folder)
        hashes = {name: listed[name].sha256 for name in names if name in listed and listed[name].sha256}
        known = {"repository": self.repository.name, "revision": self.revision, "commit": self.commit}
        return {**known, "sha256": hashes}

    def _listed(self, folder: str) -> dict[str, Item]:
        below = "/" + quote(folder, safe="") if folder else ""
        what = f"the list of files of {self.url}{'/' if folder else ''}{folder} ({self.revision})"
        found: dict[str, Item] = {}
        page = f"tree/{self.commit}{below}?recursive=false&expand=false"
        for _ in range(MAX_PAGES):
            answer, page = self.repository.ask(page, what)
            found |= dict(filter(None, (_entry(entry, folder) for entry in _objects(answer))))
            if not page:
                return found
        raise FetchError(f"{what} has more than {MAX_PAGES} pages.")

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.repository.name, self.repository.cache_size, self.commit, self.revision)


def open_hub(url: str, cache_size: int | None = None) -> RemotePath:
    """Return the folder or file that an `hf://` URL names, pinned to the commit its revision is now."""
    address = parse_address(url)
    if address.is_pattern:
        raise SourceError(f"{url} stands for several revisions: a trajectory. Name one of them to open a checkpoint.")
    repository = Repository(address.repository, cache_size)
    revision = address.revision or _MAIN
    return RemotePath(HubStore(repository, repository.commit(revision), revision), address.folder)


def _reopened(name: str, cache_size: int | None, commit: str, revision: str) -> HubStore:
    return HubStore(Repository(name, cache_size), commit, revision)


def _objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _entry(entry: Mapping[str, Any], folder: str) -> tuple[str, Item] | None:
    """Return name and item of a line of a listing, None for one that is not directly in the folder."""
    path, kind, lfs = entry.get("path"), entry.get("type"), entry.get("lfs")
    if not isinstance(path, str):
        return None
    parent, _, name = path.rpartition("/")
    if parent != folder or name in (".", "..") or not _PLAIN.fullmatch(name):
        return None
    if kind == "directory":
        return name, Item(folder=True)
    linked = lfs if isinstance(lfs, dict) else {}
    size, sha256, blob = linked.get("size", entry.get("size")), linked.get("oid"), entry.get("oid")
    if kind != "file" or type(size) is not int or size < 0:
        return None
    return name, Item(
        size=size,
        sha256=sha256 if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else "",
        blob=blob if isinstance(blob, str) and _COMMIT.fullmatch(blob) and not linked else "",
    )

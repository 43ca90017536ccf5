"""A hub on this machine and its content server on another origin: they count what they send, and fail on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import numpy as np
import pytest

TOKEN = "hf_TestTokenThatMustNeverBeSeen0123456789"


class Blob:
    """The content of a file, kept as pieces so that many revisions may share most of theirs."""

    def __init__(self, *pieces: bytes, lfs: bool = True) -> None:
        self.pieces, self.lfs = pieces, lfs
        self.size = sum(map(len, pieces))
        sha, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % self.size)
        for piece in pieces:
            sha.update(piece)
            git.update(piece)
        self.sha256, self.oid = sha.hexdigest(), git.hexdigest()

    def part(self, start: int, stop: int) -> bytes:
        """Return the bytes of a range."""
        found, at = [], 0
        for piece in self.pieces:
            if start < at + len(piece) and stop > at:
                found.append(memoryview(piece)[max(start - at, 0) : stop - at])
            at += len(piece)
        return b"".join(found)


@dataclass
class Repo:
    """Commits, and the names that lead to them; `readers` are the tokens that a gated or private one wants."""

    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False


@dataclass
class Seen:
    """One request: which server, what was asked (`range` too), and the bytes of body that went out."""

    server: str
    method: str
    path: str
    headers: dict[str, str]
    connection: tuple[str, int]
    status: int = 0
    sent: int = 0

    @property
    def range(self) -> str:
        return self.headers.get("range", "")


@dataclass
class Fault:
    """Something that goes wrong `times` times with requests whose server and path fit; `make` may answer itself."""

    fits: re.Pattern[str]
    times: int
    after: int = 0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    pause: float = 0.0
    shift: int = 0
    whole: bool = False
    grow: int = 0
    redirect: str = ""


class QuietServer(ThreadingHTTPServer):
    """A server that does not print it when its clients hang up."""

    def handle_error(self, request: Any, client_address: Any) -> None: ...


class FakeHub:
    """The hub and its content server ("cdn"), each on its own port of the loopback interface."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.plain: dict[str, Blob] = {}
        self.signature = "sig-1"
        self.page_size = 1000
        self.servers = {name: self._started(name) for name in ("hub", "cdn")}
        self.url, self.cdn = (f"http://127.0.0.1:{self.servers[n].server_port}" for n in ("hub", "cdn"))

    def _started(self, name: str) -> ThreadingHTTPServer:
        handler = type("Bound", (Handler,), {"hub": self, "server_name": name})
        server = QuietServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def close(self) -> None:
        """Stop both servers."""
        for server in self.servers.values():
            server.shutdown()
            server.server_close()

    def commit(self, repo: str, files: dict[str, Blob | bytes], *, branch: str = "", tag: str = "") -> str:
        """Put files under a new commit, and under a branch or a tag; return the commit."""
        blobs = {n: b if isinstance(b, Blob) else Blob(b, lfs=_is_weights(n)) for n, b in files.items()}
        text = json.dumps([repo, branch, tag, sorted((n, b.sha256) for n, b in blobs.items())])
        commit = hashlib.sha1(text.encode()).hexdigest()
        found = self.repos.setdefault(repo, Repo())
        found.commits[commit] = blobs
        if branch:
            found.branches[branch] = commit
        if tag:
            found.tags[tag] = commit
        return commit

    def fault(self, fits: str, times: int = 1, **what: Any) -> None:
        """Let `times` requests to `hub/...` or `cdn/...` that fit go wrong, from the next on or `after` so many."""
        self.faults.append(Fault(re.compile(fits), times, **what))

    def bytes_sent(self) -> int:
        """Bytes of bodies that both servers have sent."""
        return sum(s.sent for s in self.seen)

    def asked(self, fits: str) -> list[Seen]:
        """Return the requests to `hub/...` or `cdn/...` that fit."""
        return [s for s in self.seen if re.search(fits, s.server + s.path)]

    def take(self, text: str) -> Fault | None:
        """Return the fault that is due for a request, and use it up."""
        for fault in self.faults:
            if fault.times > 0 and fault.fits.search(text):
                if fault.after:
                    fault.after -= 1
                else:
                    fault.times -= 1
                    return fault
        return None


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".pt"))


class Handler(BaseHTTPRequestHandler):
    """Answers for one of the two servers."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub
    server_name: str

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: tests read `seen`."""

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer, or go wrong."""
        headers = {k.lower(): v for k, v in self.headers.items()}
        self.note = Seen(self.server_name, self.command, self.path, headers, self.client_address)
        self.hub.seen.append(self.note)
        self.trouble = self.hub.take(self.server_name + self.path)
        if self.trouble and self.trouble.pause:
            time.sleep(self.trouble.pause)
        if self.trouble and self.trouble.redirect:
            self.answer(302, b"", {"Location": self.trouble.redirect})
        elif self.trouble and self.trouble.status:
            self.answer(self.trouble.status, b"trouble", self.trouble.headers)
        else:
            getattr(self, f"on_{self.server_name}")(urlsplit(self.path))

    def on_hub(self, url: Any) -> None:
        """Route a request for the interface or for a file."""
        for pattern, handle in ROUTES:
            found = re.fullmatch(pattern, url.path)
            if found:
                self.with_repo(found, handle, parse_qs(url.query))
                return
        blob = self.hub.plain.get(unquote(url.path))
        if blob is None:
            self.refuse(404, "", "Not here")
        else:
            self.content(blob, {"ETag": f'"{blob.sha256[:16]}"', "Content-Type": "application/octet-stream"})

    def with_repo(self, found: re.Match[str], handle: Callable[..., None], query: dict[str, list[str]]) -> None:
        """Let a repository answer, if the one who asks may see it."""
        repo = self.hub.repos.get(found["repo"])
        token = self.headers.get("authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.private and not token):
            self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repo.gated and not token and "/resolve/" in self.path:
            self.refuse(401, "GatedRepo", "Access to this repo is restricted")
        else:
            handle(self, found, repo, query)

    def refs(self, found: re.Match[str], repo: Repo, query: dict[str, list[str]]) -> None:
        """List branches and tags."""

        def lines(names: dict[str, str], kind: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c} for n, c in names.items()]

        self.json({"branches": lines(repo.branches, "heads"), "tags": lines(repo.tags, "tags"), "converts": []})

    def info(self, found: re.Match[str], repo: Repo, query: dict[str, list[str]]) -> None:
        """Describe a revision."""
        commit = self.commit_of(repo, unquote(found.groupdict().get("rev") or "main"))
        if commit is None:
            return
        files = [self.sibling(n, b) for n, b in repo.commits[commit].items()]
        self.json({"id": found["repo"], "modelId": found["repo"], "sha": commit, "siblings": files, "tags": []})

    def sibling(self, name: str, blob: Blob) -> dict[str, Any]:
        """Describe a file as `blobs=true` does."""
        lfs = {"lfs": {"sha256": blob.sha256, "size": blob.size, "pointerSize": 134}} if blob.lfs else {}
        return {"rfilename": name, "size": blob.size, "blobId": blob.oid, **lfs}

    def tree(self, found: re.Match[str], repo: Repo, query: dict[str, list[str]]) -> None:
        """List a folder, in pages."""
        commit = self.commit_of(repo, unquote(found["rev"]))
        if commit is None:
            return
        folder = unquote(found.groupdict().get("dir") or "")
        lines = self.lines(repo.commits[commit], folder, query.get("recursive", ["false"])[0].lower() == "true")
        if folder and not lines:
            self.refuse(404, "EntryNotFound", "no such folder")
            return
        start, size = int(query.get("cursor", ["0"])[0]), self.hub.page_size
        more = {}
        if start + size < len(lines):
            path = self.path.partition("?")[0]
            more = {"Link": f'<{self.hub.url}{path}?cursor={start + size}>; rel="next"'}
        self.json(lines[start : start + size], more)

    def lines(self, files: dict[str, Blob], folder: str, recursive: bool) -> list[dict[str, Any]]:
        """Return the entries of a folder."""
        prefix, found, folders = f"{folder}/" if folder else "", [], set()
        for name, blob in files.items():
            if not name.startswith(prefix):
                continue
            first, _, rest = name.removeprefix(prefix).partition("/")
            if rest and prefix + first not in folders:
                folders.add(prefix + first)
                found.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": prefix + first})
            if not rest or recursive:
                lfs = {"lfs": {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}} if blob.lfs else {}
                found.append({"type": "file", "oid": blob.oid, "size": blob.size, "path": name, **lfs})
        return found

    def resolve(self, found: re.Match[str], repo: Repo, query: dict[str, list[str]]) -> None:
        """Send to the content server, or give a small file by way of the cache, as the hub does."""
        commit = self.commit_of(repo, unquote(found["rev"]))
        if commit is None:
            return
        blob = repo.commits[commit].get(unquote(found["path"]))
        said = {"X-Repo-Commit": commit}
        if blob is None:
            self.refuse(404, "EntryNotFound", "Entry not found", said)
        elif blob.lfs:
            said |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
            target = f"{self.hub.cdn}/{found['repo']}/{blob.sha256}?Signature={self.hub.signature}"
            self.answer(302, b"Found. Redirecting", {**said, "Location": target})
        elif found.re.pattern.startswith("/api/"):
            self.content(blob, {**said, "ETag": f'"{blob.oid}"'})
        else:
            target = f"/api/resolve-cache/models/{found['repo']}/{commit}/{quote(found['path'])}?etag=%22{blob.oid}%22"
            self.answer(307, b"", {**said, "Location": target})

    def on_cdn(self, url: Any) -> None:
        """Give content to whoever has a good signature."""
        repo, _, sha256 = url.path.strip("/").rpartition("/")
        if parse_qs(url.query).get("Signature") != [self.hub.signature]:
            self.answer(403, b"<Error><Code>AccessDenied</Code></Error>", {})
            return
        blobs = (b for files in self.hub.repos[repo].commits.values() for b in files.values())
        blob = next((b for b in blobs if b.sha256 == sha256), None)
        if blob is None:
            self.refuse(404, "", "no such object")
        else:
            self.content(blob, {"ETag": f'"{hashlib.md5(sha256.encode()).hexdigest()}"'})

    def content(self, blob: Blob, headers: dict[str, str]) -> None:
        """Give a file, or the range that is asked for."""
        trouble = self.trouble or Fault(re.compile(""), 0)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        size = blob.size + trouble.grow
        headers = {"Accept-Ranges": "bytes", **headers, **trouble.headers}
        if asked is None or trouble.whole:
            self.answer(200, blob.part(0, blob.size), headers)
            return
        start, stop = int(asked[1]), min(int(asked[2] or size - 1) + 1, size)
        if start >= size:
            self.answer(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
            return
        data, at = blob.part(start, stop), start + trouble.shift
        self.answer(206, data, {"Content-Range": f"bytes {at}-{at + len(data) - 1}/{size}", **headers})

    def commit_of(self, repo: Repo, revision: str) -> str | None:
        """Return the commit of a revision; refuses when there is none."""
        commit = repo.branches.get(revision) or repo.tags.get(revision) or revision
        if commit in repo.commits:
            return commit
        self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def refuse(self, status: int, code: str, message: str, more: dict[str, str] | None = None) -> None:
        """Answer with an error as the hub does."""
        headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self.json({"error": message}, {**headers, **(more or {})}, status)

    def json(self, data: Any, headers: dict[str, str] | None = None, status: int = 200) -> None:
        """Answer with JSON."""
        self.answer(status, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Send an answer, or only the beginning of it."""
        self.note.status = status
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.trouble.cut if self.trouble else None
        body = body if cut is None else body[:cut]
        self.note.sent += len(body)
        self.wfile.write(body)
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


_REPO, _REV = r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<rev>[^/]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (rf"/api/models/{_REPO}/refs", Handler.refs),
    (rf"/api/models/{_REPO}/tree/{_REV}(?:/(?P<dir>.*))?", Handler.tree),
    (rf"/api/models/{_REPO}(?:/revision/{_REV})?", Handler.info),
    (rf"/api/resolve-cache/models/{_REPO}/{_REV}/(?P<path>.+)", Handler.resolve),
    (rf"/{_REPO}/resolve/{_REV}/(?P<path>.+)", Handler.resolve),
]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[FakeHub]:
    """A hub that huggingface_hub takes for its own, with nobody logged in, no waiting, and a cache of its own."""
    from huggingface_hub import close_session, constants

    from ckpt_tools.checkpoint.remote import retries

    fake = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", fake.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", fake.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("CKPT_CACHE", str(tmp_path / "ckpt-cache"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "CKPT_CACHE_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(retries, "pause", lambda seconds, stop: stop.is_set())
    close_session()
    yield fake
    close_session()
    fake.close()


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> str:
    """A user who is logged in."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return TOKEN


@pytest.fixture
def packed() -> Callable[..., bytes]:
    """`packed({name: array})`: the bytes of a safetensors file, by the reference library."""
    from safetensors.numpy import save

    def make(tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
        data: bytes = save(tensors, metadata)
        return data

    return make

"""GET requests through the HTTP client of huggingface_hub, which knows the user's proxies and certificates.

What is added to it: redirects are followed by hand, so that the token goes to the endpoint's origin and nowhere else;
bodies are bounded and never decompressed; each request has a time limit (those of `HfApi` have none) and is repeated
when it makes sense. The token is put into the request by a callback, never into a variable, an address or a message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

from ... import __version__
from ...errors import FetchError, SourceError
from . import need
from .retries import RETRIED, Attempts, RetryLater, asked_wait, now

TIMEOUT = 30.0
MAX_REDIRECTS = 5
MAX_REPLY = 64 * 2**20
SLOWEST = 2**12
"""Bytes per second: a body that stays below for `TIMEOUT` is given up, and asked for again from where it was."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAID = ("x-linked-etag", "x-linked-size", "x-repo-commit")
_SHORT = 2**16
_PORTS = {"http": 80, "https": 443}


class Traffic:
    """What crossed the network: requests made, bytes of bodies received, attempts repeated."""

    def __init__(self) -> None:
        self.requests = self.bytes = self.repeated = 0
        self._lock = Lock()

    def add(self, requests: int = 0, received: int = 0, repeated: int = 0) -> None:
        """Count; parts are fetched by several threads."""
        with self._lock:
            self.requests += requests
            self.bytes += received
            self.repeated += repeated


class Refusal(FetchError):
    """The server answered with an error that asking again does not change; `code` is what the hub calls it."""

    def __init__(self, message: str, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Answer:
    """A response whose body has not been read: `said` are the headers, among them those of the redirects before it."""

    url: str
    status: int
    said: Mapping[str, str]
    body: Iterator[bytes]


@dataclass
class Session:
    """Requests to one service; `endpoint` is the address whose origin gets the user's token, if any.

    Raises SourceError when huggingface_hub is missing or told to stay offline, FetchError when nothing can be had.
    """

    url: str
    endpoint: str = ""
    traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        self._hub = need("huggingface_hub", self.url)
        self._constants = need("huggingface_hub.constants", self.url)
        if self._constants.HF_HUB_OFFLINE:
            raise SourceError(
                f"{self.url} cannot be read: HF_HUB_OFFLINE is set. Unset it, or give a folder on this machine."
            )
        self._errors = _http_error(need("huggingface_hub.errors", self.url))
        self._wears_token = bool(self.endpoint and self._token())

    def get(self, url: str, what: str, limit: int = MAX_REPLY) -> tuple[bytes, Mapping[str, str]]:
        """Return a whole body of at most `limit` bytes, and the headers; `what` is its name in messages."""
        tries = Attempts(what)
        while True:
            try:
                with self.open(url, {}, what) as answer:
                    return _bounded(answer, what, limit), answer.said
            except RetryLater as error:
                failure = error
            self.again(tries, failure)

    def again(self, tries: Attempts, failure: RetryLater, progress: int = 0) -> None:
        """Count a failed attempt and wait."""
        self.traffic.add(repeated=1)
        tries.failed(failure, progress)

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str], what: str, stop: Event | None = None) -> Iterator[Answer]:
        """Yield the answer of the server that redirects lead to. Raises RetryLater, or Refusal for other statuses."""
        said: dict[str, str] = {}
        with ExitStack() as stack:
            for _ in range(MAX_REDIRECTS + 1):
                response = stack.enter_context(self._sent(url, headers))
                here = {name.lower(): value for name, value in response.headers.items()}
                said = {**{name: said[name] for name in _SAID if name in said}, **here}
                if response.status_code not in _REDIRECTS:
                    if not 200 <= response.status_code < 300:
                        _drain(response)
                        raise self._failure(response.status_code, said, what, url)
                    yield Answer(url, response.status_code, said, self._received(response, stop))
                    return
                _drain(response)
                stack.close()
                url = _next(url, here.get("location", ""), what)
            raise FetchError(f"{what} cannot be fetched: more than {MAX_REDIRECTS} redirects.")

    def explain(self, status: int, said: Mapping[str, str]) -> str:
        """Return what a status means, as the end of the sentence "it cannot be fetched: ..."."""
        meaning = {401: "log-in is required", 403: "access is denied", 404: "it does not exist", 410: "it is gone"}
        return meaning.get(status, f"the server answers with status {status}")

    @contextmanager
    def _sent(self, url: str, headers: Mapping[str, str]) -> Iterator[Any]:
        self.traffic.add(requests=1)
        sent = {"user-agent": f"ckpt-tools/{__version__}", "accept-encoding": "identity", **headers}
        signed = {"auth": self._sign} if self._wears_token and origin(url) == origin(self.endpoint) else {}
        failure = None
        try:
            client = self._hub.get_session()
            with client.stream("GET", url, headers=sent, follow_redirects=False, timeout=TIMEOUT, **signed) as response:
                yield response
        except self._errors as error:
            failure = RetryLater(_reason(error))
        if failure is not None:  # raised out here: the client's error holds the request, and with it the token
            raise failure

    def _sign(self, request: Any) -> Any:
        request.headers["authorization"] = f"Bearer {self._token()}"
        return request

    def _token(self) -> str | None:
        found: str | None = None if self._constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else self._hub.get_token()
        return found

    def _failure(self, status: int, said: Mapping[str, str], what: str, url: str) -> Exception:
        if status in RETRIED:
            return RetryLater(f"{urlsplit(url).hostname} answers with status {status}", asked_wait(said))
        message = f"{what} cannot be fetched: {self.explain(status, said)}."
        return Refusal(message, status, said.get("x-error-code", ""))

    def _received(self, response: Any, stop: Event | None) -> Iterator[bytes]:
        began, got = now(), 0
        for chunk in response.iter_raw():
            self.traffic.add(received=len(chunk))
            got += len(chunk)
            yield chunk
            took = now() - began
            if took > TIMEOUT and got < SLOWEST * took:
                raise RetryLater(f"only {got:,} bytes came in {took:.0f} s")
            if stop is not None and stop.is_set():
                raise RetryLater("it was closed")


def _http_error(errors: Any) -> type[Exception]:
    """Return the base of the client's errors: httpx or httpx2 by the version of the hub's library, whose own has it."""
    found: type[Exception] = next(c for c in errors.HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")
    return found


def origin(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port of an address: who it belongs to."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme)


def shown(url: str) -> str:
    """Return an address without what may be secret in it: user, password, query."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit((parts.scheme, f"{parts.hostname or ''}{port}", parts.path, "", ""))


def _next(url: str, location: str, what: str) -> str:
    """Return where a redirect leads, checked: a stranger's answer must not send the reader just anywhere."""
    try:
        target = urljoin(url, location)
        parts = urlsplit(target)
        scheme, host, _ = origin(target)
    except ValueError:
        raise FetchError(f"{what} cannot be fetched: it is redirected to no address.") from None
    if not location or scheme not in _PORTS or not host or parts.username or re.search(r"[\x00-\x20\x7f]", target):
        raise FetchError(f"{what} cannot be fetched: a redirect to {shown(target)[:200]!r} is not followed.")
    if url.startswith("https:") and scheme == "http":
        raise FetchError(f"{what} cannot be fetched: a redirect from https to http ({host}) is not followed.")
    return target


def _drain(response: Any) -> None:
    """Read a short body that nobody wants: only a connection whose answer is read can be used again."""
    got = 0
    for chunk in response.iter_raw():
        got += len(chunk)
        if got > _SHORT:
            return


def _bounded(answer: Answer, what: str, limit: int) -> bytes:
    body = bytearray()
    for chunk in answer.body:
        body += chunk
        if len(body) > limit:
            raise FetchError(f"{what}: the answer has more than the {limit:,} bytes that are accepted of it.")
    length = answer.said.get("content-length", "")
    if length.isdigit() and int(length) != len(body):
        raise RetryLater(f"the connection was cut after {len(body):,} of {length} bytes")
    return bytes(body)


def _reason(error: Exception) -> str:
    """Return what went wrong in the network, in few words; such errors name hosts and numbers, never headers."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__} ({text})" if text else type(error).__name__

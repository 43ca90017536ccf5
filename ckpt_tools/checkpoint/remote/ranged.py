"""One file on a web server, fetched in ranges that are known to be of one and the same content.

Every answer is checked: the range (RFC 9110 section 14.4) must be the one that was asked for, the length, the entity
tag and the hub's own hashes those of the first answer. A body that is cut is continued at the byte where it was cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from threading import Event, Lock

from ...errors import FetchError
from .retries import Attempts, RetryLater
from .session import Answer, Refusal, Session

_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)", re.ASCII)
_EMPTY = 416


class NoRanges(FetchError):
    """The server answers with the whole file to whatever range is asked for."""


class HttpFile:
    """A file at an address, `what` in messages; `size`, `sha256` and `commit` are checked when they are given.

    `transferred` counts the bytes of bodies received, `stamp` is the entity tag (or the date) of the content.
    """

    def __init__(
        self, session: Session, url: str, what: str, *, size: int = -1, sha256: str = "", commit: str = ""
    ) -> None:
        self.session, self.url, self.what = session, url, what
        self.size, self.sha256, self.commit = size, sha256, commit
        self.transferred, self.stamp = 0, ""
        self._direct = ""
        self._lock = Lock()

    def meet(self, count: int) -> tuple[bytes, Mapping[str, str]]:
        """Return the first `count` bytes (or all) of a file of unknown size, and the headers; learns size and stamp."""
        tries = Attempts(self.what)
        while True:
            try:
                return self._met(count)
            except RetryLater as error:
                failure = error
            self.session.again(tries, failure)

    def chunks(self, offset: int, count: int, stop: Event | None = None) -> Iterator[bytes]:
        """Yield exactly `count` bytes from `offset`. Raises FetchError when they cannot be had, or have changed."""
        done, tries = 0, Attempts(self.what, stop)
        while done < count:
            before, failure = done, RetryLater("the connection was cut")
            try:
                for chunk in self._stream(offset + done, count - done, stop):
                    done += len(chunk)
                    yield chunk
            except RetryLater as error:
                failure = error
            if done < count:
                self.session.again(tries, failure, done - before)

    def _met(self, count: int) -> tuple[bytes, Mapping[str, str]]:
        headers = {"range": f"bytes=0-{count - 1}"}
        try:
            with self.session.open(self.url, headers, self.what) as answer:
                whole = answer.status == 200
                self.size = _length(answer) if whole else self._range(answer)[2]
                self._recognise(answer)
                if whole and self.size > count:
                    return b"", answer.said
                data = b"".join(self._exactly(answer, min(count, self.size)))
        except Refusal as refusal:
            if refusal.status != _EMPTY:
                raise
            self.size = 0
            return b"", {}
        if len(data) < min(count, self.size):
            raise RetryLater("the connection was cut")
        return data, answer.said

    def _stream(self, offset: int, count: int, stop: Event | None) -> Iterator[bytes]:
        url = self._direct or self.url
        headers = {"range": f"bytes={offset}-{offset + count - 1}"}
        expired = False
        try:
            with self.session.open(url, headers, self.what, stop) as answer:
                self._check(answer, offset, count)
                yield from self._exactly(answer, count)
        except Refusal as refusal:
            if refusal.status == _EMPTY:
                raise self._changed("it is shorter now") from None
            if url == self.url:
                raise
            expired = True
        if expired:
            self._direct = ""
            raise RetryLater("the address it was redirected to has expired", wait=0.0)

    def _check(self, answer: Answer, offset: int, count: int) -> None:
        if answer.status == 200:
            if offset or count != self.size:
                raise NoRanges(f"{self.what} cannot be read in parts: the server does not serve ranges.")
            if _length(answer) != self.size:
                raise self._changed(f"it has {_length(answer):,} bytes instead of {self.size:,}")
        else:
            first, last, total = self._range(answer)
            if (first, last) != (offset, offset + count - 1):
                raise FetchError(
                    f"{self.what} cannot be fetched: the server was asked for bytes {offset}-{offset + count - 1} and "
                    f"answers with {first}-{last}."
                )
            if total not in (self.size, -1):
                raise self._changed(f"it has {total:,} bytes instead of {self.size:,}")
        self._recognise(answer)

    def _range(self, answer: Answer) -> tuple[int, int, int]:
        """Return first and last byte and the size of the file (-1 where it is not said)."""
        text = answer.said.get("content-range", "")
        found = _RANGE.fullmatch(text)
        if answer.status != 206 or found is None or found[1] is None or (found[3] == "*" and self.size < 0):
            said = f"status {answer.status}, Content-Range {text[:60]!r}"
            raise FetchError(f"{self.what} cannot be fetched: the server's answer to a range makes no sense ({said}).")
        return int(found[1]), int(found[2]), -1 if found[3] == "*" else int(found[3])

    def _recognise(self, answer: Answer) -> None:
        """Raise FetchError unless the answer is of the content that this file was when it was opened."""
        said = answer.said
        if said.get("content-encoding", "identity") != "identity":
            raise FetchError(f"{self.what} cannot be read in parts: the server sends it compressed.")
        linked = _tag(said.get("x-linked-etag", ""))
        if self.sha256 and linked and linked != self.sha256:
            raise self._changed(f"its SHA-256 is {linked[:12]}... instead of {self.sha256[:12]}...")
        if self.commit and said.get("x-repo-commit", self.commit) != self.commit:
            raise self._changed(f"it comes from commit {said['x-repo-commit'][:12]} instead of {self.commit[:12]}")
        stamp = _tag(said.get("etag", "")) or said.get("last-modified", "")
        with self._lock:
            if answer.url != self.url and answer.url != self._direct:
                self._direct = answer.url
                self.stamp = stamp if linked and linked == self.sha256 else self.stamp or stamp
            self.stamp = self.stamp or stamp
            if stamp != self.stamp:
                raise self._changed(f"its ETag is {stamp[:40]!r} instead of {self.stamp[:40]!r}")

    def _exactly(self, answer: Answer, count: int) -> Iterator[bytes]:
        left = count
        for chunk in answer.body:
            self._received(len(chunk))
            if len(chunk) > left:
                raise FetchError(f"{self.what} cannot be fetched: more than the {count:,} bytes asked for were sent.")
            left -= len(chunk)
            yield chunk

    def _received(self, count: int) -> None:
        with self._lock:
            self.transferred += count

    def _changed(self, how: str) -> FetchError:
        return FetchError(f"{self.what} has changed while it was being read: {how}. Open it again.")


def _length(answer: Answer) -> int:
    text = answer.said.get("content-length", "")
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise FetchError(f"{answer.url.partition('?')[0]}: the server does not say how long the file is.")
    return int(text)


def _tag(text: str) -> str:
    """Return an entity tag without quotes and mark of weakness."""
    return text.strip().removeprefix("W/").strip('"')

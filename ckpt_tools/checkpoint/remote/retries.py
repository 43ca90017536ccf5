"""When to ask again, and how long to wait before it.

Exponential back-off with jitter (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): wait i is
uniform in [1/2, 1] of `min(LONGEST, FIRST 2^i)`, so that many readers of one server do not come back together. What the
server asks for (`Retry-After`, RFC 9110 section 10.2.3; `RateLimit`, the IETF draft that the hub follows) comes first.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event

from ...errors import FetchError

ATTEMPTS = 6
FIRST, LONGEST = 0.5, 30.0
PATIENCE = 300.0
"""The longest wait, in seconds, that a server may ask for."""
RETRIED = frozenset({408, 429, 500, 502, 503, 504})
ENOUGH = 2**16
"""Bytes that count as progress: a connection cut after fewer is a failed attempt, so that nobody drips for ever."""
_LIMIT = re.compile(r"r=0\s*;\s*t=(\d{1,9})", re.ASCII)


class RetryLater(Exception):
    """A request failed in a way that may pass; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Stopped(FetchError):
    """The reader was closed while a part was being fetched."""


class Attempts:
    """Failed attempts at one thing, named by `what`; `stop` ends the waiting early."""

    def __init__(self, what: str, stop: Event | None = None) -> None:
        self.what, self.stop, self.count = what, stop or Event(), 0

    def failed(self, failure: RetryLater, progress: int = 0) -> None:
        """Wait before the next attempt. Raises FetchError when there have been enough of them in a row."""
        self.count = 1 if progress >= ENOUGH else self.count + 1
        if self.count >= ATTEMPTS:
            raise FetchError(f"{self.what} cannot be fetched: {failure} ({ATTEMPTS} attempts). Try again later.")
        if failure.wait is not None and failure.wait > PATIENCE:
            raise FetchError(
                f"{self.what} cannot be fetched now: {failure}, and the server asks to wait {failure.wait:,.0f} s."
            )
        wait = backoff(self.count - 1) if failure.wait is None else failure.wait
        if pause(wait, self.stop):
            raise Stopped(f"{self.what} was closed while it was being fetched.")


def backoff(count: int) -> float:
    """Return how long to wait, in seconds, after `count` earlier waits."""
    longest: float = min(LONGEST, FIRST * 2.0**count)
    return longest * random.uniform(0.5, 1.0)


def pause(seconds: float, stop: Event) -> bool:
    """Wait, at most until `stop` is set; return whether it is."""
    return stop.wait(seconds)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait, None when it does not say."""
    limit = _LIMIT.search(headers.get("ratelimit", ""))
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    if limit:
        return float(limit[1]) + 1.0
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (date - datetime.now(UTC)).total_seconds()) if date.tzinfo else None


def now() -> float:
    """Return seconds on a clock that never goes back."""
    return time.monotonic()

"""Checkpoints at URLs, read in parts: the Hugging Face Hub, web servers, object stores.

Imported when a URL is opened, never for a local path; the libraries behind it are imported later still.
"""

from __future__ import annotations

import importlib
from typing import Any

from ...errors import SourceError
from ..location import RemotePath

_HTTP = ("http", "https")


def locate(url: str, cache_size: int | None = None) -> RemotePath:
    """Return the file or folder that a URL names.

    A revision of the hub is resolved to its commit here, once. `cache_size` bounds in bytes what is kept of files that
    cannot be read in parts. Raises SourceError for a pattern of revisions, FetchError when the server cannot be asked.
    """
    scheme = url.partition("://")[0]
    if scheme == "hf":
        from .hub import open_hub

        return open_hub(url, cache_size)
    if scheme in _HTTP:
        from .web import open_web

        return open_web(url, cache_size)
    from .objects import open_objects

    return open_objects(url, cache_size)


def need(library: str, url: str) -> Any:
    """Return an optional library, imported; raises SourceError that says how to install it."""
    try:
        return importlib.import_module(library)
    except ImportError:
        raise SourceError(f"{url} is read through {library.partition('.')[0]}: pip install 'ckpt-tools[hf]'.") from None

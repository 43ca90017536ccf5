"""Walking nested containers from a file, which may share parts, contain themselves, or be nested without end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import FormatError
from .inert import Instance
from .leaves import Leaf

MAX_DEPTH = 32
MAX_VISITS = 2_000_000
MAX_NAME = 1_000


def key_text(key: Any) -> str:
    """Return a key as part of a name."""
    if isinstance(key, bytes):
        return key.decode("utf-8", "replace")
    text = key if isinstance(key, str) else str(key)[:MAX_NAME]
    # Half a surrogate pair can be a key, but stands in no file of results.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def is_module(node: Any) -> bool:
    """Return whether a node is a whole pickled module: its children are its parameters, not parts of a checkpoint."""
    return isinstance(node, Instance) and ("_parameters" in node.fields or node.kind.startswith("__torch__"))


def items_of(node: Any) -> Mapping[Any, Any] | None:
    """Return a container's children by key; None for what is none. A module's are parameters, buffers and modules."""
    if isinstance(node, Mapping):
        return node
    if isinstance(node, Instance):
        return node.items or dict(enumerate(node.values or ())) or _children(node.fields)
    if isinstance(node, (list, tuple)):
        return dict(enumerate(node))
    return None


def _children(fields: Mapping[Any, Any]) -> Mapping[Any, Any]:
    if "_parameters" not in fields:
        return fields
    transient = fields.get("_non_persistent_buffers_set")
    left_out = transient if isinstance(transient, list) else []
    inner = [fields.get(key) for key in ("_parameters", "_buffers", "_modules")]
    pairs = [pair for part in inner if isinstance(part, Mapping) for pair in part.items()]
    return {key: child for key, child in pairs if key not in left_out}


class Walker:
    """Finds the tensors below a node, within a budget. `where` names the file in errors."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._bears: dict[int, bool] = {}
        self._path: set[int] = set()
        self._visits = 0

    def bears(self, node: Any, depth: int = 0) -> bool:
        """Return whether a tensor is anywhere below."""
        if isinstance(node, Leaf):
            return True
        if not isinstance(node, (Mapping, Instance, list, tuple)) or depth > MAX_DEPTH:
            return False
        if id(node) not in self._bears:
            self._bears[id(node)] = False  # what contains itself bears nothing by that
            inner = self._items(node)
            self._bears[id(node)] = any([self.bears(child, depth + 1) for child in inner.values()])
        return self._bears[id(node)]

    def flatten(self, node: Any, name: str = "") -> Iterator[tuple[str, Leaf]]:
        """Yield every tensor below with the keys that lead to it, joined by dots."""
        if isinstance(node, Leaf):
            yield name or "tensor", node
        elif self.bears(node, len(self._path)) and id(node) not in self._path:
            if len(self._path) >= MAX_DEPTH:
                raise FormatError(f"{self.where}: containers are nested more than {MAX_DEPTH} deep at {name[:80]!r}.")
            self._path.add(id(node))
            for key, child in self._items(node).items():
                yield from self.flatten(child, self._join(name, key_text(key)))
            self._path.discard(id(node))

    def _items(self, node: Any) -> Mapping[Any, Any]:
        inner = items_of(node) or {}
        self._visits += len(inner) + 1
        if self._visits > MAX_VISITS:
            raise FormatError(f"{self.where}: its containers hold more than {MAX_VISITS:,} things; it is not read.")
        return inner

    def _join(self, name: str, key: str) -> str:
        joined = f"{name}.{key}" if name else key
        if len(joined) > MAX_NAME:
            raise FormatError(f"{self.where}: the name of a tensor has more than {MAX_NAME:,} characters.")
        return joined

"""HTML as text that cannot be broken by what a results file says: every text is escaped unless it is `Html` already."""

from __future__ import annotations

from html import escape
from typing import Any

from ..results.names import printable

_VOID = frozenset({"meta", "input", "br", "hr"})


class Html(str):
    """Markup: what `tag` made, or a constant of this package; never text that came out of a file."""

    __slots__ = ()


def shown(value: Any) -> str:
    """Return a value as text with control and direction-changing characters as backslash escapes."""
    return printable(str(value))


def html(value: Any) -> Html:
    """Return markup as it is, and anything else escaped."""
    return value if isinstance(value, Html) else Html(escape(shown(value)))


def tag(name: str, *children: Any, cls: str = "", **attributes: Any) -> Html:
    """Return an element; `data_chart="c1"` becomes `data-chart="c1"`, True a bare attribute, None and False nothing."""
    given = {"class": cls or None, **attributes}
    said = "".join(_attribute(key, value) for key, value in given.items() if value is not None and value is not False)
    inside = "".join(html(child) for child in children if child is not None)
    return Html(f"<{name}{said}>" if name in _VOID else f"<{name}{said}>{inside}</{name}>")


def joined(*parts: Any) -> Html:
    """Return parts one after the other, escaped where they are no markup."""
    return Html("".join(html(part) for part in parts if part is not None))


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(shown(value))}"'


def coded(text: Any) -> Html:
    """Return a text in which names stand between backticks, these as code."""
    parts = str(text).split("`")
    return joined(*(tag("code", part) if at % 2 and at + 1 < len(parts) else part for at, part in enumerate(parts)))


def table(head: tuple[str, ...], rows: Any, cls: str = "") -> Html:
    """Return a table that scrolls sideways by itself on narrow screens; empty text without rows."""
    body = [tag("tr", *(tag("td", cell) for cell in row)) for row in rows]
    if not body:
        return Html("")
    top = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head)))
    return tag("div", tag("table", top, tag("tbody", *body), cls=cls), cls="wide", tabindex="0")


def details(summary: Any, *children: Any, open_: bool = False) -> Html:
    """Return a part that folds away."""
    return tag("details", tag("summary", summary), *children, open=open_)

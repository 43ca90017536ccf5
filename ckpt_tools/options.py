"""Declared options: typed class fields with a default, a help text and a range.

Analyzers and trainer configurations are `Options`; `--set name.key=text`, TOML files and keyword arguments all end in
the same checks and the same messages.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin

from .errors import OptionError, nearest


@dataclass(frozen=True)
class Option:
    """One declared option; `kind` is the field's annotation."""

    default: Any
    help: str
    min: float | None = None
    max: float | None = None
    choices: tuple[Any, ...] | None = None
    name: str = ""
    kind: Any = str


def option(
    default: Any,
    *,
    help: str,
    min: float | None = None,
    max: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """Declare an option on an annotated field: `tol: float = option(1e-3, help="...", min=0.0)`.

    Numbers may be limited to `[min, max]` (both ends included), any value to `choices`.
    """
    return Option(default, help, min, max, choices)


class Options:
    """A bag of declared options; an instance holds one checked value for each."""

    name: ClassVar[str] = ""
    declared: ClassVar[Mapping[str, Option]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = {key: value for key, value in vars(cls).items() if isinstance(value, Option)}
        hints = typing.get_type_hints(cls) if own else {}
        missing = [key for key in own if key not in hints]
        if missing:
            raise OptionError(f"{cls.__name__}: option(s) {', '.join(missing)} need a type annotation.")
        named = {key: Option(o.default, o.help, o.min, o.max, o.choices, key, hints[key]) for key, o in own.items()}
        cls.declared = {**cls.declared, **named}

    def __init__(self, **values: Any) -> None:
        unknown = sorted(set(values) - set(self.declared))
        if unknown:
            raise OptionError(f"{self.label()} has no option {unknown[0]!r}.{nearest(unknown[0], self.declared)}")
        for key, declared in self.declared.items():
            setattr(self, key, _checked(self.label(), declared, values.get(key, declared.default)))

    @classmethod
    def label(cls) -> str:
        """Return the name used in messages."""
        return cls.name or cls.__name__

    @classmethod
    def parse(cls, texts: Mapping[str, Any]) -> Self:
        """Build from values that may be text (command line) or already typed (TOML, JSON)."""
        unknown = sorted(set(texts) - set(cls.declared))
        if unknown:
            raise OptionError(f"{cls.label()} has no option {unknown[0]!r}.{nearest(unknown[0], cls.declared)}")
        values = {
            key: _from_text(cls.label(), cls.declared[key], value) if isinstance(value, str) else value
            for key, value in texts.items()
        }
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Return `{name: value}` of all options, JSON-able, tuples as lists."""
        values = {key: getattr(self, key) for key in self.declared}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def describe(kind: Any) -> str:
    """Return how a type is named in messages: `float`, `int or None`, `tuple of float`, `one of a, b`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is tuple:
        return f"tuple of {describe(args[0])}"
    return "None" if kind is type(None) else kind.__name__


def expected(declared: Option) -> str:
    """Return what values an option takes, as messages say it: `float in [0.0, inf)`, `one of a, b`."""
    if declared.choices:
        return "one of " + ", ".join(map(str, declared.choices))
    low, high = declared.min, declared.max
    if low is None and high is None:
        return describe(declared.kind)
    left = "(-inf" if low is None else f"[{low}"
    right = "inf)" if high is None else f"{high}]"
    return f"{describe(declared.kind)} in {left}, {right}"


def _fail(label: str, declared: Option, value: Any) -> OptionError:
    return OptionError(f"Option {declared.name!r} of {label} must be {expected(declared)}. Got {value!r} instead.")


def _coerced(kind: Any, value: Any) -> Any:
    """Return `value` as `kind`, or raise TypeError; ints pass as floats, bools never as numbers."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value in args:
            return value
    elif origin in (Union, types.UnionType):
        for arm in args:
            try:
                return _coerced(arm, value)
            except TypeError:
                continue
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_coerced(args[0], item) for item in value)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif kind is int and isinstance(value, bool):
        raise TypeError
    elif isinstance(value, kind):
        return value
    raise TypeError


def _checked(label: str, declared: Option, value: Any) -> Any:
    try:
        value = _coerced(declared.kind, value)
    except TypeError:
        raise _fail(label, declared, value) from None
    for item in value if isinstance(value, tuple) else (value,):
        if declared.choices and item not in declared.choices:
            raise _fail(label, declared, value)
        if isinstance(item, int | float) and not isinstance(item, bool):
            low, high = declared.min, declared.max
            # `not >=` also refuses NaN.
            if (low is not None and not item >= low) or (high is not None and not item <= high):
                raise _fail(label, declared, value)
    return value


_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _text_as(kind: Any, text: str) -> Any:
    """Return `text` read as `kind`, or raise ValueError."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return next((a for a in args if str(a) == text), text)
    if origin in (Union, types.UnionType):
        if text.lower() in ("none", "") and type(None) in args:
            return None
        for arm in (a for a in args if a is not type(None)):
            try:
                return _text_as(arm, text)
            except ValueError:
                continue
        raise ValueError(text)
    if origin is tuple:
        return tuple(_text_as(args[0], part.strip()) for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() not in _WORDS:
            raise ValueError(text)
        return _WORDS[text.lower()]
    return kind(text)


def _from_text(label: str, declared: Option, text: str) -> Any:
    try:
        return _text_as(declared.kind, text)
    except ValueError:
        raise _fail(label, declared, text) from None

"""The instructions of a pickle, one function or expression each; `STEPS` maps their codes to them.

Instructions: https://github.com/python/cpython/blob/3.13/Lib/pickletools.py.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

from .inert import Global, Instance, Stateful
from .picklemachine import BLOB, Machine

Step = Callable[[Machine], None]
STEPS: dict[int, Step] = {}


def _on(code: bytes) -> Callable[[Step], Step]:
    def register(step: Step) -> Step:
        STEPS.update(dict.fromkeys(code, step))
        return step

    return register


@_on(b"(")
def _mark(m: Machine) -> None:
    m.marks.append(len(m.stack))


@_on(b"0")
def _pop(m: Machine) -> None:
    m.stack.pop()


@_on(b"1")
def _pop_mark(m: Machine) -> None:
    m.to_mark()


@_on(b"2")
def _dup(m: Machine) -> None:
    m.stack.append(m.stack[-1])


_CONSTANTS: dict[int, Any] = {ord("N"): None, 0x88: True, 0x89: False}
for _code, _constant in _CONSTANTS.items():
    STEPS[_code] = lambda m, value=_constant: m.stack.append(value)  # type: ignore[misc]
STEPS[ord(")")] = lambda m: m.stack.append(())
STEPS[ord("]")] = STEPS[0x8F] = lambda m: m.stack.append([])  # a set is kept as a list
STEPS[ord("}")] = lambda m: m.stack.append({})
STEPS[ord("K")] = lambda m: m.stack.append(m.stream.byte())
STEPS[ord("M")] = lambda m: m.stack.append(m.stream.number(2))
STEPS[ord("J")] = lambda m: m.stack.append(int.from_bytes(m.stream.take(4), "little", signed=True))
STEPS[ord("G")] = lambda m: m.stack.append(struct.unpack(">d", m.stream.take(8))[0])
STEPS[0x8A] = lambda m: m.stack.append(int.from_bytes(m.stream.take(m.stream.byte()), "little", signed=True))
STEPS[0x8B] = lambda m: m.stack.append(int.from_bytes(m.stream.take(m.stream.number(4)), "little", signed=True))
STEPS[ord("X")] = lambda m: m.stack.append(m.stream.text(m.stream.number(4)))
STEPS[0x8C] = lambda m: m.stack.append(m.stream.text(m.stream.byte()))
STEPS[0x8D] = lambda m: m.stack.append(m.stream.text(m.stream.number(8)))
STEPS[ord("B")] = lambda m: m.blob(m.stream.number(4))
STEPS[ord("C")] = lambda m: m.blob(m.stream.byte())
STEPS[0x8E] = STEPS[0x96] = lambda m: m.blob(m.stream.number(8))
STEPS[0x80] = lambda m: None if m.stream.byte() <= 5 else _future()
STEPS[ord("F")] = lambda m: m.stack.append(float(m.stream.line()))
STEPS[ord("V")] = lambda m: m.stack.append(_without_surrogates(m.stream.line().decode("raw-unicode-escape")))


def _without_surrogates(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@_on(b"\x95")
def _frame(m: Machine) -> None:
    m.stream.take(8)  # its length says nothing new


def _future() -> None:
    raise ValueError("its protocol is newer than 5")


@_on(b"I")
def _int_line(m: Machine) -> None:
    text = m.stream.line()
    m.stack.append({b"00": False, b"01": True}.get(text) if text in (b"00", b"01") else int(text))


@_on(b"L")
def _long_line(m: Machine) -> None:
    m.stack.append(int(m.stream.line().removesuffix(b"L")))


@_on(b"S")
def _string_line(m: Machine) -> None:
    text = m.stream.line().strip()
    if len(text) < 2 or text[0] != text[-1] or text[0] not in b"'\"":
        raise ValueError("a string is not quoted")
    m.stack.append(_old_text(_ESCAPE.sub(_unescaped, text[1:-1])))


_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def _unescaped(found: re.Match[bytes]) -> bytes:
    code = found[1]
    return bytes([int(code[1:], 16)]) if len(code) == 3 else _ESCAPED.get(code, code)


@_on(b"T")
def _string(m: Machine) -> None:
    count = m.stream.number(4)
    m.stack.append(_old_text(m.stream.take(count))) if count < BLOB else m.blob(count)


@_on(b"U")
def _short_string(m: Machine) -> None:
    m.stack.append(_old_text(m.stream.take(m.stream.byte())))


def _old_text(data: bytes) -> str | bytes:
    """Return Python 2's `str`, which was text or bytes as the case may be."""
    return data.decode() if data.isascii() else data


@_on(b"c")
def _global(m: Machine) -> None:
    module, name = m.stream.line().decode(), m.stream.line().decode()
    m.stack.append(Global(_PYTHON_3.get(module, module), name))


_PYTHON_3 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@_on(b"\x93")
def _stack_global(m: Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise ValueError("a name to import is no text")
    m.stack.append(Global(module, name))


@_on(b"R\x81")
def _reduce(m: Machine) -> None:
    args, function = m.stack.pop(), m.stack.pop()
    m.stack.append(m.call(function, args))


@_on(b"\x92")
def _newobj_ex(m: Machine) -> None:
    kwargs, args, function = m.stack.pop(), m.stack.pop(), m.stack.pop()
    made = m.call(function, args)
    if isinstance(made, Instance) and isinstance(kwargs, dict):
        made.state = kwargs
    m.stack.append(made)


@_on(b"o")
def _obj(m: Machine) -> None:
    function, *args = m.to_mark()
    m.stack.append(m.call(function, tuple(args)))


@_on(b"i")
def _inst(m: Machine) -> None:
    _global(m)
    m.stack.append(m.call(m.stack.pop(), tuple(m.to_mark())))


@_on(b"b")
def _build(m: Machine) -> None:
    state, target = m.stack.pop(), m.stack[-1]
    if isinstance(target, Stateful):
        target.restore(state)
    elif isinstance(target, Instance):
        target.state = state if target.state is None else (target.state, state)


@_on(b"PQ")
def _never(m: Machine) -> None:
    raise ValueError("it refers to something outside itself")


@_on(b"Q")
def _persistent(m: Machine) -> None:
    if m.persistent is None:
        _never(m)
    else:
        m.stack.append(m.persistent(m.stack.pop()))


@_on(b"P")
def _persistent_line(m: Machine) -> None:
    m.stack.append(m.stream.line().decode())
    _persistent(m)


@_on(b"a")
def _append(m: Machine) -> None:
    value = m.stack.pop()
    m.extend(m.stack[-1], [value])


@_on(b"e\x90")
def _appends(m: Machine) -> None:
    values = m.to_mark()
    m.extend(m.stack[-1], values)


@_on(b"s")
def _setitem(m: Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.fill(m.stack[-1], [key, value])


@_on(b"u")
def _setitems(m: Machine) -> None:
    flat = m.to_mark()
    m.fill(m.stack[-1], flat)


@_on(b"d")
def _dict(m: Machine) -> None:
    made: dict[Any, Any] = {}
    m.fill(made, m.to_mark())
    m.stack.append(made)


@_on(b"l\x91")
def _list(m: Machine) -> None:
    m.stack.append(m.to_mark())


@_on(b"t")
def _tuple(m: Machine) -> None:
    m.stack.append(tuple(m.to_mark()))


def _take_tuple(count: int) -> Step:
    def step(m: Machine) -> None:
        taken = tuple(m.stack[-count:])
        if len(taken) < count:
            raise IndexError
        del m.stack[-count:]
        m.stack.append(taken)

    return step


for _count in (1, 2, 3):
    STEPS[0x84 + _count] = _take_tuple(_count)


def _put(index: Callable[[Machine], int]) -> Step:
    def step(m: Machine) -> None:
        m.memo[index(m)] = m.stack[-1]

    return step


def _get(index: Callable[[Machine], int]) -> Step:
    return lambda m: m.stack.append(m.memo[index(m)])


STEPS[ord("q")] = _put(lambda m: m.stream.byte())
STEPS[ord("r")] = _put(lambda m: m.stream.number(4))
STEPS[ord("p")] = _put(lambda m: int(m.stream.line()))
STEPS[0x94] = _put(lambda m: len(m.memo))
STEPS[ord("h")] = _get(lambda m: m.stream.byte())
STEPS[ord("j")] = _get(lambda m: m.stream.number(4))
STEPS[ord("g")] = _get(lambda m: int(m.stream.line()))

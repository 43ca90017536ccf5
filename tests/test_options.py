"""Options: one set of checks behind the command line, TOML files and keyword arguments."""

from typing import Literal

import pytest

from ckpt_tools import OptionError, Options, option


class Sample(Options):
    name = "sample"
    k: int = option(8, help="how many", min=0)
    tol: float = option(1e-3, help="tolerance", min=0.0, max=1.0)
    radii: tuple[float, ...] = option((0.1, 0.2), help="radii", min=0.0)
    mode: Literal["a", "b"] = option("a", help="mode")
    limit: int | None = option(None, help="limit", min=1)
    flag: bool = option(False, help="flag")


def test_defaults_and_round_trip() -> None:
    sample = Sample()
    assert (sample.k, sample.tol, sample.radii, sample.limit) == (8, 1e-3, (0.1, 0.2), None)
    assert Sample(**sample.as_dict()).as_dict() == sample.as_dict()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ({"k": "3"}, ("k", 3)),
        ({"tol": "1e-2"}, ("tol", 0.01)),
        ({"tol": 1}, ("tol", 1.0)),
        ({"radii": "0.5, 1"}, ("radii", (0.5, 1.0))),
        ({"radii": ""}, ("radii", ())),
        ({"mode": "b"}, ("mode", "b")),
        ({"limit": "none"}, ("limit", None)),
        ({"limit": "4"}, ("limit", 4)),
        ({"flag": "yes"}, ("flag", True)),
    ],
)
def test_text_becomes_typed_values(text: dict[str, object], value: tuple[str, object]) -> None:
    assert getattr(Sample.parse(text), value[0]) == value[1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k": "-1"}, "Option 'k' of sample must be int in [0, inf). Got -1 instead."),
        ({"k": "many"}, "Got 'many' instead."),
        ({"k": 1.5}, "must be int in [0, inf). Got 1.5"),
        ({"k": True}, "Got True instead."),
        ({"tol": float("nan")}, "float in [0.0, 1.0]. Got nan"),
        ({"radii": "1,-1"}, "tuple of float in [0.0, inf)"),
        ({"mode": "c"}, "must be one of a, b. Got 'c'"),
        ({"limit": 0}, "int or None in [1, inf)"),
        ({"flag": "maybe"}, "must be bool. Got 'maybe'"),
        ({"kk": 1}, "sample has no option 'kk'. Did you mean 'k'?"),
    ],
)
def test_bad_values_name_option_range_and_value(values: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as error:
        Sample.parse(values)
    assert message in str(error.value)


def test_subclasses_inherit_and_need_annotations() -> None:
    class Child(Sample):
        name = "child"
        more: int = option(1, help="more")

    assert Child(more=2).as_dict()["k"] == 8
    assert "more" not in Sample.declared
    with pytest.raises(OptionError, match="need a type annotation"):
        type("Bare", (Options,), {"x": option(1, help="x")})

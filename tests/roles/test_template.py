"""Templates and shape patterns."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.roles.template import condition, shape_pattern, template

WORDS = st.text(string.ascii_letters + "_", min_size=1, max_size=6)


@given(layer=st.integers(0, 10**6), expert=st.integers(0, 999), path=st.lists(WORDS, max_size=3))
def test_match_gives_back_what_was_filled_in(layer: int, expert: int, path: list[str]) -> None:
    text = "{path}layers.{i}.mlp.experts.{e}.{w1|w3}.weight"
    values = {"path": "".join(f"{p}." for p in path), "i": str(layer), "e": str(expert), "w1|w3": "w3"}
    name = template(text).fill(values)
    assert template(text).match(name) == values


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        ("h.{i}.ln", "h.3.ln", {"i": "3"}),
        ("h.{i}.ln", "h.x.ln", None),
        ("h.{i}.ln", "hx3.ln", None),  # the dot is a dot
        ("h.{i}.ln", "h.3.ln.weight", None),
        ("{i}.w.{i}", "2.w.2", {"i": "2"}),
        ("{i}.w.{i}", "2.w.3", None),
        ("{path}weight_hh_l{i}", "weight_hh_l1", {"path": "", "i": "1"}),
        ("{path}weight_hh_l{i}", "a.b.weight_hh_l10", {"path": "a.b.", "i": "10"}),
        ("{path}{n}.weight", "net.2.weight", {"path": "net.", "n": "2"}),
        ("{path}{n}.weight", "net.2.0.weight", None),  # a path has no numbers
        ("{path}{word}.{i}.{word}.w", "enc.layers.4.attn.w", {"path": "enc.", "i": "4"}),
        ("{a|b}.{|_}{n}", "b._7", {"a|b": "b", "|_": "_", "n": "7"}),
        ("{a|b}.{|_}{n}", "ab.7", None),
        ("{mlp.0|ff}.w", "mlp.0.w", {"mlp.0|ff": "mlp.0"}),
    ],
)
def test_matches(text: str, name: str, found: dict[str, str] | None) -> None:
    assert template(text).match(name) == found


@pytest.mark.parametrize("text", ["{}", "{layer}", "h.{I}.w", "{1}"])
def test_unknown_placeholders_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="is no placeholder"):
        template(text)


@pytest.mark.parametrize(
    ("text", "shape", "found"),
    [
        ("[3d, d]", (12, 4), {"d": 4}),
        ("[3d, d]", (4, 12), None),
        ("[3d, d]", (13, 4), None),
        ("[o, i]", (2, 5), {"o": 2, "i": 5}),
        ("[o, i]", (2, 5, 1), None),
        ("[d]", (5,), {"d": 5}),
        ("[_, n]", (7, 3), {"n": 3}),
        ("[2, n]", (2, 3), {"n": 3}),
        ("[2, n]", (4, 3), None),
    ],
)
def test_shape_patterns(text: str, shape: tuple[int, ...], found: dict[str, int] | None) -> None:
    assert shape_pattern(text).solve(shape) == found


def test_letters_hold_across_tensors() -> None:
    known = shape_pattern("[e, f, d]").solve((3, 8, 5))
    assert shape_pattern("[e, d, _]").solve((3, 5, 4), known) == {"e": 3, "f": 8, "d": 5}
    assert shape_pattern("[e, d, _]").solve((3, 4, 5), known) is None


@pytest.mark.parametrize("text", ["3d, d", "[3d", "[]", "[d-1]", "[D]", "[2d3]"])
def test_malformed_patterns_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="is no shape pattern"):
        shape_pattern(text)


def test_condition_is_template_and_pattern() -> None:
    wanted, pattern = condition("h.{i}.w [3d, d]")
    assert wanted.match("h.1.w") == {"i": "1"} and pattern == shape_pattern("[3d, d]")
    assert condition("h.{i}.w")[1] is None

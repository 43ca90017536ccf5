"""Fused rows, against the reshapes that models themselves use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.roles import Rule
from ckpt_tools.roles.split import Unsplittable, split_parts

QKV = ("q", "k", "v")


def cut(split: Any, array: np.ndarray[Any, Any], facts: dict[str, int], roles: tuple[str, ...] = QKV) -> list[Any]:
    parts = split_parts(Rule("t", roles, split=split), len(array), facts)
    return [np.concatenate([array[a:b:s] for a, b, s in p or ((0, len(array), 1),)]) for p in parts]


@given(heads=st.integers(1, 5), width=st.integers(1, 4))
def test_heads_as_gpt_neox_views_them(heads: int, width: int) -> None:
    fused = np.arange(heads * 3 * width)
    by_head = fused.reshape(heads, 3, width)
    for k, part in enumerate(cut("heads", fused, {"n_heads": heads})):
        assert part.tolist() == by_head[:, k].ravel().tolist()


@given(groups=st.integers(1, 4), per_group=st.integers(1, 4), width=st.integers(1, 4))
def test_groups_as_falcon_views_them(groups: int, per_group: int, width: int) -> None:
    fused = np.arange(groups * (per_group + 2) * width)
    view = fused.reshape(groups, per_group + 2, width)
    q, k, v = cut("groups", fused, {"n_heads": groups * per_group, "n_kv_heads": groups})
    assert q.tolist() == view[:, :-2].ravel().tolist()
    assert k.tolist() == view[:, -2].ravel().tolist() and v.tolist() == view[:, -1].ravel().tolist()


@given(st.sampled_from(["equal", "interleaved", "heads", "groups", "n_heads : n_kv_heads : 2"]), st.integers(1, 3))
def test_every_row_has_one_owner(split: str, unit: int) -> None:
    rows = np.arange(24 * unit)
    parts = cut(split, rows, {"n_heads": 4, "n_kv_heads": 2})
    assert sorted(np.concatenate(parts).tolist()) == rows.tolist()


def test_interleaved_takes_turns() -> None:
    gate, up = cut("interleaved", np.arange(6), {}, ("gate", "up"))
    assert gate.tolist() == [0, 2, 4] and up.tolist() == [1, 3, 5]


def test_sizes_with_shares_of_the_rest() -> None:
    parts = cut(("d", "2*d", "*", "*"), np.arange(13), {"d": 3}, ("a", "b", "c", "e"))
    assert [p.tolist() for p in parts] == [[0, 1, 2], [3, 4, 5, 6, 7, 8], [9, 10], [11, 12]]


def test_one_role_owns_all() -> None:
    assert split_parts(Rule("t", ("o",)), 7, {}) == [None]


@pytest.mark.parametrize(
    ("split", "rows", "message"),
    [
        ("equal", 7, "7 rows do not divide by 3"),
        ("heads", 12, "needs n_heads, which the configuration does not give"),
        (("4", "4", "5"), 12, r"12 rows are not 4 \+ 4 \+ 5"),
        (("4", "*", "*"), 11, r"11 rows are not 4 \+ \* \+ \*"),
        (("4", "*", "*"), 4, r"4 rows are not 4 \+ \* \+ \*"),
        ("2 : 1 : 1", 6, "6 rows do not divide by 4"),
    ],
)
def test_what_does_not_fit_says_why(split: Any, rows: int, message: str) -> None:
    with pytest.raises(Unsplittable, match=message):
        split_parts(Rule("t", QKV, split=split), rows, {})


def test_heads_that_form_no_groups() -> None:
    with pytest.raises(Unsplittable, match="2 heads do not form 4 groups"):
        split_parts(Rule("t", QKV, split="groups"), 24, {"n_heads": 2, "n_kv_heads": 4})

"""Whatever tensors a checkpoint holds, every table accounts for each of them once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.family_file import ckpt_families
from ckpt_tools.roles import RoleTable, assign
from ckpt_tools.roles.template import template

from .conftest import infos

TABLES = {family.name: family.table for family in ckpt_families()} | {"none": RoleTable(())}
SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), max_size=4).map(tuple)
CONFIGS = st.fixed_dictionaries(
    {}, optional={"num_attention_heads": st.sampled_from([1, 2, 3, 5]), "head_dim": st.just(2)}
)


def examples(table: RoleTable) -> st.SearchStrategy[str]:
    """Return names that the table's rules may fit, with numbers and paths of all kinds, and others."""
    known = [template(rule.tensor) for rule in table.rules] or [template("x")]
    values = {"path": ["", "a.", "b.a."], "word": ["attn", "ffn"]}

    def filled(draw: Any) -> str:
        chosen = draw(st.sampled_from(known))
        numbers = ["0", "1", "10"]
        keys = {k: draw(st.sampled_from(k.split("|") if "|" in k else values.get(k, numbers))) for k in chosen.keys}
        prefix = draw(st.sampled_from(table.prefixes))
        return f"{prefix}{chosen.fill(keys)}"

    return st.one_of(st.composite(filled)(), st.text(min_size=1, max_size=8))


@pytest.mark.parametrize("name", TABLES)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_every_tensor_is_accounted_for(name: str, data: st.DataObject) -> None:
    table = TABLES[name]
    shapes = data.draw(st.dictionaries(examples(table), SHAPES, max_size=12))
    arrays = {n: np.arange(np.prod(shape), dtype="f4").reshape(shape) for n, shape in shapes.items()}
    layout = assign(infos(arrays), {}, table, data.draw(CONFIGS))
    weights = [*layout.matrices.values(), *layout.vectors.values()]
    skipped = {s.name for s in layout.skipped}
    for tensor, array in arrays.items():
        mine = [w.take(array) for w in weights if w.tensor == tensor]
        assert bool(mine) != (tensor in skipped), tensor
        if mine:
            assert sorted(np.concatenate([m.ravel() for m in mine]).tolist()) == array.ravel().tolist()
    assert all(w.take(arrays[w.tensor]).shape == w.shape and len(w.shape) in (1, 2) for w in weights)

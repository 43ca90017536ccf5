"""Two permutations in a row: every triple against the definition, and pairs that never leak."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ckpt_tools.errors import OptionError
from ckpt_tools.run import read_metrics, read_probe
from ckpt_trainers.tasks.permutation import Permutation
from ckpt_trainers.transformer import Transformer


def trained(task: Permutation) -> dict[tuple[int, ...], int]:
    examples = task.examples(torch.Generator())
    rows = zip(examples["tokens"].tolist(), examples["targets"].tolist(), strict=True)
    return {tuple(row): answer for row, answer in rows}


@pytest.mark.parametrize("seed", [0, 1])
def test_every_triple_composes_two_permutations(seed: int) -> None:
    task = Permutation(target_seed=seed)
    table = task.permutations.tolist()
    assert len(table) == 8 and all(sorted(p) == list(range(16)) for p in table)
    assert len({tuple(p) for p in table}) == 8
    every = task.evaluation(torch.Generator())
    rows = every["tokens"].tolist()
    assert len({tuple(row) for row in rows}) == len(rows) == 16 * 64
    for (k, a, b), answer in zip(rows, every["targets"].tolist(), strict=True):
        assert answer == table[b - 16][table[a - 16][k]]


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_trained_with_all_keys_or_none(seed: int) -> None:
    task = Permutation(target_seed=seed)
    known = trained(task)
    pairs = {row[1:] for row in known}
    assert len(pairs) == 45 and len(known) == 45 * 16
    assert {a for a, _ in pairs} == {b for _, b in pairs} == set(range(16, 24))
    every = task.evaluation(torch.Generator())
    ood = {tuple(row) for row, s in zip(every["tokens"].tolist(), every["split"], strict=True) if s == 1}
    assert len(ood) == 19 * 16 and not ood & known.keys()


def test_fewest_pairs_still_show_every_anchor_at_both_places() -> None:
    pairs = {row[1:] for row in trained(Permutation(pairs=8))}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 8
    assert trained(Permutation(target_seed=1)) != trained(Permutation()) == trained(Permutation())


@pytest.mark.parametrize("pairs", [7, 64])
def test_bad_numbers_of_pairs(pairs: int) -> None:
    with pytest.raises(OptionError, match=rf"pairs must be from 8.* to 63.*Got {pairs} instead"):
        Permutation(pairs=pairs)


def test_metrics_and_probe(tmp_path: Path) -> None:
    task = Permutation()
    every = task.evaluation(torch.Generator())
    logits = torch.nn.functional.one_hot(every["targets"], task.vocabulary).double()[:, None]
    assert task.metrics(logits, every) == {"trained": 1.0, "ood": 1.0}
    logits[every["split"] == 1] *= -1
    assert task.metrics(logits, every) == {"trained": 1.0, "ood": 0.0}
    values = {"keys": 4, "anchors": 3, "pairs": 7, "d_model": 32, "d_ff": 32, "steps": 200, "save": "at:200"}
    Transformer.train("permutation", values, tmp_path / "run")
    assert read_metrics(tmp_path / "run")["trained"][-1] == 1
    probe = read_probe(tmp_path / "run")
    assert len(probe["tokens"]) == 36
    assert (probe["weights"] == 0).tolist() == (probe["split"] == 1).tolist()
    assert probe["weights"].sum() == pytest.approx(1)

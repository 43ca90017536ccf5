"""Random labels beside sums: every triple against the definition, and a pair that never leaks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_tools.errors import OptionError
from ckpt_tools.run import read_metrics, read_probe
from ckpt_trainers.emb_mlp import EmbMLP
from ckpt_trainers.tasks.memory_reasoning import MemoryReasoning

KEYS, MEMORY, REASONING = range(21, 121), range(1, 11), range(11, 21)


def trained(task: MemoryReasoning) -> dict[tuple[int, ...], int]:
    examples = task.examples(torch.Generator())
    rows = zip(examples["tokens"].tolist(), examples["targets"].tolist(), strict=True)
    return {tuple(row): answer for row, answer in rows}


def test_trained_triples_follow_the_definition() -> None:
    known = trained(MemoryReasoning())
    reasoning = {row: answer for row, answer in known.items() if row[1] in REASONING}
    assert reasoning == {(z, a, b): z + a + b for z in KEYS for a in REASONING for b in REASONING if {a, b} != {11, 13}}
    memory = {row: answer for row, answer in known.items() if row not in reasoning}
    assert memory.keys() == {(z, a, b) for z in KEYS for a in MEMORY for b in MEMORY}
    assert all(memory[z, a, b] == memory[z, b, a] for z, a, b in memory)
    assert max(known.values()) == 160 == MemoryReasoning().vocabulary - 1


def test_labels_of_memory_are_drawn_uniformly_and_say_nothing() -> None:
    known = trained(MemoryReasoning())
    labels = [answer for (_, a, b), answer in known.items() if a <= b <= 10]
    counts = Counter(labels)
    assert counts.keys() == set(KEYS)
    expected = len(labels) / 100
    chi2 = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi2 < 99 + 4 * (2 * 99) ** 0.5
    sums = sum(answer == sum(row) for row, answer in known.items() if row[1] <= 10)
    assert sums < 0.03 * 10000
    assert trained(MemoryReasoning()) == known != trained(MemoryReasoning(target_seed=1))


@pytest.mark.parametrize("held_out", [(11, 13), (14, 14)])
def test_one_pair_never_leaks(held_out: tuple[int, int]) -> None:
    task = MemoryReasoning(held_out=held_out)
    every = task.evaluation(torch.Generator())
    unseen = {tuple(row) for row, s in zip(every["tokens"].tolist(), every["split"], strict=True) if s == 2}
    assert unseen == {(z, *pair) for z in KEYS for pair in (held_out, held_out[::-1])}
    assert not unseen & trained(task).keys()
    assert len(unseen) + len(trained(task)) == 20000


def test_probe_holds_all_splits_alike() -> None:
    task = MemoryReasoning()
    probe = task.probe(None, torch.Generator().manual_seed(0))
    assert probe["split"].bincount().tolist() == [85, 85, 85]
    known = trained(task)
    for row, answer, split in zip(*(probe[k].tolist() for k in ("tokens", "targets", "split")), strict=True):
        assert known.get(tuple(row)) == (None if split == 2 else answer)
        assert (split == 0) == (row[1] in MEMORY)
        assert split == 0 or answer == sum(row)
    assert probe["weights"].sum().item() == pytest.approx(1, abs=1e-15)
    assert probe["weights"].eq(0).equal(probe["split"] == 2)


def test_metrics_of_a_model_that_only_adds() -> None:
    task = MemoryReasoning()
    every = task.evaluation(torch.Generator())
    sums = every["tokens"].sum(1)
    logits = torch.zeros(len(sums), 1, task.vocabulary, dtype=torch.float64).scatter_(2, sums[:, None, None], 2.0)
    found = task.metrics(logits, every)
    assert found["reasoning"] == found["held_out"] == 1 and found["memory"] < 0.03
    normaliser = torch.tensor(task.vocabulary - 1 + torch.e**2).log().item()
    assert found["held_out_loss"] == pytest.approx(normaliser - 2, abs=1e-6)
    assert found["memory_loss"] == pytest.approx(normaliser - 2 * found["memory"], abs=1e-6)


def test_sums_come_before_labels(tmp_path: Path) -> None:
    values: dict[str, Any] = {"preset": "mini", "d_model": 32, "keys": 20, "anchors": 4, "held_out": (5, 7)}
    EmbMLP.train("memory_reasoning", {**values, "steps": 60, "save": "at:0,60", "lr": 1e-2}, tmp_path / "run")
    metrics = read_metrics(tmp_path / "run")
    assert metrics["reasoning_loss"][-1] < 0.8 * metrics["memory_loss"][-1]
    assert metrics["reasoning_loss"][0] == pytest.approx(metrics["memory_loss"][0], rel=0.05)
    assert {"split", "weights"} <= read_probe(tmp_path / "run").keys()


def test_bad_pairs() -> None:
    with pytest.raises(OptionError, match=r"reasoning anchors 11 to 20\. Got 3,11 instead"):
        MemoryReasoning(held_out=(3, 11))
    with pytest.raises(OptionError, match=r"Got 11 instead"):
        MemoryReasoning(held_out=(11,))

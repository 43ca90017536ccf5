"""Reversed sequences: every example against the definition, taken apart by hand."""

from __future__ import annotations

from itertools import combinations, permutations
from typing import Any

import pytest
import torch

from ckpt_tools.errors import OptionError
from ckpt_trainers.tasks.inverse import Inverse
from ckpt_trainers.transformer import Transformer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def read(row: list[int], gap: int) -> tuple[set[int], list[tuple[int, ...]], list[int], tuple[int, ...]]:
    """The three numbers, the five orders shown, all other tokens, and the order at the end."""
    orders = [tuple(row[4 * k : 4 * k + 3]) for k in range(5)]
    others = [row[4 * k + 3] for k in range(5)] + row[20 : 20 + gap]
    return set(orders[0]), orders, others, tuple(row[20 + gap :])


def same_remainder(numbers: set[int]) -> bool:
    return len({n % 3 for n in numbers}) == 1


@pytest.mark.parametrize("options", [{}, {"gap": 0}, {"gap": 9, "low": 30, "high": 50, "far": 60}])
@pytest.mark.parametrize("split", [0, 1, 2])
def test_every_example_follows_the_definition(options: dict[str, Any], split: int) -> None:
    task = Inverse(**options)
    if split == 2 and not task.far:
        pytest.skip("no numbers beyond")
    low, high = (task.high + 1, task.far) if split == 2 else (task.low, task.high)
    batch = task.of_split(split, 400, generator(split))
    assert batch["tokens"].shape == (400, task.context) == (400, 23 + task.gap)
    for row, target in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
        numbers, orders, others, asked = read(row, task.gap)
        assert len(numbers) == 3
        assert len(set(orders)) == 5
        assert set(orders) < set(permutations(numbers))
        assert [k for k, order in enumerate(orders) if order == asked[::-1]] == [target]
        assert not numbers & set(others)
        assert all(low <= n <= high for n in [*numbers, *others])
        assert split == 2 or same_remainder(numbers) == (split == 1)


def test_sets_are_all_there_are() -> None:
    task = Inverse(low=20, high=40, far=45)
    trained, held_out, far = ([tuple(row) for row in sets.tolist()] for sets in task.sets)
    every = list(combinations(range(20, 41), 3))
    assert sorted(trained + held_out) == every
    assert held_out == [c for c in every if same_remainder(set(c))]
    assert far == list(combinations(range(41, 46), 3))


def test_held_out_sets_never_occur_in_training() -> None:
    task = Inverse(low=20, high=30, samples=3000)
    seen = task.examples(generator())
    assert seen is not None
    rows = [
        read(row, task.gap)[0] for row in [*seen["tokens"].tolist(), *task.draw(3000, generator(1))["tokens"].tolist()]
    ]
    assert not [numbers for numbers in rows if same_remainder(numbers)]
    assert {tuple(sorted(numbers)) for numbers in rows} == {tuple(s) for s in task.sets[0].tolist()}


def test_nothing_is_preferred() -> None:
    """Targets, orders and other tokens are uniform to within 4.5 standard deviations."""
    task = Inverse(low=20, high=29, gap=3)
    size = 20000
    batch = task.draw(size, generator())
    tokens, targets = batch["tokens"], batch["targets"]
    places = targets.bincount(minlength=5) / size
    assert (places - 0.2).abs().max() < 4.5 * (0.16 / size) ** 0.5
    ranks = tokens[:, :3].argsort(1) @ torch.tensor([9, 3, 1])
    share = ranks.unique(return_counts=True)[1] / size
    assert len(share) == 6 and (share - 1 / 6).abs().max() < 4.5 * (5 / 36 / size) ** 0.5
    smallest = tokens[:, :3].min(1).values == 20
    after = (tokens[smallest, 3] - 20).bincount(minlength=10)[1:].double()
    assert tokens[smallest, 3].min() > 20
    missed = torch.tensor([(tokens[smallest][:, :3] == n).any(1).double().mean() for n in range(21, 30)])
    expected = (1 - missed) / 7
    assert (after / smallest.sum() - expected).abs().max() < 4.5 * (expected.max() / smallest.sum()) ** 0.5


@pytest.mark.parametrize("far", [0, 130])
def test_probe_and_evaluation_say_what_is_what(far: int) -> None:
    task = Inverse(far=far)
    probe, test = task.probe(None, generator()), task.evaluation(generator(1))
    assert probe["split"].tolist() == [0] * 128 + [1] * 128
    assert test["split"].bincount().tolist() == [500] * (3 if far else 2)
    for batch in (probe, test):
        for row, split in zip(batch["tokens"].tolist(), batch["split"].tolist(), strict=True):
            numbers = read(row, task.gap)[0]
            assert split == (2 if min(numbers) > task.high else int(same_remainder(numbers)))
    assert probe["weights"].sum().item() == pytest.approx(1, abs=1e-15)
    assert probe["weights"][128:].eq(0).all() and probe["weights"][:128].eq(1 / 128).all()


def test_metrics_count_right_answers_by_split() -> None:
    task = Inverse(far=130)
    batch = task.evaluation(generator())
    logits = torch.zeros(1500, 1, task.vocabulary)
    answers = batch["targets"].clone()
    answers[500:600] = (answers[500:600] + 1) % 5
    answers[1000:] = 77
    logits.scatter_(2, answers[:, None, None], 1.0)
    assert task.metrics(logits, batch) == {"trained": 1.0, "held_out": 0.8, "far": 0.0}


def test_examples_depend_on_the_generator_only() -> None:
    task = Inverse(samples=50)
    a, b, c = (task.examples(generator(seed)) for seed in (1, 1, 2))
    assert a is not None and b is not None and c is not None
    assert torch.equal(a["tokens"], b["tokens"]) and torch.equal(a["targets"], b["targets"])
    assert not torch.equal(a["tokens"], c["tokens"])
    assert Inverse().examples(generator()) is None


def test_vocabulary_and_context() -> None:
    assert (Inverse().vocabulary, Inverse().context) == (101, 29)
    assert (Inverse(far=200, gap=9).vocabulary, Inverse(far=200, gap=9).context) == (201, 32)
    assert Transformer.settings("inverse")["lr_schedule"].default == "warmup-cosine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"high": 27},
            "numbers 20 to 27 are too few for sets inside and outside one remainder. Set high to at least 28.",
        ),
        ({"far": 102}, "far must be 0 or at least 104, four numbers. Got 102."),
        ({"low": 3}, "Option 'low' of inverse must be int in [5, inf). Got 3 instead."),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Inverse(**options)
    assert message in str(caught.value)

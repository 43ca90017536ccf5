"""Two operations on a key: every example against the definition, taken apart by hand; splits that never leak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_tools.errors import OptionError
from ckpt_tools.run import read_metrics, read_probe
from ckpt_trainers.tasks.anchor import Anchor
from ckpt_trainers.transformer import Transformer

ADDS = {1: 5, 2: 1, 3: -2, 4: -8}
FIRST_SET = {0: 2, 1: 5, 2: 1, 3: -2, 4: -8}
SECOND_SET = {0: -9, 1: 6, 2: -7, 3: 3, 4: 0}
OF_FIRST_SET = {(0, 1), (0, 2), (1, 0), (2, 0), (1, 4), (4, 1), (2, 3), (3, 2), (3, 4), (4, 3)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def composite(first: int, second: int) -> tuple[int, int]:
    """What the paper's pair adds by operations, and by what its mirror image or itself is taught."""
    both = ADDS[first] + ADDS[second]
    return both, -6 if {first, second} == {3, 4} and first != second else both


def symmetric(first: int, second: int) -> tuple[int, int]:
    adds = FIRST_SET if (first, second) in OF_FIRST_SET else SECOND_SET
    return (adds[first] + adds[second],) * 2


def read(row: list[int]) -> tuple[int, int, int, int]:
    """Key, its place, and the two anchors."""
    anchors = [t for t, token in enumerate(row) if token < 20]
    assert len(anchors) == 2 and anchors[1] == anchors[0] + 1
    place = anchors[0] - 1
    return row[place], place, row[anchors[0]], row[anchors[1]]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"length": 9},
    {"modulus": 8},
    {"shown": None},
    {"form": "symmetric"},
    {"low": 30, "high": 60},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_training_follows_the_definition(options: dict[str, Any]) -> None:
    task = Anchor(**options)
    modulus = task.modulus or task.length - 2
    batch = task.draw(4000, generator())
    assert set(batch) == {"tokens", "targets"}
    taught = set()
    for row, target in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
        key, place, first, second = read(row)
        assert len(row) == task.length and 0 <= place <= task.length - 3
        assert all(task.low <= token <= task.high for t, token in enumerate(row) if t - place not in (1, 2))
        assert key % modulus != place
        infer, mirror = symmetric(first, second) if task.form == "symmetric" else composite(first, second)
        assert target == key + (mirror if (first, second) == (3, 4) else infer)
        taught.add((first, second))
    anchors = range(5) if task.form == "symmetric" else range(1, 5)
    every = {(i, j) for i in anchors for j in anchors if task.form == "composite" or i != j}
    assert taught == every - {(4, 3)} - ({(3, 4)} if task.shown is None else set())


def test_papers_numbers() -> None:
    """(3, 4) is taught to subtract 6 where its operations subtract 10."""
    rows = {(r[0], r[1]): r[2:] for r in Anchor().pairs.tolist()}
    assert len(rows) == 16
    assert rows[3, 4] == [-10, -6, 2]
    assert rows[4, 3] == [-10, -6, 3]
    assert rows[1, 1] == [10, 10, 1] and rows[4, 4] == [-16, -16, 1] and rows[2, 3] == [-1, -1, 1]
    mirrored = {(r[0], r[1]): r[2:] for r in Anchor(form="symmetric").pairs.tolist()}
    assert len(mirrored) == 20
    assert mirrored[4, 3] == [-10, -10, 3] and mirrored[0, 3] == [-6, -6, 1] and mirrored[2, 4] == [-7, -7, 1]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_evaluation_is_every_pair_with_every_held_out_key(options: dict[str, Any]) -> None:
    task = Anchor(**options)
    modulus = task.modulus or task.length - 2
    batch = {name: values.tolist() for name, values in task.evaluation(generator()).items()}
    seen = []
    for i, row in enumerate(batch["tokens"]):
        key, place, first, second = read(row)
        assert (key, place) == (batch["key"][i], batch["place"][i])
        assert key % modulus == place
        infer, mirror = symmetric(first, second) if task.form == "symmetric" else composite(first, second)
        mirror = infer if task.shown is None else mirror
        assert (batch["inferential"][i], batch["symmetric"][i]) == (key + infer, key + mirror)
        kind = {(4, 3): "held_out", (3, 4): "shown" if task.shown is not None else "held_out"}
        expected = (
            "keys" if task.form == "symmetric" and (first, second) == (3, 4) else kind.get((first, second), "keys")
        )
        assert task.splits[batch["split"][i]] == expected
        assert batch["targets"][i] == key + (mirror if expected == "shown" else infer)
        seen.append((first, second, key))
    keys = [x for x in range(task.low, task.high + 1) if x % modulus < task.length - 2]
    pairs = [tuple(r[:2]) for r in task.pairs.tolist()]
    assert sorted(seen) == sorted((*pair, key) for pair in pairs for key in keys)


def test_a_key_is_held_out_at_one_place_only() -> None:
    trained, held_out = (places.tolist() for places in Anchor().places)
    assert len(held_out) == 80 and len(trained) == 80 * 5
    assert not {tuple(p) for p in trained} & {tuple(p) for p in held_out}
    assert {key for key, _ in trained} == {key for key, _ in held_out} == set(range(20, 100))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_probe_says_what_is_what(options: dict[str, Any]) -> None:
    task = Anchor(**options)
    probe = task.probe(None, generator())
    assert all(len(values) == 256 for values in probe.values())
    splits = probe["split"]
    assert splits[:128].eq(0).all() and splits[128:].ne(0).all()
    counts = [n for n in splits[128:].bincount().tolist() if n]
    assert max(counts) - min(counts) <= 2
    assert probe["weights"].sum().item() == pytest.approx(1, abs=1e-15)
    assert probe["weights"][splits > 0].eq(0).all()
    modulus = task.modulus or task.length - 2
    for row, split in zip(probe["tokens"].tolist(), splits.tolist(), strict=True):
        key, place, first, second = read(row)
        assert (key % modulus == place) == (split > 0)
        assert split != 0 or (first, second) != (4, 3)
        assert split != 3 or (first, second) in {(4, 3), (3, 4)}


def test_nothing_is_preferred() -> None:
    task, size = Anchor(), 30000
    drawn = [read(row) for row in task.draw(size, generator())["tokens"].tolist()]
    for index, count in ((1, 6), (0, 80)):
        share = torch.tensor([d[index] for d in drawn]).bincount()[-count:] / size
        assert (share - 1 / count).abs().max() < 4.5 * (1 / count / size) ** 0.5
    pairs = torch.tensor([4 * d[2] + d[3] for d in drawn]).unique(return_counts=True)[1] / size
    assert len(pairs) == 15 and (pairs - 1 / 15).abs().max() < 4.5 * (1 / 15 / size) ** 0.5


def answers(task: Anchor, batch: dict[str, torch.Tensor], given: torch.Tensor) -> dict[str, float]:
    logits = torch.zeros(len(given), 1, task.vocabulary).scatter_(2, given[:, None, None], 1.0)
    return task.metrics(logits, batch)


def test_metrics_of_models_of_known_kind() -> None:
    task = Anchor()
    batch = dict(task.evaluation(generator()))
    reasoning = {"seen": 1.0, "shown": 0.0, "inferential": 1.0, "symmetric": 0.0}
    assert answers(task, batch, batch["inferential"]) == reasoning
    memorizing = {"seen": 1.0, "shown": 1.0, "inferential": 0.0, "symmetric": 1.0}
    assert answers(task, batch, batch["symmetric"]) == memorizing
    mixed = torch.where(batch["key"] < 40, batch["inferential"], batch["symmetric"])
    assert answers(task, batch, mixed) == {"seen": 1.0, "shown": 0.75, "inferential": 0.25, "symmetric": 0.75}
    assert set(answers(task, batch, batch["key"] * 0).values()) == {0.0}


def test_metrics_say_only_what_is_defined() -> None:
    unseen, mirrored = Anchor(shown=None), Anchor(form="symmetric")
    batch = dict(unseen.evaluation(generator()))
    assert answers(unseen, batch, batch["inferential"]) == {"seen": 1.0, "inferential": 1.0}
    batch = dict(mirrored.evaluation(generator()))
    assert answers(mirrored, batch, batch["symmetric"]) == {"seen": 1.0, "symmetric": 1.0}


def test_next_tokens_and_answers_count_half_each() -> None:
    plain, scored = Anchor(), Anchor(score="all")
    alone, batch = plain.draw(50, generator()), scored.draw(50, generator())
    assert batch["tokens"].equal(alone["tokens"])
    assert batch["targets"][:, -1].equal(alone["targets"])
    assert batch["targets"][:, :-1].equal(alone["tokens"][:, 1:])
    assert batch["weights"][:, -1].sum().item() == pytest.approx(0.5)
    assert batch["weights"].unique().tolist() == pytest.approx([0.5 / 50 / 7, 0.5 / 50])
    assert scored.probe(None, generator())["targets"].dim() == 1, "analyzers look at answers alone"


def test_models_learn_next_tokens_where_these_count(tmp_path: Path) -> None:
    values = {"d_model": 16, "d_ff": 16, "batch": 16, "steps": 2, "save": "every:2", "samples": 32, "score": "all"}
    assert Transformer.train("anchor", values, tmp_path / "run") == "finished"
    assert set(read_metrics(tmp_path / "run")) >= {"loss", "seen", "inferential"}


def test_a_run_keeps_probe_and_metrics(tmp_path: Path) -> None:
    values = {"d_model": 16, "d_ff": 16, "batch": 16, "steps": 4, "save": "every:2", "samples": 64}
    assert Transformer.train("anchor", values, tmp_path / "run") == "finished"
    assert {"split", "inferential", "symmetric", "weights", "key"} < set(read_probe(tmp_path / "run"))
    metrics = read_metrics(tmp_path / "run")
    assert metrics["seen"].shape == (5,)
    assert all(0 <= metrics[name][0] <= 1 for name in ("seen", "shown", "inferential", "symmetric"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operations": (1, 2)}, "anchor: operations are four, for anchors 1 to 4. Got 2."),
        ({"low": 10}, "anchor: items 10 to 99 lead to answers from -6. Raise low or high."),
        ({"low": 30, "high": 30}, "anchor: items 30 to 30 lead to answers from 14. Raise low or high."),
        ({"modulus": 1000}, "anchor: modulus 1000 leaves no key to train on, or none to test. Leave it at 0."),
        ({"length": 3}, "leaves no key to train on, or none to test"),
        ({"form": "comp"}, "must be one of composite, symmetric. Got 'comp' instead."),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Anchor(**options)
    assert message in str(caught.value)

"""Facts of one and two hops against their definition, and the bridge that identity tuples build."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ckpt_tools.errors import OptionError
from ckpt_tools.run import read_metrics, read_probe
from ckpt_trainers.emb_mlp import EmbMLP
from ckpt_trainers.tasks.two_hop import TwoHop
from ckpt_trainers.transformer import Transformer

pytestmark = pytest.mark.slow

Tuples = set[tuple[int, ...]]


def tuples(task: TwoHop) -> dict[tuple[int, ...], int]:
    """Trained tuples without padding, and their answers."""
    examples = task.examples(torch.Generator())
    assert examples is not None
    rows = zip(examples["tokens"].tolist(), examples["targets"].tolist(), strict=True)
    return {tuple(t for t in row if t): answer for row, answer in rows}


def composed(task: TwoHop) -> dict[tuple[int, int, int], int]:
    """Every two-hop fact, from one-hop facts alone."""
    trained = tuples(task)
    hops = {row: answer for row, answer in trained.items() if len(row) == 2}
    first = {row: answer for row, answer in hops.items() if row[0] <= task.entities}
    second = {row: answer for row, answer in hops.items() if row[0] > task.entities}
    return {(e1, r1, r2): hops[e2, r2] for (e1, r1), e2 in first.items() for e, r2 in second if e == e2}


@pytest.mark.parametrize("complexity", [1, 3])
def test_facts_compose_and_are_one_to_one(complexity: int) -> None:
    task = TwoHop(entities=12, complexity=complexity, ood=0.25)
    every, trained = composed(task), tuples(task)
    assert len(every) == 12 * complexity
    shown = {row for row in trained if len(row) == 3}
    assert all(trained[row] == every[row] for row in shown)
    assert len(shown) == 9 * complexity
    for r2 in {row[2] for row in every}:
        assert len({answer for row, answer in every.items() if row[2] == r2}) == 12, "one to one"
    assert {len({a for row, a in every.items() if row[0] == e1}) for e1 in range(1, 13)} == {complexity}
    hops = {row: answer for row, answer in trained.items() if len(row) == 2}
    assert len(hops) == 12 + 12 * complexity
    assert len({a for row, a in hops.items() if row[0] <= 12}) == 12


def test_held_out_facts_never_leak() -> None:
    task = TwoHop(entities=20, ood=0.5)
    facts = task.facts()
    held_out: Tuples = {tuple(row) for row, s in zip(facts["tokens"].tolist(), facts["split"], strict=True) if s == 4}
    assert len(held_out) == 10
    assert not held_out & tuples(task).keys()
    subjects = {row[0] for row in held_out}
    assert not subjects & {row[0] for row in tuples(task) if len(row) == 3}
    assert subjects <= {row[0] for row in tuples(task) if len(row) == 2}, "their one-hop facts are trained"
    assert all(composed(task)[row] for row in held_out)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 5), (1.0, 20)])
def test_identity_tuples_only_when_asked(share: float, expected: int) -> None:
    single = {row: answer for row, answer in tuples(TwoHop(entities=20, identity=share)).items() if len(row) == 1}
    assert len(single) == expected
    assert all(row == (answer,) and 20 < answer <= 40 for row, answer in single.items())


def test_probe_tells_bridges_and_splits() -> None:
    task = TwoHop(entities=10, complexity=2, ood=0.3)
    probe = task.probe(None, torch.Generator())
    first = {row[0]: answer for row, answer in tuples(task).items() if len(row) == 2 and row[0] <= 10}
    for row, bridge, answer, split in zip(
        *(probe[k].tolist() for k in ("tokens", "bridge", "targets", "split")), strict=True
    ):
        entity = next(t for t in row if t)
        assert bridge == first.get(entity, entity)
        assert (split in (2, 4)) == (len([t for t in row if t]) == 3)
        assert (answer == bridge) == (split in (0, 3))
    assert probe["weights"].sum().item() == pytest.approx(1)
    assert (probe["weights"] == 0).equal(probe["split"] == 4)
    assert probe["tokens"].max() < task.vocabulary


def test_other_seeds_are_other_facts() -> None:
    assert tuples(TwoHop()) == tuples(TwoHop()) != tuples(TwoHop(target_seed=1))
    with pytest.raises(OptionError, match=r"complexity 5 needs as many entities. Got 4"):
        TwoHop(entities=4, complexity=5)


def test_accuracy_of_each_split() -> None:
    task = TwoHop(entities=8)
    facts = task.facts()
    logits = torch.nn.functional.one_hot(facts["targets"], task.vocabulary).double()[:, None]
    assert set(task.metrics(logits, facts).items()) == {(name, 1.0) for name in task.splits}
    logits[facts["split"] == 4] *= -1
    assert task.metrics(logits, facts)["ood"] == 0
    bare = TwoHop(entities=8, identity=0.0)
    shown = bare.metrics(torch.zeros(len(bare.facts()["targets"]), 1, bare.vocabulary), bare.facts())
    assert "identity" not in shown


def test_identity_tuples_bridge_the_hops(tmp_path: Path) -> None:
    """Section 9's miniature, shortened: out-of-distribution facts follow with identity tuples, and not without."""
    found = {}
    for identity in (0.0, 1.0):
        out = tmp_path / f"{identity}"
        EmbMLP.train("two_hop", {"identity": identity, "steps": 1500, "save": "at:1500"}, out)
        metrics = read_metrics(out)
        assert metrics["first"][-1] == metrics["second"][-1] == metrics["two_hop"][-1] == 1
        found[identity] = metrics["ood"][-1]
    assert found[1.0] >= 0.9
    assert found[0.0] <= 0.05


def test_transformers_learn_it_too(tmp_path: Path) -> None:
    values = {"entities": 8, "steps": 150, "lr": 5e-3, "gamma": 0.5, "d_model": 32, "d_ff": 32, "save": "at:150"}
    Transformer.train("two_hop", values, tmp_path / "run")
    metrics = read_metrics(tmp_path / "run")
    assert min(metrics[name][-1] for name in ("first", "second", "two_hop", "identity")) == 1
    assert {"bridge", "split", "weights"} <= read_probe(tmp_path / "run").keys()

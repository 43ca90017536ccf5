"""The lazy Markov chain: its generator, its exact form, and stage I of "Focus and Dilution"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_tools import open_trajectory
from ckpt_tools.errors import OptionError
from ckpt_tools.run import read_metrics, read_probe
from ckpt_trainers.tasks.markov import Markov
from ckpt_trainers.transformer import Transformer

Array = np.ndarray[Any, Any]
PI = np.array([0.75, 0.19, 0.05, 0.01])
NAMES = ("embed.weight", "layers.0.attn.q.weight", "layers.0.attn.k.weight", "unembed.weight")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_transition_keeps_pi() -> None:
    p = Markov(lam=0.3).transition().numpy()
    np.testing.assert_allclose(PI @ p, PI, atol=1e-15)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-15)
    assert p[3, 3] == pytest.approx(0.3 + 0.7 * 0.01)


def test_samples_follow_the_chain() -> None:
    task = Markov(form="sampled", pi=(0.5, 0.3, 0.2), lam=0.4, length=40)
    drawn = task.draw(4000, generator())
    assert drawn["tokens"].shape == (4000, 40)
    chain = torch.cat([drawn["tokens"], drawn["targets"][:, None]], dim=1).numpy()
    counts = np.zeros((3, 3))
    np.add.at(counts, (chain[:, :-1].ravel(), chain[:, 1:].ravel()), 1)
    p, visits = task.transition().numpy(), counts.sum(1, keepdims=True)
    assert (abs(counts / visits - p) < 4.5 * np.sqrt(p * (1 - p) / visits)).all()
    starts = np.bincount(chain[:, 0], minlength=3) / 4000
    assert (abs(starts - 1 / 3) < 4.5 * np.sqrt(2 / 9 / 4000)).all()


def test_examples_depend_on_the_generator_only() -> None:
    task = Markov(form="sampled", samples=50)
    a, b, c = (task.examples(generator(seed)) for seed in (1, 1, 2))
    assert a is not None and b is not None and c is not None
    assert torch.equal(a["tokens"], b["tokens"])
    assert not torch.equal(a["tokens"], c["tokens"])
    assert Markov(form="sampled", samples=0).examples(generator()) is None
    assert task.probe(a, generator())["tokens"].shape == (50, 32)


def test_levels() -> None:
    p = 0.5 * np.eye(4) + 0.5 * PI
    levels = Markov().levels()
    assert levels["uniform"] == pytest.approx(np.log(4))
    assert levels["unigram"] == pytest.approx(-(PI * np.log(PI)).sum())
    assert levels["floor"] == pytest.approx(-(PI @ (p * np.log(p)).sum(1)))


@pytest.mark.parametrize("pi", [(0.5, 0.6), (1.0, 0.0), (), (0.5, 0.4)])
def test_pi_is_a_distribution(pi: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match="positive numbers whose sum is 1"):
        Markov(pi=pi)


def test_excess_is_the_loss_above_the_floor() -> None:
    task = Markov()
    data = task.examples(generator())
    assert data is not None
    logits = torch.randn(1, 4, 4, generator=generator(), dtype=torch.float64)
    loss = -(data["weights"][..., None] * data["targets"] * logits.log_softmax(-1)).sum().item()
    found = task.metrics(logits, data)
    assert found["excess"] == pytest.approx(loss - task.levels()["floor"], abs=1e-14)
    assert found["excess"] == pytest.approx(sum(PI[i] * found[f"excess_{i}"] for i in range(4)))


def test_excess_of_sequences_is_zero_for_the_true_chain() -> None:
    task = Markov(form="sampled", samples=300, length=5)
    data = task.examples(generator())
    assert data is not None
    found = task.metrics(task.transition().log()[data["tokens"]], data)
    assert found == pytest.approx(dict.fromkeys(found, 0.0), abs=1e-12)
    assert found.keys() == {"excess", "excess_0", "excess_1", "excess_2", "excess_3"}


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def closed_form(w0: Array, wq: Array, wk: Array, w1: Array) -> tuple[Array, Array]:
    """Attention and logits of the paper: W_Q, W_K [d, d], W0 [v, d], W1 [d, v]."""
    a = softmax(np.log(PI) + w0 @ wq @ wk.T @ w0.T)
    return a, a @ w0 @ w1


def descended(weights: dict[str, Array], lr: float) -> dict[str, Array]:
    """One step of gradient descent on L = sum_i pi_i CE(P_i, softmax(A_i W0 W1)), derived by hand."""
    w0, wq, wk, w1 = weights[NAMES[0]], weights[NAMES[1]].T, weights[NAMES[2]].T, weights[NAMES[3]].T
    p = 0.5 * np.eye(4) + 0.5 * PI
    a, logits = closed_form(w0, wq, wk, w1)
    d_logits = PI[:, None] * (softmax(logits) - p)
    d_a = d_logits @ w1.T @ w0.T
    d_phi = a * (d_a - (a * d_a).sum(1, keepdims=True))
    d_w0 = a.T @ d_logits @ w1.T + d_phi @ w0 @ wk @ wq.T + d_phi.T @ w0 @ wq @ wk.T
    d_wq, d_wk = w0.T @ d_phi @ w0 @ wk, w0.T @ d_phi.T @ w0 @ wq
    slopes = dict(zip(NAMES, (d_w0, d_wq.T, d_wk.T, (w0.T @ a.T @ d_logits).T), strict=True))
    return {name: weights[name] - lr * slopes[name] for name in NAMES}


def checkpoints(run: Path) -> dict[int, dict[str, Array]]:
    trajectory = open_trajectory(run)
    found = {}
    for step in trajectory.steps:
        with trajectory.checkpoint(step) as checkpoint:
            found[step] = {name: checkpoint.read(name) for name in checkpoint.tensors}
    return found


def test_population_equals_the_closed_form(tmp_path: Path) -> None:
    Transformer.train("markov", {"steps": 0, "std": 0.3}, tmp_path / "run")
    weights = checkpoints(tmp_path / "run")[0]
    config = {"d_model": 32, "vocabulary": 4, "context": 4, **Markov().defaults()}
    module = Transformer.build({k: v for k, v in config.items() if k in Transformer.Config.declared}).double()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    probe = {name: torch.from_numpy(array) for name, array in read_probe(tmp_path / "run").items()}
    shown = Transformer.forward(module, probe, record=True)
    w0, wq, wk, w1 = weights[NAMES[0]], weights[NAMES[1]].T, weights[NAMES[2]].T, weights[NAMES[3]].T
    attention, logits = closed_form(w0, wq, wk, w1)
    np.testing.assert_allclose(shown.attention[0][0, 0].detach(), attention, rtol=0, atol=1e-12)
    np.testing.assert_allclose(shown.logits[0].detach(), logits, rtol=0, atol=1e-12)
    assert abs(attention - PI).max() > 0.05
    p = 0.5 * np.eye(4) + 0.5 * PI
    loss = -(PI @ (p * np.log(softmax(logits))).sum(1))
    assert read_metrics(tmp_path / "run")["loss"].tolist() == [pytest.approx(loss, abs=1e-12)]


def test_training_equals_gradient_descent_by_hand(tmp_path: Path) -> None:
    Transformer.train("markov", {"steps": 5, "std": 0.3, "save": "every:1"}, tmp_path / "run")
    saved = checkpoints(tmp_path / "run")
    weights = saved[0]
    for step in range(1, 6):
        weights = descended(weights, lr=0.2)
        for name in NAMES:
            np.testing.assert_allclose(saved[step][name], weights[name], rtol=0, atol=1e-14)
            assert not np.array_equal(saved[step][name], saved[step - 1][name])


def effective_rank(w: Array) -> float:
    s = np.linalg.svd(w, compute_uv=False)
    p = s / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_stage_one_condenses_embeddings_while_attention_is_frozen(tmp_path: Path, seed: int) -> None:
    Transformer.train("markov", {"steps": 200, "save": "every:5", "seed": seed}, tmp_path / "run")
    saved, metrics, levels = checkpoints(tmp_path / "run"), read_metrics(tmp_path / "run"), Markov().levels()
    loss = dict(zip(metrics["step"].tolist(), metrics["loss"], strict=True))
    edge = levels["unigram"] + 0.1 * (levels["uniform"] - levels["unigram"])
    start, (w0, wq, wk, w1) = saved[0], next([saved[s][n] for n in NAMES] for s in saved if loss[s] <= edge)
    assert effective_rank(start[NAMES[0]]) > 3.5
    assert effective_rank(w0) < 1.1
    assert effective_rank(w1) < 1.1
    assert abs(np.linalg.svd(w0)[0][:, 0] @ PI) / np.linalg.norm(PI) > 0.99
    for now, name in ((wq, NAMES[1]), (wk, NAMES[2])):
        assert np.linalg.norm(now) == pytest.approx(np.linalg.norm(start[name]), rel=0.02)
    assert effective_rank(wq) > 0.9 * effective_rank(start[NAMES[1]])

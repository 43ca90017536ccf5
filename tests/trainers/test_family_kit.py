"""What every family that is trained here must do, and the losses it has always had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ckpt_tools import Checkpoint, Family, ModelHost, ProbeSource, open_trajectory, read_run
from ckpt_tools.roles import assign
from ckpt_tools.run import read_metrics
from ckpt_trainers.attn_mlp import AttnMLP
from ckpt_trainers.emb_mlp import EmbMLP
from ckpt_trainers.family import TrainedFamily
from ckpt_trainers.gpt import GPT
from ckpt_trainers.mamba import Mamba
from ckpt_trainers.mlp import MLP
from ckpt_trainers.settings import plan
from ckpt_trainers.training import Training, role_of
from ckpt_trainers.transformer import Transformer

TEXT = "".join(f"q{i} is {i * 7 % 10} and {i % 3}\n" for i in range(200))
ANCHOR = {"samples": 200, "batch": 0, "d_model": 16, "warmup": 0, "lr_schedule": "constant"}
TWO_HOP = {"entities": 8, "d_model": 16, "d_ff": 12, "gamma": 0.5}


@dataclass(frozen=True)
class Case:
    """A family on a task, small; `other` is the same with one layer or two, `tied` with tied weights if it can."""

    family: type[TrainedFamily]
    task: str
    values: dict[str, Any]
    other: dict[str, Any]
    golden: tuple[float, float, float]
    tied: dict[str, Any] = field(default_factory=dict)


CASES = {
    "transformer": Case(
        Transformer,
        "two_hop",
        {**TWO_HOP, "layers": 2, "heads": 2},
        {"layers": 1},
        (3.88898237144, 2.12468706079, 0.463831394423),
        {"tied": True},
    ),
    "transformer post": Case(
        Transformer,
        "anchor",
        {**ANCHOR, "d_ff": 24, "norm": "post", "bias": True},
        {"layers": 1},
        (5.19951374557, 4.23525635258, 2.23961103459),
    ),
    "attn_mlp": Case(
        AttnMLP,
        "signal",
        {"samples": 20, "dimension": 8, "gamma": 0.5},
        {"d_ff": 5},
        (0.994610536153, 0.981480686753, 0.951557939864),
    ),
    "next item": Case(
        Transformer,
        "next_item",
        {"samples": 50, "batch": 0, "d_model": 8, "d_ff": 12, "gamma": 0.5},
        {"layers": 2},
        (5.3984146453, 5.38270490023, 5.33884766529),
    ),
    "mlp": Case(
        MLP,
        "regression",
        {"hidden": (7, 5), "std": 0.3},
        {"hidden": (7,), "bias": True},
        (0.394811169219, 0.387045412711, 0.365696835392),
    ),
    "product": Case(
        MLP,
        "matrix",
        {"rows": 6, "columns": 5, "hidden": (5, 5), "std": 0.3},
        {"hidden": (5,)},
        (11.3441816858, 10.8778637446, 9.7140688494),
    ),
    "emb_mlp": Case(EmbMLP, "two_hop", TWO_HOP, {"activation": "gelu"}, (3.30629451117, 2.87361606633, 1.5602655892)),
    "gpt": Case(
        GPT,
        "two_hop",
        {**TWO_HOP, "layers": 2, "heads": 2},
        {"layers": 1, "tied": False},
        (3.80965287923, 2.0747608204, 0.402173630286),
    ),
    "gpt text": Case(
        GPT,
        "text",
        {"layers": 2, "heads": 2, "d_model": 16, "length": 12, "batch": 4, "warmup": 0, "bias": True},
        {"layers": 1},
        (3.3637465775, 2.46340377975, 1.60875480614),
        {"tied": True},
    ),
    "mamba 2": Case(
        Mamba,
        "anchor",
        {**ANCHOR, "d_state": 8},
        {"layers": 1},
        (5.2439273944, 3.42779774926, 1.21677326292),
        {"tied": True},
    ),
    "mamba 1": Case(
        Mamba,
        "anchor",
        {**ANCHOR, "d_state": 8, "block": 1},
        {"layers": 1},
        (5.29672623055, 3.5103790067, 1.22657847408),
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
Begin = Callable[..., Training]


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a case, float64 on the CPU, and a file for tasks on text."""

    def made(case: Case, **more: Any) -> dict[str, Any]:
        (tmp_path / "text").write_text(TEXT)
        data = {"data": str(tmp_path / "text")} if case.task == "text" else {}
        return {**case.values, **data, "dtype": "float64", "device": "cpu", "lr": 0.01, **more}

    return made


@pytest.fixture
def begin(settings: Callable[..., dict[str, Any]]) -> Begin:
    return lambda case, **more: Training(case.family, case.task, plan(case.family, case.task, settings(case, **more)))


def variants(case: Case) -> list[dict[str, Any]]:
    return [{}, case.other, *([case.tied] if case.tied else [])]


@each_case
def test_roles_cover_every_parameter_once(case: Case, begin: Begin) -> None:
    for variant in variants(case):
        module = begin(case, **variant).module
        names = [name for name, _ in module.named_parameters()]
        roles = [role_of(case.family, name) for name in names]
        assert all(roles), dict(zip(names, roles, strict=True))
        assert len(set(roles)) == len(roles)
        assert not list(module.named_buffers()), "a checkpoint would hold more than parameters"


@each_case
def test_layout_of_a_checkpoint_is_that_of_the_module(
    case: Case, settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    for number, variant in enumerate(variants(case)):
        out = tmp_path / str(number)
        case.family.train(case.task, settings(case, steps=0, **variant), out)
        info, checkpoint = read_run(out), open_trajectory(out).checkpoint(0)
        layout = assign(checkpoint.tensors, checkpoint.aliases, case.family.table, info.config)
        found = {*layout.matrices, *layout.vectors}
        module = case.family.build(info.config)
        assert found == {role_of(case.family, name) for name, _ in module.named_parameters()}
        assert not layout.skipped
        shapes = {role_of(case.family, name): tuple(p.shape) for name, p in module.named_parameters()}
        assert {name: w.shape for name, w in (layout.matrices | layout.vectors).items()} == shapes
        assert bool(info.tied) == (variant.get("tied", info.config.get("tied", False)) is True)


def host_of(family: type[Family], out: Path) -> ModelHost:
    return ModelHost(family, read_run(out).config, ProbeSource(out))


def loss_of(host: ModelHost, checkpoint: Checkpoint, config: Any, batch: Any, dtype: str | None) -> float:
    assert host.family is not None
    layout = assign(checkpoint.tensors, checkpoint.aliases, host.family.table, config)
    return host.model(checkpoint, layout, dtype).loss(batch).item()


@each_case
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_rebuilt_models_have_the_logged_loss(
    case: Case, dtype: str, begin: Begin, settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    for number, variant in enumerate(variants(case)):
        out = tmp_path / str(number)
        values = settings(case, steps=3, save="every:1", **{**variant, "dtype": dtype})
        case.family.train(case.task, values, out)
        training = begin(case, steps=3, **{**variant, "dtype": dtype})
        host, info, trajectory = host_of(case.family, out), read_run(out), open_trajectory(out)
        logged = read_metrics(out)["loss"]
        for step in range(4):
            with trajectory.checkpoint(step) as checkpoint:
                assert loss_of(host, checkpoint, info.config, training.batch(), dtype) == logged[step], step


@each_case
def test_probe_batches_run(case: Case, settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    case.family.train(case.task, settings(case, steps=1, save="every:1"), tmp_path / "run")
    host = host_of(case.family, tmp_path / "run")
    assert host.refusal("loss") == ""
    with open_trajectory(tmp_path / "run").checkpoint(1) as checkpoint:
        layout = assign(checkpoint.tensors, checkpoint.aliases, case.family.table, host.config)
        model = host.model(checkpoint, layout)
        shown = model.forward(host.batch(), record=True)
        plain = model.forward(host.batch())
        assert torch.isfinite(model.loss(host.batch()))
    assert shown.hidden and not plain.hidden
    torch.testing.assert_close(shown.logits, plain.logits, rtol=1e-10, atol=1e-12)


@each_case
def test_tied_weights_are_one(
    case: Case, begin: Begin, settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    if not case.tied:
        assert not case.values.get("tied"), "a family that ties weights has a case for it"
        return
    training = begin(case, **case.tied)
    for _ in range(2):
        training.update(training.loss(training.batch()))
    assert training.module.get_parameter("unembed.weight") is training.module.get_parameter("embed.weight")
    case.family.train(case.task, settings(case, steps=1, **case.tied), tmp_path / "run")
    assert "unembed.weight" not in load_file(tmp_path / "run/step-000000/model.safetensors")


@each_case
def test_golden_losses(case: Case, begin: Begin) -> None:
    """The losses of steps 0, 5 and 20; they change only with what a family or a task is."""
    training = begin(case)
    losses = []
    for step in range(21):
        loss = training.loss(training.batch())
        losses.append(loss.item())
        if step < 20:
            training.update(loss)
    np.testing.assert_allclose([losses[k] for k in (0, 5, 20)], case.golden, rtol=1e-9)

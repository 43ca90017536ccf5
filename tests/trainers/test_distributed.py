"""Several processes train what one would, and one of them writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ckpt_tools.errors import OptionError
from ckpt_tools.run import read_metrics, read_run
from ckpt_trainers.distributed import Processes, device_of, processes
from ckpt_trainers.gpt import GPT
from ckpt_trainers.settings import plan
from ckpt_trainers.tasks import share
from ckpt_trainers.training import Training
from ckpt_trainers.transformer import Transformer

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from pathlib import Path
from ckpt_trainers.gpt import GPT
GPT.train("text", dict(part.split("=", 1) for part in sys.argv[2:]), Path(sys.argv[1]))
"""


def test_parts_of_a_batch_add_up() -> None:
    draw = torch.Generator().manual_seed(0)
    weights = torch.rand(7, 3, generator=draw, dtype=torch.float64)
    values = torch.rand(7, 3, generator=draw, dtype=torch.float64)
    batch = {"targets": values, "weights": weights / weights.sum()}
    for parts in (1, 2, 3, 7):
        taken = [share(batch, part, parts) for part in range(parts)]
        assert sum(weight for weight, _ in taken) == pytest.approx(1)
        whole = sum(weight * (part["weights"] * part["targets"]).sum().item() for weight, part in taken)
        assert whole == pytest.approx((batch["weights"] * values).sum().item())
        plain = [share({"targets": values}, part, parts) for part in range(parts)]
        assert sum(w * p["targets"].mean().item() for w, p in plain) == pytest.approx(values.mean().item())


def test_alone_without_torchrun() -> None:
    with processes("cpu") as group:
        assert (group.rank, group.size, group.device.type) == (0, 1, "cpu")
    with pytest.raises(OptionError, match=r"2 processes cannot share 1 example\(s\)\. Raise batch"):
        Processes(0, 2).part({"targets": torch.zeros(1)})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu() -> None:
    assert device_of("auto").type == device_of("cpu").type == "cpu"
    with pytest.raises(OptionError, match="torch finds no GPU"):
        device_of("cuda")


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("".join(f"q{i} is {i * 7 % 10} and {i % 3}\n" for i in range(300)))
    values: dict[str, Any] = {"data": str(tmp_path / "text"), "layers": 1, "d_model": 16, "heads": 2, "length": 16}
    values |= {"batch": 7, "steps": 12, "save": "every:4", "dtype": "float64", "device": "cpu", "lr": 0.01, "clip": 0.5}
    GPT.train("text", values, tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (tmp_path / "program.py").write_text(PROGRAM)
    settings = [f"{name}={value}" for name, value in values.items()]
    done = subprocess.run(
        [*command, str(tmp_path / "program.py"), str(tmp_path / "two"), *settings],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-9)
    assert {f.name for f in (tmp_path / "one").iterdir()} == {f.name for f in (tmp_path / "two").iterdir()}
    assert read_run(tmp_path / "two").status == "finished"
    for step in (0, 12):
        a, b = (load_file(tmp_path / name / f"step-{step:06d}/model.safetensors") for name in ("one", "two"))
        assert all(np.allclose(a[name], b[name], rtol=1e-7, atol=1e-10) for name in a)


def begin(**values: Any) -> Training:
    small = {"form": "sampled", "samples": 20, "length": 5, "d_model": 8, "d_ff": 8, "layers": 2, "bias": True}
    return Training(Transformer, "markov", plan(Transformer, "markov", {**small, "std": 0.3, **values}))


@pytest.mark.parametrize("optimizer", ["gd", "adamw"])
def test_frozen_roles_keep_their_weights(optimizer: str) -> None:
    training = begin(freeze="layers.*.attn.q,embed", optimizer=optimizer, weight_decay=0.1, lr=0.1)
    before = {name: p.detach().clone() for name, p in training.module.named_parameters()}
    for _ in range(2):
        training.update(training.loss(training.batch()))
    still = {name for name, p in training.module.named_parameters() if torch.equal(p, before[name])}
    frozen = {"embed.weight", "layers.0.attn.q.weight", "layers.1.attn.q.weight"}
    assert frozen <= still
    assert not {name for name in still - frozen if name.endswith("weight")}


def test_frozen_roles_that_do_not_exist() -> None:
    with pytest.raises(OptionError, match=r"freeze: no weight has role 'layers\.\*\.atn\.q'"):
        begin(freeze="layers.*.atn.q")
    with pytest.raises(OptionError, match="freeze leaves nothing to train"):
        begin(freeze="*")
    assert not begin(tied=True, freeze="unembed").module.get_parameter("embed.weight").requires_grad


def test_half_precision(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abcdefgh\n" * 200)
    values = {"data": str(tmp_path / "text"), "layers": 1, "d_model": 16, "length": 12, "steps": 30, "lr": 0.01}
    for name, extra in (("pure", {"dtype": "bfloat16"}), ("mixed", {"autocast": True})):
        GPT.train("text", {**values, "warmup": 0, **extra}, tmp_path / name)
        losses = read_metrics(tmp_path / name)["loss"]
        assert losses[-1] < 0.8 * losses[0]
        stored = read_run(tmp_path / name).tensors["embed.weight"]["dtype"]
        assert stored == ("bfloat16" if name == "pure" else "float32")

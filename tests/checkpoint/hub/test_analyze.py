"""End to end: a trajectory of revisions analysed over the network, and how few of its bytes travel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import h5py
import numpy as np
import pytest

from ckpt_tools import Analyzer, Out, analyze
from ckpt_tools.errors import FetchError

from .conftest import Blob

pytestmark = pytest.mark.slow

D, LAYERS, HIDDEN, VOCABULARY, REVISIONS = 256, 8, 688, 2048, 20
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": D, "num_hidden_layers": LAYERS,
    "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": HIDDEN, "vocab_size": VOCABULARY,
    "tie_word_embeddings": False, "torch_dtype": "float16",
}  # fmt: skip
Q = "model.layers.3.self_attn.q_proj.weight"


def llama() -> dict[str, np.ndarray]:
    """The tensors of an 8-layer LLaMA of 7.4 million random half-precision weights."""
    rng = np.random.default_rng(6)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, D)}
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        shapes |= {f"{at}self_attn.{p}_proj.weight": (D, D) for p in "qkvo"}
        shapes |= {f"{at}mlp.{p}_proj.weight": (HIDDEN, D) for p in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (D, HIDDEN)}
        shapes |= {f"{at}{n}_layernorm.weight": (D,) for n in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (D,), "lm_head.weight": (VOCABULARY, D)}
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


@pytest.fixture
def released(hub, packed):
    """Twenty revisions, each with all files a release has; q of layer 3 loses rank step by step."""
    tensors = llama()
    data = packed(tensors)
    length = 8 + int.from_bytes(data[:8], "little")
    begin, end = (length + at for at in json.loads(data[8:length])[Q]["data_offsets"])
    u, s, v = np.linalg.svd(tensors[Q].astype(np.float64))
    truth = {}
    for i in range(REVISIONS):
        q = truth[1000 * i] = ((u * (s * (np.arange(D) < D - 10 * i))) @ v).astype(np.float16)
        files: dict[str, Blob | bytes] = {
            "model.safetensors": Blob(data[:begin], q.tobytes(), data[end:]),
            "config.json": json.dumps(CONFIG).encode(),
            "tokenizer.json": b"{" + b" " * 10**5 + b"}",
            "README.md": b"# A model",
            "pytorch_model.bin": b"PK" + b"\0" * 1000,
        }
        hub.commit("org/name", files, branch=f"step{1000 * i}")
    return hub, truth


def effective_rank(matrix: np.ndarray) -> float:
    s = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    p = s[s > 0] / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def test_one_matrix_over_twenty_revisions_is_under_two_percent_of_the_bytes(released, tmp_path):
    hub, truth = released
    output = tmp_path / "r.h5"
    outcome = analyze("hf://org/name@step*", ["rank"], matrices=["layers.3.attn.q"], output=output)
    assert outcome.steps == list(truth) and outcome.matrices == 1 and outcome.failures == []
    total = sum(f["model.safetensors"].size for f in hub.repos["org/name"].commits.values())
    share = hub.bytes_sent() / total
    print(f"{hub.bytes_sent():,} of {total:,} bytes in {len(hub.seen)} requests: {share:.2%}")
    assert share < 0.02
    with h5py.File(output) as file:
        found = file["rank/effective_rank"][:, 0]
        text = json.dumps([*map(str, file.attrs.items()), *(str(d[()]) for d in file["trajectory"].values())])
    assert np.allclose(found, [effective_rank(q) for q in truth.values()], rtol=1e-6)
    assert all(commit in text for commit in hub.repos["org/name"].branches.values())
    assert len(hub.asked("cdn/")) == 2 * REVISIONS and len(hub.asked("hub/org.*config.json")) == 1
    asked = len(hub.seen)
    again = analyze("hf://org/name@step*", ["rank"], matrices=["layers.3.attn.q"], output=output)
    assert (again.computed, again.reused) == (0, REVISIONS) and len(hub.seen) == asked + 1  # only the list of revisions


class Norms(Analyzer):
    """Norm of every matrix."""

    name = "norms"
    outputs = {"norm": Out(dims=("matrix",), unit="1")}

    def analyze(self, view: Any) -> dict[str, Any]:
        matrices = view.matrices()
        return {"matrix": list(matrices), "norm": [np.linalg.norm(m) for m in matrices.values()]}


@pytest.fixture
def small(hub, packed):
    """Six small revisions."""
    for step in range(6):
        files = {"model.safetensors": packed({"w": np.full((300, 300), step, np.float32)})}
        hub.commit("org/name", files, branch=f"step{step}")
    return hub


def test_the_matrices_of_a_pass_travel_together(hub, packed, tmp_path):
    rng = np.random.default_rng(7)
    for step in range(3):
        tensors = {name: rng.standard_normal((200, 300)).astype(np.float32) for name in ("a", "b", "c", "d", "e", "f")}
        hub.commit("org/name", {"model.safetensors": packed(tensors)}, branch=f"step{step}")
    outcome = analyze("hf://org/name@step*", [Norms], output=tmp_path / "r.h5", matrices=["b", "c", "e"])
    assert outcome.matrices == 3 and outcome.failures == []
    assert len(hub.asked("cdn/")) == 3 * 3  # the header, b with c, e


def identity(hub, step):
    commit = hub.repos["org/name"].branches[f"step{step}"]
    return commit, hub.repos["org/name"].commits[commit]["model.safetensors"].sha256


def test_revisions_that_cannot_be_fetched_are_recorded_and_the_rest_goes_on(small, tmp_path):
    gone = {"status": 404, "headers": {"X-Error-Code": "RevisionNotFound"}}
    small.fault(f"hub/api.*tree/{identity(small, 1)[0]}", times=999, **gone)
    small.fault(f"cdn/.*{identity(small, 3)[1]}", times=999, status=503)
    small.fault(f"cdn/.*{identity(small, 4)[1]}", times=999, after=1, shift=1)  # opens, and then cannot be read
    output = tmp_path / "r.h5"
    outcome = analyze("hf://org/name@step*", [Norms], output=output)
    assert outcome.steps == [0, 2, 5] and outcome.planned == 6
    reasons = {step: reason for step, _, reason in outcome.failures}
    assert list(reasons) == [1, 3, 4]
    assert "there is no such revision" in reasons[1] and "status 503 (6 attempts)" in reasons[3]
    assert "was asked for bytes" in reasons[4]
    with h5py.File(output) as file:
        assert file["norms/norm"][:, 0].tolist() == [0.0, 600.0, 1500.0]
        text = str(dict(file.attrs)) + str(dict(file["norms"].attrs))
    assert "there is no such revision" in text and "status 503" in text
    small.faults.clear()
    later = analyze("hf://org/name@step*", [Norms], output=output)
    assert later.steps == [0, 1, 2, 3, 4, 5] and (later.computed, later.reused) == (3, 3)


def test_nothing_that_can_be_fetched_is_an_error(small, tmp_path):
    small.fault("cdn/", times=9999, status=503)
    with pytest.raises(FetchError, match="status 503"):
        analyze("hf://org/name@step*", ["rank"], output=tmp_path / "r.h5")
    assert not (tmp_path / "r.h5").exists()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ckpt_tools.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_the_command_line_goes_on_and_says_what_is_missing(small, tmp_path):
    small.fault(f"hub/api.*tree/{identity(small, 2)[0]}", times=999, status=404)
    at_home = {"HF_ENDPOINT": small.url, "HF_HOME": str(tmp_path), "HF_TOKEN": ""}
    arguments = ["analyze", "hf://org/name@step*", "-p", "rank", "--steps", "1:3", "-o", str(tmp_path / "r.h5")]
    done = run(*arguments, "--cache-size", "1GB", **at_home)
    assert done.returncode == 3, done.stderr
    assert "rank at step 2: the list of files of hf://org/name@" in done.stderr
    wrong = run(*arguments, "--cache-size", "many", **at_home)
    assert wrong.returncode == 2 and "'many' is no size" in wrong.stderr


def test_workers_read_the_revisions_that_were_listed_before_them(small, tmp_path, monkeypatch):
    """One list of revisions serves all processes, so a branch that moves meanwhile cannot mix two contents."""
    for name, value in {"HF_ENDPOINT": small.url, "HF_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    refs = len(small.asked("/refs"))
    outcome = analyze("hf://org/name@step*", ["rank"], output=tmp_path / "r.h5", workers=2)
    assert outcome.steps == [0, 1, 2, 3, 4, 5] and outcome.failures == []
    assert len(small.asked("/refs")) == refs + 1


class Loss(Analyzer):
    """Loss of the model on the batch."""

    name = "loss"
    needs = "loss"
    outputs = {"loss": Out(unit="nat"), "tokens": Out(unit="1", dtype="i8")}

    def analyze(self, view: Any) -> dict[str, Any]:
        batch = view.batch()
        return {"loss": float(view.model().loss(batch)), "tokens": int(batch["tokens"].numel())}


def test_models_run_on_text_with_the_tokenizer_of_the_repository(hub, tmp_path):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    words = {word: i for i, word in enumerate(["the", "cat", "sat", "on", "mat", "a", "dog", "ran"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="the"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, max_position_embeddings=8, **sizes))
    model.save_pretrained(tmp_path / "m")
    tokenizer.save(str(tmp_path / "m" / "tokenizer.json"))
    hub.commit("org/name", {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}, branch="step5")
    (tmp_path / "text.txt").write_text("the cat sat on the mat a dog ran " * 8)
    results = {}
    for source in ("hf://org/name@step*", tmp_path / "m"):
        output = tmp_path / f"{len(results)}.h5"
        data = {"path": tmp_path / "text.txt", "tokens": 32, "sequence": 8}
        outcome = analyze(source, [Loss], output=output, data=data)
        assert outcome.failures == []
        with h5py.File(output) as file:
            results[str(source)] = float(file["loss/loss"][0])
    assert len(set(results.values())) == 1

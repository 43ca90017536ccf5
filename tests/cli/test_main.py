"""The command line as a user meets it: one clear line and exit code 2 for everything that can be mended."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def ckpt(tmp_path: Path) -> Run:
    def run(*args: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "ckpt_tools.cli", *args]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    names += [f"model.layers.0.self_attn.{p}_proj.weight" for p in "qkvo"]
    names += [f"model.layers.0.mlp.{p}_proj.weight" for p in ("gate", "up", "down")]
    tensors = {n: rng.standard_normal((8,) if "norm" in n else (8, 8)).astype("f4") for n in names}
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama", "num_attention_heads": 2, "hidden_size": 8, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(done: "subprocess.CompletedProcess[str]", *parts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4, done.stderr
    for part in parts:
        assert part in done.stderr, f"{part!r} is not in {done.stderr!r}"


def test_analyze_inspect_show(ckpt: Run, model: Path) -> None:
    done = ckpt("analyze", "model", "--plugin", "rank", "-o", "r.h5")
    assert done.returncode == 0, done.stderr
    assert "1 checkpoint(s), 8 matrices, rank" in done.stdout and "r.h5" in done.stdout
    shown = json.loads(ckpt("show", "r.h5", "--json").stdout)
    assert "rank" in json.dumps(shown)
    facts = json.loads(ckpt("inspect", "model", "--json").stdout)
    assert facts["family"] == "llama" and facts["tied"] == {"unembed": "embed"}
    assert {w["name"] for w in facts["weights"]} >= {"embed", "layers.0.attn.q", "layers.0.mlp.down", "norm"}
    assert "tied: unembed is embed, counted once" in ckpt("inspect", "model").stdout


def test_bad_sources(ckpt: Run, model: Path, tmp_path: Path) -> None:
    refused(ckpt("analyze", "modle", "--plugin", "rank"), "modle", "model")
    (tmp_path / "empty").mkdir()
    refused(ckpt("analyze", "empty", "--plugin", "rank"), "empty")
    file = model / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    refused(ckpt("analyze", "model", "--plugin", "rank"), "model.safetensors")
    refused(ckpt("inspect", "model"), "model.safetensors")


def test_a_missing_shard_is_named(ckpt: Run, model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    index = {
        "weight_map": {
            "model.norm.weight": "model-00001-of-00002.safetensors",
            "lost": "model-00002-of-00002.safetensors",
        }
    }
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(ckpt("analyze", "model", "--plugin", "rank"), "model-00002-of-00002.safetensors")


def test_bad_names_get_the_nearest(ckpt: Run, model: Path) -> None:
    refused(ckpt("analyze", "model", "--plugin", "rnak"), "No analyzer is named 'rnak'. Did you mean 'rank'?")
    refused(ckpt("analyze", "model", "--plugin", "rank", "--set", "rank.tua=1"), "no option 'tua'. Did you mean 'tau'?")
    refused(ckpt("analyze", "model", "--plugin", "rank", "--set", "rnak.k=1"), "'rnak'")
    refused(ckpt("analyze", "model", "--plugin", "rank", "--set", "k=1"), "expected ANALYZER.OPTION=VALUE")
    refused(ckpt("analyze", "model", "--plugin", "rank", "--set", "rank.k=-1"), "Got -1 instead")
    refused(ckpt("analyze", "model", "--plugin", "rank", "--matrices", "layers.9.*"), "No matrix matches 'layers.9.*'")
    refused(ckpt("analyze", "model", "--plugin", "rank", "--steps", "at:5"), "5")
    refused(ckpt("analyse", "model"), "Did you mean 'analyze'?")
    refused(ckpt("analyze", "model", "--plugim", "rank"), "--plugin")


def test_bad_targets(ckpt: Run, model: Path, tmp_path: Path) -> None:
    refused(ckpt("analyze", "model", "--plugin", "rank", "-o", "no/such/r.h5"), "no/such", "mkdir -p")
    (tmp_path / "r.h5").write_bytes(b"")
    refused(ckpt("analyze", "model", "--plugin", "rank", "-o", "r.h5"), "r.h5 exists already", "--force")
    assert ckpt("analyze", "model", "--plugin", "rank", "-o", "r.h5", "--force").returncode == 0


def test_plugins_are_listed_and_explained(ckpt: Run, tmp_path: Path) -> None:
    listed = ckpt("plugins").stdout
    assert "Analyzers" in listed and "rank" in listed and "Families" in listed and "llama" in listed
    shown = ckpt("plugins", "show", "rank").stdout
    assert "rank.tau=" in shown and "effective_rank (step, matrix) [1]" in shown
    refused(ckpt("plugins", "show", "rnak"), "Did you mean 'rank'?")


def test_a_plugin_that_breaks_its_word_is_named(ckpt: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "liar.py").write_text(
        "from ckpt_tools import Analyzer, Out, hookimpl\n"
        "class Liar(Analyzer):\n"
        "    name = 'liar'\n"
        "    outputs = {'x': Out(dims=('matrix',), unit='1')}\n"
        "    def analyze(self, view):\n"
        "        return {'y': 1.0}\n"
        "@hookimpl\n"
        "def ckpt_analyzers():\n"
        "    return [Liar]\n"
    )
    done = ckpt("analyze", "model", "--plugin-file", "liar.py", "--plugin", "liar")
    assert done.returncode == 2 and "missing output 'x'" in done.stderr and "unknown key 'y'" in done.stderr


def test_matrices_are_selected_by_glob(ckpt: Run, model: Path) -> None:
    done = ckpt("analyze", "model", "-p", "rank", "--matrices", "layers.*.attn.[qk]", "-o", "q.h5", "--json")
    assert json.loads(done.stdout)["matrices"] == 2

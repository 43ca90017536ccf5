"""Real files: the same weights in many containers, training checkpoints, and a zoo of oddities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ckpt_tools.checkpoint import Checkpoint, open_checkpoint
from ckpt_tools.errors import FormatError, SourceError

HEADS, SHARED_HEADS = 8, 4
# container: largest error allowed, as a share of each tensor's largest entry
CONTAINERS = {
    "pytorch_model.bin": 0.0, "legacy_nonzip.pth": 0.0, "compiled_orig_mod.pt": 0.0, "ddp_compiled.pth.tar": 0.0,
    "params.npz": 0.0, "sharded_bin": 0.0, "dcp_step7": 0.0, "fp16.pth": 5e-4, "float8_e4m3.safetensors": 1 / 16,
    "stories260K-f32.gguf": 0.0, "stories260K-f16.gguf": 5e-4, "stories260K-q8_0.gguf": 1 / 127,
    "stories260K-q4_0.gguf": 1 / 7.5,
}  # fmt: skip
GGUF = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
LLAMA2C = {
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


@pytest.fixture
def models(shared_data: Path) -> Path:
    return shared_data / "models"


@pytest.fixture
def reference(models: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(models / "stories260k" / "hf_fp32") as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.tensors}


def interleaved(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k as llama.cpp and llama2.c order them: the two halves of a head take turns."""
    halves = matrix.reshape(heads, 2, -1, matrix.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(matrix.shape)


def in_hugging_face_names(
    checkpoint: Checkpoint, layer: str, table: dict[str, str], rest: dict[str, str]
) -> dict[str, str]:
    found = dict(rest)
    for name in checkpoint.tensors:
        if name.startswith(layer):
            number, _, kind = name.removeprefix(layer).removesuffix(".weight").partition(".")
            found[name] = f"model.layers.{number}.{table[kind]}.weight"
    return found


def compare(checkpoint: Checkpoint, names: dict[str, str], reference: dict[str, np.ndarray], error: float) -> None:
    for name, other in names.items():
        wanted = reference[other]
        if other != name and ("q_proj" in other or "k_proj" in other):
            wanted = interleaved(wanted, HEADS if "q_proj" in other else SHARED_HEADS)
        bound = error * np.abs(wanted).max()
        np.testing.assert_allclose(checkpoint.read(name), wanted, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_same_weights_in_every_container(models, reference, container):
    with open_checkpoint(models / "stories260k-formats" / container) as checkpoint:
        if container.endswith("gguf"):
            rest = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
            names = in_hugging_face_names(checkpoint, "blk.", GGUF, rest)
            np.testing.assert_array_equal(checkpoint.read("output.weight"), checkpoint.read("token_embd.weight"))
        else:
            names = {name: name for name in reference}
            if "lm_head.weight" in {*checkpoint.tensors, *checkpoint.aliases}:
                head = checkpoint.read("lm_head.weight")
                np.testing.assert_array_equal(head, checkpoint.read("model.embed_tokens.weight"))
        assert set(names.values()) == set(reference)
        compare(checkpoint, names, reference, CONTAINERS[container])


def test_bfloat16_shards(models, reference):
    with open_checkpoint(models / "stories260k" / "hf_bf16_sharded") as checkpoint:
        compare(checkpoint, {name: name for name in reference}, reference, 4e-3)


def test_a_missing_shard_is_named(models):
    with pytest.raises(FormatError, match=r"model-00003-of-00004.safetensors"):
        open_checkpoint(models / "stories260k-formats" / "sharded_one_missing")


def test_what_the_containers_say_besides(models):
    def said(name: str) -> tuple[str, int, dict[str, str]]:
        with open_checkpoint(models / "stories260k-formats" / name) as checkpoint:
            return checkpoint.format, checkpoint.step, dict(checkpoint.aliases)

    tied = {"lm_head.weight": "model.embed_tokens.weight"}
    assert said("pytorch_model.bin") == ("torch", 0, tied)
    assert said("compiled_orig_mod.pt") == ("torch", 1, tied)
    assert said("ddp_compiled.pth.tar") == ("torch", 3, {})
    assert said("legacy_nonzip.pth") == ("torch (legacy)", 0, {})
    assert said("dcp_step7") == ("torch.distributed.checkpoint", 7, {})
    assert said("params.npz") == ("npz", 0, {})


def test_llama2c_files_are_the_same_training(models, reference):
    rest = {"tok_embeddings.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    with open_checkpoint(models / "llama2c" / "stories260K.bin") as checkpoint:
        names = in_hugging_face_names(checkpoint, "layers.", LLAMA2C, rest)
        assert set(names.values()) == set(reference)
        compare(checkpoint, names, reference, 0.0)
    with (
        open_checkpoint(models / "llama2c" / "ckpt.pt") as one,
        open_checkpoint(models / "llama2c" / "model.bin") as other,
    ):
        assert set(one.tensors) == set(other.tensors) and one.aliases == other.aliases
        assert one.content_hash() == other.content_hash()
        assert one.step == 500
        for key in ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len"):
            assert one.config[key] == other.config[key]
    with pytest.raises(FormatError, match=r"tok512.bin is of no known format"):
        open_checkpoint(models / "llama2c" / "tok512.bin")


def test_training_checkpoints(models):
    folder = models / "mamba-cmapss"
    with open_checkpoint(folder / "checkpoint_epoch_10.pt") as checkpoint:
        assert checkpoint.step == 10 and checkpoint.metadata["epoch"] == 9
        assert checkpoint.notes == ["taken as step 10, but the file says epoch 9"]
        assert "layers.0.ssm.conv1d.weight" in checkpoint.tensors
        assert {"optimizer_state_dict"} <= {skip.name for skip in checkpoint.skipped}
        assert checkpoint.config["dataset"] == "FD001"
    # torch.load(weights_only=True) refuses this one for one numpy scalar.
    with open_checkpoint(folder / "lstm_baseline.pt") as checkpoint:
        assert checkpoint.read("lstm.weight_ih_l0").shape[1] == 64
        assert all(np.isfinite(checkpoint.read(name)).all() for name in checkpoint.tensors)
    with pytest.raises(SourceError, match="holds 5 files with weights"):
        open_checkpoint(folder)


def test_the_zoo(models):
    zoo = models / "reader-zoo"
    opened = 0
    for path in sorted(zoo.rglob("*.*")):
        if path.is_dir() or path.name == "broken.pt":
            continue
        with open_checkpoint(path) as checkpoint:
            for name, info in checkpoint.tensors.items():
                assert checkpoint.read(name).shape == info.shape
            opened += len(checkpoint.tensors) > 0
    assert opened == len([p for p in zoo.rglob("*.*") if p.is_file()]) - 1
    with pytest.raises(FormatError, match=r"broken.pt is text that begins with 'abc'"):
        open_checkpoint(zoo / "reader" / "test_data" / "broken.pt")


def test_two_trainings_of_one_network_are_not_the_same(models):
    weights = models / "reader-zoo" / "weights"
    with open_checkpoint(weights / "mnist.pt") as one, open_checkpoint(weights / "mnist.safetensors") as other:
        assert one.layout_key == other.layout_key
        assert one.content_hash() != other.content_hash()


def test_odd_things_in_the_zoo(models):
    data = models / "reader-zoo" / "reader" / "test_data"
    with open_checkpoint(data / "legacy_uncloned_views.pt") as checkpoint:
        assert checkpoint.read("tensor1").tolist() == list(range(10, 20))
        assert checkpoint.read("tensor2").tolist() == list(range(50, 60))
        checkpoint.read("tensor1")
        assert checkpoint.bytes_read == 3 * 40
    with open_checkpoint(data / "special_values.pt") as checkpoint:
        assert np.isnan(checkpoint.read("tensor")).any() and np.isinf(checkpoint.read("tensor")).any()
    with open_checkpoint(data / "complex_structure.pt") as checkpoint:
        assert "encoder.layer_0.weight" in checkpoint.tensors
        assert checkpoint.config == {"hidden_size": 4, "num_layers": 2}
    with open_checkpoint(models / "reader-zoo/pytorch-tests/tests/top_level_key/top_level_key.pt") as checkpoint:
        assert set(checkpoint.tensors) == {"conv1.weight", "conv1.bias"}


def test_grokking_pairs(models):
    for path in sorted((models / "grokking-pairs").iterdir()):
        with open_checkpoint(path) as checkpoint:
            assert len(checkpoint.tensors) == 16 and checkpoint.tensors["blocks.0.attn.causal_mask"].dtype == "bool"
            assert checkpoint.read("pos_emb").dtype == np.float32


def test_checkpoints_of_one_trajectory_in_torch_files(shared_data):
    folder = shared_data / "trajectories" / "willmore-mlp"
    with open_checkpoint(folder / "best_model.pt") as best, open_checkpoint(folder / "checkpoint_epoch_2.pt") as second:
        assert best.step == second.step == 2
        assert best.content_hash() == second.content_hash()
    with open_checkpoint(folder / "latest_model.pt") as latest:
        assert latest.step == 35

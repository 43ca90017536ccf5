"""Quantised weights: multiplied out, or left out with the reason; raw integers never come through as weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.errors import SourceError

W = torch.randn(130, 260, generator=torch.Generator().manual_seed(0))
FP8 = torch.float8_e4m3fn


def opened(tmp_path, tensors):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "x")
    return open_checkpoint(tmp_path / "x", hashing=True)


def blocks(weight: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise by blocks, plainly: the largest entry of each becomes 448."""
    scale = torch.zeros(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
    stored = torch.zeros(weight.shape, dtype=FP8)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            part = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            scale[i, j] = weight[part].abs().max() / 448
            stored[part] = (weight[part] / scale[i, j]).to(FP8)
    return stored, scale


@pytest.mark.parametrize("suffix", ["weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize(("rows", "columns"), [(130, 260), (1, 260), (128, 128), (64, 64), (130, 1)])
def test_fp8_is_multiplied_by_its_scales(tmp_path, suffix, rows, columns):
    stored, scale = blocks(W, rows, columns)
    tensors = {"a.weight": stored, f"a.{suffix}": scale, "a.input_scale": torch.ones(1), "b.weight": W}
    with opened(tmp_path, tensors) as checkpoint:
        assert set(checkpoint.tensors) == {"a.weight", "b.weight"}
        info = checkpoint.tensors["a.weight"]
        assert (info.dtype, info.encoding, info.nbytes) == ("float32", "float8_e4m3fn with scales", W.numel())
        wanted = stored.float() * scale.repeat_interleave(rows, 0)[:130].repeat_interleave(columns, 1)[:, :260]
        read = checkpoint.read("a.weight")
        np.testing.assert_array_equal(read, wanted.numpy())
        np.testing.assert_allclose(read, W.numpy(), rtol=2**-4, atol=1e-2)
        np.testing.assert_array_equal(checkpoint.read("a.weight", slice(100, 130)), read[100:])
        out = np.empty_like(read)
        checkpoint.read_into("a.weight", out)
        np.testing.assert_array_equal(out, read)
        assert checkpoint.bytes_read > 0 and len(checkpoint.digest("a.weight")) == 64


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (130,), (130, 1)])
def test_a_scale_for_all_or_for_each_row(tmp_path, shape):
    scale = torch.rand(shape) + 0.5
    with opened(tmp_path, {"a.weight": W.to(FP8), "a.weight_scale": scale}) as checkpoint:
        factor = scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(())
        np.testing.assert_array_equal(checkpoint.read("a.weight"), (W.to(FP8).float() * factor).numpy())


def test_fp8_without_scales_is_plain_numbers(tmp_path):
    with opened(tmp_path, {"a.weight": W.to(FP8), "b.scale": torch.ones(3)}) as checkpoint:
        assert checkpoint.tensors["a.weight"].dtype == "float8_e4m3fn"
        np.testing.assert_array_equal(checkpoint.read("a.weight"), W.to(FP8).float().numpy())


def test_llm_int8(tmp_path):
    """bitsandbytes: entry = integer times its row's largest entry over 127."""
    largest = W.abs().amax(dim=1)
    integers = (W / largest[:, None] * 127).round().to(torch.int8)
    tensors = {"a.weight": integers, "a.SCB": largest, "a.weight_format": torch.zeros((), dtype=torch.uint8)}
    with opened(tmp_path, tensors) as checkpoint:
        assert list(checkpoint.tensors) == ["a.weight"]
        np.testing.assert_allclose(checkpoint.read("a.weight"), W.numpy(), atol=float(largest.max()) / 253)


def test_scales_in_another_shard(tmp_path, sharded):
    import json

    save_file({"a.weight": W.to(FP8)}, tmp_path / "s1")
    save_file({"a.weight_scale": torch.tensor(3.0)}, tmp_path / "s2")
    index = {"weight_map": {"a.weight": "s1", "a.weight_scale": "s2"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with open_checkpoint(tmp_path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("a.weight"), W.to(FP8).float().numpy() * 3)


I32, U8, I8 = (lambda *shape, dtype=d: torch.zeros(shape, dtype=dtype) for d in (torch.int32, torch.uint8, torch.int8))
HALF = torch.ones(2, 8).half()
PACKED = {
    "GPTQ": ({"a.qweight": I32(4, 8), "a.qzeros": I32(2, 1), "a.scales": HALF, "a.g_idx": I32(16)}, "a.weight", "GPTQ"),
    "AWQ": ({"a.qweight": I32(16, 1), "a.qzeros": I32(2, 1), "a.scales": HALF}, "a.weight", "AWQ"),
    "bitsandbytes": ({"a.weight": U8(64, 1), "a.weight.absmax": torch.ones(2), "a.weight.quant_map": torch.ones(16),
                      "a.weight.quant_state.bitsandbytes__nf4": U8(80)}, "a.weight", "bitsandbytes 4 bit"),
    "compressed-tensors": ({"a.weight_packed": I32(4, 2), "a.weight_scale": HALF, "a.weight_shape": torch.ones(2)},
                           "a.weight", "compressed-tensors"),
    "NVFP4": ({"a.weight": U8(4, 2), "a.weight_scale": torch.ones(4, 1).to(FP8), "a.weight_scale_2": torch.ones(1)},
              "a.weight", "NVFP4"),
    "zero points": ({"a.weight": I8(4, 2), "a.weight_scale": torch.ones(4, 1), "a.weight_zero_point": I8(4, 1)},
                    "a.weight", "zero points"),
    "HQQ": ({"a.W_q": U8(4, 2), "a.scale": torch.ones(4, 1), "a.zero": torch.ones(4, 1)}, "a.weight", "HQQ"),
    "quanto": ({"a.weight._data": I8(4, 2), "a.weight._scale": torch.ones(4, 1)}, "a.weight", "quanto"),
    "EETQ": ({"a.weight": I8(4, 2), "a.weight_scales": torch.ones(2)}, "a.weight", "EETQ"),
    "MXFP4": ({"e.gate_blocks": U8(2, 4, 1, 16), "e.gate_scales": U8(2, 4, 1)}, "e.gate", "MXFP4"),
    "no fit": ({"a.weight": I8(4, 6), "a.weight_scale": torch.ones(3, 5)}, "a.weight", "does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("case", PACKED)
def test_packed_weights_are_left_out(tmp_path, case):
    tensors, name, how = PACKED[case]
    with opened(tmp_path, {**tensors, "good.weight": torch.ones(2, 2), "head.scale": torch.ones(3)}) as checkpoint:
        assert set(checkpoint.tensors) == {"good.weight", "head.scale"}
        assert [skip.name for skip in checkpoint.skipped] == [name]
        assert checkpoint.skipped[0].reason.startswith("quantised: ") and how in checkpoint.skipped[0].reason
        with pytest.raises(SourceError, match="has no tensor"):
            checkpoint.read(name)


@pytest.mark.parametrize(
    "names",
    [
        ["attn.scale", "attn.weight"],
        ["logit_scale"],
        ["layer_scale.gamma"],
        ["gate.scales"],
        ["body_blocks"],
        ["x.zero"],
    ],
)
def test_ordinary_names_are_left_alone(tmp_path, names):
    with opened(tmp_path, {name: torch.ones(2, 2) for name in names}) as checkpoint:
        assert set(checkpoint.tensors) == set(names) and not checkpoint.skipped

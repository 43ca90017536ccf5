"""What torch.save writes today, against torch itself."""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.errors import FormatError, SourceError

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def values(tensor: torch.Tensor) -> np.ndarray:
    """What reading must give: narrow floats as float32."""
    if tensor.dtype.is_floating_point and tensor.dtype.itemsize < 4:
        tensor = tensor.to(torch.float32)
    return tensor.detach().numpy()


def saved(path: Path, value, **how):
    torch.save(value, path, **how)
    return open_checkpoint(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path, dtype, legacy):
    if legacy and dtype in (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2):
        pytest.skip("the legacy format has no storage of this type")
    tensor = (torch.arange(12).reshape(3, 4) % 2 if dtype is torch.bool else torch.arange(-4, 8).reshape(3, 4)).to(
        dtype
    )
    with saved(tmp_path / "x", {"a": tensor}, _use_new_zipfile_serialization=not legacy) as checkpoint:
        info = checkpoint.tensors["a"]
        assert (info.dtype, info.shape, info.nbytes) == (str(dtype)[6:], (3, 4), 12 * dtype.itemsize)
        np.testing.assert_array_equal(checkpoint.read("a"), values(tensor))
        np.testing.assert_array_equal(checkpoint.read("a", slice(1, 3)), values(tensor)[1:])


def test_bits_survive(tmp_path):
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, 3.4e38])
    with saved(tmp_path / "x", {"a": odd, "b": odd.to(torch.bfloat16)}) as checkpoint:
        assert checkpoint.read("a").tobytes() == odd.numpy().tobytes()
        assert checkpoint.read("b").tobytes() == odd.to(torch.bfloat16).float().numpy().tobytes()


views = st.sampled_from(
    ["t", "rows", "columns", "step", "diagonal", "row", "permuted", "whole", "scalar", "empty", "flip"]
)


def view_of(base: torch.Tensor, kind: str) -> torch.Tensor:
    return {
        "t": base.t(), "rows": base[2:4], "columns": base[:, 1:3], "step": base[::2, ::3], "diagonal": base.diagonal(),
        "row": base[1], "permuted": base.reshape(2, 4, 5).permute(2, 0, 1), "whole": base, "scalar": base[2, 3],
        "empty": base[3:3], "flip": base.reshape(-1)[5:].as_strided((3, 4), (2, 7)),
    }[kind]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(views, min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int16]),
    legacy=st.booleans(),
    start=st.integers(0, 3),
)
def test_views_of_one_storage(tmp_path, kinds, dtype, legacy, start):
    base = torch.arange(40).reshape(8, 5).to(dtype)
    tensors = {f"{i}.{kind}": view_of(base, kind) for i, kind in enumerate(kinds)}
    with saved(tmp_path / "x", tensors, _use_new_zipfile_serialization=not legacy) as checkpoint:
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(checkpoint.read(name), values(tensor))
            if tensor.ndim:
                np.testing.assert_array_equal(checkpoint.read(name, slice(start, None)), values(tensor)[start:])
                out = np.empty(tensor.shape, values(tensor).dtype)
                checkpoint.read_into(name, out)
                np.testing.assert_array_equal(out, values(tensor))
        same = {name for name in tensors if name.split(".")[1] == kinds[0] and kinds[0] != "empty"}
        assert set(checkpoint.aliases) >= same - {min(same, default="")}


def test_a_narrow_view_of_a_wide_matrix_is_read_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr("ckpt_tools.checkpoint.strided._SPAN", 100)
    wide = torch.arange(20_000.0).reshape(100, 200)
    state = {"narrow": wide[:, 3:5], "block": wide.reshape(10, 10, 200)[:, 2:4, :3], "wide": wide}
    with saved(tmp_path / "x", state) as checkpoint:
        for name, tensor in state.items():
            np.testing.assert_array_equal(checkpoint.read(name), tensor.numpy())
        checkpoint.close()
    with open_checkpoint(tmp_path / "x") as checkpoint:
        checkpoint.read("narrow")
        assert checkpoint.bytes_read == 100 * 2 * 4


def test_a_tied_head_is_an_alias_and_read_once(tmp_path):
    embed = torch.nn.Embedding(10, 4)
    state = {"embed.weight": embed.weight, "head.weight": embed.weight, "copy.weight": embed.weight.detach().clone()}
    with saved(tmp_path / "x", state) as checkpoint:
        assert checkpoint.aliases == {"head.weight": "embed.weight"}
        assert set(checkpoint.tensors) == {"embed.weight", "copy.weight"}
        np.testing.assert_array_equal(checkpoint.read("head.weight"), embed.weight.detach().numpy())


def test_only_the_bytes_of_a_tensor_are_read(tmp_path):
    state = {"small": torch.ones(3), "large": torch.zeros(500, 100), "turned": torch.arange(200.0).reshape(20, 10).t()}
    with saved(tmp_path / "x", state) as checkpoint:
        assert checkpoint.bytes_read == 0
        checkpoint.read("small")
        assert checkpoint.bytes_read == 12
        checkpoint.read("large", slice(0, 5))
        assert checkpoint.bytes_read == 12 + 5 * 400
        checkpoint.read("turned", slice(0, 1))
        assert checkpoint.bytes_read <= 12 + 5 * 400 + 800


def test_a_digest_is_that_of_the_same_tensor_in_safetensors(tmp_path, save):
    base = torch.arange(12.0).reshape(3, 4)
    state = {"a": base, "b": base.t(), "c": base.to(torch.bfloat16).t()}
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, tmp_path / "st")
    for hashing in (False, True):
        torch.save(state, tmp_path / "x")
        with open_checkpoint(tmp_path / "x", hashing=hashing) as one, open_checkpoint(tmp_path / "st") as other:
            for name in state:
                if hashing:
                    one.read(name)
                assert one.digest(name) == other.digest(name)
            assert one.content_hash() == other.content_hash()


class Net(torch.nn.Module):
    """A model that somebody pickled whole."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.stack = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2, bias=False))
        self.register_buffer("transient", torch.ones(1), persistent=False)

    def forward(self, x):
        return self.stack(self.first(x))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_whole_module_gives_its_state_dict(tmp_path, legacy):
    net = Net()
    how = {"_use_new_zipfile_serialization": not legacy}
    with saved(tmp_path / "x", net, **how) as bare, saved(tmp_path / "y", {"model": net, "epoch": 4}, **how) as nested:
        for checkpoint in (bare, nested):
            assert set(checkpoint.tensors) == set(net.state_dict())
            for name, tensor in net.state_dict().items():
                np.testing.assert_array_equal(checkpoint.read(name), tensor.numpy())
            assert any("Net" in skip.name and "never run" in skip.reason for skip in checkpoint.skipped)
        assert nested.step == 4


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript(tmp_path):
    net = Net().eval()
    torch.jit.trace(net, torch.ones(2, 3)).save(str(tmp_path / "x"))
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert checkpoint.format == "TorchScript"
        wanted = {k: v for k, v in net.state_dict().items() if "norm" not in k}
        assert set(wanted) <= set(checkpoint.tensors)
        for name, tensor in wanted.items():
            np.testing.assert_array_equal(checkpoint.read(name), tensor.numpy())


def test_what_a_script_keeps_beside_the_weights(tmp_path):
    value = {
        "state_dict": torch.nn.Linear(2, 3).state_dict(),
        "args": argparse.Namespace(lr=0.1, layers=[1, 2], path=Path("/runs/a")),
        "step": np.int64(7),
        "best": np.float32(0.5),
        "rng": torch.get_rng_state(),
        "dtype": torch.float16,
        "device": torch.device("cuda:1"),
    }
    with saved(tmp_path / "x", value) as checkpoint:
        assert set(checkpoint.tensors) == {"weight", "bias"}
        assert checkpoint.step == 7 and checkpoint.metadata["best"] == 0.5
        assert checkpoint.config == {"lr": 0.1, "layers": [1, 2], "path": "/runs/a"}
        assert [(skip.name, skip.reason) for skip in checkpoint.skipped] == [
            ("rng", "state of random number generators, not weights")
        ]


def test_a_parameter_with_attributes_and_a_subclass(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    parameter.tensor_model_parallel = True
    with saved(tmp_path / "x", {"a": parameter, "b": torch.nn.Buffer(torch.zeros(2))}) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("a"), np.ones((2, 3), np.float32))
        assert checkpoint.read("b").tolist() == [0.0, 0.0]


class Tagged(torch.Tensor):
    """A tensor with attributes, which is pickled as a call of `_rebuild_from_type_v2`."""


def test_a_subclass_of_tensor(tmp_path):
    tagged = torch.arange(4.0).reshape(2, 2).as_subclass(Tagged)
    tagged.tag = "x"
    with saved(tmp_path / "x", {"w": tagged, "t": tagged.t()}) as checkpoint:
        assert checkpoint.read("w").tolist() == [[0.0, 1.0], [2.0, 3.0]]
        assert checkpoint.read("t").tolist() == [[0.0, 2.0], [1.0, 3.0]]


def unreadable() -> dict[str, tuple[torch.Tensor, str]]:
    dense = torch.eye(3)
    made = {
        "coo": (dense.to_sparse(), "sparse"),
        "csr": (dense.to_sparse_csr(), "sparse"),
        "meta": (torch.empty(3, device="meta"), "meta device"),
        "nested": (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        "qint8": (torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8), "quantised"),
    }
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["coo", "csr", "meta", "nested", "qint8"])
def test_a_tensor_that_is_not_read_says_why(tmp_path, kind):
    tensor, reason = unreadable()[kind]
    with saved(tmp_path / "x", {"good": torch.ones(2, 2), "bad": tensor}) as checkpoint:
        assert set(checkpoint.tensors) == {"good"}
        assert [skip.name for skip in checkpoint.skipped] == ["bad"]
        assert reason in checkpoint.skipped[0].reason
    with pytest.raises(FormatError, match=f"holds no tensors that can be read, out of 1.*{reason}"):
        saved(tmp_path / "y", {"bad": tensor})


def test_an_expanded_tensor(tmp_path):
    state = {"one": torch.ones(1, 4).expand(3, 4), "huge": torch.ones(1).expand(2**20, 2**20), "w": torch.ones(2, 2)}
    with saved(tmp_path / "x", state) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("one"), np.ones((3, 4), np.float32))
        assert "huge" not in checkpoint.tensors
        assert next(s.reason for s in checkpoint.skipped if s.name == "huge").endswith("are 4 stored ones repeated")


def test_a_file_without_tensors_is_passed_over(tmp_path):
    torch.save({"lr": 0.1, "names": ["a"]}, tmp_path / "settings.pt")
    with pytest.raises(FormatError, match="is a torch file that holds no tensors of a model"):
        open_checkpoint(tmp_path / "settings.pt")
    torch.save(torch.optim.Adam(torch.nn.Linear(2, 2).parameters()).state_dict(), tmp_path / "o.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.pt")
    with open_checkpoint(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["w"]


def test_an_optimizer_is_no_model(tmp_path):
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "x")
    with pytest.raises(FormatError, match=r"holds no tensors of a model. Left out: state \(optimizer state"):
        open_checkpoint(tmp_path / "x")
    torch.save((layer.state_dict(), optimizer.state_dict()), tmp_path / "x")
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert set(checkpoint.tensors) == {"weight", "bias"}


def test_stable_baselines(tmp_path):
    policy, optimizer = io.BytesIO(), io.BytesIO()
    state = {"mlp.0.weight": torch.ones(2, 3), "log_std": torch.zeros(2)}
    torch.save(state, policy)
    torch.save({"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}, optimizer)
    with zipfile.ZipFile(tmp_path / "ppo.zip", "w") as archive:
        archive.writestr("data", '{"n_steps": 5}')
        archive.writestr("policy.pth", policy.getvalue())
        archive.writestr("policy.optimizer.pth", optimizer.getvalue())
        archive.writestr("_stable_baselines3_version", "2.0")
    with open_checkpoint(tmp_path / "ppo.zip") as checkpoint:
        assert checkpoint.format == "Stable-Baselines3"
        for name, tensor in state.items():
            np.testing.assert_array_equal(checkpoint.read(name), tensor.numpy())
        assert [skip.name for skip in checkpoint.skipped] == ["policy.optimizer.pth"]
    with pytest.raises(SourceError, match=r"has no part 'policcy'. Did you mean 'policy'"):
        open_checkpoint(tmp_path / "ppo.zip", part="policcy")


def test_an_unknown_zip_is_named_by_its_records(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    with pytest.raises(FormatError, match=r"zip archive of no known kind \(word/document.xml\)"):
        open_checkpoint(tmp_path / "x.zip")


def test_a_prefix_of_a_file_is_truncated_wherever_it_ends(tmp_path):
    torch.save({"a": torch.ones(100), "b": torch.ones(5)}, tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    for end in range(0, len(whole), 37):
        (tmp_path / "y").write_bytes(whole[:end])
        with pytest.raises(FormatError):
            open_checkpoint(tmp_path / "y")

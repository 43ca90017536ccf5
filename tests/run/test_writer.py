"""Runs on disk: every file is what its standard readers expect, and whole at any moment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file

from ckpt_tools.errors import RunError
from ckpt_tools.run import RunWriter, read_metrics, read_probe, read_run
from ckpt_tools.run.files import write_file
from ckpt_tools.run.template import CODES, Template

TORCH_DTYPES = [getattr(torch, name) for name in CODES]


def writer(path: Path, **facts: Any) -> RunWriter:
    return RunWriter(path, **{"family": "transformer", "family_version": 1, "config": {"layers": 1}, **facts})


def every_dtype() -> dict[str, torch.Tensor]:
    raw = torch.arange(48, dtype=torch.uint8)
    found = {str(d): raw.view(d).reshape(2, -1) if d != torch.bool else raw % 2 == 0 for d in reversed(TORCH_DTYPES)}
    return {
        **found,
        "odd": torch.tensor([1, 2, 3], dtype=torch.int8),
        "scalar": torch.tensor(0.5),
        "empty": torch.ones(0, 3),
    }


def test_every_dtype_reads_back_bit_equal(tmp_path: Path) -> None:
    tensors = every_dtype()
    with writer(tmp_path / "run") as run:
        run.save(128, tensors)
    file = tmp_path / "run/step-000128/model.safetensors"
    back = load_file(file)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        assert back[name].reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()
    with safe_open(file, "pt") as opened:
        assert set(opened.keys()) == set(tensors)
        assert opened.metadata() == {"format": "pt"}


def test_each_tensor_starts_at_a_multiple_of_its_item_size(tmp_path: Path) -> None:
    template = Template(every_dtype())
    assert len(template.header) % 8 == 0
    header = json.loads(template.header[8:])
    for name, (dtype, _) in template.layout.items():
        size = 1 if dtype == "bool" else getattr(torch, dtype).itemsize
        assert header[name]["data_offsets"][0] % size == 0


arrays = hnp.arrays(
    st.sampled_from(
        [np.float64, np.float32, np.float16, np.int64, np.int8, np.bool_, np.dtype(">f4"), np.dtype(">i2")]
    ),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@given(st.dictionaries(st.text(min_size=1), arrays, min_size=1))
def test_numpy_arrays_read_back(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any]) -> None:
    tensors.pop("__metadata__", None)
    file = tmp_path_factory.mktemp("arrays") / "probe.safetensors"
    write_file(file, Template(tensors).buffers(tensors))
    back = load_numpy(file)
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(back[name], array)


def test_views_and_parameters_are_written_in_their_order(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    with writer(tmp_path / "run") as run:
        run.save(0, {"t": weight.T, "half": weight[:, ::2], "np": np.arange(6.0).reshape(2, 3).T})
    back = load_file(tmp_path / "run/step-000000/model.safetensors")
    assert torch.equal(back["t"], weight.T)
    assert torch.equal(back["half"], weight[:, ::2])
    assert back["np"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_all_headers_are_equal(tmp_path: Path) -> None:
    with writer(tmp_path / "run") as run:
        for step in range(3):
            run.save(step, {"a": torch.randn(3, 2), "b": torch.randn(5)})
    files = [(tmp_path / f"run/step-{s:06d}/model.safetensors").read_bytes() for s in range(3)]
    length = 8 + int.from_bytes(files[0][:8], "little")
    assert len({f[:length] for f in files}) == 1
    assert len(set(files)) == 3


def test_more_tensors_than_one_system_call_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, views: whole(fd, [b"".join(views)[:1001]]))
    tensors = {f"t{i}": torch.full((3,), float(i)) for i in range(1500)}
    with writer(tmp_path / "run") as run:
        run.save(0, tensors)
    back = load_file(tmp_path / "run/step-000000/model.safetensors")
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_tied_tensors_are_written_once(tmp_path: Path) -> None:
    shared = torch.ones(4, 2)
    with writer(tmp_path / "run", tied={"unembed.weight": "embed.weight"}) as run:
        run.save(0, {"embed.weight": shared, "unembed.weight": shared})
    assert list(load_file(tmp_path / "run/step-000000/model.safetensors")) == ["embed.weight"]
    info = read_run(tmp_path / "run")
    assert info.tied == {"unembed.weight": "embed.weight"}
    assert info.tensors == {"embed.weight": {"dtype": "float32", "shape": [4, 2]}}


def test_tied_to_nothing(tmp_path: Path) -> None:
    with writer(tmp_path / "run", tied={"a": "b"}) as run, pytest.raises(RunError, match="'b' is missing, and tied"):
        run.save(0, {"a": torch.ones(1)})


def test_run_json_holds_what_was_given(tmp_path: Path) -> None:
    facts: dict[str, Any] = {
        "task": "markov",
        "task_config": {"pi": [0.75, 0.25]},
        "train": {"lr": 0.2},
        "seed": 3,
        "schedule": "every:20",
    }
    run = writer(tmp_path / "run", **facts, probe={"tokens": np.arange(4), "weights": torch.ones(4)})
    assert read_run(tmp_path / "run").status == run.status == "running"
    run.finish()
    info = read_run(tmp_path / "run")
    assert (info.family, info.family_version, info.config, info.status) == ("transformer", 1, {"layers": 1}, "finished")
    assert {key: getattr(info, key) for key in facts} == facts
    assert info.versions["torch"] == torch.__version__
    probe = read_probe(tmp_path / "run")
    assert probe["tokens"].tolist() == [0, 1, 2, 3]
    assert probe["weights"].dtype == np.float32


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"a": torch.ones(2, 2)}, "Tensor 'b' is missing"),
        ({"a": torch.ones(2, 2), "b": torch.ones(3), "c": torch.ones(1)}, "Tensor 'c' is new"),
        ({"a": torch.ones(2, 2), "b": torch.ones(4)}, "Tensor 'b' is float32 [4], but float32 [3] in the run's other"),
        ({"a": torch.ones(2, 2).half(), "b": torch.ones(3)}, "Tensor 'a' is float16 [2, 2], but float32 [2, 2]"),
        ({"a": [1.0], "b": torch.ones(3)}, "Tensor 'a' is of type list, which safetensors cannot hold"),
        ({"a": np.array(["x"]), "b": torch.ones(3)}, "Tensor 'a' is of type str32"),
    ],
)
def test_changed_tensors_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with writer(tmp_path / "run") as run:
        run.save(0, {"a": torch.ones(2, 2), "b": torch.ones(3)})
        with pytest.raises(RunError) as caught:
            run.save(7, changed)
    assert message in str(caught.value)
    assert "step 7" in str(caught.value)
    assert not list((tmp_path / "run").glob("*000007*"))


@pytest.mark.parametrize("step", [-1, 1.0, True])
def test_bad_step(tmp_path: Path, step: Any) -> None:
    with writer(tmp_path / "run") as run, pytest.raises(RunError, match="must be an int of at least 0"):
        run.save(step, {"a": torch.ones(1)})


def test_taken_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunError, match=r"is not empty\. Continue its run with --resume, or choose another --out"):
        writer(tmp_path)
    with pytest.raises(RunError, match="Cannot create the run folder"):
        writer(tmp_path / "notes.txt")


def test_the_way_out_decides_the_status(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writer(tmp_path / "a"):
        raise KeyboardInterrupt
    assert read_run(tmp_path / "a").status == "interrupted"
    with writer(tmp_path / "b") as run:
        run.finish("interrupted")
    assert read_run(tmp_path / "b").status == "interrupted"
    with pytest.raises(RunError, match="one of running, finished, interrupted"):
        run.finish("done")


def test_metrics_are_merged_by_step(tmp_path: Path) -> None:
    with writer(tmp_path / "run") as run:
        run.save(0, {"a": torch.ones(1)}, {"accuracy": 0.25})
        run.log(0, {"loss": 0.1 + 0.2})
        run.log(1, {"loss": float("inf")})
        run.log(2, {"loss": 1.0})
    metrics = read_metrics(tmp_path / "run")
    assert metrics["step"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(metrics["loss"], [0.1 + 0.2, np.nan, 1.0])
    np.testing.assert_array_equal(metrics["accuracy"], [0.25, np.nan, np.nan])


def test_resume_cuts_metrics_and_replaces_checkpoints(tmp_path: Path) -> None:
    run = writer(tmp_path / "run")
    for step in range(4):
        run.save(step, {"a": torch.full((2,), float(step))}, {"loss": step})
    run.finish("interrupted")
    (tmp_path / "run/.step-000004").mkdir()
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    run = RunWriter.resume(tmp_path / "run", step=2)
    assert read_run(tmp_path / "run").status == "running"
    run.save(2, {"a": torch.full((2,), -1.0)}, {"loss": 20})
    run.finish()
    assert read_metrics(tmp_path / "run")["loss"].tolist() == [0, 1, 20]
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 3
    assert load_file(tmp_path / "run/step-000002/model.safetensors")["a"].tolist() == [-1, -1]
    assert not list((tmp_path / "run").glob(".*"))


def test_resume_with_another_model(tmp_path: Path) -> None:
    with writer(tmp_path / "run") as run:
        run.save(0, {"a": torch.ones(2)})
    with RunWriter.resume(tmp_path / "run", step=1) as run, pytest.raises(RunError, match=r"not those in run\.json"):
        run.save(1, {"a": torch.ones(3)})


def test_full_disk_leaves_earlier_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, views: list[memoryview]) -> int:
        raise OSError(28, "No space left on device")

    run = writer(tmp_path / "run")
    run.save(0, {"a": torch.ones(2)})
    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(RunError, match=r"checkpoint of step 1 into .*: No space left on device"):
        run.save(1, {"a": torch.ones(2)})
    monkeypatch.undo()
    run.finish("interrupted")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["metrics.jsonl", "run.json", "step-000000"]

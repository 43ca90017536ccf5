"""Devices: chosen or refused, tested before use, and the same numbers on one that is not the CPU."""

import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from ckpt_tools import analyze
from ckpt_tools.cli.main import cli
from ckpt_tools.engine import device, preview, selftest
from ckpt_tools.engine.device import described, exactly, gpu_of, placed, resolve, workers_for
from ckpt_tools.engine.plan import Job
from ckpt_tools.errors import OptionError

PRETEND = Path(__file__).with_name("pretend.py")
RUNS = ("transformer", "population", "attn_mlp", "mlp", "emb_mlp", "gpt", "mamba 1", "mamba 2", "llama")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes torch say it sees so many GPUs."""

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return see


@pytest.fixture
def trajectory(tmp_path: Path) -> Path:
    for step in range(2):
        folder = tmp_path / "t" / f"step-{step}"
        folder.mkdir(parents=True)
        save_file({"w": np.random.default_rng(step).standard_normal((300, 260))}, folder / "model.safetensors")
    return tmp_path / "t"


def test_what_is_asked_for_is_found(gpus: Any) -> None:
    gpus(2)
    assert [resolve(name) for name in ("cpu", "cuda", "cuda:1", "auto")] == ["cpu", "cuda:0", "cuda:1", "cuda:0"]
    assert resolve("cuda", "SpawnProcess-3") == "cuda:1"
    assert (workers_for("cuda"), workers_for("auto"), workers_for("cuda:1"), workers_for("cpu")) == (2, 2, 1, 1)
    gpus(0)
    assert (resolve("auto"), workers_for("auto")) == ("cpu", 1)


def test_what_is_not_there_is_refused_with_what_to_do(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(asked: str, match: str) -> None:
        with pytest.raises(OptionError, match=match):
            resolve(asked)

    for name in ("gpu", "cuda:", "cuda:-1", "cuda:1.5", "", "CPU"):
        refused(name, f"must be auto, cpu, cuda, cuda:N or mps. Got '{name}'")
    gpus(0)
    monkeypatch.setattr(torch.version, "cuda", None)
    refused("cuda", r"--device cuda: this torch, .*, is built for CPUs only. Install one with CUDA .* on the CPU")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    refused("cuda:1", r"--device cuda:1: torch finds no GPU. .*CUDA_VISIBLE_DEVICES.* leave --device out")
    gpus(2)
    refused("cuda:2", r"torch sees 2 GPU\(s\) here, cuda:0 to cuda:1")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    refused("mps", "no Apple GPU")


@pytest.mark.parametrize(
    ("worker", "count", "visible", "gpu"),
    [
        ("", 4, "", 0),
        ("SpawnProcess-1", 2, "", 1),
        ("SpawnProcess-2", 2, "", 0),
        ("5", 4, "", 1),  # dask.distributed.LocalCluster numbers its workers
        ("SLURMCluster-3-2", 4, "0,1,2,3", 2),
        ("SLURMCluster-7", 1, "3", 0),
        ("1", 2, "1,0", 0),  # dask-cuda: the list begins with the worker's own
        ("0", 2, "0,1", 0),
        ("3", 2, "GPU-5f3a,GPU-91c2", 1),
        ("host", 2, "0,1", 0),
    ],
)
def test_workers_take_turns(worker: str, count: int, visible: str, gpu: int) -> None:
    assert gpu_of(worker, count, visible) == gpu


def test_processes_of_a_pool_have_numbers() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(eval, "__import__('multiprocessing').current_process().name").result()[-1].isdigit()


def _exactness() -> list[Any]:
    return [read() for read, *_ in device._settings()]


@pytest.mark.parametrize("how", ["old", "new"])
def test_nothing_is_rounded_while_analyzing_and_all_is_as_before(how: str) -> None:
    products: Any = torch.backends.cuda.matmul
    start = _exactness()
    try:
        if how == "old":
            torch.set_float32_matmul_precision("high")
        else:
            products.fp32_precision = "tf32"  # from now on torch refuses to read the old setting
        before = _exactness()
        with pytest.raises(KeyError), exactly():
            assert _exactness() == [exact for *_, exact in device._settings()] != before
            assert not torch.backends.cudnn.allow_tf32
            if how == "old":
                assert torch.get_float32_matmul_precision() == "highest"
            raise KeyError
        assert _exactness() == before
    finally:
        products.fp32_precision = "ieee"
        torch.set_float32_matmul_precision("highest")
        products.fp32_precision = "none"
    assert _exactness() == start


class Rounding(TorchDispatchMode):
    """Products of float32 with 10 bits, as TF32 has them."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in ("mm", "bmm", "addmm", "baddbmm"):
            args = tuple(self._rounded(t) for t in args)
        return function(*args, **(kwargs or {}))

    def _rounded(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        return ((value.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_a_sound_device_passes_with_room() -> None:
    found = dict(selftest.errors("cpu"))
    assert len(found) == 11
    assert max(found.values()) < 0.5
    assert 0 < found["product in float32"] < 0.1 and 0 < found["Hessian-vector product in float32"] < 0.1


def test_tf32_is_refused_with_the_numbers() -> None:
    selftest.require_accurate.cache_clear()
    with Rounding(), pytest.raises(OptionError, match=r"product in float32: error \d+ of .*Hessian-vector product"):
        selftest.require_accurate("cpu")
    selftest.require_accurate("cpu")  # a refusal is not remembered


def test_a_poor_eigenvalue_solver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    solve = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda gram: solve(gram.float()).double())
    missed = {what for what, error in selftest.errors("cpu") if not error <= 1}
    assert missed == {f"singular values, {what}" for what in ("flat", "graded", "clustered")}


def test_a_plan_is_placed_once_its_device_has_passed(trajectory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(device, "resolve", lambda *how: f"cuda:{how[1][-1]}")
    monkeypatch.setattr(device, "require_accurate", tried.append)
    plan = Job(str(trajectory), ("rank",), device="cuda").plan()
    with placed(plan, "SpawnProcess-3") as there:
        assert (there.device, there.steps, tried) == ("cuda:3", plan.steps, ["cuda:3"])
    assert plan.device == "cpu"


def test_a_refused_device_leaves_nothing_behind(trajectory: Path, tmp_path: Path, gpus: Any) -> None:
    gpus(0)
    with pytest.raises(OptionError, match="--device cuda"):
        analyze(trajectory, ["rank"], output=tmp_path / "r.h5", device="cuda")
    with pytest.raises(OptionError, match="--device cuda"):
        preview(trajectory, ["rank"], output=tmp_path / "r.h5", device="cuda")
    done = CliRunner().invoke(cli, ["analyze", str(trajectory), "-p", "rank", "--device", "gpu"])
    assert isinstance(done.exception, OptionError)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t"]


def test_the_device_is_shown_recorded_and_no_part_of_the_key(trajectory: Path, tmp_path: Path, gpus: Any) -> None:
    gpus(0)
    here = f"cpu, torch {torch.__version__}"
    assert described("cpu") == here
    command = ["analyze", str(trajectory), "-p", "rank", "-o", str(tmp_path / "r.h5"), "--device", "auto"]
    shown = CliRunner().invoke(cli, [*command, "--dry-run"])
    assert f"\ndevice       {here}\n" in shown.output
    assert CliRunner().invoke(cli, command).exit_code == 0
    with h5py.File(tmp_path / "r.h5") as file:
        assert file.attrs["device"] == here
    assert f"\ndevice     {here}\n" in CliRunner().invoke(cli, ["show", str(tmp_path / "r.h5")]).output
    assert analyze(trajectory, ["rank"], output=tmp_path / "r.h5", device="cpu").computed == 0


def test_results_from_two_devices_name_both(trajectory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as other:
        other.setattr("ckpt_tools.engine.run.described", lambda device: "cuda, NVIDIA X, torch 9")
        analyze(trajectory, ["rank"], output=tmp_path / "r.h5", steps="first")
    assert analyze(trajectory, ["rank"], output=tmp_path / "r.h5").computed == 1
    with h5py.File(tmp_path / "r.h5") as file:
        assert file.attrs["device"] == f"cuda, NVIDIA X, torch 9; {described('cpu')}"


def pretended(folder: Path, precision: str, *runs: str) -> dict[str, dict[str, str]]:
    """Return what became of every analyzer on a device that is not the CPU."""
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices written in Python")
    command = [sys.executable, "-W", "ignore", str(PRETEND), str(folder), precision, *runs]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Runs of all families on a device that refuses what a GPU refuses."""
    return pretended(tmp_path_factory.mktemp("there"), "float64", *RUNS)


def near(found: str) -> bool:
    """Return whether an analyzer's numbers are those of the CPU, to the rounding of float32."""
    return found == "same" or all(float(part.rpartition(" ")[2]) < 1e-6 for part in found.split(", "))


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_every_analyzer_gives_the_same_numbers_there(elsewhere: dict[str, dict[str, str]], run: str) -> None:
    found = dict(elsewhere[run])
    assert found.pop("careless") == "RuntimeError: .numpy() is not supported for tensor subclasses."
    assert found.pop("device").startswith("pretend")
    assert found.pop("computed again") == "0"
    assert {"rank", "drift", "flatness", "landscape"} <= set(found)
    assert {name: text for name, text in found.items() if not near(text)} == {}


@pytest.mark.slow
def test_every_analyzer_was_run_there(elsewhere: dict[str, dict[str, str]]) -> None:
    models = {"answers", "asymmetry", "attention", "alignment", "calibration", "flow", "flatness", "landscape"}
    assert models <= set(elsewhere["transformer"])
    assert elsewhere["transformer"]["attention"] == elsewhere["population"]["flatness"] == "same"
    assert elsewhere["llama"]["rank"] != "same", "its embedding is large enough to be measured there"


@pytest.mark.slow
def test_a_device_without_float64_has_the_cpu_for_it(tmp_path: Path) -> None:
    for found in pretended(tmp_path, "float32", "transformer", "llama").values():
        assert "with the CPU for float64" in found.pop("device")
        assert found.pop("computed again") == "0"
        assert {"answers", "attention", "alignment", "flow"} & set(found)
        assert {name: text for name, text in found.items() if not near(text)} == {}

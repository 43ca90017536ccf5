"""Which device a process computes on: chosen, refused with a reason, tested before use, and named in the results."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from importlib import metadata
from typing import Any

from ..arrays import CPU, has_float64
from ..errors import OptionError
from .plan import Plan
from .selftest import require_accurate

_NAMES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def check_name(asked: str) -> None:
    """Raise OptionError for a name that no machine would know."""
    if not _NAMES.fullmatch(asked):
        raise OptionError(f"--device must be auto, cpu, cuda, cuda:N or mps. Got {asked!r} instead.")


def resolve(asked: str, worker: str = "", visible: str = "") -> str:
    """Return the device of this process, such as "cuda:1"; OptionError where it is not there.

    `worker` names the process among others, which take turns at "cuda"; `visible` is as in `gpu_of`. "auto" is a GPU
    where CUDA finds one, else the CPU.
    """
    check_name(asked)
    if asked == CPU:
        return CPU
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto" and not count:
        return CPU
    if asked == "mps":
        if not torch.backends.mps.is_available():
            raise OptionError("--device mps: torch finds no Apple GPU here. Leave --device out to compute on the CPU.")
        return asked
    if not count:
        raise OptionError(_without_cuda(asked))
    index = int(asked.partition(":")[2] or gpu_of(worker, count, visible))
    if index >= count:
        raise OptionError(f"--device {asked}: torch sees {count} GPU(s) here, cuda:0 to cuda:{count - 1}.")
    return f"cuda:{index}"


def _without_cuda(asked: str) -> str:
    import torch

    reason = (
        "torch finds no GPU. Is there one (nvidia-smi), and does CUDA_VISIBLE_DEVICES leave it visible? Mend that"
        if torch.version.cuda or torch.version.hip
        else f"this torch, {torch.__version__}, is built for CPUs only. Install one with CUDA (https://pytorch.org)"
    )
    return f"--device {asked}: {reason}, or leave --device out to compute on the CPU."


def gpu_of(worker: str, count: int, visible: str = "") -> int:
    """Return which of `count` GPUs is a worker's: they take turns by the number that their names end with.

    `visible` is a Dask worker's CUDA_VISIBLE_DEVICES. One that does not ascend is dask-cuda's, which lets the list of
    each worker begin with its own GPU: then it is the first.
    """
    listed = [int(name) for name in visible.split(",") if name.strip().isdigit()]
    number = re.search(r"\d+$", worker)
    return int(number[0]) % count if number and listed == sorted(listed) else 0


def workers_for(asked: str) -> int:
    """Return how many processes compute unless a number is asked for: one, or one for each GPU of "cuda"."""
    if asked not in ("cuda", "auto") or resolve(asked) == CPU:
        return 1
    import torch

    return torch.cuda.device_count()


@contextmanager
def placed(plan: Plan, worker: str = "", visible: str = "") -> Iterator[Plan]:
    """Yield the plan for the device of this process, which is tested first; it computes exactly until the end."""
    device = resolve(plan.job.device, worker, visible)
    if device == CPU:
        yield plan
        return
    with exactly():
        require_accurate(device)
        yield replace(plan, device=device)


@contextmanager
def exactly() -> Iterator[None]:
    """Keep torch from products in TF32 and sums in half precision until the end."""
    settings = _settings()
    before = [read() for read, _, _ in settings]
    for _, write, exact in settings:
        write(exact)
    try:
        yield
    finally:
        for (_, write, _), value in zip(settings, before, strict=True):
            write(value)


Setting = tuple[Callable[[], Any], Callable[[Any], None], Any]


def _settings() -> list[Setting]:
    """Return what trades digits for speed: how it is read, how it is set, and the value that does not."""
    import torch

    products: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    found: list[Setting] = [(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest")]
    found.append(_attribute(cudnn, "allow_tf32", False))
    if hasattr(products, "fp32_precision"):  # since torch 2.9; what reads the old settings wants both to agree
        found += [_attribute(at, "fp32_precision", "ieee") for at in (products, cudnn.conv, cudnn.rnn)]
    found += [_attribute(products, f"allow_{kind}_reduced_precision_reduction", False) for kind in ("fp16", "bf16")]
    return [one for one in found if _readable(one[0])]


def _attribute(where: Any, name: str, exact: Any) -> Setting:
    return partial(getattr, where, name), partial(setattr, where, name), exact


def _readable(read: Callable[[], Any]) -> bool:
    """Return False for an old setting that torch refuses to read, since the program used a new one beside it."""
    try:
        read()
    except RuntimeError:
        return False
    return True


@cache
def described(device: str) -> str:
    """Return a device for people and results, with its model and torch's version: `cuda, NVIDIA H200, torch 2.13.0`."""
    kind = device.partition(":")[0]
    said = [kind]
    if kind == "cuda":
        import torch

        said.append(torch.cuda.get_device_name(device))
    if not has_float64(device):
        said.append("with the CPU for float64")
    return ", ".join([*said, f"torch {metadata.version('torch')}"])

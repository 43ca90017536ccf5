"""Several processes that train one model, each on its part of every batch, under `torchrun`.

Every process draws the same examples and computes its own part. With w_r the part's weight, which is its share of the
examples or of their weights,

    L = sum_r w_r L_r        dL = sum_r w_r dL_r

so that gradients are those of one process up to rounding. DistributedDataParallel averages over R processes, hence
each scales its loss by R w_r. Only the first process writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ckpt_tools import OptionError

from .tasks import Batch, count, share


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def wrap(self, module: nn.Module) -> Any:
        """Return what is called in training: the module, or one whose gradients are summed over the processes."""
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module)

    def part(self, batch: Batch) -> tuple[float, Batch]:
        """Return weight and examples of this process; raises OptionError for fewer examples than processes."""
        if self.size == 1:
            return 1.0, batch
        if count(batch) < self.size:
            raise OptionError(f"{self.size} processes cannot share {count(batch)} example(s). Raise batch.")
        return share(batch, self.rank, self.size)

    def agree(self, loss: Tensor, stop: bool) -> tuple[float, bool]:
        """Return the sum of the processes' losses, and whether any of them was asked to stop."""
        if self.size == 1:
            return loss.item(), stop
        told = torch.stack([loss.detach().double(), torch.tensor(float(stop), dtype=torch.float64, device=loss.device)])
        distributed.all_reduce(told)
        return told[0].item(), told[1].item() > 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            distributed.barrier()


def device_of(name: str) -> torch.device:
    """Return the device of a setting; raises OptionError for a GPU that is not there."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise OptionError("device = cuda, but torch finds no GPU. Set device=cpu, or auto.")
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if there and name != "cpu" else torch.device("cpu")
    )


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Yield this process among those that `torchrun` started, or alone; the group ends with the context."""
    place = device_of(device)
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 or "MASTER_ADDR" not in os.environ:
        yield Processes(device=place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), size, place)
    finally:
        distributed.destroy_process_group()

"""Dask clusters: connect to one that runs, or start one through its own launcher with settings from a file.

A configuration file is TOML with the keyword arguments of the launcher, and `workers`, how many to start:

    workers = 20                 # SLURMCluster(cores=8, processes=8, ...), then 20 workers
    cores = 8
    processes = 8
    memory = "64GB"
    walltime = "04:00:00"
"""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ClusterError, OptionError, nearest

LAUNCHERS = {
    "slurm": ("dask_jobqueue", "SLURMCluster", "dask-jobqueue"),
    "k8s": ("dask_kubernetes.operator", "KubeCluster", "dask-kubernetes"),
    "ssh": ("distributed", "SSHCluster", "distributed asyncssh"),
    "local": ("distributed", "LocalCluster", "distributed"),
}
CONNECT_SECONDS = 30


@dataclass(frozen=True)
class Cluster:
    """Where a cluster is, or how to start one: an address, a scheduler file, or a kind with its configuration file.

    `workers` are started when the configuration does not say how many.
    """

    scheduler: str | None = None
    scheduler_file: str | None = None
    kind: str | None = None
    config: str | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        given = [self.scheduler, self.scheduler_file, self.kind]
        if sum(one is not None for one in given) != 1:
            raise OptionError("A cluster is one of --scheduler ADDRESS, --scheduler-file FILE and --cluster KIND.")
        if self.config is not None and self.kind is None:
            raise OptionError("--cluster-config goes with --cluster KIND.")
        if self.kind is not None and self.kind not in LAUNCHERS:
            raise OptionError(f"--cluster {self.kind!r} is not known.{nearest(self.kind, LAUNCHERS)}")

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Yield a connected `distributed.Client`; what was started here is stopped at the end."""
        with ExitStack() as stack:
            yield stack.enter_context(self._connected(stack))

    def _connected(self, stack: ExitStack) -> Any:
        client: Any = _imported("distributed", "Client", "distributed")
        how: dict[str, Any] = {"timeout": CONNECT_SECONDS, "set_as_default": False}
        if self.kind is not None:
            how["address"] = stack.enter_context(self._started())
        elif self.scheduler is not None:
            how["address"] = self.scheduler
        else:
            how["scheduler_file"] = self._file()
        try:
            return client(**how)
        except (OSError, ValueError, TimeoutError) as error:
            raise ClusterError(
                f"Cannot reach the Dask scheduler {self.scheduler or self.scheduler_file or self.kind}: {error}. "
                "Is it running, and does it listen there?"
            ) from None

    def _file(self) -> str:
        if self.scheduler_file is None or not Path(self.scheduler_file).is_file():
            raise ClusterError(f"--scheduler-file {self.scheduler_file}: no such file. dask scheduler writes it.")
        return self.scheduler_file

    @contextmanager
    def _started(self) -> Iterator[Any]:
        assert self.kind is not None  # checked by the caller
        settings = self._settings()
        workers = settings.pop("workers", self.workers)
        launch = _imported(*LAUNCHERS[self.kind])
        if self.kind == "local":
            settings = {"threads_per_worker": 1, "n_workers": workers, "dashboard_address": None, **settings}
        import dask

        # The first death of a worker is reported: which of its tasks is guilty is found out here.
        with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
            try:
                cluster = launch(**settings)
            except (TypeError, ValueError, OSError, RuntimeError, ImportError) as error:
                raise ClusterError(
                    f"Cannot start a cluster of kind {self.kind!r}: {_root(error)}. See {self.config}."
                ) from error
        with cluster:
            if self.kind in ("slurm", "k8s"):
                cluster.scale(workers)
            yield cluster

    def _settings(self) -> dict[str, Any]:
        if self.config is None:
            return {}
        try:
            return tomllib.loads(Path(self.config).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise OptionError(f"--cluster-config {self.config} cannot be read: {error}.") from None


def _imported(module: str, name: str, packages: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ClusterError(f"This needs {packages}: pip install {packages} ({error}).") from None


def _root(error: BaseException) -> BaseException:
    """Return what an error came from in the first place."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error

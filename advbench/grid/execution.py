"""How and where a run computes: from options to a store and an executor."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from advbench.errors import InputError
from advbench.grid.executors import Executor
from advbench.grid.tasks import Runtime, versions
from advbench.store.records import Store
from advbench.store.storage import PATIENCE
from advbench.training.base import Resources

EXECUTORS = ("inline", "local", "ray")


@dataclass(frozen=True)
class Execution:
    """How and where tasks run. No result depends on it but by rounding.

    Raises:
        InputError: options that do not go together.
    """

    store: str  # its URL
    data_root: str | None = None  # folder of the data sets
    executor: str = "local"
    workers: int | None = None  # worker processes for each device; by default as many as there are cores for
    address: str | None = None  # of a Ray cluster; by default Ray is started on this machine
    gpus_per_task: float | None = None  # the part of a GPU to ask Ray for; by default what a task was measured to need
    device: str | None = None  # torch devices, comma-separated; by default all GPUs, or the CPU where there is none
    chunk: int | None = None  # the most images that pass a net at once
    checkpoint_seconds: float = 30.0  # the least time between two saved states of a training
    time_limit: float | None = None  # seconds that a task may take
    retries: int = 2  # how often a task is tried again whose worker died
    patience: float = PATIENCE  # seconds for which a store's server is tried again

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise InputError("--executor", expected="inline, local or ray", got=repr(self.executor))
        for option, value, users in (
            ("--workers", self.workers, ("local", "ray")),
            ("--time-limit", self.time_limit, ("local", "ray")),
            ("--address", self.address, ("ray",)),
            ("--gpus-per-task", self.gpus_per_task, ("ray",)),
        ):
            if value is not None and self.executor not in users:
                raise InputError(option, expected=f"--executor {' or '.join(users)} with it", got=repr(self.executor))
        share = self.gpus_per_task
        if share is not None and share > 1 and share != int(share):
            raise InputError("--gpus-per-task", expected="a part of a GPU, or a whole number of them", got=share)
        for option, number in (("--time-limit", self.time_limit), ("--store-patience", self.patience)):
            if number is not None and not math.isfinite(number):
                raise InputError(option, expected="a number of seconds", got=number)

    def open_store(self) -> Store:
        """The store.

        Raises:
            StoreError: no file system answers to its URL.
            InputError: workers would not see it.
        """
        store = Store(self.store, self.patience)
        if self.executor != "inline" and not store.storage.shared:
            expected = "one that other processes see"
            raise InputError(f"store {self.store!r}", expected=expected, remedy="or choose --executor inline")
        return store

    def runtime(self, dataset: str, threads: int, ood: Sequence[str] = ()) -> Runtime:
        """What the tasks of a run are given; `threads` are a task's, `ood` the data sets to be found out.

        Raises:
            InputError: torch cannot use a device.
        """
        return Runtime(
            self.open_store().storage.absolute,
            _absolute_dataset(dataset),
            _absolute(self.data_root),
            Resources(self._devices()[0], threads, self.chunk),
            self.checkpoint_seconds,
            self.patience,
            {name: version for name, version in versions("cpu").items() if name in ("advbench", "torch", "numpy")},
            tuple(map(_absolute_dataset, ood)),
        )

    def start(self, runtime: Runtime) -> Executor:
        """The executor.

        Raises:
            MissingExtraError: it needs a library that is not installed.
            InputError: no Ray cluster answers at the address.
        """
        threads = runtime.resources.threads
        if self.executor == "inline":
            from advbench.grid.executors.inline import InlineExecutor

            return InlineExecutor(runtime)
        if self.executor == "local":
            from advbench.grid.executors.local import LocalExecutor, devices

            pool = devices(self._devices(), threads, self.workers)
            return LocalExecutor(runtime, pool, time_limit=self.time_limit, retries=self.retries)
        from advbench.grid.executors.ray import RayExecutor

        return RayExecutor(
            runtime,
            address=self.address,
            cpus=None if self.workers is None else self.workers * threads,
            gpus_per_task=self.gpus_per_task,
            wants_gpu=self.device != "cpu",
            time_limit=self.time_limit,
            retries=self.retries,
        )

    def _devices(self) -> list[str]:
        """The devices asked for, or the GPUs, or the CPU: all of them for local workers, else one.

        Raises:
            InputError: torch cannot use one of them.
        """
        import torch

        several = self.executor == "local"
        if self.device is None:
            found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
            return (found if several else found[:1]) or ["cpu"]
        names = [name.strip() for name in self.device.split(",") if name.strip()]
        for name in names or [self.device]:
            try:
                torch.empty(1, device=name).cpu()
            except (RuntimeError, AssertionError, NotImplementedError) as error:
                expected = "ones that torch can use here, as cpu or cuda:0,cuda:1"
                raise InputError("--device", expected=expected, got=repr(name)) from error
        if len(set(names)) != len(names) or (len(names) > 1 and not several):
            expected = "each device once" if several else "one device, or --executor local"
            raise InputError("--device", expected=expected, got=repr(self.device))
        return names


def _absolute(path: str | None) -> str | None:
    """A path as it is understood from any folder, as a worker's may be another one."""
    return None if path is None else str(Path(os.path.expanduser(path)).absolute())


def _absolute_dataset(name: str) -> str:
    kind, colon, path = name.partition(":")
    if path and os.path.exists(os.path.expanduser(path)):
        return f"{kind}{colon}{_absolute(path)}"
    return name

"""How and where a run computes: from options to a store and an executor."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from advbench.errors import InputError
from advbench.grid.devices import Device, look
from advbench.grid.executors import Executor
from advbench.grid.inputs import CPU
from advbench.grid.spec import RunSpec
from advbench.grid.tasks import Runtime, versions
from advbench.registry import files, pinned
from advbench.store.records import Store
from advbench.store.storage import PATIENCE
from advbench.training.base import Resources

EXECUTORS = ("inline", "local", "ray")


@dataclass(frozen=True)
class Execution:
    """How and where tasks run. Results depend on the kind of device, else only by rounding.

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

    def placed(self, spec: RunSpec) -> RunSpec:
        """The spec with the kind of device that computes it, on which results depend.

        Raises:
            InputError: torch cannot use a device, or the devices are of several kinds or of another than the spec's.
        """
        kinds = sorted({device.kind for device in self.devices})
        if len(kinds) > 1:
            remedy = "results depend on it: name those of one kind"
            raise InputError("--device", expected="devices of one kind", got=", ".join(kinds), remedy=remedy)
        if spec.device not in (None, kinds[0]):
            raise InputError(
                "device of the spec",
                expected=f"{spec.device}, on which its results depend",
                got=kinds[0],
                remedy="name such a device with --device, or take `device` out of the spec to compute all of it anew",
            )
        return spec.model_copy(update={"device": kinds[0]})

    def runtime(self, dataset: str, threads: int, ood: Sequence[str] = ()) -> Runtime:
        """What the tasks of a run are given; `threads` are a task's, `ood` the data sets to be found out.

        Raises:
            InputError: torch cannot use a device.
        """
        device = self.devices[0]
        return Runtime(
            self.open_store().storage.absolute,
            _absolute_dataset(dataset),
            _absolute(self.data_root),
            Resources(device.name, threads, self.chunk),
            self.checkpoint_seconds,
            self.patience,
            {name: version for name, version in versions(CPU).items() if name in ("advbench", "torch", "numpy")},
            tuple(map(_absolute_dataset, ood)),
            kind=device.kind,
            files=files.all_known(),
            pinned=pinned.known(),
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
            from advbench.grid.executors.local import LocalExecutor, pools

            found = pools(self.devices, threads, self.workers)
            return LocalExecutor(runtime, found, time_limit=self.time_limit, retries=self.retries)
        from advbench.grid.executors.ray import RayExecutor

        return RayExecutor(
            runtime,
            address=self.address,
            cpus=None if self.workers is None else self.workers * threads,
            gpus_per_task=self.gpus_per_task,
            wants_gpu=runtime.kind != CPU,
            time_limit=self.time_limit,
            retries=self.retries,
        )

    @cached_property
    def devices(self) -> list[Device]:
        """The devices asked for, or the GPUs, or the CPU: all of them for local workers, else one.

        Raises:
            InputError: torch cannot use one of them.
        """
        several = self.executor == "local"
        names = None
        if self.device is not None:
            names = [name.strip() for name in self.device.split(",") if name.strip()] or [self.device]
            if len(set(names)) != len(names) or (len(names) > 1 and not several):
                expected = "each device once" if several else "one device, or --executor local"
                raise InputError("--device", expected=expected, got=repr(self.device))
        if self.executor == "ray" and self.address is not None and names is None:
            from advbench.grid.executors.ray import look_at_cluster

            return [look_at_cluster(self.address)]
        found = look(names)
        return found if several else found[:1]


def _absolute(path: str | None) -> str | None:
    """A path as it is understood from any folder, as a worker's may be another one."""
    return None if path is None else str(Path(os.path.expanduser(path)).absolute())


def _absolute_dataset(name: str) -> str:
    kind, colon, path = name.partition(":")
    if path and os.path.exists(os.path.expanduser(path)):
        return f"{kind}{colon}{_absolute(path)}"
    return name

"""Options of the execution: store, devices and executor of a run."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from advbench.errors import InputError
from advbench.grid.devices import Device, indexed, look
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
    """Options of the execution. Results depend on the kind of device, and otherwise differ by rounding only.

    Raises:
        InputError: options are inconsistent.
    """

    store: str  # URL of the store
    data_root: str | None = None  # folder of the data sets
    executor: str = "local"
    workers: int | None = None  # worker processes per device; None for as many as there are cores
    address: str | None = None  # address of a Ray cluster; None to start Ray on this machine
    gpus_per_task: float | None = None  # fraction of a GPU per Ray task; None for the measured need
    device: str | None = None  # torch devices, comma-separated; None for all GPUs, or the CPU
    chunk: int | None = None  # maximum number of images per forward pass
    checkpoint_seconds: float = 30.0  # minimum time between checkpoints of a training, in seconds
    time_limit: float | None = None  # time limit per task, in seconds
    retries: int = 2  # retries of a task whose worker died
    patience: float = PATIENCE  # time limit for retrying a failing store, in seconds

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
                raise InputError(option, expected=f"--executor {' or '.join(users)} as well", got=repr(self.executor))
        share = self.gpus_per_task
        if share is not None and share > 1 and share != int(share):
            raise InputError("--gpus-per-task", expected="a fraction of a GPU, or a whole number of GPUs", got=share)
        for option, number in (("--time-limit", self.time_limit), ("--store-patience", self.patience)):
            if number is not None and not math.isfinite(number):
                raise InputError(option, expected="a number of seconds", got=number)

    def open_store(self) -> Store:
        """Open the store.

        Raises:
            StoreError: the URL is not supported.
            InputError: worker processes could not access it.
        """
        store = Store(self.store, self.patience)
        if self.executor != "inline" and not store.storage.shared:
            expected = "a store that other processes can access"
            raise InputError(f"store {self.store!r}", expected=expected, remedy="or use --executor inline")
        return store

    def placed(self, spec: RunSpec) -> RunSpec:
        """The spec with the kind of device of this execution, on which results depend.

        Raises:
            InputError: torch cannot use a device, or devices are of several kinds or of another kind than in the spec.
        """
        kinds = sorted({device.kind for device in self.devices})
        if len(kinds) > 1:
            remedy = "results depend on the kind of device"
            raise InputError("--device", expected="devices of one kind", got=", ".join(kinds), remedy=remedy)
        if spec.device not in (None, kinds[0]):
            raise InputError(
                "device of the spec",
                expected=f"{spec.device}, on which its results depend",
                got=kinds[0],
                remedy="choose such a device with --device, or remove `device` from the spec to recompute all results",
            )
        return spec.model_copy(update={"device": kinds[0]})

    def runtime(self, dataset: str, threads: int, ood: Sequence[str] = ()) -> Runtime:
        """Runtime of the tasks of a run, with `threads` per task and `ood` data sets.

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
        """Start the executor.

        Raises:
            MissingExtraError: its library is not installed.
            InputError: no Ray cluster responds at the address.
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
        """The requested devices, or the GPUs, or the CPU: all of them for local workers, otherwise one.

        Raises:
            InputError: torch cannot use one of them.
        """
        several = self.executor == "local"
        names = None
        if self.device is not None:
            names = [indexed(name.strip()) for name in self.device.split(",") if name.strip()] or [self.device]
            if len(set(names)) != len(names) or (len(names) > 1 and not several):
                expected = "each device once" if several else "one device, or --executor local"
                raise InputError("--device", expected=expected, got=repr(self.device))
        if self.executor == "ray" and names not in (None, [CPU], ["cuda:0"]):
            raise InputError("--device", expected="cpu or cuda, because Ray assigns GPUs", got=repr(self.device))
        if self.executor == "ray" and self.address is not None and names is None:
            from advbench.grid.executors.ray import look_at_cluster

            return [look_at_cluster(self.address)]
        found = look(names)
        return found if several else found[:1]


def _absolute(path: str | None) -> str | None:
    """Make a path absolute, because workers may run in another folder."""
    return None if path is None else str(Path(os.path.expanduser(path)).absolute())


def _absolute_dataset(name: str) -> str:
    kind, colon, path = name.partition(":")
    if path and os.path.exists(os.path.expanduser(path)):
        return f"{kind}{colon}{_absolute(path)}"
    return name

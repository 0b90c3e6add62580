"""Runs tasks with Ray, on this machine or on a cluster."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from advbench.errors import InputError
from advbench.grid import devices
from advbench.grid.devices import GPU_WORKERS, Device
from advbench.grid.estimates import Measured
from advbench.grid.executors import Began, Cause, Ended, Event, Failure, attempt, one_line, too_long
from advbench.grid.plan import Task
from advbench.grid.tasks import Runner, Runtime
from advbench.registry.optional import require

PATIENCE = 10.0  # seconds; time limit for replies of the driver's actor
MOVES = 1.0  # seconds between progress events of a task, and between queries of the cluster


@dataclass
class _Submitted:
    """A task submitted to Ray; its deadline is set when a worker starts it."""

    task: Task
    share: float = 0.0  # fraction of a GPU
    deadline: float = math.inf


class RayExecutor:
    """Runs tasks as Ray tasks, which Ray places, queues and retries.

    A task requests its CPU threads and, in runs on GPUs, a fraction of one: its measured need, or a whole GPU if
    unknown or after memory ran out next to other tasks. A worker sees the GPU assigned by Ray as its first one, and on
    GPUs runs a single task: the next may be assigned another GPU, but a process keeps its first.

    Options are those of `Execution`; `cpus` is the number of CPUs of Ray on this machine, by default all.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: no cluster responds at the address.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        address: str | None = None,
        cpus: int | None = None,
        gpus_per_task: float | None = None,
        wants_gpu: bool = True,
        time_limit: float | None = None,
        retries: int = 2,
    ) -> None:
        require("ray", "--executor ray", "ray")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self._ray: Any = ray
        self._runtime = runtime
        self._gpus_per_task = gpus_per_task
        self._wants_gpu = wants_gpu
        self._time_limit = time_limit
        self._running: dict[Any, _Submitted] = {}
        self._looked = -math.inf
        self._resources: Mapping[str, float] = {}
        self._news: Any = None
        self._started = not ray.is_initialized()
        if self._started:
            with _own_signals():
                connect(ray, address, cpus)
        self._check_size(may_grow=address is not None)
        limits = {"max_retries": retries, "retry_exceptions": False, "max_calls": 1 if self._on_gpus() else 0}
        self._run = self._ray.remote(**limits)(self.run_task)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._news = ray.remote(_News).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()

    @staticmethod
    def run_task(task: Task, runtime: Runtime, news: Any, *, shared: bool) -> Ended:
        """Run a task in a worker; see `run_in_worker`."""
        return run_in_worker(task, runtime, news, shared=shared)

    def _check_size(self, *, may_grow: bool) -> None:
        """Refuse tasks that fit on no node; for a cluster, which may still grow, only warn.

        Raises:
            InputError: Ray on this machine is too small for a task.
        """
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        asked: dict[str, tuple[str, float]] = {"CPU": ("--threads", self._runtime.resources.threads)}
        if self._on_gpus() and self._gpus_per_task is not None:
            asked["GPU"] = ("--gpus-per-task", self._gpus_per_task)
        for kind, (option, count) in asked.items():
            largest = max((node.get(kind, 0.0) for node in nodes), default=0.0)
            if count > largest:
                expected = f"at most {largest:g}, the {kind}s of the largest Ray node"
                error = InputError(option, expected=expected, got=f"{count:g}")
                if not may_grow:
                    self.close()
                    raise error
                warnings.warn(f"{error}; tasks wait until the cluster has a large enough node", stacklevel=2)

    @property
    def places(self) -> int:
        """Number of tasks that fit on the cluster's CPUs and GPUs now."""
        found = self._cluster()
        by_cpu = int(found.get("CPU", 0)) // self._runtime.resources.threads
        share = self._gpus_per_task or 1.0
        return max(1, min(by_cpu, int(found.get("GPU", 0) / share)) if self._on_gpus() else by_cpu)

    def _cluster(self) -> Mapping[str, float]:
        if time.monotonic() - self._looked > MOVES:
            self._resources = self._ray.cluster_resources()
            self._looked = time.monotonic()
        return self._resources

    def _on_gpus(self) -> bool:
        return self._wants_gpu and self._cluster().get("GPU", 0) > 0

    def _share(self, known: Measured | None) -> float:
        """Fraction of a GPU that a task requests, in steps of 0.01."""
        if not self._on_gpus():
            return 0.0
        if self._gpus_per_task is not None:
            return self._gpus_per_task
        if known is None or known.peak is None or known.memory is None:
            return 1.0
        # Measured on the same kind of GPU, with the same memory.
        part: float = devices.part(known.peak, known.memory, gpu=True)
        return max(math.ceil(100 * part), 100 // GPU_WORKERS) / 100

    def has_room(self, known: Measured | None) -> bool:
        """True while the queue is shorter than the number of running tasks; this keeps all places busy."""
        packed = max(1.0, 1 / self._share(known)) if self._on_gpus() else 1.0
        return len(self._running) < 2 * self.places * packed

    def start(self, task: Task, known: Measured | None) -> None:
        """Submit the task to Ray."""
        self._submit(task, self._share(known))

    def _submit(self, task: Task, share: float) -> None:
        options = self._run.options(num_cpus=self._runtime.resources.threads, num_gpus=share, name=task.label)
        self._running[options.remote(task, self._runtime, self._news, shared=0 < share < 1)] = _Submitted(task, share)

    def wait(self, seconds: float, report: Callable[[Event], None]) -> None:
        """Report ended, started and progressing tasks, and those over the time limit."""
        references = list(self._running)
        ready: list[Any] = []
        if references:
            ready, _ = self._ray.wait(references, num_returns=1, timeout=min(seconds, MOVES))
            if ready:
                ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        live = {each.task.key: each for each in self._running.values()}
        for event in self._drained():
            if event.key in live:  # otherwise it has already ended
                if isinstance(event, Began) and self._time_limit is not None:
                    live[event.key].deadline = time.monotonic() + self._time_limit
                report(event)
        for reference in ready:
            each = self._running.pop(reference)
            ended = self._result(reference, each.task)
            if ended.failure is not None and ended.failure.cause == "memory" and 0 < each.share < 1:
                self._submit(each.task, 1.0)  # retry with a whole GPU
            else:
                report(ended)
        now = time.monotonic()
        for reference in [reference for reference, each in self._running.items() if each.deadline <= now]:
            self._ray.cancel(reference, force=True)
            report(too_long(self._running.pop(reference).task.key, self._time_limit))

    def _drained(self) -> list[Event]:
        try:
            return self._ray.get(self._news.drain.remote(), timeout=PATIENCE)  # type: ignore[no-any-return]
        except self._ray.exceptions.RayError:
            return []  # it died and is restarted; only progress events are lost

    def _result(self, reference: Any, task: Task) -> Ended:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)  # type: ignore[no-any-return]
        except errors.RayError as error:
            cause: Cause = "bug" if isinstance(error, errors.RayTaskError) else "crash"
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = f"the worker died: {type(error).__name__}: {lines[0] if lines else ''}"
            return Ended(task.key, failure=Failure(cause, one_line(reason), str(error) if cause == "bug" else None))

    def close(self) -> None:
        """Cancel running tasks; stop Ray if it was started here, or disconnect from the cluster."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        if self._started:
            self._ray.shutdown()
        elif self._news is not None:
            self._ray.kill(self._news)


class _News:
    """Actor on the driver's machine that buffers events of workers for the driver."""

    def __init__(self) -> None:
        self._events: dict[tuple[type, str], Event] = {}

    def report(self, event: Event) -> None:
        self._events[type(event), event.key] = event  # only the latest progress

    def drain(self) -> list[Event]:
        events, self._events = list(self._events.values()), {}
        return events


def connect(ray: Any, address: str | None, cpus: int | None) -> None:
    """Start Ray on this machine with the given number of CPUs, or connect to a cluster.

    Raises:
        InputError: no cluster responds.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    try:
        if address is None:
            ray.init(address="local", num_cpus=cpus, **quiet)
        else:
            _knock(address)
            del quiet["include_dashboard"]
            ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        if address is None:
            raise
        raise InputError(
            "--address",
            expected="address of a running Ray cluster, such as host:6379",
            got=f"{address!r} ({one_line(str(error))})",
            remedy="start one: ray start --head",
        ) from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restore the signal handlers that Ray replaces when it starts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _knock(address: str) -> None:
    """Fail fast if nothing listens at `host:port`, which Ray itself retries for minutes.

    Raises:
        OSError: nothing listens there.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


def look_at_cluster(address: str) -> Device:
    """Device of the tasks of a cluster: one of its GPUs, or a CPU if it has none.

    Raises:
        MissingExtraError: Ray is not installed.
        InputError: no cluster responds at the address, or a GPU cannot be used.
    """
    require("ray", "--executor ray", "ray")
    import ray as installed

    ray: Any = installed
    started = not ray.is_initialized()
    with _own_signals():
        if started:
            connect(ray, address, None)
    try:
        if not ray.cluster_resources().get("GPU", 0):
            return devices.look(["cpu"])[0]
        look = ray.remote(num_gpus=0.01, max_calls=1)(_first_gpu)
        found: Device = ray.get(look.remote(), timeout=devices.PROBE_TIME)
        return found
    except ray.exceptions.GetTimeoutError as error:
        got = f"none within {devices.PROBE_TIME:g} s"
        raise InputError("--address", expected="a cluster with a GPU free to look at", got=got) from error
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, InputError) else error) from None
    finally:
        if started:
            ray.shutdown()


def _first_gpu() -> Device:
    return devices.look(["cuda:0"])[0]


_runner: Runner | None = None  # runner of this Ray worker


def run_in_worker(task: Task, runtime: Runtime, news: Any, *, shared: bool = False) -> Ended:
    """Run a task in a Ray worker.

    Args:
        task: the task.
        runtime: runtime of the task, on the device assigned by Ray.
        news: the driver's actor for events.
        shared: True if other tasks may use its GPU at the same time.
    """
    global _runner  # noqa: PLW0603 - kept for the next task
    import ray
    import torch

    about = ray.get_runtime_context()
    gpus = about.get_accelerator_ids().get("GPU", [])
    place = f"node {about.get_node_id()[:8]}" + (f" GPU {','.join(map(str, gpus))}" if gpus else "")
    if gpus and not torch.cuda.is_available():
        reason = f"{place} has a GPU that torch cannot use; repair its driver, or remove the node from the cluster"
        return Ended(task.key, failure=Failure("input", reason))
    runtime = runtime.on("cuda:0" if gpus else "cpu", place)
    if _runner is None or _runner.runtime != runtime:
        _runner = None  # free the memory of its nets first
        _runner = Runner(runtime)
    return attempt(_runner, task, news.report.remote, MOVES, shared=shared)

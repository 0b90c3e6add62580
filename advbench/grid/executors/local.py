"""Runs tasks in worker processes on this machine: some for each device, started anew when they die."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pickle import UnpicklingError
from types import ModuleType
from typing import TYPE_CHECKING, Any

from advbench.errors import InputError
from advbench.grid import memory
from advbench.grid.estimates import Measured
from advbench.grid.executors import Began, Ended, Event, Failure, Said, attempt, one_line, too_long
from advbench.grid.plan import Task
from advbench.grid.tasks import Runner, Runtime

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

MOVES = 0.2  # least seconds between two reports of a task's progress
READS = 16  # of 64 KiB of a worker's output, before others get their turn
START = 300.0  # seconds within which a worker must begin with a task
LINES = 50  # lines of a task that are passed on
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # read when libraries are loaded
IMPORTS = ("PYTHONPATH", "PYTHONSAFEPATH")


@dataclass(frozen=True)
class Device:
    """What workers share."""

    name: str  # as torch calls it
    workers: int  # processes at most
    memory: int | None = None  # bytes in all, or None where that is not known
    probes: bool = False  # whether a task whose memory nobody knows gets the device to itself, as on a GPU

    def share(self, known: Measured | None) -> float:
        """The part of the device that a task takes, as far as memory goes."""
        peak = known.peak if known else None
        if peak is None and self.probes:
            return 1.0
        if peak is None or self.memory is None:
            return 1 / self.workers
        return memory.part(peak, self.memory, gpu=self.probes)


def devices(names: list[str], threads: int, workers: int | None) -> list[Device]:
    """The devices of a run, with as many workers as do not fight for cores.

    Args:
        names: `cpu`, or GPUs as `cuda:0`.
        threads: CPU threads of a task.
        workers: processes for each device; by default as many as there are cores for.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = workers or max(1, cores // (threads * len(names)))
    return [Device(name, each, memory.total(name), probes=name.startswith("cuda")) for name in names]


@dataclass(eq=False)
class _Worker:
    """One process and what it does now."""

    device: Device
    number: int
    process: Any = None
    line: Connection | None = None  # tasks go out, events come in
    output: Connection | None = None  # what the process prints
    task: Task | None = None
    share: float = 0.0  # the part of the device that the task takes
    began: bool = False
    deadline: float = math.inf  # for the task's beginning, then for its end
    tries: int = 0  # that the task had
    lines: int = 0  # that the task printed
    last: list[str] = field(default_factory=list)  # the latest of those
    rest: bytes = b""  # of a line that is not at its end

    @property
    def place(self) -> str:
        return self.device.name if self.device.workers == 1 else f"{self.device.name} worker {self.number}"

    def free(self) -> None:
        """Its task has ended."""
        self.task, self.share, self.deadline = None, 0.0, math.inf

    def kill(self) -> None:
        """Kill the process, and what it started."""
        process, self.process = self.process, None
        if process is not None:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
        for end in (self.line, self.output):
            if end is not None:
                end.close()
        self.line = self.output = None


class LocalExecutor:
    """A pool of worker processes for each device.

    A worker runs one task after another. One that dies is started anew, and its task is tried again; a task
    that takes too long is killed with its worker. Workers die with this process, whatever ends it.

    Args:
        runtime: what tasks run with; its device gives way to the workers' own.
        devices: where.
        time_limit: seconds that a task may take, or None.
        retries: how often a task is tried again whose worker died.
    """

    def __init__(
        self, runtime: Runtime, devices: list[Device], *, time_limit: float | None = None, retries: int = 2
    ) -> None:
        self._runtime = runtime
        self._time_limit = time_limit
        self._retries = retries
        self._workers = [_Worker(device, number) for device in devices for number in range(device.workers)]
        self._context = _context()

    @property
    def places(self) -> int:
        """All workers of all devices."""
        return len(self._workers)

    def has_room(self, known: Measured | None) -> bool:
        """Whether a worker is idle on a device with enough memory left."""
        return self._free(known) is not None

    def _free(self, known: Measured | None) -> _Worker | None:
        """The idle worker on the device that is used least; a running process before one that would be started."""
        used: dict[str, float] = {}
        for worker in self._workers:
            used[worker.device.name] = used.get(worker.device.name, 0.0) + worker.share
        fit = [
            worker
            for worker in self._workers
            if worker.task is None
            and (used[worker.device.name] == 0 or used[worker.device.name] + worker.device.share(known) <= 1 + 1e-9)
        ]
        return min(fit, key=lambda w: (used[w.device.name], w.process is None, w.number), default=None)

    def start(self, task: Task, known: Measured | None) -> None:
        """Give the task to an idle worker.

        Raises:
            RuntimeError: there is none; ask `has_room` before.
        """
        worker = self._free(known)
        if worker is None:
            raise RuntimeError("no worker is idle")
        worker.share, worker.tries = worker.device.share(known), 0
        self._send(worker, task)

    def _send(self, worker: _Worker, task: Task) -> None:
        """Hand the worker a task, in a new process where it has none."""
        worker.task = task
        worker.tries += 1
        worker.began = False
        worker.deadline = time.monotonic() + START
        worker.lines = 0
        worker.last.clear()
        if worker.process is None:
            self._launch(worker)
        assert worker.line is not None, "a launched worker has its line"
        with suppress(OSError):  # one that died idle is found by `wait`
            worker.line.send(task)

    def _launch(self, worker: _Worker) -> None:
        runtime = self._runtime.on(worker.device.name, worker.place)
        ends: list[Connection] = []
        try:
            ends += self._context.Pipe()
            ends += self._context.Pipe(duplex=False)
            ours, theirs, output, printed = ends
            process = self._context.Process(
                target=work,
                args=(theirs, printed, runtime, {name: os.environ.get(name) for name in IMPORTS}),
                name=f"advbench {worker.place}",
                daemon=False,
            )
            few_threads = dict.fromkeys(THREADS, str(runtime.resources.threads))
            with _environment({**few_threads, **_imports()}), _without_main():
                process.start()
        except OSError as error:
            for end in ends:
                end.close()
            expected = "as many as this machine can start"
            raise InputError(
                "--workers",
                expected=expected,
                got=f"{len(self._workers)} ({error})",
                remedy="take fewer (or: ulimit -n)",
            ) from error
        theirs.close()
        printed.close()
        worker.process, worker.line, worker.output, worker.rest = process, ours, output, b""

    def wait(self, seconds: float) -> Iterator[Event]:
        """What workers report, print and die of."""
        timeout = max(0.0, min(seconds, *(worker.deadline - time.monotonic() for worker in self._workers)))
        by_source: dict[Any, _Worker] = {}
        for worker in self._workers:
            if worker.process is not None:
                by_source |= {worker.line: worker, worker.output: worker, worker.process.sentinel: worker}
        ready = wait([source for source in by_source if source is not None], timeout)
        for worker in dict.fromkeys(by_source[source] for source in ready):
            yield from self._listen(worker)
        now = time.monotonic()
        for worker in self._workers:
            task = worker.task
            if task is not None and worker.deadline <= now:
                worker.kill()
                worker.free()
                late = Failure("timeout", f"no worker began with it within {START:g} s")
                yield too_long(task.key, self._time_limit) if worker.began else Ended(task.key, failure=late)

    def _listen(self, worker: _Worker) -> Iterator[Event]:
        dead = not worker.process.is_alive()
        yield from self._said(worker)
        try:
            while worker.line is not None and worker.line.poll():
                event: Event = worker.line.recv()
                if worker.task is None or event.key != worker.task.key:
                    continue
                if isinstance(event, Began):
                    worker.began = True
                    worker.deadline = math.inf if self._time_limit is None else time.monotonic() + self._time_limit
                elif isinstance(event, Ended):
                    worker.free()
                yield event
        except (EOFError, OSError, UnpicklingError):
            dead = True
        if dead and worker.process is not None:
            worker.process.join(5)
            yield from self._died(worker)

    def _said(self, worker: _Worker) -> Iterator[Event]:
        """The lines that the worker printed since; of many the first are passed on, the last remembered.

        Only so much is read at a time that a worker which prints without end holds up nobody.
        """
        for _ in range(READS):
            if worker.output is None or not worker.output.poll():
                return
            raw = os.read(worker.output.fileno(), 65536)
            if not raw:
                worker.output.close()
                worker.output = None
            *lines, worker.rest = (worker.rest + raw).split(b"\n")
            worker.rest = worker.rest[-65536:]
            for line in filter(None, (one_line(each.decode(errors="replace")) for each in lines)):
                worker.last = [*worker.last[-4:], line]
                worker.lines += 1
                if worker.task is not None and worker.lines <= LINES:
                    yield Said(worker.task.key, line if worker.lines < LINES else "(what else it prints is left out)")

    def _died(self, worker: _Worker) -> Iterator[Event]:
        code, task = worker.process.exitcode, worker.task
        worker.kill()
        if task is None:
            return
        if worker.tries <= self._retries:
            self._send(worker, task)
            return
        worker.free()
        last = [*worker.last, *filter(None, [one_line(worker.rest.decode(errors="replace"))])]
        said = f"; it last said: {last[-1]}" if last else ""
        tried = "" if worker.tries == 1 else f" in each of {worker.tries} tries"
        yield Ended(task.key, failure=Failure("crash", one_line(f"the worker died{tried}: {_told(code)}{said}")))

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._workers:
            worker.kill()
            worker.free()


def _context() -> ForkServerContext | SpawnContext:
    """How processes start: from a server that has torch loaded, or afresh where there are no forks."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        return context
    return multiprocessing.get_context("spawn")


def _imports() -> dict[str, str]:
    """What makes the server of processes import what this one does, and not what lies in the folder it starts in."""
    return {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "PYTHONSAFEPATH": "1"}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that what is started meanwhile finds."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        _restore(before)


def _restore(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _without_main() -> Iterator[None]:
    """Start a process that does not import the script that started this one, as it needs nothing of it."""
    before = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = before


def _told(code: int | None) -> str:
    """How a process ended, for people."""
    if code is None:
        return "for an unknown reason"
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"{name} (killed, perhaps because memory ran out)" if name == "SIGKILL" else name


def work(line: Connection, printed: Connection, runtime: Runtime, environment: Mapping[str, str | None]) -> None:
    """A worker's life: task after task, until its driver is gone.

    Args:
        line: tasks come in and events go out.
        printed: what the process writes to standard output and error goes here.
        runtime: what tasks run with.
        environment: variables of the driver that were others while this process was started.
    """
    _restore(environment)
    with suppress(OSError):
        os.setpgrp()  # the terminal's interrupt is the driver's affair
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for descriptor in (1, 2):
        os.dup2(printed.fileno(), descriptor)
    sys.stdout = open(1, "w", buffering=1, closefd=False, errors="replace")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="replace")  # noqa: SIM115
    threading.Thread(target=_die_with_the_driver, daemon=True).start()
    runner = Runner(runtime)
    with suppress(EOFError, BrokenPipeError):
        while True:
            task = line.recv()
            line.send(Began(task.key, runtime.place))
            line.send(attempt(runner, task, line.send, MOVES))


def _die_with_the_driver() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        with suppress(OSError):
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

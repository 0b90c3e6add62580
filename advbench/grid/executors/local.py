"""Runs tasks in worker processes on this machine: some for each device, started anew when they die."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import TYPE_CHECKING, Any

from advbench.errors import InputError
from advbench.grid import memory
from advbench.grid.estimates import Measured
from advbench.grid.executors import Began, Ended, Event, Failure, Moved, Said, attempt, from_json, one_line, to_json
from advbench.grid.plan import Task
from advbench.grid.tasks import Runner, Runtime
from advbench.progress import Progress

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

HEADROOM = 1.1  # of a measured peak
CONTEXT = 600 * 2**20  # bytes that a process takes on a GPU beside its tensors
MOVES = 0.2  # least seconds between two reports of a task's progress
READS = 16  # of 64 KiB of a worker's output, before others get their turn
START = 300.0  # seconds within which a worker must begin with a task
LINES = 50  # lines of a task that are passed on
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # read when libraries are loaded
IMPORTS = ("PYTHONPATH", "PYTHONSAFEPATH")


@dataclass(frozen=True)
class Device:
    """What workers share.

    Attributes:
        name: as torch calls it.
        workers: processes at most.
        memory: bytes in all, or None where that is not known.
        probes: whether a task whose memory nobody knows gets the device to itself.
    """

    name: str
    workers: int
    memory: int | None = None
    probes: bool = False

    def share(self, known: Measured | None) -> float:
        """The part of the device that a task takes, as far as memory goes."""
        peak = known.peak if known else None
        if peak is None:
            return 1.0 if self.probes else 1 / self.workers
        if self.memory is None:
            return 1 / self.workers
        return min(1.0, (peak * HEADROOM + (CONTEXT if self.probes else 0)) / self.memory)


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
    line: Connection | None = None
    output: Connection | None = None
    task: Task | None = None
    share: float = 0.0
    deadline: float | None = None
    tries: int = 0
    began: bool = False
    lines: int = 0
    rest: bytes = b""
    last: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        return self.device.name if self.device.workers == 1 else f"{self.device.name} worker {self.number}"


class LocalExecutor:
    """A pool of worker processes for each device.

    A worker runs one task after another. One that dies is started anew, and its task is tried again; a task
    that takes too long is killed with its worker. Workers die with this process, whatever ends it. Between
    this process and its workers only JSON travels.

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
        worker.task, worker.share, worker.tries = task, worker.device.share(known), 0
        self._send(worker)

    def _send(self, worker: _Worker) -> None:
        """Hand the worker its task, in a new process where it has none."""
        assert worker.task is not None, "only a worker with a task is sent one"
        worker.tries += 1
        worker.began = False
        worker.deadline = time.monotonic() + START
        worker.lines = 0
        worker.last.clear()
        message = json.dumps(worker.task.to_json()).encode()
        if worker.process is None:
            self._launch(worker)
        assert worker.line is not None, "a launched worker has its line"
        with suppress(OSError):  # one that died idle is found by `wait`
            worker.line.send_bytes(message)

    def _launch(self, worker: _Worker) -> None:
        runtime = replace(
            self._runtime,
            resources=replace(self._runtime.resources, device=worker.device.name),
            place=worker.place,
        )
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
        now = time.monotonic()
        deadlines = [w.deadline for w in self._workers if w.deadline is not None]
        timeout = max(0.0, min([seconds, *(deadline - now for deadline in deadlines)]))
        by_source: dict[Any, _Worker] = {}
        for worker in self._workers:
            if worker.process is not None:
                by_source |= {worker.line: worker, worker.output: worker, worker.process.sentinel: worker}
        ready = wait([source for source in by_source if source is not None], timeout)
        for worker in dict.fromkeys(by_source[source] for source in ready):
            yield from self._listen(worker)
        now = time.monotonic()
        for worker in self._workers:
            if worker.deadline is not None and worker.deadline <= now and worker.task is not None:
                limit = f"took longer than the time limit of {self._time_limit:g} s" if worker.began else ""
                yield from self._end(worker, "timeout", limit or f"no worker began with it within {START:g} s")

    def _listen(self, worker: _Worker) -> Iterator[Event]:
        dead = not worker.process.is_alive()
        yield from self._said(worker)
        try:
            while worker.line is not None and worker.line.poll():
                yield from self._reported(worker, json.loads(worker.line.recv_bytes()))
        except (EOFError, OSError, ValueError):
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

    def _reported(self, worker: _Worker, message: dict[str, Any]) -> Iterator[Event]:
        task = worker.task
        if task is None or message["key"] != task.key:
            return
        if "began" in message:
            worker.began = True
            worker.deadline = None if self._time_limit is None else time.monotonic() + self._time_limit
            yield Began(task.key, worker.place)
        elif "progress" in message:
            yield Moved(task.key, Progress(*message["progress"]))
        else:
            self._idle(worker)
            yield from_json(message)

    def _died(self, worker: _Worker) -> Iterator[Event]:
        code = worker.process.exitcode
        self._bury(worker)
        if worker.task is None:
            return
        if worker.tries <= self._retries:
            self._send(worker)
            return
        last = [*worker.last, *filter(None, [one_line(worker.rest.decode(errors="replace"))])]
        said = f"; it last said: {last[-1]}" if last else ""
        tried = "" if worker.tries == 1 else f" in each of {worker.tries} tries"
        yield from self._end(worker, "crash", one_line(f"the worker died{tried}: {_told(code)}{said}"))

    def _end(self, worker: _Worker, cause: Any, reason: str) -> Iterator[Event]:
        assert worker.task is not None, "only a worker with a task fails one"
        key = worker.task.key
        self._bury(worker)
        self._idle(worker)
        yield Ended(key, failure=Failure(cause, reason))

    @staticmethod
    def _idle(worker: _Worker) -> None:
        worker.task, worker.share, worker.deadline = None, 0.0, None

    @staticmethod
    def _bury(worker: _Worker) -> None:
        """Kill the process, and what it started."""
        process, worker.process = worker.process, None
        if process is not None:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
        for end in (worker.line, worker.output):
            if end is not None:
                end.close()
        worker.line = worker.output = None

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._workers:
            self._bury(worker)
            self._idle(worker)


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
        line: tasks come in and reports go out, as JSON.
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
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with lock:
            line.send_bytes(json.dumps(message).encode())

    with suppress(EOFError, BrokenPipeError):
        while True:
            task = Task.from_json(json.loads(line.recv_bytes()))
            send({"key": task.key, "began": True})
            send(to_json(attempt(runner, task, _Throttle(task.key, send))))


class _Throttle:
    """Reports a task's progress now and then."""

    def __init__(self, key: str, send: Any) -> None:
        self._key = key
        self._send = send
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + MOVES
            self._send({"key": self._key, "progress": [progress.step, progress.total, dict(progress.values)]})


def _die_with_the_driver() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        with suppress(OSError):
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

"""Runs tasks in worker processes on this machine: some for each device, started anew when they die."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pickle import UnpicklingError

from advbench.errors import InputError
from advbench.grid import devices
from advbench.grid.devices import GPU_WORKERS, Device
from advbench.grid.estimates import Measured
from advbench.grid.executors import Began, Ended, Event, Failure, Said, one_line, too_long
from advbench.grid.plan import Task
from advbench.grid.tasks import Runtime

READS = 16  # of 64 KiB of a worker's output, before others get their turn
START = 300.0  # seconds within which a worker must begin with a task
LINES = 50  # lines of a task that are passed on
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # read when libraries are loaded
# A worker imports what its driver does, wherever that was started.
WORKER = """
import sys
sys.path[:] = sys.argv[2:]
from advbench.grid.worker import work
work(int(sys.argv[1]))
"""


@dataclass(frozen=True)
class Pool:
    """A device and how many workers share it at most."""

    device: Device
    workers: int

    @property
    def context(self) -> float:
        """The part of the device's memory that a worker takes that has nothing to do."""
        return devices.CONTEXT / self.device.memory if self.device.is_gpu else 0.0

    def share(self, known: Measured | None) -> float:
        """The part of the device that a task takes; all of a GPU where nobody knows its memory."""
        peak = known.peak if known else None
        if peak is None:
            return 1.0 if self.device.is_gpu else 1 / self.workers
        return devices.part(peak, self.device.memory, gpu=self.device.is_gpu)


def pools(found: Sequence[Device], threads: int, workers: int | None) -> list[Pool]:
    """The devices of a run with their numbers of workers, by default as many as there are cores for; few on a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = max(1, cores // (threads * len(found)))
    return [Pool(device, workers or (min(each, GPU_WORKERS) if device.is_gpu else each)) for device in found]


class _Process:
    """A worker's process: tasks go in and events come out by its line; its output is what it prints."""

    def __init__(self, runtime: Runtime) -> None:
        threads = dict.fromkeys(THREADS, str(runtime.resources.threads))
        self.line, theirs = Pipe()
        with theirs:
            self.handle = subprocess.Popen(  # noqa: S603 - this same Python
                [sys.executable, "-c", WORKER, str(theirs.fileno()), *(path or os.getcwd() for path in sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                process_group=0,  # the terminal's interrupt is the driver's affair
                env={**os.environ, **threads},
            )
        assert self.handle.stdout is not None, "it is a pipe"
        self.output = self.handle.stdout
        self.send(runtime)

    def send(self, message: Runtime | Task) -> None:
        with suppress(OSError):  # it died; `LocalExecutor.wait` finds out
            self.line.send(message)

    def sources(self) -> list[Connection | int]:
        """What can be waited for."""
        return [self.line] if self.output.closed else [self.line, self.output.fileno()]

    def printed(self) -> Iterator[bytes]:
        """What it printed since; only so much that a worker which prints without end holds up nobody."""
        for _ in range(READS):
            if self.output.closed or not wait([self.output.fileno()], 0):
                return
            raw = os.read(self.output.fileno(), 65536)
            if not raw:
                self.output.close()
            yield raw

    def kill(self) -> None:
        """Kill it, and what it started."""
        with suppress(OSError):
            os.killpg(self.handle.pid, signal.SIGKILL)
        self.handle.wait()
        self.output.close()
        self.line.close()


@dataclass(eq=False)
class _Worker:
    """A place for one process on a device, and what is done there now."""

    pool: Pool
    number: int
    process: _Process | None = None
    task: Task | None = None
    share: float = 0.0  # the part of the device that the task takes
    beside: bool = False  # whether others ran on the device beside it
    began: bool = False
    deadline: float = math.inf  # for the task's beginning, then for its end
    tries: int = 0  # that the task had
    lines: int = 0  # that the task printed
    last: list[str] = field(default_factory=list)  # the latest of those
    rest: bytes = b""  # of a line that is not at its end

    @property
    def place(self) -> str:
        name = self.pool.device.name
        return name if self.pool.workers == 1 else f"{name} worker {self.number}"

    @property
    def taken(self) -> float:
        """The part of the device that it takes now."""
        return self.share if self.task else self.pool.context if self.process else 0.0

    def free(self) -> None:
        """Its task has ended."""
        self.task, self.share, self.deadline, self.beside = None, 0.0, math.inf, False

    def kill(self) -> None:
        process, self.process, self.rest = self.process, None, b""
        if process is not None:
            process.kill()


class LocalExecutor:
    """A pool of worker processes for each device.

    A worker runs one task after another. One that dies is started anew, and its task is tried again; a task
    that takes too long is killed with its worker; one whose memory ran out beside others is tried once more with the
    device to itself. Workers die with this process, whatever ends it.
    """

    def __init__(
        self, runtime: Runtime, pools: list[Pool], *, time_limit: float | None = None, retries: int = 2
    ) -> None:
        self._runtime = runtime
        self._time_limit = time_limit
        self._retries = retries
        self._workers = [_Worker(pool, number) for pool in pools for number in range(pool.workers)]
        self._alone: list[tuple[Pool, Task]] = []  # to be tried once more, with the device to themselves

    @property
    def places(self) -> int:
        """All workers of all devices."""
        return len(self._workers)

    def has_room(self, known: Measured | None) -> bool:
        """Whether a worker is idle on a device with enough memory left."""
        return self._free(known) is not None

    def _free(self, known: Measured | None) -> _Worker | None:
        """The idle worker on the device that is used least; a running process before one that would be started."""
        booked = {pool.device.name for pool, _ in self._alone}
        fit: list[tuple[float, bool, int, _Worker]] = []
        for worker in self._workers:
            if worker.task is None and worker.pool.device.name not in booked:
                others = [each for each in self._workers if each.pool is worker.pool and each is not worker]
                used = sum(each.taken for each in others)
                if used + worker.pool.share(known) <= 1 + 1e-9 or not any(each.task for each in others):
                    fit.append((used, worker.process is None, worker.number, worker))
        return min(fit, key=lambda found: found[:3])[3] if fit else None

    def start(self, task: Task, known: Measured | None) -> None:
        """Give the task to an idle worker.

        Raises:
            RuntimeError: there is none; ask `has_room` before.
        """
        worker = self._free(known)
        if worker is None:
            raise RuntimeError("no worker is idle")
        self._give(worker, task, worker.pool.share(known))

    def _give(self, worker: _Worker, task: Task, share: float) -> None:
        others = [each for each in self._workers if each.pool is worker.pool and each is not worker]
        for other in others:
            if other.task is not None:
                worker.beside = other.beside = True
            elif sum(each.taken for each in others) + share > 1:
                other.kill()  # what it keeps on the device makes room
        worker.share, worker.tries = share, 0
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
            try:
                worker.process = _Process(self._runtime.on(worker.pool.device.name, worker.place))
            except OSError as error:
                raise InputError(
                    "--workers",
                    expected="as many as this machine can start",
                    got=f"{len(self._workers)} ({error})",
                    remedy="take fewer (or: ulimit -n)",
                ) from error
        worker.process.send(task)

    def wait(self, seconds: float, tell: Callable[[Event], None]) -> None:
        """Tell what workers report, print and die of."""
        sources = [source for worker in self._workers if worker.process for source in worker.process.sources()]
        wait(sources, max(0.0, min(seconds, *(worker.deadline - time.monotonic() for worker in self._workers))))
        for worker in self._workers:
            if worker.process is not None:
                self._listen(worker, worker.process, tell)
        self._try_alone()
        now = time.monotonic()
        for worker in self._workers:
            task = worker.task
            if task is not None and worker.deadline <= now:
                worker.kill()
                worker.free()
                late = Failure("timeout", f"no worker began with it within {START:g} s")
                tell(too_long(task.key, self._time_limit) if worker.began else Ended(task.key, failure=late))

    def _listen(self, worker: _Worker, process: _Process, tell: Callable[[Event], None]) -> None:
        dead = process.handle.poll() is not None  # before its last words are read
        events: list[Event] = []
        for raw in process.printed():
            *lines, worker.rest = (worker.rest + raw).split(b"\n")
            worker.rest = worker.rest[-65536:]
            for line in filter(None, (one_line(each.decode(errors="replace")) for each in lines)):
                worker.last = [*worker.last[-4:], line]
                worker.lines += 1
                if worker.task is not None and worker.lines <= LINES:
                    more = "(what else it prints is left out)"
                    events.append(Said(worker.task.key, line if worker.lines < LINES else more))
        try:
            while process.line.poll():
                events.append(process.line.recv())
        except (EOFError, OSError, UnpicklingError):
            dead = True
        for event in events:
            if worker.task is None or event.key != worker.task.key:
                continue
            if isinstance(event, Began):
                worker.began = True
                worker.deadline = math.inf if self._time_limit is None else time.monotonic() + self._time_limit
            elif isinstance(event, Ended):
                if event.failure is not None and event.failure.cause == "memory" and worker.beside:
                    self._alone.append((worker.pool, worker.task))
                    worker.free()
                    continue
                worker.free()
            tell(event)
        if dead:
            self._died(worker, process, tell)

    def _try_alone(self) -> None:
        """Start what needs a device to itself where nothing runs any more."""
        for pool, task in list(self._alone):
            workers = [worker for worker in self._workers if worker.pool is pool]
            if not any(worker.task for worker in workers):
                self._alone.remove((pool, task))
                self._give(workers[0], task, 1.0)

    def _died(self, worker: _Worker, process: _Process, tell: Callable[[Event], None]) -> None:
        task = worker.task
        with suppress(subprocess.TimeoutExpired):
            process.handle.wait(5)
        code = process.handle.returncode
        last = [*worker.last, *filter(None, [one_line(worker.rest.decode(errors="replace"))])]
        worker.kill()
        if task is None:
            return
        if worker.tries <= self._retries:
            self._send(worker, task)
            return
        worker.free()
        said = f"; it last said: {last[-1]}" if last else ""
        tried = "" if worker.tries == 1 else f" in each of {worker.tries} tries"
        tell(Ended(task.key, failure=Failure("crash", one_line(f"the worker died{tried}: {_told(code)}{said}"))))

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._workers:
            worker.kill()
            worker.free()


def _told(code: int | None) -> str:
    """How a process ended, for people."""
    if code is None:
        return "for an unknown reason"
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"{name} (killed, perhaps because memory ran out)" if name == "SIGKILL" else name

"""Runs tasks in worker processes on this machine, several per device, which are restarted when they die."""

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
from advbench.grid.tasks import KEPT, Runtime

READS = 16  # reads of 64 KiB of a worker's output per turn
START = 300.0  # seconds; time limit for a worker to start a task
LINES = 50  # maximum number of forwarded lines per task
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # read by libraries when loaded
# A worker has the import path of its driver.
WORKER = """
import sys
sys.path[:] = sys.argv[2:]
from advbench.grid.worker import work
work(int(sys.argv[1]))
"""


@dataclass(frozen=True)
class Pool:
    """A device and the maximum number of workers on it."""

    device: Device
    workers: int

    @property
    def context(self) -> float:
        """Largest fraction of the device's memory used by an idle worker."""
        return (devices.CONTEXT + KEPT) / self.device.memory if self.device.is_gpu else 0.0

    def share(self, known: Measured | None) -> float:
        """Fraction of the device used by a task; all of a GPU if its memory is unknown."""
        peak = known.peak if known else None
        if peak is None:
            return 1.0 if self.device.is_gpu else 1 / self.workers
        return devices.part(peak, self.device.memory, gpu=self.device.is_gpu)


def pools(found: Sequence[Device], threads: int, workers: int | None) -> list[Pool]:
    """Devices of a run with numbers of workers, by default as many as there are cores, and few per GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = max(1, cores // (threads * len(found)))
    return [Pool(device, workers or (min(each, GPU_WORKERS) if device.is_gpu else each)) for device in found]


class _Process:
    """Process of a worker, with a connection for tasks and events, and a pipe for its output."""

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
                process_group=0,  # interrupts of the terminal are handled by the driver
                env={**os.environ, **threads},
            )
        assert self.handle.stdout is not None, "stdout is a pipe"
        self.output = self.handle.stdout
        self.send(runtime)

    def send(self, message: Runtime | tuple[Task, bool]) -> None:
        with suppress(OSError):  # it died; `LocalExecutor.wait` detects that
            self.line.send(message)

    def sources(self) -> list[Connection | int]:
        """Connections and file descriptors to wait for."""
        return [self.line] if self.output.closed else [self.line, self.output.fileno()]

    def printed(self) -> Iterator[bytes]:
        """New output, limited so that a worker which prints endlessly does not block others."""
        for _ in range(READS):
            if self.output.closed or not wait([self.output.fileno()], 0):
                return
            raw = os.read(self.output.fileno(), 65536)
            if not raw:
                self.output.close()
            yield raw

    def kill(self) -> None:
        """Kill the process and its children."""
        with suppress(OSError):
            os.killpg(self.handle.pid, signal.SIGKILL)
        self.handle.wait()
        self.output.close()
        self.line.close()


@dataclass(eq=False)
class _Worker:
    """A slot for one process on a device, with its current task."""

    pool: Pool
    number: int
    process: _Process | None = None
    task: Task | None = None
    share: float = 0.0  # fraction of the device used by the task
    beside: bool = False  # True if other tasks ran on the device at the same time
    shared: bool = False  # True if other tasks may run on the device at the same time
    began: bool = False
    deadline: float = math.inf  # deadline of the task's start, then of its end
    tries: int = 0  # number of tries of the task
    lines: int = 0  # number of lines printed by the task
    last: list[str] = field(default_factory=list)  # latest lines
    rest: bytes = b""  # start of an incomplete line

    @property
    def place(self) -> str:
        name = self.pool.device.name
        return name if self.pool.workers == 1 else f"{name} worker {self.number}"

    @property
    def taken(self) -> float:
        """Fraction of the device in use."""
        return self.share if self.task else self.pool.context if self.process else 0.0

    def free(self) -> None:
        """Reset after the end of a task."""
        self.task, self.share, self.deadline, self.beside = None, 0.0, math.inf, False

    def kill(self) -> None:
        process, self.process, self.rest = self.process, None, b""
        if process is not None:
            process.kill()


class LocalExecutor:
    """A pool of worker processes for each device.

    A worker runs one task after another. If it dies, it is restarted and its task retried; a task over the time limit
    is killed with its worker; a task that ran out of memory next to others is retried once with exclusive use of the
    device, where a training may be split. Workers die with this process, however it ends.
    """

    def __init__(
        self, runtime: Runtime, pools: list[Pool], *, time_limit: float | None = None, retries: int = 2
    ) -> None:
        self._runtime = runtime
        self._time_limit = time_limit
        self._retries = retries
        self._workers = [_Worker(pool, number) for pool in pools for number in range(pool.workers)]
        self._alone: list[tuple[Pool, Task]] = []  # tasks to retry with exclusive use of the device

    @property
    def places(self) -> int:
        """Number of workers of all devices."""
        return len(self._workers)

    def has_room(self, known: Measured | None) -> bool:
        """True if a worker is idle on a device with enough free memory."""
        return self._free(known) is not None

    def _free(self, known: Measured | None) -> _Worker | None:
        """The idle worker on the least used device; running processes are preferred to new ones."""
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
            RuntimeError: there is none; check `has_room` first.
        """
        worker = self._free(known)
        if worker is None:
            raise RuntimeError("no idle worker")
        self._give(worker, task, worker.pool.share(known), shared=worker.pool.workers > 1)

    def _give(self, worker: _Worker, task: Task, share: float, *, shared: bool) -> None:
        others = [each for each in self._workers if each.pool is worker.pool and each is not worker]
        for other in others:
            if other.task is not None:
                worker.beside = other.beside = True
            elif sum(each.taken for each in others) + share > 1:
                other.kill()  # frees its memory on the device
        worker.share, worker.shared, worker.tries = share, shared, 0
        self._send(worker, task)

    def _send(self, worker: _Worker, task: Task) -> None:
        """Send a task to the worker, starting its process if necessary."""
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
                    expected="at most as many as this machine can start",
                    got=f"{len(self._workers)} ({error})",
                    remedy="use fewer (or raise ulimit -n)",
                ) from error
        worker.process.send((task, worker.shared))

    def wait(self, seconds: float, report: Callable[[Event], None]) -> None:
        """Report events, output and crashes of workers."""
        sources = [source for worker in self._workers if worker.process for source in worker.process.sources()]
        wait(sources, max(0.0, min(seconds, *(worker.deadline - time.monotonic() for worker in self._workers))))
        for worker in self._workers:
            if worker.process is not None:
                self._listen(worker, worker.process, report)
        self._try_alone()
        now = time.monotonic()
        for worker in self._workers:
            task = worker.task
            if task is not None and worker.deadline <= now:
                worker.kill()
                worker.free()
                late = Failure("timeout", f"no worker started it within {START:g} s")
                report(too_long(task.key, self._time_limit) if worker.began else Ended(task.key, failure=late))

    def _listen(self, worker: _Worker, process: _Process, report: Callable[[Event], None]) -> None:
        dead = process.handle.poll() is not None  # checked before its last output is read
        events: list[Event] = []
        for raw in process.printed():
            *lines, worker.rest = (worker.rest + raw).split(b"\n")
            worker.rest = worker.rest[-65536:]
            for line in filter(None, (one_line(each.decode(errors="replace")) for each in lines)):
                worker.last = [*worker.last[-4:], line]
                worker.lines += 1
                if worker.task is not None and worker.lines <= LINES:
                    more = "(further output is omitted)"
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
                dead = dead or event.last
                unsplit = worker.shared and worker.task.kind == "train"
                if event.failure is not None and event.failure.cause == "memory" and (worker.beside or unsplit):
                    self._alone.append((worker.pool, worker.task))
                    worker.free()
                    continue
                worker.free()
            report(event)
        if dead:
            self._died(worker, process, report)

    def _try_alone(self) -> None:
        """Start tasks that need a device exclusively on idle devices."""
        for pool, task in list(self._alone):
            workers = [worker for worker in self._workers if worker.pool is pool]
            if not any(worker.task for worker in workers):
                self._alone.remove((pool, task))
                self._give(workers[0], task, 1.0, shared=False)

    def _died(self, worker: _Worker, process: _Process, report: Callable[[Event], None]) -> None:
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
        said = f"; last output: {last[-1]}" if last else ""
        tried = "" if worker.tries == 1 else f" in each of {worker.tries} tries"
        report(Ended(task.key, failure=Failure("crash", one_line(f"the worker died{tried}: {_how_ended(code)}{said}"))))

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._workers:
            worker.kill()
            worker.free()


def _how_ended(code: int | None) -> str:
    """Description of how a process ended."""
    if code is None:
        return "for an unknown reason"
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"{name} (killed, possibly out of memory)" if name == "SIGKILL" else name

"""Executors of tasks, with one interface: start a task if there is room, wait for events."""

from __future__ import annotations

import functools
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from advbench import errors
from advbench.errors import AdvbenchError, GoneError, InputError, OutOfMemoryError, StoreError
from advbench.grid.estimates import Measured
from advbench.grid.plan import Task
from advbench.grid.tasks import Record, Runner
from advbench.progress import Progress
from advbench.registry.files import place_of

REASON_LENGTH = 500  # maximum characters of a stored reason, and of a line printed by a task
TRACE_LENGTH = 20_000
one_line = functools.partial(errors.one_line, limit=REASON_LENGTH)

# A plugin violated its contract (`plugin`) or raised an unexpected exception (`bug`); the worker died (`crash`) or
# exceeded the time limit (`timeout`); the device lacks `memory`; the user's input or installation is invalid (`input`);
# an input of the task is `gone`; the `store` failed.
Cause = Literal["plugin", "bug", "crash", "timeout", "memory", "input", "gone", "store"]


@dataclass(frozen=True)
class Failure:
    """Reason for which a task ended without a record."""

    cause: Cause
    reason: str  # one line
    trace: str | None = None  # traceback of a bug
    gone: str | None = None  # key of the missing input

    @property
    def lasting(self) -> bool:
        """True if the task itself failed, so that it is not retried by default."""
        return self.cause in ("plugin", "bug", "crash", "timeout", "memory")


@dataclass(frozen=True)
class Began:
    """A task began, at a place named for users."""

    key: str
    place: str


@dataclass(frozen=True)
class Moved:
    """A running task made progress."""

    key: str
    progress: Progress


@dataclass(frozen=True)
class Said:
    """A running task printed a line."""

    key: str
    line: str


@dataclass(frozen=True)
class Ended:
    """A task ended, with its record, which is already stored, or with a failure.

    It is the `last` one of its process if it left the process without its device.
    """

    key: str
    record: Record | None = None
    failure: Failure | None = None
    last: bool = False


Event = Began | Moved | Said | Ended


class Executor(Protocol):
    """Runs tasks whose inputs exist; retries those whose worker died, and stops those over the time limit."""

    @property
    def places(self) -> int:
        """Maximum number of concurrent tasks; at least 1."""

    def has_room(self, known: Measured | None) -> bool:
        """True if a task with the given measurements (None if unknown) can be started now."""

    def start(self, task: Task, known: Measured | None) -> None:
        """Start a task; its events are reported by `wait`."""

    def wait(self, seconds: float, report: Callable[[Event], None]) -> None:
        """Wait for the next events for at most `seconds`, and report them."""

    def close(self) -> None:
        """Stop the workers; running tasks are abandoned and count as never started."""


def attempt(
    runner: Runner, task: Task, report: Callable[[Event], object], every: float = 0.0, *, shared: bool = False
) -> Ended:
    """Run a task; exceptions of plugins become failures. Keyboard interrupts are not caught.

    Events contain plain values only, which can be sent to other processes.

    Args:
        runner: runner of this process.
        task: the task, whose inputs exist.
        report: callback with events of the task's start and progress.
        every: minimum time between two progress events, in seconds.
        shared: True if other processes may use the device at the same time.
    """
    due = 0.0

    def on_progress(progress: Progress) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + every
            values = {name: float(value) for name, value in progress.values.items()}
            report(Moved(task.key, Progress(progress.step, progress.total, values)))

    report(Began(task.key, runner.runtime.place or runner.runtime.resources.device))
    try:
        return Ended(task.key, record=json.loads(json.dumps(runner.run(task, on_progress, shared=shared))))
    except GoneError as error:
        failure = Failure("gone", str(error), gone=error.key)
    except StoreError as error:
        failure = Failure("store", str(error))
    except OutOfMemoryError as error:
        failure = Failure("memory", one_line(str(error)))
    except AdvbenchError as error:
        failure = Failure("input" if isinstance(error, InputError) else "plugin", one_line(str(error)))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if place := place_of(error):
            return Ended(task.key, failure=Failure("plugin", one_line(f"{place}: {_message(error)}")))
        trace = "".join(traceback.format_exception(error))
        if len(trace) > TRACE_LENGTH:
            trace = f"{trace[: TRACE_LENGTH // 2]}\n[...]\n{trace[-TRACE_LENGTH // 2 :]}"
        failure = Failure("bug", one_line(_message(error)), trace)
    return Ended(task.key, failure=failure)


def too_long(key: str, limit: float | None) -> Ended:
    """The end of a task that exceeded the time limit, in seconds."""
    return Ended(key, failure=Failure("timeout", f"exceeded the time limit of {limit:g} s"))


def _message(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__} without a printable message"

"""Where tasks run. One interface: start a task where there is room, wait for what happens."""

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

REASON_LENGTH = 500  # characters of a reason that are kept, and of a line that a task prints
TRACE_LENGTH = 20_000
one_line = functools.partial(errors.one_line, limit=REASON_LENGTH)

# A plugin broke its contract (`plugin`) or raised what nobody expected (`bug`); the worker died (`crash`) or took too
# long (`timeout`); the device has not enough `memory`; what the user gave or installed cannot be used (`input`); what
# the task reads is `gone`; the `store` failed.
Cause = Literal["plugin", "bug", "crash", "timeout", "memory", "input", "gone", "store"]


@dataclass(frozen=True)
class Failure:
    """Why a task ended without a record."""

    cause: Cause
    reason: str  # in one line
    trace: str | None = None  # the traceback of a bug
    gone: str | None = None  # the key of what is gone

    @property
    def lasting(self) -> bool:
        """Whether the task itself is to blame, so that trying it again needs a reason."""
        return self.cause in ("plugin", "bug", "crash", "timeout", "memory")


@dataclass(frozen=True)
class Began:
    """A task began, at a place that people recognise."""

    key: str
    place: str


@dataclass(frozen=True)
class Moved:
    """A running task got further."""

    key: str
    progress: Progress


@dataclass(frozen=True)
class Said:
    """A running task printed a line."""

    key: str
    line: str


@dataclass(frozen=True)
class Ended:
    """A task ended: with its record, which is stored by now, or with a failure."""

    key: str
    record: Record | None = None
    failure: Failure | None = None


Event = Began | Moved | Said | Ended


class Executor(Protocol):
    """Runs tasks whose needs are met. Retries those whose worker died; ends those that take too long."""

    @property
    def places(self) -> int:
        """How many tasks run at once at most; at least 1."""

    def has_room(self, known: Measured | None) -> bool:
        """Whether a task can be started now that needs what is known of its like; None where that is nothing."""

    def start(self, task: Task, known: Measured | None) -> None:
        """Start a task; `wait` tells what becomes of it."""

    def wait(self, seconds: float, tell: Callable[[Event], None]) -> None:
        """Wait for what happens next, but not for longer than `seconds` where nothing does, and tell it."""

    def close(self) -> None:
        """End the workers; running tasks are abandoned and count as never started."""


def attempt(runner: Runner, task: Task, tell: Callable[[Event], object], every: float = 0.0) -> Ended:
    """Run a task; whatever a plugin raises becomes a failure. An interrupt by the keyboard is not caught.

    Events hold plain values, which can be sent to another process whatever a plugin gave.

    Args:
        runner: of this process.
        task: the task, whose needs are met.
        tell: called with the task's beginning and progress.
        every: least seconds between two reports of progress.
    """
    due = 0.0

    def report(progress: Progress) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + every
            values = {name: float(value) for name, value in progress.values.items()}
            tell(Moved(task.key, Progress(progress.step, progress.total, values)))

    tell(Began(task.key, runner.runtime.place or runner.runtime.resources.device))
    try:
        return Ended(task.key, record=json.loads(json.dumps(runner.run(task, report))))
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
        trace = "".join(traceback.format_exception(error))
        if len(trace) > TRACE_LENGTH:
            trace = f"{trace[: TRACE_LENGTH // 2]}\n[...]\n{trace[-TRACE_LENGTH // 2 :]}"
        failure = Failure("bug", one_line(_message(error)), trace)
    return Ended(task.key, failure=failure)


def too_long(key: str, limit: float | None) -> Ended:
    """The end of a task that exceeded the time limit in seconds."""
    return Ended(key, failure=Failure("timeout", f"took longer than the time limit of {limit:g} s"))


def _message(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__}, which cannot say what it is"

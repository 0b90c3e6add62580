"""Where tasks run. One interface: start a task where there is room, wait for what happens."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from advbench.errors import AdvbenchError, GoneError, InputError, StoreError
from advbench.grid.estimates import Measured
from advbench.grid.plan import Task
from advbench.grid.tasks import Record, Runner
from advbench.progress import OnProgress, Progress

REASON_LENGTH = 500  # characters of a reason that are kept, and of a line that a task prints
TRACE_LENGTH = 20_000

Cause = Literal["plugin", "bug", "crash", "timeout", "input", "gone", "store"]


@dataclass(frozen=True)
class Failure:
    """Why a task ended without a record.

    Attributes:
        cause: a plugin broke its contract (`plugin`) or raised what nobody expected (`bug`); the worker died
            (`crash`) or took too long (`timeout`); what the user gave or installed cannot be used (`input`);
            what the task reads is `gone`; the `store` failed.
        reason: in one line.
        trace: the traceback of a bug.
        gone: the key of what is gone.
    """

    cause: Cause
    reason: str
    trace: str | None = None
    gone: str | None = None

    @property
    def lasting(self) -> bool:
        """Whether the task itself is to blame, so that trying it again needs a reason."""
        return self.cause in ("plugin", "bug", "crash", "timeout")


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
        """Start a task; what becomes of it comes out of `wait`."""

    def wait(self, seconds: float) -> Iterable[Event]:
        """What happens next; waits for it, but not for longer than `seconds` where nothing does."""

    def close(self) -> None:
        """End the workers; running tasks are abandoned and count as never started."""


def attempt(runner: Runner, task: Task, on_progress: OnProgress) -> Ended:
    """Run a task; whatever a plugin raises becomes a failure. An interrupt by the keyboard is not caught."""
    try:
        return Ended(task.key, record=runner.run(task, on_progress))
    except GoneError as error:
        return Ended(task.key, failure=Failure("gone", str(error), gone=error.key))
    except StoreError as error:
        return Ended(task.key, failure=Failure("store", str(error)))
    except AdvbenchError as error:
        cause: Cause = "input" if isinstance(error, InputError) else "plugin"
        return Ended(task.key, failure=Failure(cause, one_line(str(error))))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        trace = "".join(traceback.format_exception(error))
        if len(trace) > TRACE_LENGTH:
            trace = f"{trace[: TRACE_LENGTH // 2]}\n[...]\n{trace[-TRACE_LENGTH // 2 :]}"
        return Ended(task.key, failure=Failure("bug", one_line(_message(error)), trace))


def _message(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__}, which cannot say what it is"


def one_line(text: str) -> str:
    """A message as one printable line that is not too long."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in text[: 4 * REASON_LENGTH]).split())
    return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 3] + "..."


def to_json(ended: Ended) -> dict[str, Any]:
    """How a task ended, as JSON values."""
    return {"key": ended.key, "record": ended.record, "failure": ended.failure and vars(ended.failure)}


def from_json(values: Mapping[str, Any]) -> Ended:
    """How a task ended, by what `to_json` gave."""
    failure = values["failure"]
    return Ended(values["key"], values["record"], Failure(**failure) if failure else None)

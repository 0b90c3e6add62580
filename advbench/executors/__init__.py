"""Where tasks run. One interface: submit a task, get a future of its record."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from advbench.plan import Task
from advbench.tasks import Record


class Executor(Protocol):
    """Runs tasks whose needs are met."""

    @property
    def capacity(self) -> int:
        """How many tasks it runs at once."""

    def submit(self, task: Task) -> Future[Record]:
        """Start a task; the future holds its record, or the error that ended it."""

    def close(self) -> None:
        """Release what it holds; running tasks are abandoned and count as never started."""

"""Runs each task in this process, one at a time: for debugging, and where one process is enough."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from advbench.api import Progress
from advbench.executors import Began, Ended, Event, attempt
from advbench.journal import Measured
from advbench.plan import Task
from advbench.tasks import Runner, Runtime


class InlineExecutor:
    """Runs a task while it is waited for. A crash of a task is a crash of the run.

    Args:
        runtime: where tasks run and with what.
        on_progress: called with the running task's key and its progress.
    """

    places = 1

    def __init__(self, runtime: Runtime, on_progress: Callable[[str, Progress], None] = lambda key, progress: None):
        self._runner = Runner(runtime)
        self._on_progress = on_progress
        self._queue: deque[Task] = deque()

    def has_room(self, known: Measured | None) -> bool:
        """One task at a time."""
        return not self._queue

    def start(self, task: Task, known: Measured | None) -> None:
        """Keep the task until it is waited for."""
        self._queue.append(task)

    def wait(self, seconds: float) -> Iterator[Event]:
        """Run the task; its progress goes to `on_progress` meanwhile."""
        while self._queue:
            task = self._queue.popleft()
            yield Began(task.key, self._runner.runtime.resources.device)
            yield self._run(task)

    def _run(self, task: Task) -> Ended:
        return attempt(self._runner, task, lambda progress: self._on_progress(task.key, progress))

    def close(self) -> None:
        """Nothing is held."""
        self._queue.clear()

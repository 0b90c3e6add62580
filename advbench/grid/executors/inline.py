"""Runs each task in this process, one at a time: for debugging, and where one process is enough."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import TextIOBase

from advbench.grid.estimates import Measured
from advbench.grid.executors import Began, Ended, Event, attempt, one_line
from advbench.grid.plan import Task
from advbench.grid.tasks import Runner, Runtime
from advbench.progress import Progress


class InlineExecutor:
    """Runs a task while it is waited for. A crash of a task is a crash of the run.

    Args:
        runtime: where tasks run and with what.
        on_progress: called with the running task's key and its progress.
        on_line: called with the running task's key and a line that it printed.
    """

    places = 1

    def __init__(
        self, runtime: Runtime, on_progress: Callable[[str, Progress], None], on_line: Callable[[str, str], None]
    ) -> None:
        self._runner = Runner(runtime)
        self._on_progress = on_progress
        self._on_line = on_line
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
        printed = _Lines(lambda line: self._on_line(task.key, line))
        with redirect_stdout(printed), redirect_stderr(printed), chdir("."):
            return attempt(self._runner, task, lambda moved: self._on_progress(task.key, moved.progress))

    def close(self) -> None:
        """Nothing is held."""
        self._queue.clear()


class _Lines(TextIOBase):
    """Passes whole lines on, of those that are written to it."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, rest = (self._rest + text).split("\n")
        self._rest = rest[-65536:]
        for line in filter(None, map(one_line, lines)):
            self._on_line(line)
        return len(text)

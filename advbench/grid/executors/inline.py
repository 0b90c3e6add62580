"""Runs tasks in this process, one at a time: for debugging and small runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import TextIOBase

from advbench.grid.estimates import Measured
from advbench.grid.executors import Event, Said, attempt, one_line
from advbench.grid.plan import Task
from advbench.grid.tasks import Runner, Runtime


class InlineExecutor:
    """Runs a task inside `wait`. A crash of a task is a crash of the run."""

    places = 1

    def __init__(self, runtime: Runtime) -> None:
        self._runner = Runner(runtime)
        self._task: Task | None = None

    def has_room(self, known: Measured | None) -> bool:
        """True if no task is pending."""
        return self._task is None

    def start(self, task: Task, known: Measured | None) -> None:
        """Keep the task for the next `wait`."""
        self._task = task

    def wait(self, seconds: float, report: Callable[[Event], None]) -> None:
        """Run the pending task, if any."""
        task, self._task = self._task, None
        if task is None:
            return
        printed = _Lines(lambda line: report(Said(task.key, line)))
        with redirect_stdout(printed), redirect_stderr(printed), chdir("."):
            ended = attempt(self._runner, task, report)
        report(ended)

    def close(self) -> None:
        """Do nothing."""
        self._task = None


class _Lines(TextIOBase):
    """Text stream that forwards complete lines."""

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

"""Runs each task at once, in this process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from advbench.api import Progress
from advbench.plan import Task
from advbench.tasks import Record, Runner, Runtime


class InlineExecutor:
    """Runs each task in `submit`, so the returned future is done.

    Args:
        runtime: where tasks run and with what.
        on_progress: called with the running task and its progress.
    """

    capacity = 1

    def __init__(
        self, runtime: Runtime, on_progress: Callable[[Task, Progress], None] = lambda task, progress: None
    ) -> None:
        self._runner = Runner(runtime)
        self._on_progress = on_progress

    def submit(self, task: Task) -> Future[Record]:
        """Run the task. An interrupt by the keyboard is not caught."""
        future: Future[Record] = Future()
        try:
            future.set_result(self._runner.run(task, lambda progress: self._on_progress(task, progress)))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Nothing is held."""

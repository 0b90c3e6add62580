"""How a run shows itself: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from advbench.api import Progress as TaskProgress
from advbench.plan import Task
from advbench.tasks import Record


def make_display(waiting: Mapping[str, Task]) -> PlainDisplay:
    """The display of the tasks that will run, fit for standard error: live on a terminal, plain otherwise."""
    console = Console(stderr=True)
    return LiveDisplay(console, waiting) if console.is_terminal else PlainDisplay(console, waiting)


class PlainDisplay:
    """A line for each task that ends, with what it found, and the time left.

    Args:
        console: where to write.
        waiting: the tasks that will run.
    """

    def __init__(self, console: Console, waiting: Mapping[str, Task]) -> None:
        self._console = console
        self._waiting = waiting
        self._ended = 0
        self._cost = sum(task.cost for task in waiting.values())
        self._spent = 0.0
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing open."""

    def started(self, task: Task) -> None:
        """Nothing is written before there is something to say."""

    def progressed(self, task: Task, progress: TaskProgress) -> None:
        """Steps are not written as lines."""

    def finished(self, task: Task, record: Record) -> None:
        """Write what the task found."""
        self._end(task)
        self._line(f"{task.label}: {found(record)}")

    def skipped(self, task: Task) -> None:
        """Count the task; what failed has said why."""
        self._end(task)

    def failed(self, task: Task, reason: str, trace: str | None) -> None:
        """Write why the task failed, with the traceback where it is a bug."""
        self._end(task)
        self._line(f"{task.label}: failed: {reason}")
        if trace is not None:
            self._console.print(trace, markup=False, highlight=False)

    def _end(self, task: Task) -> None:
        self._ended += 1
        self._spent += task.cost

    def _line(self, text: str) -> None:
        head = f"[{self._ended}/{len(self._waiting)}]"
        left = self.seconds_left()
        tail = f" (about {duration(left)} left)" if left is not None and left >= 1 else ""
        self._console.print(f"{head} {text}{tail}", markup=False, highlight=False, soft_wrap=True)

    def seconds_left(self, share_of_running: float = 0.0) -> float | None:
        """Time left if the passes to come take as long as those so far; None while nothing has been spent."""
        spent = self._spent + share_of_running
        if spent <= 0 or self._ended == len(self._waiting):
            return None
        return (time.monotonic() - self._started) / spent * (self._cost - spent)


class LiveDisplay(PlainDisplay):
    """A bar over all tasks and one over the running task, with its latest values."""

    def __init__(self, console: Console, waiting: Mapping[str, Task]) -> None:
        super().__init__(console, waiting)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._all = self._bars.add_task(f"{len(waiting)} tasks", total=max(self._cost, 1e-9), note="")
        self._one = self._bars.add_task("", total=1, note="", visible=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear the bars."""
        self._bars.stop()

    def started(self, task: Task) -> None:
        """Show the task."""
        self._bars.reset(self._one, total=1, description=escape(task.label), note="", visible=True)

    def progressed(self, task: Task, progress: TaskProgress) -> None:
        """Move both bars."""
        values = "  ".join(f"{name} {value:.4g}" for name, value in progress.values.items())
        self._bars.update(self._one, completed=progress.step, total=progress.total, note=escape(values))
        share = task.cost * progress.step / max(progress.total, 1)
        left = self.seconds_left(share)
        note = "" if left is None else f"about {duration(left)} left"
        self._bars.update(self._all, completed=self._spent + share, note=note)

    def _end(self, task: Task) -> None:
        super()._end(task)
        self._bars.update(self._all, completed=self._spent, description=f"{self._ended}/{len(self._waiting)} tasks")


def found(record: Mapping[str, Any]) -> str:
    """What a finished task found, in a few words."""
    seconds = f"{record['seconds']:.1f} s"
    result = record["result"]
    if record["kind"] == "evaluate":
        low, high = result["accuracy_interval"]
        return f"accuracy {result['accuracy']:.3f} [{low:.3f}, {high:.3f}], {seconds}"
    if record["kind"] == "craft":
        return (
            f"{result['forward_passes']:.1f} forward and {result['backward_passes']:.1f} backward passes "
            f"an image, {seconds}"
        )
    values = ", ".join(f"{name} {value:.4g}" for name, value in result["training"].items())
    return f"{values}, {seconds}" if values else seconds


def duration(seconds: float) -> str:
    """A duration as people read it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

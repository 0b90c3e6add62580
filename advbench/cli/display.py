"""How a run shows itself: a live display on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from advbench.grid.plan import Task
from advbench.grid.tasks import Record
from advbench.progress import Progress as TaskProgress

WAITING = 60.0  # seconds between two lines that say that other drivers are waited for
SOON = 10.0  # seconds left of which plain lines say nothing
JSON_PROGRESS = 5.0  # least seconds between two lines of JSON on one task's progress


def make_display(tasks: Mapping[str, Task], waiting: Mapping[str, Task], *, as_json: bool = False) -> PlainDisplay:
    """The display of the tasks that will run, fit for standard error: live on a terminal, plain otherwise."""
    console = Console(file=sys.stderr)  # now: what tasks print to standard error later comes here through `said`
    kind = JsonDisplay if as_json else LiveDisplay if console.is_terminal else PlainDisplay
    return kind(console, tasks, waiting)


class PlainDisplay:
    """A line for each task that ends, with what it found, and the time left.

    Args:
        console: where to write.
        tasks: all tasks of the run, by key.
        waiting: those that will run.
    """

    def __init__(self, console: Console, tasks: Mapping[str, Task], waiting: Mapping[str, Task]) -> None:
        self._console = console
        self._tasks = tasks
        self._waiting = waiting
        self._ended = 0
        self._cost = sum(task.cost for task in waiting.values())
        self._spent = 0.0
        self._left: float | None = None
        self._says_again = time.monotonic() + 2.0
        self._started = time.monotonic()
        self._forecasts_again = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing open."""

    def started(self, task: Task) -> None:
        """Nothing is written before there is something to say."""

    def began(self, task: Task, place: str) -> None:
        """Nothing either."""

    def moved(self, key: str, progress: TaskProgress) -> None:
        """A task that runs in this process got further."""
        self.progressed(self._tasks[key], progress)

    def printed(self, key: str, line: str) -> None:
        """A task that runs in this process printed a line."""
        self.said(self._tasks[key], line)

    def progressed(self, task: Task, progress: TaskProgress) -> None:
        """Steps are not written as lines."""

    def said(self, task: Task, line: str) -> None:
        """Write what a task printed."""
        self._print(f"{task.label} | {line}")

    def finished(self, task: Task, record: Record) -> None:
        """Write what the task found."""
        self._end(task)
        self._line(f"{task.label}: {found(record)}")

    def elsewhere(self, task: Task) -> None:
        """Write that another driver did the task."""
        self._end(task)
        self._line(f"{task.label}: done by another driver")

    def skipped(self, task: Task) -> None:
        """Count the task; what failed has said why."""
        self._end(task)

    def failed(self, task: Task, reason: str, trace: str | None) -> None:
        """Write why the task failed, with the traceback where it is a bug."""
        self._end(task)
        self._line(f"{task.label}: failed: {reason}")
        if trace is not None:
            self._print(trace)

    def waits(self, count: int) -> None:
        """Write, now and then, that other drivers are waited for."""
        now = time.monotonic()
        if now >= self._says_again:
            self._says_again = now + WAITING
            self._print(f"waiting for {count} tasks that other drivers work on (advbench status shows them)")

    def forecast(self, seconds_left: float | None) -> None:
        """Remember the time left; write it once it is known, and now and then while nothing else is written."""
        self._left = seconds_left
        now = time.monotonic()
        if seconds_left is not None and seconds_left >= SOON and now >= self._forecasts_again:
            self._print(f"about {duration(seconds_left)} left")

    def _end(self, task: Task) -> None:
        self._ended += 1
        self._spent += task.cost

    def _line(self, text: str) -> None:
        left = self.seconds_left()
        tail = f" (about {duration(left)} left)" if left is not None and left >= 1 else ""
        self._print(f"[{self._ended}/{max(self._ended, len(self._waiting))}] {text}{tail}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._forecasts_again = time.monotonic() + WAITING

    def seconds_left(self, share_of_running: float = 0.0) -> float | None:
        """Time left by what tasks of the kind took; else as if passes went on as fast; None while nothing is known."""
        spent = self._spent + share_of_running
        if self._ended >= len(self._waiting):
            return None
        if self._left is not None:
            return self._left
        return (time.monotonic() - self._started) / spent * (self._cost - spent) if spent > 0 else None


class LiveDisplay(PlainDisplay):
    """A bar over all tasks and one for each running task, with where it runs and its latest values."""

    def __init__(self, console: Console, tasks: Mapping[str, Task], waiting: Mapping[str, Task]) -> None:
        super().__init__(console, tasks, waiting)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._all = self._bars.add_task(f"{len(waiting)} tasks", total=max(self._cost, 1e-9), note="")
        self._running: dict[str, TaskID] = {}
        self._places: dict[str, str] = {}
        self._shares: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear the bars."""
        self._bars.stop()

    def began(self, task: Task, place: str) -> None:
        """Show the task, anew where it is tried again."""
        self._forget(task)
        self._places[task.key] = place
        self._running[task.key] = self._bars.add_task(f"  {escape(task.label)}", total=1, note=escape(place))

    def progressed(self, task: Task, progress: TaskProgress) -> None:
        """Move the task's bar and that of all."""
        bar = self._running.get(task.key)
        if bar is None:
            return
        values = "  ".join(f"{name} {value:.4g}" for name, value in progress.values.items())
        note = escape("  ".join(filter(None, [self._places[task.key], values])))
        self._bars.update(bar, completed=progress.step, total=max(progress.total, 1), note=note)
        self._shares[task.key] = task.cost * progress.step / max(progress.total, 1)
        self._refresh()

    def forecast(self, seconds_left: float | None) -> None:
        """Show the time left."""
        self._left = seconds_left
        self._refresh()

    def _end(self, task: Task) -> None:
        super()._end(task)
        self._forget(task)
        self._refresh()

    def _forget(self, task: Task) -> None:
        bar = self._running.pop(task.key, None)
        self._shares.pop(task.key, None)
        if bar is not None:
            self._bars.remove_task(bar)

    def _refresh(self) -> None:
        share = sum(self._shares.values())
        left = self.seconds_left(share)
        rate = 60 * self._ended / max(time.monotonic() - self._started, 1e-9)
        notes = [f"{len(self._running)} running", f"{rate:.3g} tasks a minute" if self._ended else ""]
        notes.append("" if left is None else f"about {duration(left)} left")
        about = f"{self._ended}/{len(self._waiting)} tasks"
        self._bars.update(
            self._all, completed=self._spent + share, description=about, note=", ".join(filter(None, notes))
        )


class JsonDisplay(PlainDisplay):
    """A line of JSON for each thing that happens: `time`, `event`, and what belongs to it."""

    def __init__(self, console: Console, tasks: Mapping[str, Task], waiting: Mapping[str, Task]) -> None:
        super().__init__(console, tasks, waiting)
        self._next: dict[str, float] = {}
        self._write("plan", tasks=len(tasks), to_run=len(waiting))

    def started(self, task: Task) -> None:
        """The task was handed to a worker."""
        self._write("started", task)

    def began(self, task: Task, place: str) -> None:
        """A worker began with it."""
        self._write("began", task, place=place)

    def progressed(self, task: Task, progress: TaskProgress) -> None:
        """It got further; told every few seconds."""
        now = time.monotonic()
        if now >= self._next.get(task.key, 0.0):
            self._next[task.key] = now + JSON_PROGRESS
            self._write("progressed", task, step=progress.step, total=progress.total, values=dict(progress.values))

    def said(self, task: Task, line: str) -> None:
        """It printed a line."""
        self._write("said", task, line=line)

    def finished(self, task: Task, record: Record) -> None:
        """It is done."""
        self._end(task)
        result = record["result"]
        scores = {name: result[name] for name in ("accuracy", "accuracy_interval", "training") if name in result}
        self._write("finished", task, seconds=record["seconds"], memory=record["memory"], ran=record["ran"], **scores)

    def elsewhere(self, task: Task) -> None:
        """Another driver did it."""
        self._end(task)
        self._write("elsewhere", task)

    def skipped(self, task: Task) -> None:
        """It will not run, since one that it needs failed."""
        self._end(task)
        self._write("skipped", task)

    def failed(self, task: Task, reason: str, trace: str | None) -> None:
        """It failed."""
        self._end(task)
        self._write("failed", task, reason=reason, trace=trace)

    def waits(self, count: int) -> None:
        """Other drivers are waited for."""
        now = time.monotonic()
        if now >= self._says_again:
            self._says_again = now + WAITING
            self._write("waits", tasks=count)

    def forecast(self, seconds_left: float | None) -> None:
        """The time left changed."""
        self._left = seconds_left
        self._write("forecast", ended=self._ended, of=len(self._waiting), seconds_left=seconds_left)

    def _write(self, event: str, task: Task | None = None, **values: Any) -> None:
        about = {} if task is None else {"task": task.label, "kind": task.kind, "key": task.key}
        self._console.file.write(json_line(event, **about, **values) + "\n")
        self._console.file.flush()


def json_line(event: str, **values: Any) -> str:
    """An event as a line of JSON; numbers that JSON lacks are null."""
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": stamp, "event": event, **values}, ensure_ascii=False)
    return line if "NaN" not in line and "Infinity" not in line else json.dumps(_finite(json.loads(line)))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and value - value != 0 else value


def found(record: Mapping[str, Any]) -> str:
    """What a finished task found, in a few words."""
    seconds = f"{record['seconds']:.1f} s"
    result = record["result"]
    if "foreign" in record.get("inputs", {}):
        return f"AUROC {result['detection']['total']['auroc']:.3f} by total uncertainty, {seconds}"
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

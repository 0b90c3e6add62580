"""Progress of a run on standard error: a line for each task that ends, bars on a terminal, or lines of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column

from advbench.errors import printable
from advbench.grid.plan import Task
from advbench.grid.tasks import Record
from advbench.progress import Progress as TaskProgress

REPEAT = 60.0  # seconds between two lines that other drivers are waited for
QUIET = 15.0  # seconds without a line after which one reports what runs
NARROW = 120  # columns of a terminal below which bars leave out places and are shorter
JSON_PROGRESS = 5.0  # least seconds between two lines of JSON on one task's progress


class Display:
    """The watcher of a run.

    Args:
        tasks: all tasks of the run, by key.
        waiting: those that will run.
        console: where to write; by default standard error as it is now, which tasks may redirect later.
        as_json: write a line of JSON for each event, with `time`, `event` and its values, and nothing else.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        waiting: Mapping[str, Task],
        console: Console | None = None,
        *,
        as_json: bool = False,
    ) -> None:
        self._tasks = tasks
        self._console = console or Console(file=sys.stderr)
        self._json = as_json
        self._count = len(waiting)
        self._ended = 0
        self._cost = sum(task.cost for task in waiting.values())
        self._spent = 0.0  # cost of the tasks that ended
        self._left: float | None = None
        self._started = time.monotonic()
        # When a line may be repeated, by what it is on.
        self._next: dict[str, float] = {"waits": self._started + 2.0, "quiet": self._started + QUIET}
        self._live = self._console.is_terminal and not as_json
        self._narrow = self._console.width < NARROW
        self._shares: dict[str, float | None] = {}  # of the running tasks, by label
        self._bars = Progress(*self._columns(), console=self._console, transient=True, disable=not self._live)
        self._all = self._bars.add_task(f"{self._count} tasks", total=max(self._cost, 1e-9), place="", note="")
        self._running: dict[str, TaskID] = {}
        self._emit("plan", tasks=len(tasks), to_run=self._count)

    def _columns(self) -> list[ProgressColumn]:
        """What a bar shows; on a narrow terminal names and notes are cut, so that bar and time left stay."""
        if not self._narrow:
            texts = [TextColumn("{task.fields[place]}"), TextColumn("{task.fields[note]}")]
            return [TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(), TimeElapsedColumn(), *texts]
        bar, percent, note = 10, 4, 19
        rest = max(8, self._console.width - bar - percent - note - 3)
        return [
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=rest)),
            BarColumn(bar),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=note)),
        ]

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def started(self, task: Task) -> None:
        """A task was handed to the executor."""
        self._emit("started", task)

    def began(self, task: Task, place: str) -> None:
        """A worker began a task, perhaps not for the first time."""
        self._emit("began", task, place=place)
        self._shares[task.label] = None
        if self._live:
            self._remove_bar(task)
            self._running[task.key] = self._bars.add_task(
                f"  {_shown(task.label)}", total=max(task.cost, 1e-9), place=_shown(place), note=""
            )

    def progressed(self, task: Task, progress: TaskProgress) -> None:
        """A running task made progress."""
        self._shares[task.label] = progress.step / max(progress.total, 1)
        self._break_silence()
        if task.key in self._running:
            done = task.cost * progress.step / max(progress.total, 1)
            values = "  ".join(f"{name} {value:.4g}" for name, value in progress.values.items())
            self._bars.update(self._running[task.key], completed=done, note=_shown(values))
            self._refresh()
        elif self._json and self._is_due(task.key, JSON_PROGRESS):
            self._emit("progressed", task, step=progress.step, total=progress.total, values=dict(progress.values))

    def said(self, task: Task, line: str) -> None:
        """A running task printed a line."""
        self._emit("said", task, f"{task.label} | {line}", line=line)

    def finished(self, task: Task, record: Record) -> None:
        """A task is done."""
        result = record["result"]
        scores = {name: result[name] for name in ("accuracy", "accuracy_interval", "training") if name in result}
        about = {name: record[name] for name in ("seconds", "memory", "ran")}
        self._end("finished", task, found(record), **about, **scores)

    def elsewhere(self, task: Task) -> None:
        """Another driver did a task."""
        self._end("elsewhere", task, "done by another driver")

    def skipped(self, task: Task) -> None:
        """A task that needs a failed one will not run; the failed one's line has said why."""
        self._end("skipped", task)

    def failed(self, task: Task, reason: str, trace: str | None) -> None:
        """A task failed; the traceback is shown where the failure is a bug."""
        self._end("failed", task, f"failed: {reason}\n{trace or ''}".rstrip("\n"), reason=reason, trace=trace)

    def waits(self, count: int) -> None:
        """Other drivers' tasks are waited for."""
        if self._is_due("waits", REPEAT):
            text = f"waiting for {count} tasks that other drivers work on (advbench status shows them)"
            self._emit("waits", text=text, tasks=count)

    def forecast(self, seconds_left: float | None) -> None:
        """The time left was estimated anew."""
        self._left = seconds_left
        if self._json:
            self._emit("forecast", ended=self._ended, of=self._count, seconds_left=seconds_left)
        self._break_silence()
        self._refresh()

    def _break_silence(self) -> None:
        """Write what runs, where nothing was written for a while."""
        if self._live or self._json or not self._is_due("quiet", QUIET):
            return
        shown = [
            label if share is None else f"{label} ({100 * share:.0f} %)" for label, share in list(self._shares.items())
        ]
        running = f"running {shown[0]}" + (f" and {len(shown) - 1} more" if shown[1:] else "") if shown else "starting"
        left = self._seconds_left()
        tail = "" if left is None else f", about {duration(left)} left"
        self._emit("running", text=f"[{self._ended}/{max(self._ended, self._count)}] {running}{tail}")

    def _end(self, event: str, task: Task, text: str = "", **values: Any) -> None:
        self._ended += 1
        self._spent += task.cost
        self._shares.pop(task.label, None)
        self._remove_bar(task)
        if text:
            left = self._seconds_left()
            tail = f" (about {duration(left)} left)" if left is not None and left >= 1 else ""
            first, *others = f"[{self._ended}/{max(self._ended, self._count)}] {task.label}: {text}".splitlines()
            text = "\n".join([first + tail, *others])
        self._emit(event, task, text, **values)
        self._refresh()

    def _emit(self, event: str, task: Task | None = None, text: str = "", **values: Any) -> None:
        """Write an event: as JSON with its values, or as its text, if it has any."""
        if self._json:
            about = {} if task is None else {"task": task.label, "kind": task.kind, "key": task.key}
            with suppress(OSError):  # a log that cannot be written stops no run
                self._console.file.write(json_line(event, **about, **values) + "\n")
                self._console.file.flush()
        elif text:
            with suppress(OSError):
                for line in text.split("\n"):
                    self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
            self._next["quiet"] = time.monotonic() + QUIET

    def _is_due(self, what: str, pause: float) -> bool:
        now = time.monotonic()
        due = now >= self._next.get(what, 0.0)
        if due:
            self._next[what] = now + pause
        return due

    def _seconds_left(self) -> float | None:
        """The time left by the scheduler's estimate, else at the speed of the tasks so far; None if unknown."""
        if self._ended >= self._count:
            return None
        if self._left is not None:
            return self._left
        spent = self._passes()
        return (time.monotonic() - self._started) / spent * (self._cost - spent) if spent > 0 else None

    def _passes(self) -> float:
        """Cost of the tasks that ended, and of the finished part of those that run."""
        return self._spent + sum(bar.completed for bar in self._bars.tasks[1:])

    def _remove_bar(self, task: Task) -> None:
        if task.key in self._running:
            self._bars.remove_task(self._running.pop(task.key))

    def _refresh(self) -> None:
        """Bring the bar of all tasks up to date."""
        if not self._live:
            return
        left = self._seconds_left()
        rate = 60 * self._ended / max(time.monotonic() - self._started, 1e-9)
        notes = ["" if left is None else f"about {duration(left)} left"]
        if not self._narrow:
            notes = [f"{len(self._running)} running", f"{rate:.3g} tasks a minute" if self._ended else "", *notes]
        self._bars.update(
            self._all,
            completed=self._passes(),
            description=f"{self._ended}/{self._count} tasks",
            note=", ".join(filter(None, notes)),
        )


def _shown(text: str) -> str:
    return escape(printable(text))


def json_line(event: str, **values: Any) -> str:
    """An event as a line of JSON in ASCII; numbers that JSON lacks are null."""
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": stamp, "event": event, **values})
    if "NaN" in line or "Infinity" in line:
        line = json.dumps(json.loads(line, parse_constant=lambda _: None))
    return line.replace("\x7f", "\\u007f")


def found(record: Mapping[str, Any]) -> str:
    """The result of a finished task, in a few words."""
    result, inputs = record["result"], record.get("inputs", {})
    if "known" in inputs:
        low, high = result["draw_accuracy_min"], result["draw_accuracy_max"]
        text = f"accuracy {result['draw_accuracy']:.3f}, from {low:.3f} to {high:.3f} over draws"
    elif "foreign" in inputs:
        text = f"AUROC {result['detection']['total']['auroc']:.3f} by total uncertainty"
    elif record["kind"] == "evaluate":
        low, high = result["accuracy_interval"]
        text = f"accuracy {result['accuracy']:.3f} [{low:.3f}, {high:.3f}]"
    elif record["kind"] == "craft":
        forward, backward = result["forward_passes"], result["backward_passes"]
        text = f"{forward:.1f} forward and {backward:.1f} backward passes an image"
    else:
        text = ", ".join(f"{name} {value:.4g}" for name, value in result["training"].items())
    return ", ".join(filter(None, [text, f"{record['seconds']:.1f} s"]))


def duration(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

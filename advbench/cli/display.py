"""Progress of a run on standard error: one line per finished task, bars on a terminal, or lines of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Column

from advbench.errors import printable
from advbench.grid.plan import Task
from advbench.progress import duration

REPEAT = 60.0  # seconds between two messages about waiting for other drivers
QUIET = 15.0  # seconds without output after which running tasks are reported
JSON_PROGRESS = 5.0  # minimum seconds between two lines of JSON on a task's progress
ENDS = ("finished", "elsewhere", "skipped", "failed")  # events that end a task


class Display:
    """Shows the events of a run; see `advbench.grid.scheduler.Watch`.

    Args:
        tasks: all tasks of the run, by key.
        waiting: tasks that will run.
        console: output; by default the current standard error, which tasks may redirect later.
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
        self._console = console or Console(file=sys.stderr)
        self._json = as_json
        self._count = len(waiting)
        self._ended = 0
        self._cost = sum(task.cost for task in waiting.values())
        self._spent = 0.0  # cost of the ended tasks
        self._left: float | None = None
        self._started = time.monotonic()
        # Earliest time of a repeated line, by subject.
        self._next: dict[str, float] = {"waits": self._started + 2.0, "quiet": self._started + QUIET}
        self._live = self._console.is_terminal and not as_json
        bar, percent, note = 10, 4, max(19, self._console.width // 4)
        name = max(8, self._console.width - bar - percent - note - 3)
        self._bars = Progress(
            _text_column("{task.description}", name),
            BarColumn(bar),
            TaskProgressColumn(),
            _text_column("{task.fields[note]}", note),
            console=self._console,
            transient=True,
            disable=not self._live,
        )
        self._all = self._bars.add_task(f"{self._count} tasks", total=max(self._cost, 1e-9), note="")
        self._running: dict[str, TaskID] = {}  # bars by key; not drawn without a terminal
        if as_json:
            self._log("plan", None, {"tasks": len(tasks), "to_run": self._count})

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def __call__(self, event: str, task: Task | None = None, **values: Any) -> None:
        """Show an event."""
        if event == "forecast":
            self._left = values["seconds_left"]
        if task is not None:
            self._follow(event, task, values)
        if self._json:
            self._log(event, task, values)
        elif text := self._text(event, task, values):
            self._print(text)
        elif event in ("progressed", "forecast") and not self._live and self._is_due("quiet", QUIET):
            self._print(self._what_runs())
        if self._live:
            left = self._seconds_left()
            note = "" if left is None else f"about {duration(left)} left"
            description = f"{self._ended}/{self._count} tasks"
            self._bars.update(self._all, completed=self._passes(), description=description, note=note)

    def _follow(self, event: str, task: Task, values: Mapping[str, Any]) -> None:
        """Update a task's bar."""
        if event == "progressed" and task.key in self._running:
            progress = values["progress"]
            note = "  ".join(f"{name} {value:.4g}" for name, value in progress.values.items())
            done = task.cost * progress.step / max(progress.total, 1)
            self._bars.update(self._running[task.key], completed=done, note=printable(note))
        if task.key in self._running and event in ("began", *ENDS):
            self._bars.remove_task(self._running.pop(task.key))
        if event == "began":
            total = max(task.cost, 1e-9)
            self._running[task.key] = self._bars.add_task(f"  {printable(task.label)}", total=total, note="")
        if event in ENDS:
            self._ended += 1
            self._spent += task.cost

    def _text(self, event: str, task: Task | None, values: Mapping[str, Any]) -> str:
        """Line of an event, or empty. The line of a failed task also stands for its dependents."""
        if event == "waits" and self._is_due("waits", REPEAT):
            return f"waiting for {values['tasks']} tasks of other drivers (advbench status shows them)"
        if task is None or event not in ("said", "finished", "elsewhere", "failed"):
            return ""
        if event == "said":
            return f"{task.label} | {values['line']}"
        if event == "finished":
            text = found(values["record"])
        else:
            text = "done by another driver" if event == "elsewhere" else f"failed: {values['reason']}"
        left = self._seconds_left()
        tail = f" (about {duration(left)} left)" if left is not None and left >= 1 else ""
        trace = f"\n{values['trace']}".rstrip("\n") if values.get("trace") else ""
        return f"[{self._ended}/{max(self._ended, self._count)}] {task.label}: {text}{tail}{trace}"

    def _what_runs(self) -> str:
        shown = [
            f"{bar.description.strip()} ({bar.percentage:.0f} %)" if bar.completed else bar.description.strip()
            for bar in self._bars.tasks[1:]
        ]
        running = f"running {shown[0]}" + (f" and {len(shown) - 1} more" if shown[1:] else "") if shown else "starting"
        left = self._seconds_left()
        tail = "" if left is None else f", about {duration(left)} left"
        return f"[{self._ended}/{max(self._ended, self._count)}] {running}{tail}"

    def _print(self, text: str) -> None:
        with suppress(OSError):  # an unwritable display must not stop the run
            for line in text.split("\n"):
                self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
        self._next["quiet"] = time.monotonic() + QUIET

    def _log(self, event: str, task: Task | None, values: Mapping[str, Any]) -> None:
        """Write an event as a line of JSON."""
        if event == "finished":
            record, result = values["record"], values["record"]["result"]
            values = {name: record[name] for name in ("seconds", "memory", "ran")}
            values |= {name: result[name] for name in ("accuracy", "accuracy_interval", "training") if name in result}
        elif event == "forecast":
            values = {"ended": self._ended, "of": self._count, **values}
        elif event == "progressed":
            progress = values["progress"]
            values = {"step": progress.step, "total": progress.total, "values": dict(progress.values)}
        pause = {"progressed": JSON_PROGRESS, "waits": REPEAT}.get(event)
        if pause is None or self._is_due(task.key if task else event, pause):
            about = {} if task is None else {"task": task.label, "kind": task.kind, "key": task.key}
            with suppress(OSError):
                self._console.file.write(json_line(event, **about, **values) + "\n")
                self._console.file.flush()

    def _is_due(self, what: str, pause: float) -> bool:
        now = time.monotonic()
        due = now >= self._next.get(what, 0.0)
        if due:
            self._next[what] = now + pause
        return due

    def _seconds_left(self) -> float | None:
        """Seconds left by the scheduler's estimate; None if unknown."""
        return None if self._ended >= self._count else self._left

    def _passes(self) -> float:
        """Cost of the ended tasks and of the finished parts of running ones."""
        return self._spent + sum(bar.completed for bar in self._bars.tasks[1:])


def _text_column(text: str, width: int) -> TextColumn:
    return TextColumn(text, markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", max_width=width))


def json_line(event: str, **values: Any) -> str:
    """Format an event as a line of JSON in ASCII; NaN and infinity become null."""
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = json.dumps({"time": stamp, "event": event, **values})
    if "NaN" in line or "Infinity" in line:
        line = json.dumps(json.loads(line, parse_constant=lambda _: None))
    return line.replace("\x7f", "\\u007f")


def found(record: Mapping[str, Any]) -> str:
    """Short description of a finished task's result."""
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
        text = f"{forward:.1f} forward and {backward:.1f} backward passes per image"
    else:
        text = ", ".join(f"{name} {value:.4g}" for name, value in result["training"].items())
    return ", ".join(filter(None, [text, f"{record['seconds']:.1f} s"]))

"""State of runs, from their drivers' heartbeats in the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from advbench.progress import duration
from advbench.store.heartbeat import SILENCE, Liveness, Run, machine, runs
from advbench.store.storage import Storage


def runs_now(storage: Storage, last: int) -> list[Run]:
    """Live runs, and the last ended ones, newest first.

    A run whose driver died without closing its heartbeat has the state `dead`. A driver on another machine counts as
    dead once its last beat is a minute old, by this machine's clock.
    """
    found = sorted(runs(storage), key=lambda run: run.started, reverse=True)
    liveness = Liveness(storage)
    going = [run for run in found if liveness.of(run) and (run.machine == machine() or _beats(run))]
    ended = [run for run in found if run not in going][:last]
    return [*going, *(_dead(run) if run.state == "running" else run for run in ended)]


def _dead(run: Run) -> Run:
    """The entry of a run whose driver died: what was running is not."""
    tasks = {**run.tasks, "running": 0, "waiting": run.tasks.get("running", 0) + run.tasks.get("waiting", 0)}
    return run.model_copy(update={"state": "dead", "running": (), **({"tasks": tasks} if run.tasks else {})})


def _beats(run: Run) -> bool:
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(run.updated)).total_seconds() < SILENCE
    except (TypeError, ValueError):
        return False


def status_lines(found: Sequence[Run], url: str) -> Iterator[str]:
    """Description of the runs that `runs_now` found in the store at a URL."""
    if not found:
        yield f"no run has used store {url}"
    for index, run in enumerate(found):
        if index:
            yield ""
        yield f"{run.state}: {run.about}"
        yield f"  {run.host}, process {run.pid}, started {run.started}, last beat {run.updated}"
        if run.tasks:
            yield "  tasks: " + ", ".join(f"{count} {name}" for name, count in run.tasks.items() if count)
        if run.state == "running":
            yield from _going(run)
        after = next((each for each in reversed(found[:index]) if each.plan and each.plan == run.plan), None)
        if after is not None and run.state != "done":
            yield f"  run again from {after.started}: {after.state}"
        for failure in run.failures:
            yield f"  failed: {failure.task}: {failure.reason}"


def _going(run: Run) -> Iterator[str]:
    if run.places is not None:
        about = "" if run.seconds_left is None else f", about {duration(run.seconds_left)} left"
        yield f"  {run.places} workers, {run.tasks_per_minute} tasks a minute{about}"
    for task in run.running:
        where = f"on {task.place}" if task.place else "starting"
        since = "" if task.seconds is None else f", {duration(task.seconds)}"
        share = f", {100 * task.share:.0f} %" if task.share else ""
        yield f"  {where}: {task.task}{since}{share}"

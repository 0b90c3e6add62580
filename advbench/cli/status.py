"""State of runs, from their drivers' heartbeats in the store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from advbench.cli.display import duration
from advbench.store.heartbeat import BEAT, Liveness, Run, runs
from advbench.store.storage import Storage

PAUSE = 2 * BEAT + 1  # seconds within which a live driver beats


def runs_now(storage: Storage, last: int) -> list[Run]:
    """Live runs, and the last ended ones, newest first.

    A run whose driver died without closing its heartbeat has the state `dead`. Detecting a dead driver on another
    machine takes more than a beat.
    """
    found = sorted(runs(storage), key=lambda run: run.started, reverse=True)
    liveness = Liveness(storage, silence=2 * BEAT)
    going = [run for run in found if liveness.of(run)]
    silent = {run.id for run in going if _looks_silent(run)}
    if silent:
        time.sleep(PAUSE)
        again = {run.id: run for run in runs(storage)}
        going = [run for run in going if run.id not in silent or liveness.of(again.get(run.id, run))]
    alive = {run.id for run in going}
    ended = [run for run in found if run.id not in alive][:last]
    return [*going, *(run.model_copy(update={"state": "dead"}) if run.state == "running" else run for run in ended)]


def _looks_silent(run: Run) -> bool:
    """True if a run's last beat is old by this machine's clock, which may differ from the driver's."""
    try:
        return abs((datetime.now(UTC) - datetime.fromisoformat(run.updated)).total_seconds()) > 3 * BEAT
    except (TypeError, ValueError):
        return True


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

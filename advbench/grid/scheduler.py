"""Scheduler of a plan: skips finished tasks, starts ready ones, longest chain first; failures stop dependents only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from advbench.errors import StoreError
from advbench.grid.estimates import Measurements
from advbench.grid.executors import Began, Event, Executor, Failure, Moved, Said
from advbench.grid.inputs import CPU, EvaluateInputs
from advbench.grid.plan import Plan, Task
from advbench.grid.queue import Backlog, longest_chain
from advbench.grid.tasks import Record
from advbench.progress import duration
from advbench.store.heartbeat import Heartbeat, Liveness
from advbench.store.leases import Leases
from advbench.store.records import Store

TICK = 1.0  # seconds; maximum time between checks of the heartbeat and of other drivers' tasks
UPDATE = 2.0  # seconds between two updates of the published state
SOME = 0.05  # fraction of a task after which its own progress gives the estimate
NEEDS = "depends on a failed task: "
ELSEWHERE = 2.0  # seconds between two checks of another driver's task
LOSSES = 3  # how often the input of a task may vanish before that is an error


Watch = Callable[..., None]
"""Callback with each event of a run, its task if any, and values by name.

`started`, `began` (`place`), `progressed` (`progress`), `said` (`line`), `finished` (`record`), `failed` (`reason`,
`trace` of a bug), `skipped` (a dependency failed), `elsewhere` (done by another driver); without a task: `waits` (for
`tasks` of other drivers) and `forecast` (`seconds_left`, None if unknown).
"""


@dataclass
class Outcome:
    """Outcome of a run: keys of its tasks."""

    run: list[str] = field(default_factory=list)  # tasks completed here
    elsewhere: list[str] = field(default_factory=list)  # tasks completed by other drivers
    skipped: list[str] = field(default_factory=list)  # tasks that did not have to run
    failed: dict[str, str] = field(
        default_factory=dict
    )  # reasons by key; those of dependents name the first failed task
    before: set[str] = field(default_factory=set)  # failed in a previous run and not retried
    elapsed: float = 0.0  # seconds from start to end
    seconds: float = 0.0  # total of the tasks completed here, which may have begun in a previous run
    passes: float = 0.0  # their image passes, as planned

    def summary(self) -> str:
        """Numbers of tasks by outcome and their cost, in one line."""
        if not (self.run or self.elsewhere or self.failed):
            return f"nothing to do: all {len(self.skipped)} tasks are already done"
        elsewhere = f"{len(self.elsewhere)} by other drivers, " if self.elsewhere else ""
        counts = f"{len(self.run)} tasks run, {elsewhere}{len(self.skipped)} already done, {len(self.failed)} failed"
        if not self.run:
            return counts
        cost = f"{duration(self.seconds)} in tasks, {self.passes:,.0f} image passes"
        return f"{counts}; {duration(self.elapsed)} elapsed, {cost}"

    def why(self, tasks: Mapping[str, Task]) -> Iterator[str]:
        """Failed tasks with reasons, equal reasons once, and possible remedies."""
        reasons: dict[str, list[str]] = {}
        for key, reason in self.failed.items():
            if not reason.startswith(NEEDS):
                reasons.setdefault(reason, []).append(tasks[key].label)
        for reason, labels in reasons.items():
            others = f" and {len(labels) - 1} others" if len(labels) > 1 else ""
            yield f"failed: {labels[0]}{others}: {reason}"
        stopped = sum(reason.startswith(NEEDS) for reason in self.failed.values())
        if stopped:
            yield f"{stopped} dependent tasks did not run"
        if self.before:
            yield f"{len(self.before)} failed in a previous run and were not retried; use --retry-failed"


def outstanding(plan: Plan, store: Store, for_themselves: Iterable[str] = ()) -> dict[str, Task]:
    """Tasks that have to run, in the order of the plan.

    Evaluations without a record, and their missing inputs: classifiers, evaluations of clean images, and examples,
    which are dropped after their last use.

    Args:
        plan: the run.
        store: store of its results.
        for_themselves: keys of trainings to run even if no other task reads them.
    """
    evaluated = store.done(task.key for task in plan.tasks.values() if task.kind == "evaluate")
    wanted: set[str] = set()
    read = set(for_themselves)
    for task in reversed(list(plan.tasks.values())):
        missing = task.kind == "evaluate" and task.key not in evaluated
        missing = missing or (task.key in read and not store.is_done(task.key, with_artifact=True))
        if missing:
            wanted.add(task.key)
            read.update(task.needs)
    return {key: task for key, task in plan.tasks.items() if key in wanted}


def failed_before(plan: Plan, waiting: Mapping[str, Task], store: Store) -> dict[str, str]:
    """Reasons of waiting tasks that themselves failed in a previous run, by key."""
    known = store.failed_keys() & waiting.keys() if waiting else set()
    found = {key: store.read_failure(key) for key in plan.tasks if key in known}
    return {key: failure["reason"] for key, failure in found.items() if failure}


def failures(plan: Plan, store: Store) -> dict[str, str]:
    """Reasons of tasks that failed in previous runs, and of their dependents, by key."""
    found = failed_before(plan, plan.tasks, store)
    for key, task in plan.tasks.items():
        blame = next((need for need in task.needs if need in found), None)
        if blame is not None:
            found.setdefault(key, _stopped_by(plan.tasks[blame], found[blame]))
    return found


def _stopped_by(task: Task, reason: str) -> str:
    """Reason of a task that depends on a failed one: names the first failed task and its reason."""
    return reason if reason.startswith(NEEDS) else f"{NEEDS}{task.label}: {reason}"


class Scheduler:
    """One run of a plan.

    Args:
        plan: the tasks.
        waiting: tasks that have to run; see `outstanding`.
        store: store of the results.
        heartbeat: this driver's open heartbeat in the store.
        watch: callback with each event.
        failed: reasons of tasks that are not tried, by key; see `failed_before`.
        keep_examples: keep adversarial examples after their last use.
        on_finished: callback after each task completed here.
        liveness: check whether other drivers are alive.
    """

    def __init__(
        self,
        plan: Plan,
        waiting: Mapping[str, Task],
        store: Store,
        heartbeat: Heartbeat,
        watch: Watch,
        *,
        failed: Mapping[str, str] | None = None,
        keep_examples: bool = False,
        on_finished: Callable[[Task, Record], None] = lambda task, record: None,
        liveness: Liveness | None = None,
    ) -> None:
        self._tasks = plan.tasks
        self._order = list(waiting)
        self._store = store
        self._heartbeat = heartbeat
        self._watch = watch
        self._on_finished = on_finished
        self._liveness = liveness or Liveness(store.storage)
        self._leases = Leases(store.storage, heartbeat.id, self._liveness)
        self._measurements = Measurements(heartbeat.measured, plan.spec.device or CPU)
        self._backlog = Backlog(waiting, self._measurements.weight)
        self._left: set[str] = set()  # examples no longer needed here, but possibly by another driver
        self._keep_examples = keep_examples
        self._failed_before = dict(failed or {})
        self._running: dict[str, _Running] = {}
        self._leased_elsewhere: dict[str, float] = {}  # tasks leased by other drivers, with the time of the next check
        self._shared: set[str] = set()  # all tasks that were leased by other drivers
        self._losses: dict[str, int] = {}
        self._updated = -UPDATE
        self._began = time.monotonic()
        self.outcome = Outcome(skipped=[key for key in plan.tasks if key not in waiting])

    def run(self, executor: Executor) -> Outcome:
        """Run the waiting tasks.

        Raises:
            StoreError: the store cannot be written; finished tasks are kept.
        """
        try:
            while self._backlog or self._running or self._leased_elsewhere:
                self._heartbeat.check()
                self._start(executor)
                self._update(executor)
                if self._running:
                    executor.wait(TICK, self._take)
                elif self._leased_elsewhere:
                    self._watch("waits", tasks=len(self._leased_elsewhere))
                    time.sleep(TICK)
                now = time.monotonic()
                for key in [key for key, due in self._leased_elsewhere.items() if due <= now]:
                    del self._leased_elsewhere[key]
                    self._backlog.put(self._tasks[key])  # retry
        except StoreError:
            raise  # nothing can be written any more
        except BaseException:
            self._give_up()
            raise
        self._update(executor, force=True)
        self.outcome.elapsed = time.monotonic() - self._began
        return self.outcome

    def drop_left(self) -> None:
        """Drop the examples left for other drivers, unless one is alive; call after closing the heartbeat.

        If drivers end together, none then counts as alive, so the last one drops the rest.
        """
        if self._left and not self._liveness.others(self._heartbeat.id, lately=False):
            for key in self._left:
                self._store.drop_artifact(key)
        self._left.clear()

    def _give_up(self) -> None:
        """Release the leases on exit, without waiting for the store."""
        self._store.storage.patience = 0.0
        with suppress(StoreError):
            self._leases.release_all()

    def _start(self, executor: Executor) -> None:
        while (task := self._backlog.first()) is not None:
            if self._blamed(task):
                continue
            known = self._measurements.of(task)
            if not executor.has_room(known):
                return
            self._backlog.take()
            if not self._leases.acquire(task.key):
                self._leased_elsewhere[task.key] = time.monotonic() + ELSEWHERE
                self._shared.add(task.key)
            elif not self._ended_elsewhere(task):
                self._running[task.key] = _Running()
                self._watch("started", task)
                executor.start(task, known)

    def _ended_elsewhere(self, task: Task) -> bool:
        """True if another driver has completed or failed the task in the meantime; its lease is then released."""
        is_read = not isinstance(task.inputs, EvaluateInputs) or task.inputs.examples is None
        done = self._store.is_done(task.key, with_artifact=is_read)
        failure = self._store.read_failure(task.key) if not done and task.key in self._shared else None
        if done or failure:
            self._leases.release(task.key)
        if done:
            self.outcome.elsewhere.append(task.key)
            self._watch("elsewhere", task)
            self._close(task)
        elif failure:
            self._failed(task, failure["reason"], None)
        return done or failure is not None

    def _blamed(self, task: Task) -> bool:
        """True if the first task is not to be tried: a dependency failed, or it failed before."""
        blame = next((key for key in task.needs if key in self.outcome.failed), None)
        if blame is None and task.key not in self._failed_before:
            return False
        self._backlog.take()
        if blame is None:
            self.outcome.before.add(task.key)
            self._failed(task, self._failed_before[task.key], None)
        else:
            self.outcome.failed[task.key] = _stopped_by(self._tasks[blame], self.outcome.failed[blame])
            self._watch("skipped", task)
            self._close(task)
        return True

    def _take(self, event: Event) -> None:
        task = self._tasks[event.key]
        if isinstance(event, Began):
            self._running[event.key] = _Running(event.place, time.monotonic())
            self._watch("began", task, place=event.place)
        elif isinstance(event, Moved):
            self._running[event.key].share = event.progress.step / max(event.progress.total, 1)
            self._watch("progressed", task, progress=event.progress)
        elif isinstance(event, Said):
            self._watch("said", task, line=event.line)
        else:
            del self._running[event.key]
            if event.record is not None:
                self._finish(task, event.record)
            elif event.failure is not None:
                self._fail(task, event.failure)

    def _finish(self, task: Task, record: Record) -> None:
        self._measurements.add(task, record)
        self.outcome.passes += task.cost
        self.outcome.seconds += record["seconds"]
        self.outcome.run.append(task.key)
        self._leases.release(task.key)
        self._watch("finished", task, record=record)
        self._on_finished(task, record)
        self._close(task)

    def _fail(self, task: Task, failure: Failure) -> None:
        if failure.cause == "store":
            raise StoreError(failure.reason)
        gone = self._tasks.get(failure.gone or "")
        self._losses[task.key] = self._losses.get(task.key, 0) + 1
        if gone is not None and self._losses[task.key] <= LOSSES:
            self._leases.release(task.key)
            self._backlog.again(task, gone, underway=gone.key in self._running or gone.key in self._leased_elsewhere)
            return
        if failure.lasting:
            kept = {"label": task.label, "cause": failure.cause, "reason": failure.reason, "trace": failure.trace}
            self._store.write_failure(task.key, kept)
        self._leases.release(task.key)  # the failure is visible to the next holder
        self._failed(task, failure.reason, failure.trace)

    def _failed(self, task: Task, reason: str, trace: str | None) -> None:
        self.outcome.failed[task.key] = reason
        self._watch("failed", task, reason=reason, trace=trace)
        self._close(task)

    def _close(self, task: Task) -> None:
        """Handle the end of a task: drop the examples of which it was the last user.

        Examples that another driver may still read are left to `drop_left`.
        """
        unused = [key for key in self._backlog.close(task) if self._tasks[key].kind == "craft"]
        if not unused or self._keep_examples:
            return
        if self._liveness.others(self._heartbeat.id):
            self._left.update(unused)
            return
        for key in unused:
            self._store.drop_artifact(key)

    def _update(self, executor: Executor, *, force: bool = False) -> None:
        """Update the heartbeat and the watcher periodically; the heartbeat's thread writes it."""
        now = time.monotonic()
        if now - self._updated < UPDATE and not force:
            return
        self._updated = now
        left = self._seconds_left(executor.places, now)
        self._state(executor.places, left)
        self._watch("forecast", seconds_left=left)

    def stopped(self, places: int) -> None:
        """Publish the state of a run that was stopped; call after the executor was closed.

        A worker may have written a record of which the driver had not heard yet, and an interrupt may have come between
        two lists of tasks: all that neither ended nor wait are looked up.
        """
        outcome = self.outcome
        known = {*outcome.run, *outcome.elsewhere, *outcome.failed, *self._leased_elsewhere}
        known.update(task.key for task in self._backlog)
        self._running.clear()
        for key in [key for key in self._order if key not in known]:
            if self._store.is_done(key, with_artifact=self._tasks[key].kind != "evaluate"):
                outcome.run.append(key)
            else:
                self._running[key] = _Running()
        self._state(places, None, stopped=True)

    def _state(self, places: int, left: float | None, *, stopped: bool = False) -> None:
        """Set the published state; a stopped run has no running tasks."""
        now = time.monotonic()
        outcome, seconds = self.outcome, max(now - self._began, 1e-9)
        running = {} if stopped else self._running
        waiting = len(self._backlog) + len(self._leased_elsewhere) + len(self._running) - len(running)
        self._heartbeat.values = {
            "tasks": {
                "planned": len(self._tasks),
                "done before": len(outcome.skipped),
                "done": len(outcome.run),
                "done elsewhere": len(outcome.elsewhere),
                "failed": len(outcome.failed),
                "running": len(running),
                "waiting": waiting,
            },
            "places": places,
            "passes_per_second": round(outcome.passes / seconds, 1),
            "tasks_per_minute": round(60 * len(outcome.run) / seconds, 1),
            "seconds_left": None if left is None else round(left, 1),
            "running": [each.shown(self._tasks[key], now) for key, each in running.items()],
            "failures": [
                {"task": self._tasks[key].label, "reason": reason} for key, reason in [*outcome.failed.items()][:20]
            ],
        }

    def _seconds_left(self, places: int, now: float) -> float | None:
        """Estimated seconds left if the workers share the work evenly, at least the longest chain of tasks.

        Tasks without measurements are assumed to run at the pass rate of current ones of their kind and net; None if
        there are none.
        """
        rates: dict[tuple[str, str], float] = {}
        for key, running in self._running.items():
            task, total = self._tasks[key], running.total(now)
            if total and task.cost > 0:
                rates[task.kind, task.net] = total / task.cost
        left: dict[str, float] = {}
        for task in (*self._backlog, *(self._tasks[key] for key in self._running)):
            whole = self._measurements.seconds(task)
            if whole is None and (task.kind, task.net) in rates:
                whole = task.cost * rates[task.kind, task.net]
            seconds = self._running.get(task.key, _Running()).left(whole, now)
            if seconds is None:
                return None
            left[task.key] = seconds
        tasks = {key: self._tasks[key] for key in self._order if key in left}
        return max(sum(left.values()) / places, longest_chain(tasks, lambda task: left[task.key]))


@dataclass
class _Running:
    """A task in an executor: place, start time and progress."""

    place: str = ""
    since: float | None = None
    share: float = 0.0

    def total(self, now: float) -> float | None:
        """Estimated total seconds from its own progress; None without progress."""
        return None if self.since is None or self.share < SOME else (now - self.since) / self.share

    def left(self, seconds: float | None, now: float) -> float | None:
        """Estimated seconds left, from its own progress or from similar tasks."""
        total = self.total(now) or seconds
        spent = 0.0 if self.since is None else now - self.since
        return None if total is None else max(total - spent, 0.0)

    def shown(self, task: Task, now: float) -> dict[str, object]:
        """Values for `advbench status`."""
        seconds = None if self.since is None else round(now - self.since, 1)
        return {"task": task.label, "place": self.place, "seconds": seconds, "share": round(self.share, 3)}

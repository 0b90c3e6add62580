"""Runs a plan: skips what is done, starts what is ready, and lets a failure stop only what depends on it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Protocol

from advbench.errors import AdvbenchError, StoreError
from advbench.executors import Executor
from advbench.plan import Plan, Task
from advbench.store import Store
from advbench.tasks import Record


class Watcher(Protocol):
    """Is told how a run goes."""

    def started(self, task: Task) -> None:
        """A task was handed to the executor."""

    def finished(self, task: Task, record: Record) -> None:
        """A task is done and stored."""

    def skipped(self, task: Task) -> None:
        """A task will not run, since one that it needs failed."""

    def failed(self, task: Task, reason: str, trace: str | None) -> None:
        """A task failed; `trace` is the traceback where the failure is a bug."""


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        run: keys of the tasks that ran to their end.
        skipped: keys of the tasks that did not have to run.
        failed: why each failed task failed, by key; dependents name the task that failed them.
    """

    run: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def outstanding(plan: Plan, store: Store) -> dict[str, Task]:
    """The tasks that have to run, in the plan's order.

    Evaluations without a record; then whatever they read that is not there: a training's classifier, or
    examples, which are dropped after their last use.
    """
    wanted: set[str] = set()
    read: set[str] = set()
    for task in reversed(list(plan.tasks.values())):
        judges = task.kind == "evaluate"
        if (judges or task.key in read) and not store.is_done(task.key, with_artifact=not judges):
            wanted.add(task.key)
            read.update(task.needs)
    return {key: task for key, task in plan.tasks.items() if key in wanted}


def run_plan(
    plan: Plan,
    waiting: Mapping[str, Task],
    store: Store,
    executor: Executor,
    watcher: Watcher,
    *,
    keep_examples: bool = False,
    on_finished: Callable[[Task, Record], None] = lambda task, record: None,
) -> Outcome:
    """Run what waits.

    Args:
        plan: the tasks.
        waiting: those that have to run; see `outstanding`.
        store: where their results are.
        executor: where they run.
        watcher: is told how it goes.
        keep_examples: keep adversarial examples after their last use.
        on_finished: called after each task that ran to its end.

    Raises:
        StoreError: the store cannot be written; what is done stays done.
    """
    waiting = dict(waiting)
    outcome = Outcome(skipped=[key for key in plan.tasks if key not in waiting])
    examples = _ExamplesInUse(plan, waiting, store, keep=keep_examples)
    running: dict[Future[Record], Task] = {}
    while waiting or running:
        for task in _ready(waiting, running, executor.capacity):
            del waiting[task.key]
            blame = next((key for key in task.needs if key in outcome.failed), None)
            if blame is not None:
                outcome.failed[task.key] = f"needs a task that failed: {plan.tasks[blame].label}"
                watcher.skipped(task)
                examples.release(task)
                continue
            watcher.started(task)
            running[executor.submit(task)] = task
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            task = running.pop(future)
            error = future.exception()
            if error is None:
                outcome.run.append(task.key)
                watcher.finished(task, future.result())
                on_finished(task, future.result())
            elif isinstance(error, StoreError):
                raise error
            else:
                outcome.failed[task.key] = f"{type(error).__name__}: {error}"
                expected = isinstance(error, AdvbenchError)
                trace = None if expected else "".join(traceback.format_exception(error))
                watcher.failed(task, " ".join(str(error).split()), trace)
            examples.release(task)
    return outcome


def _ready(waiting: dict[str, Task], running: dict[Future[Record], Task], capacity: int) -> list[Task]:
    """As many waiting tasks as there is room for whose needs neither wait nor run."""
    busy = set(waiting) | {task.key for task in running.values()}
    room = capacity - len(running)
    ready: list[Task] = []
    for task in waiting.values():
        if len(ready) >= room:
            break
        if busy.isdisjoint(task.needs):
            ready.append(task)
    return ready


class _ExamplesInUse:
    """Drops crafted examples once no outstanding task needs them."""

    def __init__(self, plan: Plan, waiting: dict[str, Task], store: Store, *, keep: bool) -> None:
        self._store = store
        self._keep = keep
        self._users: dict[str, set[str]] = {k: set() for k, t in plan.tasks.items() if t.kind == "craft"}
        for task in waiting.values():
            for key in task.needs:
                if key in self._users:
                    self._users[key].add(task.key)

    def release(self, task: Task) -> None:
        for key in task.needs:
            users = self._users.get(key)
            if users is not None:
                users.discard(task.key)
                if not users and not self._keep:
                    self._store.drop_artifact(key)

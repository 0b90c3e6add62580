"""Queue of a run: order of tasks, and artifacts that are no longer needed."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping

from advbench.grid.plan import Task


class Backlog:
    """Waiting tasks; those whose inputs exist are ordered by urgency.

    Evaluations come first: they are short and release examples. Other tasks are ordered by the longest chain of work
    between their start and the end of the run, so that no long task is left for last.

    Args:
        waiting: tasks in topological order; inputs that are not among them exist.
        weight: estimated seconds of a task.
    """

    def __init__(self, waiting: Mapping[str, Task], weight: Callable[[Task], float]) -> None:
        self._waiting = dict(waiting)
        self._open = {key: {need for need in task.needs if need in waiting} for key, task in waiting.items()}
        self._users: dict[str, set[str]] = {}  # by artifact: its users that have not ended
        for key, task in waiting.items():
            for need in task.needs:
                self._users.setdefault(need, set()).add(key)
        behind = chains(waiting, weight)
        self._order = {key: (task.kind != "evaluate", -behind[key], i) for i, (key, task) in enumerate(waiting.items())}
        self._ready = [(self._order[key], key) for key, needs in self._open.items() if not needs]
        heapq.heapify(self._ready)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Task]:
        return iter(self._waiting.values())

    def first(self) -> Task | None:
        """The most urgent task that can be started, if any."""
        return self._waiting[self._ready[0][1]] if self._ready else None

    def take(self) -> Task:
        """Remove and return the first task."""
        return self._waiting.pop(heapq.heappop(self._ready)[1])

    def put(self, task: Task) -> None:
        """Return a task whose inputs exist to the queue."""
        self._waiting[task.key] = task
        heapq.heappush(self._ready, (self._order[task.key], task.key))

    def close(self, task: Task) -> list[str]:
        """Mark a task as ended, which makes others ready; return the artifacts of which it was the last user."""
        for user in self._users.get(task.key, ()):
            needs = self._open[user]
            if task.key in needs:
                needs.remove(task.key)
                if not needs and user in self._waiting:
                    self.put(self._waiting[user])
        unused = []
        for need in task.needs:
            users = self._users.get(need, set())
            if task.key in users:
                users.remove(task.key)
                if not users:
                    unused.append(need)
        return unused

    def again(self, task: Task, need: Task, *, underway: bool) -> None:
        """Return a task with a missing input to the queue, with the task that recreates it unless that is under way."""
        self._waiting[task.key] = task
        self._open[task.key] = {need.key}
        self._users.setdefault(need.key, set()).add(task.key)
        if not underway and need.key not in self._waiting:
            self._open.setdefault(need.key, set())
            self._order[need.key] = (False, self._order[task.key][1], 0)
            self.put(need)


def chains(tasks: Mapping[str, Task], weight: Callable[[Task], float]) -> dict[str, float]:
    """Seconds from the start of each task to the end of the longest chain of its dependents.

    Args:
        tasks: tasks in topological order.
        weight: estimated seconds of a task.
    """
    behind: dict[str, float] = {}
    found: dict[str, float] = {}
    for key, task in reversed(list(tasks.items())):
        found[key] = weight(task) + behind.get(key, 0.0)
        for need in task.needs:
            behind[need] = max(behind.get(need, 0.0), found[key])
    return found


def longest_chain(tasks: Mapping[str, Task], weight: Callable[[Task], float]) -> float:
    """Seconds of the longest chain of dependent tasks."""
    return max(chains(tasks, weight).values(), default=0.0)

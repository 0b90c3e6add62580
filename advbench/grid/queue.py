"""What a run has still to do, in which order, and what its tasks need no more."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping

from advbench.grid.plan import Task


class Backlog:
    """Tasks that wait, and among them those whose needs are met, the most urgent first.

    Evaluations come before all else: they are short, and let go of examples. Then comes whatever has the
    longest chain of work between its start and the end of the run, so that no long task is left for last.

    Args:
        waiting: the tasks, each after those that it needs; needs that do not wait are met.
        weight: seconds that a task will take.
    """

    def __init__(self, waiting: Mapping[str, Task], weight: Callable[[Task], float]) -> None:
        self._waiting = dict(waiting)
        self._open = {key: {need for need in task.needs if need in waiting} for key, task in waiting.items()}
        self._users: dict[str, set[str]] = {}  # of what a task leaves: those of its users that have not ended
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
        """The most urgent task that can be started, if there is one."""
        return self._waiting[self._ready[0][1]] if self._ready else None

    def take(self) -> Task:
        """Take the first task out."""
        return self._waiting.pop(heapq.heappop(self._ready)[1])

    def put(self, task: Task) -> None:
        """Put a task back whose needs are met."""
        self._waiting[task.key] = task
        heapq.heappush(self._ready, (self._order[task.key], task.key))

    def close(self, task: Task) -> list[str]:
        """A task has ended: others that waited for it alone can be started. Returns what it was the last to use."""
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
        """Put a task back that lacks something, together with the task that makes it, unless that is under way."""
        self._waiting[task.key] = task
        self._open[task.key] = {need.key}
        self._users.setdefault(need.key, set()).add(task.key)
        if not underway and need.key not in self._waiting:
            self._open.setdefault(need.key, set())
            self._order[need.key] = (False, self._order[task.key][1], 0)
            self.put(need)


def chains(tasks: Mapping[str, Task], weight: Callable[[Task], float]) -> dict[str, float]:
    """For each task the seconds from its start to the end of the longest chain of tasks that need it.

    Args:
        tasks: each after those that it needs.
        weight: seconds of a task.
    """
    behind: dict[str, float] = {}
    found: dict[str, float] = {}
    for key, task in reversed(list(tasks.items())):
        found[key] = weight(task) + behind.get(key, 0.0)
        for need in task.needs:
            behind[need] = max(behind.get(need, 0.0), found[key])
    return found


def longest_chain(tasks: Mapping[str, Task], weight: Callable[[Task], float]) -> float:
    """Seconds of the longest chain of tasks that need each other."""
    return max(chains(tasks, weight).values(), default=0.0)

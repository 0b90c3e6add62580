"""What a run has still to do, in which order, and which examples nobody needs any more."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping

from advbench.grid.estimates import Estimator
from advbench.grid.plan import Task


class Backlog:
    """Tasks that wait, and among them those whose needs are met, the most urgent first.

    Evaluations come before all else: they are short, and let go of examples. Then comes whatever has the
    longest chain of work between its start and the end of the run, so that no long task is left for last.

    Args:
        waiting: the tasks, each after those that it needs; needs that do not wait are met.
        estimator: what they will take.
    """

    def __init__(self, waiting: Mapping[str, Task], estimator: Estimator) -> None:
        self._waiting = dict(waiting)
        self._users: dict[str, set[str]] = {}
        self._open: dict[str, set[str]] = {}
        for task in waiting.values():
            self._wait_for(task, {need for need in task.needs if need in waiting})
        ways = _ways(waiting, self._users, estimator.weight)
        self._order = {key: (task.kind != "evaluate", -ways[key], i) for i, (key, task) in enumerate(waiting.items())}
        self._ready: list[tuple[tuple[bool, float, int], str]] = []
        for key, needs in self._open.items():
            if not needs:
                self._push(key)

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
        self._push(task.key)

    def close(self, key: str) -> None:
        """A task has ended; others that waited for it alone can be started."""
        for user in self._users.pop(key, ()):
            needs = self._open[user]
            needs.discard(key)
            if not needs and user in self._waiting:
                self._push(user)

    def again(self, task: Task, need: Task, *, underway: bool) -> None:
        """Put a task back that lacks something, together with the task that makes it, unless that is under way."""
        self._waiting[task.key] = task
        self._wait_for(task, {need.key})
        if not underway and need.key not in self._waiting:
            self._open.setdefault(need.key, set())
            self._order[need.key] = (False, self._order[task.key][1], 0)
            self.put(need)

    def _wait_for(self, task: Task, needs: set[str]) -> None:
        self._open[task.key] = needs
        for need in needs:
            self._users.setdefault(need, set()).add(task.key)

    def _push(self, key: str) -> None:
        heapq.heappush(self._ready, (self._order[key], key))


def longest_chain(tasks: Mapping[str, Task], weight: Callable[[Task], float]) -> float:
    """Seconds of the longest chain of tasks that need each other.

    Args:
        tasks: each after those that it needs.
        weight: seconds of a task.
    """
    users: dict[str, set[str]] = {}
    for task in tasks.values():
        for need in task.needs:
            users.setdefault(need, set()).add(task.key)
    return max(_ways(tasks, users, weight).values(), default=0.0)


def _ways(
    waiting: Mapping[str, Task], users: Mapping[str, set[str]], weight: Callable[[Task], float]
) -> dict[str, float]:
    """For each task the time from its start to the end of the longest chain of tasks that need it."""
    ways: dict[str, float] = {}
    for key, task in reversed(list(waiting.items())):
        ways[key] = weight(task) + max((ways[user] for user in users.get(key, ())), default=0.0)
    return ways


class ExamplesInUse:
    """Crafted examples that tasks still need.

    Args:
        tasks: the plan's.
        waiting: those that have to run.
    """

    def __init__(self, tasks: Mapping[str, Task], waiting: Mapping[str, Task]) -> None:
        self._users: dict[str, set[str]] = {}
        self._kept: set[str] = set()
        for task in waiting.values():
            for key in task.needs:
                if tasks[key].kind == "craft":
                    self._users.setdefault(key, set()).add(task.key)

    def release(self, task: Task) -> list[str]:
        """A task has ended: the examples whose last user it was."""
        free = []
        for key in task.needs:
            users = self._users.get(key)
            if users is not None:
                users.discard(task.key)
                if not users:
                    del self._users[key]
                    free.append(key)
        return free

    def keep(self, keys: list[str]) -> None:
        """Examples that nobody needs here, but perhaps another driver."""
        self._kept.update(keys)

    def kept(self) -> list[str]:
        """Those, once."""
        keys, self._kept = sorted(self._kept), set()
        return keys

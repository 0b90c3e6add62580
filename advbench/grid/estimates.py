"""What tasks will take, by what tasks like them took before."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from advbench.grid.plan import Task
from advbench.store import heartbeat
from advbench.store.storage import Storage


@dataclass(frozen=True)
class Measured:
    """What the last task of a profile took.

    Attributes:
        kind: the task's kind.
        net: its architecture.
        seconds: wall-clock time.
        cost: passes of an image, as the plan counts them.
        peak: bytes at most, or None.
        memory: bytes that the device has in all, or None.
        at: when, in seconds since 1970.
    """

    kind: str
    net: str
    seconds: float
    cost: float
    peak: int | None
    memory: int | None
    at: float

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Measured:
        """The measurement that JSON values describe.

        Raises:
            TypeError: they describe none.
        """
        found = cls(**values)
        numbers = (found.seconds, found.cost, found.at, found.peak or 0, found.memory or 0)
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise TypeError("a measurement is made of numbers")
        return found


class Measurements:
    """What tasks of each profile took, and what others will take by that.

    Args:
        entries: JSON values by profile, as a heartbeat keeps them; new measurements are added to it.
    """

    def __init__(self, entries: dict[str, dict[str, Any]]) -> None:
        self._entries = entries
        self._found: dict[str, Measured] = {}
        for profile, entry in entries.items():
            with contextlib.suppress(TypeError):
                self._found[profile] = Measured.of(entry)

    def add(self, task: Task, record: Mapping[str, Any]) -> None:
        """Remember what a task took that has just finished."""
        needed, there_is = record["memory"]["peak"], record["memory"]["device"]
        entry = Measured(task.kind, task.net, record["seconds"], task.cost, needed, there_is, time.time())
        self._found[task.profile] = entry
        self._entries[task.profile] = dict(vars(entry))

    def of(self, task: Task) -> Measured | None:
        """What the last task of the same profile took, or None."""
        return self._found.get(task.profile)

    def estimator(self) -> Estimator:
        """What tasks will take, by what is known now."""
        return Estimator(self._found)


class Estimator:
    """Seconds of tasks to come: by the same profile, else by kind and net, else by kind."""

    def __init__(self, found: Mapping[str, Measured]) -> None:
        self._exact = dict(found)
        sums: dict[tuple[str, ...], list[float]] = {}
        for entry in found.values():
            for group in ((entry.kind, entry.net), (entry.kind,), ()):
                total = sums.setdefault(group, [0.0, 0.0])
                total[0] += entry.seconds
                total[1] += entry.cost
        self._rates = {group: seconds / cost for group, (seconds, cost) in sums.items() if cost > 0}

    def seconds(self, task: Task) -> float | None:
        """What the task will take on one worker; None where nothing like it has been measured."""
        known = self._exact.get(task.profile)
        if known is not None:
            return known.seconds * task.cost / known.cost if known.cost > 0 else known.seconds
        rate = self._rates.get((task.kind, task.net), self._rates.get((task.kind,)))
        return None if rate is None else rate * task.cost

    def weight(self, task: Task) -> float:
        """Seconds as well as can be told, to compare tasks: where nothing is measured, by their passes."""
        known = self.seconds(task)
        return task.cost * self._rates.get((), 1.0) if known is None else known

    def total(self, tasks: Iterable[Task]) -> float | None:
        """Seconds of all of them one after another; None where one of them is not known."""
        each = [self.seconds(task) for task in tasks]
        return None if None in each else sum(filter(None, each))


def measured(storage: Storage) -> Measurements:
    """What all runs that used a store have measured."""
    return Measurements(heartbeat.measured(storage))

"""What tasks will take, by what tasks like them took before."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pydantic
from pydantic import FiniteFloat

from advbench.grid.inputs import CPU
from advbench.grid.plan import Task
from advbench.store import heartbeat
from advbench.store.storage import Storage


@dataclass(frozen=True)
class Measured:
    """What the last task of a profile took."""

    kind: str
    net: str
    seconds: FiniteFloat
    cost: FiniteFloat  # passes of an image, as the plan counts them
    peak: int | None  # bytes at most
    memory: int | None  # bytes that the device has in all
    at: FiniteFloat  # seconds since 1970
    device: str = CPU  # its kind


_MEASURED = pydantic.TypeAdapter(Measured)


class Measurements:
    """What tasks of each profile took, and what others will take by that.

    The time of a task is that of its profile, else that of tasks of its kind and net, else of its kind; of one kind of
    device alone.

    Args:
        entries: JSON values by profile, as a heartbeat keeps them; new measurements are added to it.
        device: the model of a GPU, or `cpu`.
    """

    def __init__(self, entries: dict[str, dict[str, Any]], device: str = CPU) -> None:
        self._entries = entries
        self._device = device
        self._found: dict[str, Measured] = {}
        self._rates: dict[tuple[str, ...], float] | None = None
        for profile, entry in entries.items():
            with contextlib.suppress(pydantic.ValidationError):
                found = _MEASURED.validate_python(entry)
                if found.device == device:
                    self._found[profile] = found

    def add(self, task: Task, record: Mapping[str, Any]) -> None:
        """Remember what a task took that has just finished."""
        peak, memory = record["memory"]["peak"], record["memory"]["device"]
        found = Measured(task.kind, task.net, record["seconds"], task.cost, peak, memory, time.time(), self._device)
        self._found[task.profile] = found
        self._entries[task.profile] = asdict(found)
        self._rates = None

    def of(self, task: Task) -> Measured | None:
        """What the last task of the same profile took, or None."""
        return self._found.get(task.profile)

    def seconds(self, task: Task) -> float | None:
        """What the task will take on one worker; None where nothing like it has been measured."""
        known = self.of(task)
        if known is not None:
            return known.seconds * task.cost / known.cost if known.cost > 0 else known.seconds
        rates = self._by_group()
        rate = rates.get((task.kind, task.net), rates.get((task.kind,)))
        return None if rate is None else rate * task.cost

    def weight(self, task: Task) -> float:
        """Seconds as well as can be told, to compare tasks: where nothing is measured, by their passes."""
        known = self.seconds(task)
        return task.cost * self._by_group().get((), 1.0) if known is None else known

    def total(self, tasks: Iterable[Task]) -> float | None:
        """Seconds of all of them one after another; None where one of them is not known."""
        each = [self.seconds(task) for task in tasks]
        return None if None in each else sum(filter(None, each))

    def _by_group(self) -> dict[tuple[str, ...], float]:
        """Seconds a pass of tasks of the same kind and net, of the same kind, and of all."""
        if self._rates is None:
            sums: dict[tuple[str, ...], tuple[float, float]] = {}
            for entry in self._found.values():
                for group in ((entry.kind, entry.net), (entry.kind,), ()):
                    seconds, cost = sums.get(group, (0.0, 0.0))
                    sums[group] = (seconds + entry.seconds, cost + entry.cost)
            self._rates = {group: seconds / cost for group, (seconds, cost) in sums.items() if cost > 0}
        return self._rates


def measured(storage: Storage, device: str | None = None) -> Measurements:
    """What all runs that used a store have measured on a kind of device, by default the CPU."""
    return Measurements(heartbeat.measured(storage), device or CPU)

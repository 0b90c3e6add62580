"""Estimates of time and memory of tasks, from measurements of similar tasks."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pydantic
from pydantic import FiniteFloat

from advbench.grid.inputs import CPU
from advbench.grid.plan import Task
from advbench.store import heartbeat
from advbench.store.storage import Storage

LONG = 1.0  # seconds of a task whose time is not mostly overhead
ALIKE = 4  # factor on the passes of shorter tasks up to which they say something of others


@dataclass(frozen=True)
class Measured:
    """Measurement of the last task of a profile."""

    kind: str
    net: str
    seconds: FiniteFloat
    cost: FiniteFloat  # passes per image, as in the plan
    peak: int | None  # peak memory in bytes
    memory: int | None  # total memory of the device in bytes
    at: FiniteFloat  # time in seconds since 1970
    device: str = CPU  # kind of the device


_MEASURED = pydantic.TypeAdapter(Measured)


class _Group(NamedTuple):
    """Measurements of a group of tasks."""

    rate: float  # seconds per pass
    longest: float  # seconds of the longest task
    largest: float  # passes of the largest one


class Measurements:
    """Measurements of tasks by profile, and estimates from them.

    The time of a task is estimated from its profile, or from tasks of the same kind and net, or of the same kind;
    always on the same kind of device. Short tasks, whose time is mostly overhead, say nothing of much longer ones.

    Args:
        entries: JSON values by profile, as in a heartbeat; new measurements are added to them.
        device: kind of device: model of a GPU, or `cpu`.
    """

    def __init__(self, entries: dict[str, dict[str, Any]], device: str = CPU) -> None:
        self._entries = entries
        self._device = device
        self._found: dict[str, Measured] = {}
        self._rates: dict[tuple[str, ...], _Group] | None = None
        for profile, entry in entries.items():
            with contextlib.suppress(pydantic.ValidationError):
                found = _MEASURED.validate_python(entry)
                if found.device == device:
                    self._found[profile] = found

    def add(self, task: Task, record: Mapping[str, Any]) -> None:
        """Add the measurement of a finished task."""
        peak, memory = record["memory"]["peak"], record["memory"]["device"]
        found = Measured(task.kind, task.net, record["seconds"], task.cost, peak, memory, time.time(), self._device)
        self._found[task.profile] = found
        self._entries[task.profile] = asdict(found)
        self._rates = None

    def of(self, task: Task) -> Measured | None:
        """Measurement of the last task with the same profile, or None."""
        return self._found.get(task.profile)

    def seconds(self, task: Task) -> float | None:
        """Estimated time of a task on one worker, in seconds; None if no similar task has been measured."""
        known = self.of(task)
        if known is not None:
            return known.seconds * task.cost / known.cost if known.cost > 0 else known.seconds
        for group in ((task.kind, task.net), (task.kind,)):
            found = self._by_group().get(group)
            if found is not None and (found.longest >= LONG or task.cost <= ALIKE * found.largest):
                return found.rate * task.cost
        return None

    def weight(self, task: Task) -> float:
        """Estimated seconds for comparing tasks; based on passes if nothing has been measured."""
        known = self.seconds(task)
        found = self._by_group().get(())
        return task.cost * (found.rate if found else 1.0) if known is None else known

    def total(self, tasks: Iterable[Task]) -> float | None:
        """Total seconds of tasks run sequentially; None if any is unknown."""
        each = [self.seconds(task) for task in tasks]
        return None if None in each else sum(filter(None, each))

    def _by_group(self) -> dict[tuple[str, ...], _Group]:
        """Measurements of tasks of the same kind and net, of the same kind, and of all tasks."""
        if self._rates is None:
            group: tuple[str, ...]
            groups: dict[tuple[str, ...], list[Measured]] = {}
            for entry in self._found.values():
                for group in ((entry.kind, entry.net), (entry.kind,), ()):
                    groups.setdefault(group, []).append(entry)
            self._rates = {}
            for group, entries in groups.items():
                seconds, costs = [each.seconds for each in entries], [each.cost for each in entries]
                if sum(costs) > 0:
                    self._rates[group] = _Group(sum(seconds) / sum(costs), max(seconds), max(costs))
        return self._rates


def measured(storage: Storage, device: str | None = None) -> Measurements:
    """Measurements of all runs that used a store, on a kind of device, by default the CPU."""
    return Measurements(heartbeat.measured(storage), device or CPU)

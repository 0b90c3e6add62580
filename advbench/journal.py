"""What a driver tells of its run in the store: that it lives, how far it is, what tasks cost."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from advbench.errors import StoreError
from advbench.plan import Task
from advbench.storage import Storage

BEAT = 5.0  # seconds between two beats of a driver
GAP = 20.0  # seconds without a look after which a driver's silence is counted anew
LOOK = 2.0  # seconds between two looks whether other drivers live
SILENCE = 60.0  # seconds without a beat after which a driver is dead

ENTRY = {  # what every entry holds
    "id": str,
    "about": str,
    "state": str,
    "host": str,
    "machine": str,
    "pid": int,
    "beats": int,
    "started": str,
    "updated": str,
    "measured": dict,
}
State = Literal["running", "done", "failed", "interrupted", "stopped"]
Run = dict[str, Any]


@functools.cache
def machine() -> str:
    """This boot of this machine, as processes see it: within it a process id means one process."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text().strip())
    return " ".join(parts)


def born(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; empty where that cannot be told, None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a dead process stays listed until its parent asks
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "" if not Path("/proc/self/stat").exists() else None


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
    """What tasks of each profile took, and what others will take by that."""

    def __init__(self, found: Mapping[str, Measured] | None = None) -> None:
        self._found = dict(found or {})

    def add(self, task: Task, record: Mapping[str, Any]) -> None:
        """Remember what a task took that has just finished."""
        needed, there_is = record["memory"]["peak"], record["memory"]["device"]
        entry = Measured(task.kind, task.net, record["seconds"], task.cost, needed, there_is, time.time())
        self._merge({task.profile: entry})

    def merged(self, run: Run) -> None:
        """Take over what a run has measured; of two measurements the later counts."""
        for profile, entry in run["measured"].items():
            with contextlib.suppress(TypeError, ValueError):
                self._merge({profile: Measured.of(entry)})

    def _merge(self, entries: Mapping[str, Measured]) -> None:
        for profile, entry in entries.items():
            known = self._found.get(profile)
            if known is None or known.at <= entry.at:
                self._found[profile] = entry

    def export(self) -> dict[str, dict[str, Any]]:
        """As JSON values."""
        return {profile: dict(vars(entry)) for profile, entry in list(self._found.items())}

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
    found = Measurements()
    for run in runs(storage):
        found.merged(run)
    return found


@dataclass
class Journal:
    """A driver's own entry in the store, renewed by a thread as long as the driver lives.

    Attributes:
        storage: where.
        about: what is run, for people.
        values: what `advbench status` shows; the driver keeps it up to date.
        measurements: what tasks took, here and in earlier runs.
    """

    storage: Storage
    about: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    measurements: Measurements = field(default_factory=Measurements)
    beat: float = BEAT

    def __post_init__(self) -> None:
        self.id = uuid.uuid4().hex
        self._started = time.time()
        self._beats = 0
        self._state: State = "running"
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._error: StoreError | None = None
        self._thread = threading.Thread(target=self._renew, name="advbench-journal", daemon=True)

    def open(self) -> None:
        """Write the first entry and begin to renew it.

        Raises:
            StoreError: the store cannot be written.
        """
        self.measurements = measured(self.storage)
        self._write()
        self._thread.start()

    def check(self) -> None:
        """Tell the driver that its entry could not be renewed.

        Raises:
            StoreError: why.
        """
        if self._error is not None:
            raise self._error

    def close(self, state: State) -> None:
        """Write the last entry; nothing is raised, as whatever ends the run matters more."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        self._state = state
        with contextlib.suppress(StoreError):
            self._write()

    def _renew(self) -> None:
        while not self._end.wait(self.beat):
            try:
                self._write()
            except StoreError as error:
                self._error = error
                return

    def _write(self) -> None:
        with self._lock:
            self._beats += 1
            entry = {
                "id": self.id,
                "about": self.about,
                "state": self._state,
                "host": socket.gethostname(),
                "machine": machine(),
                "pid": os.getpid(),
                "born": born(os.getpid()),
                "beats": self._beats,
                "started": _iso(self._started),
                "updated": _iso(time.time()),
                "measured": self.measurements.export(),
                **self.values,
            }
            self.storage.write(f"runs/{self.id}.json", json.dumps(entry, indent=1).encode())


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def read_run(storage: Storage, driver: str) -> Run | None:
    """A driver's entry, or None where there is none that a driver of this version can have written."""
    try:
        found = json.loads(storage.read(f"runs/{driver}.json") or b"null")
    except (ValueError, RecursionError):
        return None
    return found if is_entry(found, driver) else None


def is_entry(found: object, driver: str) -> bool:
    """Whether this is what that driver writes into the store."""
    return (
        isinstance(found, dict)
        and all(type(found.get(name)) is kind for name, kind in ENTRY.items())
        and found["id"] == driver
        and "born" in found
        and 0 < found["pid"] < 2**31
    )


def runs(storage: Storage, without: Set[str] = frozenset()) -> Iterator[Run]:
    """All entries but some, in no order.

    Args:
        storage: where.
        without: the ids of drivers that are left out, unread.
    """
    drivers = [name.removeprefix("runs/").removesuffix(".json") for name in storage.names("runs")]
    wanted = [driver for driver in drivers if driver not in without]
    yield from filter(None, storage.each(lambda driver: read_run(storage, driver), wanted))


@dataclass
class _Beats:
    """What was seen of a driver: its beats, since when they are so many, and when that was looked at last."""

    count: int
    since: float
    looked: float


class Liveness:
    """Tells whether drivers live.

    One lives while its beats go on: it is dead when they have not changed for `silence` seconds of this
    process's own clock, in which it kept looking, so clocks may differ and outages are nobody's death. One on
    this machine is dead as soon as its process is.

    Args:
        storage: where the drivers' entries are.
        silence: seconds without a beat after which a driver is dead.
    """

    def __init__(self, storage: Storage, silence: float = SILENCE) -> None:
        self._storage = storage
        self._silence = silence
        self._seen: dict[str, _Beats] = {}
        self._ended: set[str] = set()
        self._looked = -LOOK
        self._others = False

    def alive(self, driver: str) -> bool:
        """Whether a driver lives, by its entry now."""
        run = read_run(self._storage, driver)
        return run is not None and self.of(run)

    def of(self, run: Run) -> bool:
        """Whether the driver of an entry lives; one that has ended will not come back."""
        here = run["machine"] == machine()
        if run["state"] != "running" or (here and born(run["pid"]) != run.get("born")):
            self._ended.add(run["id"])
            return False
        beats, now = run["beats"], time.monotonic()
        known = self._seen.get(run["id"])
        if known is None or known.count != beats or now - known.looked > GAP:
            known = self._seen[run["id"]] = _Beats(beats, now, now)
        known.looked = now
        return now - known.since <= self._silence

    def others(self, own: str, *, lately: bool = True) -> bool:
        """Whether any other driver lives: now, or by a look in the last seconds if `lately` is enough."""
        now = time.monotonic()
        if now - self._looked >= LOOK or not lately:
            self._looked = now
            self._others = any(self.of(run) for run in runs(self._storage, without={own, *self._ended}))
        return self._others

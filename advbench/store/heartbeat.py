"""Heartbeats of drivers in the store: liveness, progress of the run, measurements of tasks."""

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
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from advbench.errors import StoreError
from advbench.store.storage import Storage, parsed

BEAT = 5.0  # seconds between two beats of a driver
GAP = 20.0  # seconds without a check after which a driver's silence is measured from zero
LOOK = 2.0  # seconds between two checks of other drivers
SILENCE = 60.0  # seconds without a beat after which a driver counts as dead

State = Literal["running", "done", "failed", "interrupted", "stopped"]


class RunningTask(BaseModel, strict=True, frozen=True):
    """A running task."""

    task: str
    place: str | None
    seconds: float | None
    share: float


class FailedTask(BaseModel, strict=True, frozen=True):
    """A failed task, and the reason."""

    task: str
    reason: str


class Run(BaseModel, strict=True, frozen=True, extra="allow"):
    """A driver's heartbeat as read from a store; invalid content counts as none.

    Attributes:
        machine: result of `machine`; `host` is for display.
        born: start time of the process, the result of `born`.
        beats: number of writes of the entry.
        measured: measurements of tasks as JSON values, by profile.
        upkeep: kind of maintenance, if this is not a run.
        plan: digest of the run's tasks, equal if it is run again.
    """

    id: str
    about: str
    state: str
    host: str
    machine: str
    pid: int = Field(gt=0, lt=2**31)
    born: str | None
    beats: int
    started: str
    updated: str
    measured: dict[str, Any]
    upkeep: str | None = None
    plan: str = ""
    tasks: dict[str, int] = {}
    places: int | None = None
    tasks_per_minute: float | None = None
    seconds_left: float | None = None
    running: tuple[RunningTask, ...] = ()
    failures: tuple[FailedTask, ...] = ()


@functools.cache
def machine() -> str:
    """Identifier of this boot of this machine (or container), within which process ids are unique."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux: containers may share a host's name, but not process ids
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def born(pid: int) -> str | None:
    """Start time of a process in seconds since boot, independent of clock changes; None if it is dead."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:  # zombies stay listed
            return None
        return f"{process.create_time() - psutil.boot_time():.2f}"
    except psutil.Error:
        return None


@dataclass
class Heartbeat:
    """A driver's own entry in the store, renewed by a thread while the driver lives.

    Attributes:
        storage: storage of the entry.
        about: description of the run for display.
        values: values for `advbench status`, updated by the driver.
        measured: measurements of tasks of this and earlier runs as JSON values, by profile.
        plan: digest of the run's tasks.
    """

    storage: Storage
    about: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    beat: float = BEAT
    plan: str = ""

    def __post_init__(self) -> None:
        self.id = uuid.uuid4().hex
        self._started = time.time()
        self._born = born(os.getpid())
        self._beats = 0
        self._state: State = "running"
        self._end = threading.Event()
        self._error: StoreError | None = None
        self._thread = threading.Thread(target=self._renew, name="advbench-heartbeat", daemon=True)

    def open(self) -> None:
        """Write the first entry and start to renew it.

        Raises:
            StoreError: the store cannot be written.
        """
        self.measured = measured(self.storage)
        self._write()
        self._thread.start()

    def check(self) -> None:
        """Raise if the entry could not be renewed.

        Raises:
            StoreError: the reason.
        """
        if self._error is not None:
            raise self._error

    def close(self, state: State) -> None:
        """Write the last entry; errors are suppressed, because the reason for the end of the run matters more."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        self._state = state
        with contextlib.suppress(StoreError):
            self._write()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("done" if kind is None else "interrupted" if kind is KeyboardInterrupt else "stopped")

    def _renew(self) -> None:
        while not self._end.wait(self.beat):
            try:
                self._write()
            except StoreError as error:
                self._error = error
                return

    def _write(self) -> None:
        self._beats += 1
        entry = {
            "id": self.id,
            "about": self.about,
            "plan": self.plan,
            "state": self._state,
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": os.getpid(),
            "born": self._born,
            "beats": self._beats,
            "started": _iso(self._started),
            "updated": _iso(time.time()),
            "measured": dict(self.measured),
            **self.values,
        }
        self.storage.write(f"runs/{self.id}.json", json.dumps(entry, indent=1).encode())


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def read_run(storage: Storage, driver: str) -> Run | None:
    """Read a driver's entry, or None if there is none."""
    return parse_run(driver, storage.read(f"runs/{driver}.json"))


def parse_run(driver: str, raw: bytes | None) -> Run | None:
    """Parse the entry of a driver, or None if it is invalid."""
    run = parsed(Run, raw)
    return run if run is not None and run.id == driver else None


def runs(storage: Storage, without: Set[str] = frozenset()) -> Iterator[Run]:
    """Read all entries in arbitrary order, except those of the drivers in `without`."""
    drivers = [name.removeprefix("runs/").removesuffix(".json") for name in storage.names("runs")]
    wanted = [driver for driver in drivers if driver not in without]
    yield from filter(None, storage.each(lambda driver: read_run(storage, driver), wanted))


def measured(storage: Storage) -> dict[str, dict[str, Any]]:
    """Measurements of tasks of all runs in a store as JSON values, by profile; the latest ones count."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs(storage):
        for profile, entry in run.measured.items():
            at = entry.get("at") if isinstance(entry, dict) else None
            if isinstance(at, int | float) and math.isfinite(at) and at >= found.get(profile, entry)["at"]:
                found[profile] = entry
    return found


@dataclass
class _Beats:
    """Observation of a driver: number of beats, time of its last change, and time of the last check."""

    count: int
    since: float
    looked: float


class Liveness:
    """Liveness of drivers.

    A driver is alive while its beats continue; it is dead if they have not changed for `silence` seconds of this
    process's clock during which it was observed, so differing clocks and outages do not matter. A driver on this
    machine is dead as soon as its process is.

    Args:
        storage: storage of the drivers' entries.
        silence: seconds without a beat after which a driver counts as dead.
    """

    def __init__(self, storage: Storage, silence: float = SILENCE) -> None:
        self._storage = storage
        self._silence = silence
        self._seen: dict[str, _Beats] = {}
        self._ended: set[str] = set()
        self._looked = -LOOK
        self._others = False

    def alive(self, driver: str) -> bool:
        """True if a driver is alive, by its current entry."""
        run = read_run(self._storage, driver)
        return run is not None and self.of(run)

    def of(self, run: Run) -> bool:
        """True if the driver of an entry is alive; an ended one never is."""
        here = run.machine == machine()
        if run.state != "running" or (here and born(run.pid) != run.born):
            self._ended.add(run.id)
            return False
        now = time.monotonic()
        known = self._seen.get(run.id)
        if known is None or known.count != run.beats or now - known.looked > GAP:
            known = self._seen[run.id] = _Beats(run.beats, now, now)
        known.looked = now
        return now - known.since <= self._silence

    def others(self, own: str, *, lately: bool = True) -> bool:
        """True if any other driver is alive now, or with `lately`, at a check in the last seconds."""
        now = time.monotonic()
        if now - self._looked >= LOOK or not lately:
            self._looked = now
            self._others = any(self.of(run) for run in runs(self._storage, without={own, *self._ended}))
        return self._others

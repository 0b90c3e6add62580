"""A driver's heartbeat in the store: that it lives, how far its run is, what tasks took; and whether others live."""

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
GAP = 20.0  # seconds without a look after which a driver's silence is counted anew
LOOK = 2.0  # seconds between two looks whether other drivers live
SILENCE = 60.0  # seconds without a beat after which a driver is dead

State = Literal["running", "done", "failed", "interrupted", "stopped"]


class RunningTask(BaseModel, strict=True, frozen=True):
    """A task that a run is at."""

    task: str
    place: str | None
    seconds: float | None
    share: float


class FailedTask(BaseModel, strict=True, frozen=True):
    """A task that failed, and why."""

    task: str
    reason: str


class Run(BaseModel, strict=True, frozen=True, extra="allow"):
    """A driver's entry, as it is read from a store; anything else counts as no entry.

    Attributes:
        machine: as `machine` gives it; `host` is for people.
        born: when the process began, as `born` gives it.
        beats: how often the entry was written.
        measured: JSON values of what tasks took, by the task's profile.
        upkeep: what is done to the store, where that is no run.
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
    tasks: dict[str, int] = {}
    places: int | None = None
    tasks_per_minute: float | None = None
    seconds_left: float | None = None
    running: tuple[RunningTask, ...] = ()
    failures: tuple[FailedTask, ...] = ()


@functools.cache
def machine() -> str:
    """This boot of this machine, as processes see it: within it a process id means one process."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux: containers may share a host's name, but not its process ids
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def born(pid: int) -> str | None:
    """Seconds from the machine's boot to the start of a process, which its clock does not move; None of a dead one."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:  # it stays listed until its parent asks
            return None
        return f"{process.create_time() - psutil.boot_time():.2f}"
    except psutil.Error:
        return None


@dataclass
class Heartbeat:
    """A driver's own entry in the store, renewed by a thread as long as the driver lives.

    Attributes:
        storage: where.
        about: what is run, for people.
        values: what `advbench status` shows; the driver keeps it up to date.
        measured: JSON values of what tasks took, here and in earlier runs, by the task's profile.
    """

    storage: Storage
    about: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    beat: float = BEAT

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
        """Write the first entry and begin to renew it.

        Raises:
            StoreError: the store cannot be written.
        """
        self.measured = measured(self.storage)
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
    """A driver's entry, or None where there is none."""
    return parse_run(driver, storage.read(f"runs/{driver}.json"))


def parse_run(driver: str, raw: bytes | None) -> Run | None:
    """The entry of a driver, or None where these bytes are none that it can have written."""
    run = parsed(Run, raw)
    return run if run is not None and run.id == driver else None


def runs(storage: Storage, without: Set[str] = frozenset()) -> Iterator[Run]:
    """All entries, in no order, but those of some drivers, which are left out unread."""
    drivers = [name.removeprefix("runs/").removesuffix(".json") for name in storage.names("runs")]
    wanted = [driver for driver in drivers if driver not in without]
    yield from filter(None, storage.each(lambda driver: read_run(storage, driver), wanted))


def measured(storage: Storage) -> dict[str, dict[str, Any]]:
    """JSON values of what tasks took in all runs that used a store, by profile; of two measurements the later."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs(storage):
        for profile, entry in run.measured.items():
            at = entry.get("at") if isinstance(entry, dict) else None
            if isinstance(at, int | float) and math.isfinite(at) and at >= found.get(profile, entry)["at"]:
                found[profile] = entry
    return found


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
        """Whether any other driver lives: now, or by a look in the last seconds if `lately` is enough."""
        now = time.monotonic()
        if now - self._looked >= LOOK or not lately:
            self._looked = now
            self._others = any(self.of(run) for run in runs(self._storage, without={own, *self._ended}))
        return self._others

"""Leases on tasks: several drivers share a store, and each task is done once."""

from __future__ import annotations

import time

from pydantic import BaseModel

from advbench.store.heartbeat import Liveness
from advbench.store.storage import Storage, parsed

EMPTY = 10  # tenths of a second after which the creator of an empty lease counts as dead


class Lease(BaseModel, strict=True, frozen=True):
    """Content of a lease file: the id of the driver that holds the lease."""

    driver: str


class Leases:
    """A driver's leases on tasks.

    A lease is a file with the id of its driver and is valid while that driver is alive. The lease after that of a dead
    driver has the next number; if several drivers want it, only one can create it. No driver removes or overwrites a
    lease that another may hold.

    Layout: `leases/<2>/<key>.<number>.json`; the highest number is valid.

    Args:
        storage: storage of the leases.
        driver: id of this driver's heartbeat, which must be open.
        liveness: check whether other drivers are alive.
    """

    def __init__(self, storage: Storage, driver: str, liveness: Liveness) -> None:
        self._storage = storage
        self._driver = driver
        self._liveness = liveness
        self._held: dict[str, int] = {}

    def acquire(self, key: str) -> bool:
        """Acquire the lease on a task unless a living driver holds it; afterwards check whether the task is done."""
        return self._create(key, 0) or self._succeed(key)

    def release(self, key: str) -> None:
        """Release a lease, after the task's record is written or the task was abandoned.

        Earlier leases, of dead drivers, are removed as well. A later lease belongs to a driver that considered this one
        dead; all then stay until that driver releases its own, because a free first number means a free task.
        """
        own = self._held.get(key, -1)
        names = self._names(key)
        if names and _number(names[-1]) <= own:
            for name in names:
                self._storage.remove(name)
        self._held.pop(key, None)  # last, so that `release_all` completes a release that was interrupted

    def release_all(self) -> None:
        """Release all leases."""
        for key in list(self._held):
            self.release(key)

    def _succeed(self, key: str) -> bool:
        names = self._names(key)
        if not names:
            return False  # just released; the next try succeeds
        lease = parsed(Lease, self._content(names[-1]))
        if lease is not None and self._liveness.alive(lease.driver):
            return False
        return self._create(key, _number(names[-1]) + 1)

    def _content(self, name: str) -> bytes | None:
        """A lease's bytes; those of one that is just being created are waited for."""
        for _ in range(EMPTY):
            raw = self._storage.read(name)
            if raw != b"":
                break
            time.sleep(0.1)
        return raw

    def _create(self, key: str, number: int) -> bool:
        raw = Lease(driver=self._driver).model_dump_json().encode()
        taken = self._storage.create(f"leases/{key[:2]}/{key}.{number}.json", raw)
        if taken:
            self._held[key] = number
        return taken

    def _names(self, key: str) -> list[str]:
        """Lease files of a task, the valid one last."""
        folder = f"leases/{key[:2]}"
        names = (name for name in self._storage.names(folder) if name.startswith(f"{folder}/{key}."))
        return sorted((name for name in names if name.endswith(".json")), key=_number)


def _number(name: str) -> int:
    number = name.split(".")[-2]
    return int(number) if number.isdecimal() else 0

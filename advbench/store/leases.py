"""Who works on what: several drivers share a store, and each task is done once."""

from __future__ import annotations

import time

from pydantic import BaseModel

from advbench.store.heartbeat import Liveness
from advbench.store.storage import Storage, parsed

EMPTY = 10  # tenths of a second after which the creator of an empty lease is dead


class Lease(BaseModel, strict=True, frozen=True):
    """What a lease file holds: the id of the driver that has the lease."""

    driver: str


class Leases:
    """A driver's leases on tasks.

    A lease is a file that names its driver and holds as long as that driver lives. The lease after a dead
    driver's carries the next number, and of several drivers who want it one creates it; nobody ever removes
    or overwrites what another may hold.

    Layout: `leases/<2>/<key>.<number>.json`, the highest number holding.

    Args:
        storage: where.
        driver: the id under which this driver's heartbeat is kept; it must be open.
        liveness: tells whether other drivers live.
    """

    def __init__(self, storage: Storage, driver: str, liveness: Liveness) -> None:
        self._storage = storage
        self._driver = driver
        self._liveness = liveness
        self._held: dict[str, int] = {}

    def acquire(self, key: str) -> bool:
        """Take the lease on a task, unless a living driver has it. Look then whether the task is done."""
        return self._create(key, 0) or self._succeed(key)

    def release(self, key: str) -> None:
        """Give a lease back, once the task's record is written or the task was given up.

        Those before it, of dead drivers, go too. One after it is that of a driver that took this one for dead;
        then all stay until that driver gives its own back, as a free first number is a free task.
        """
        own = self._held.pop(key, -1)
        names = self._names(key)
        if names and _number(names[-1]) <= own:
            for name in names:
                self._storage.remove(name)

    def release_all(self) -> None:
        """Give all leases back."""
        for key in list(self._held):
            self.release(key)

    def _succeed(self, key: str) -> bool:
        names = self._names(key)
        if not names:
            return False  # given back this moment; the next try gets it
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
        """The lease files of a task, the one that holds last."""
        folder = f"leases/{key[:2]}"
        names = (name for name in self._storage.names(folder) if name.startswith(f"{folder}/{key}."))
        return sorted((name for name in names if name.endswith(".json")), key=_number)


def _number(name: str) -> int:
    number = name.split(".")[-2]
    return int(number) if number.isdecimal() else 0

"""Garbage collection of a store that no driver uses."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from advbench.errors import InputError
from advbench.store.heartbeat import SILENCE, Heartbeat, Liveness, machine, runs
from advbench.store.leases import Leases
from advbench.store.records import Store
from advbench.store.storage import StoreWarning, in_parallel
from advbench.store.verify import Found, Survey

CHECK = 5.0  # seconds between two checks for new drivers
HEARTBEATS = 20  # number of ended runs whose heartbeats are kept

Garbage = tuple[str, Found]


@dataclass
class Amount:
    """Number of files, and their total size in bytes."""

    count: int = 0
    size: int = 0

    def add(self, size: int) -> None:
        """Add a file."""
        self.count += 1
        self.size += size


def collect_garbage(
    store: Store,
    *,
    dry_run: bool = False,
    keep_examples: bool = False,
    failures: bool = False,
    silence: float = SILENCE,
) -> dict[str, Amount]:
    """Remove files that are no longer needed.

    These are adversarial examples, artifacts without a record, damaged files, checkpoints and failures of finished
    tasks, leases, temporary files, and heartbeats of all but the latest runs. Measurements of runs
    are kept: garbage collection has its own heartbeat, which takes them over and replaces that of the previous
    collection. Records of another schema with their artifacts, unreadable files and unknown files stay.

    Args:
        store: the store.
        dry_run: only report; change nothing.
        keep_examples: keep adversarial examples.
        failures: also remove the stored reasons of failed tasks.
        silence: seconds without a beat after which a driver on another machine counts as dead.

    Returns:
        Removed files (or files to remove), by category.

    Raises:
        InputError: a driver uses the store; if it started during the collection, some files are already removed.
        StoreError: the store cannot be read or written.
    """
    liveness = Liveness(store.storage, silence)
    _refuse_use(store, liveness, silence)
    survey = Survey(store.storage, examples=keep_examples)  # lists the files that are there before any of its own
    if dry_run:
        return _amounts(_garbage(store, survey, keep_examples=keep_examples, failures=failures))
    with Heartbeat(store.storage, "store gc", {"upkeep": "gc"}) as heartbeat:
        leases = Leases(store.storage, heartbeat.id, liveness)

        def remove(garbage: Garbage) -> Garbage | None:
            what, found = garbage
            if what != "leases":
                store.storage.remove(found.name)
            elif leases.acquire(found.key):  # a driver that starts now may need it
                leases.release(found.key)
            else:
                return None
            return garbage

        garbage = _garbage(store, survey, keep_examples=keep_examples, failures=failures)
        checked = _checked(garbage, lambda: _refuse_use(store, liveness, silence, heartbeat.id))
        removed = _amounts(filter(None, in_parallel(remove, checked)))
        heartbeat.check()
        for run in runs(store.storage):  # previous collections, and killed imports
            if run.upkeep is not None and run.id != heartbeat.id and not liveness.of(run):
                store.storage.remove(f"runs/{run.id}.json")
    return removed


def _garbage(store: Store, survey: Survey, *, keep_examples: bool, failures: bool) -> Iterator[Garbage]:
    """Iterate over files to remove; each is removed right after it is found."""
    ended = sorted(((run.started, run.id) for run in runs(store.storage) if run.upkeep is None), reverse=True)
    old = {driver for _, driver in ended[HEARTBEATS:]}
    leased: dict[str, int] = {}  # size of the leases of a task
    for found in survey:
        sort, key = found.sort, found.key
        if found.problem in ("damaged", "unrecorded"):
            yield f"{found.problem} {'states' if sort == 'partial' else sort}", found
        elif sort == "temporary":  # whose writer is dead, as no driver lives
            yield "temporary files", found
        elif found.problem:
            continue
        elif sort == "artifacts" and survey.tasks[key].kind == "craft" and not keep_examples:
            yield "examples", found
        elif sort == "partial" and key in survey.whole:
            yield "checkpoints of finished tasks", found
        elif sort == "failures" and (failures or key in survey.whole):
            yield "failures", found
        elif sort == "runs" and key in old:
            yield "heartbeats", found
        elif sort == "leases":
            leased[key] = leased.get(key, 0) + found.size
    for key, size in leased.items():
        yield "leases", Found("leases", "", key, size)


def _amounts(garbage: Iterable[Garbage]) -> dict[str, Amount]:
    amounts: dict[str, Amount] = {}
    for what, found in garbage:
        amounts.setdefault(what, Amount()).add(found.size)
    return amounts


def _checked(garbage: Iterable[Garbage], check: Callable[[], None]) -> Iterator[Garbage]:
    last = -math.inf
    for each in garbage:
        if time.monotonic() - last > CHECK:
            check()
            last = time.monotonic()
        yield each


def _refuse_use(store: Store, liveness: Liveness, silence: float, own: str = "") -> None:
    """Refuse a store that a driver uses; a driver on another machine is watched until it beats or times out.

    Raises:
        InputError: a driver uses the store.
    """
    beats: dict[str, int] = {}
    while living := [run for run in runs(store.storage) if run.id != own and liveness.of(run)]:
        for run in living:
            if run.machine == machine() or beats.get(run.id, run.beats) != run.beats:
                who = f"run {run.id[:8]} ({run.about}), process {run.pid} on {run.host}"
                raise InputError(
                    f"store {store.url!r} is in use by {who}", remedy="wait until it has ended, or stop it"
                )
        if not beats:
            message = f"a run on another machine may use store {store.url}; it is watched for up to {silence:.0f} s"
            warnings.warn(message, StoreWarning, stacklevel=2)
        beats = {run.id: run.beats for run in living} | beats
        time.sleep(min(1.0, silence / 4))

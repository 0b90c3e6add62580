"""Removes from a store what nothing needs, while no driver uses it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from advbench.errors import InputError
from advbench.store.heartbeat import SILENCE, Heartbeat, Liveness, State, machine, runs
from advbench.store.leases import Leases, in_order
from advbench.store.records import Store
from advbench.store.storage import StoreWarning
from advbench.store.verify import Found, Survey, in_parallel

CHECK = 5.0  # seconds between two looks whether a driver has begun to use the store
HEARTBEATS = 20  # of runs that have ended, which are kept for people

Garbage = tuple[str, Found]


@dataclass
class Amount:
    """How many, and how many bytes in all."""

    count: int = 0
    size: int = 0

    def add(self, size: int) -> None:
        """One more."""
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
    """Remove what nothing needs.

    That is: adversarial examples; artifacts without a record; what is damaged; states and failures of tasks that
    are done; leases; temporary files older than an hour; and heartbeats of all runs but the last. What runs have
    measured is kept: the sweep has a heartbeat of its own, which takes it over as any driver's does, and takes the
    place of the last sweep's. Records of another schema with their artifacts, files that cannot be read, and
    foreign ones stay.

    Args:
        store: the store.
        dry_run: change nothing.
        keep_examples: keep adversarial examples.
        failures: forget why tasks failed.
        silence: seconds without a beat after which a driver on another machine is dead.

    Returns:
        What was removed, or would be, by what it was.

    Raises:
        InputError: a driver uses the store; if it began meanwhile, some garbage is gone already.
        StoreError: the store cannot be read or written.
    """
    liveness = Liveness(store.storage, silence)
    _refuse_use(store, liveness, silence)
    if dry_run:
        return _Sweep(store, keep_examples=keep_examples, failures=failures).preview()
    heartbeat = Heartbeat(store.storage, "store gc", {"upkeep": "gc"})
    heartbeat.open()
    state: State = "stopped"
    try:
        sweep = _Sweep(store, keep_examples=keep_examples, failures=failures, own=heartbeat.id)
        leases = Leases(store.storage, heartbeat.id, liveness)
        removed = sweep.carry_out(leases, lambda: _refuse_use(store, liveness, silence, heartbeat.id))
        heartbeat.check()
        for run in runs(store.storage):  # earlier sweeps, which this one replaces, and imports that were killed
            if "upkeep" in run and run["id"] != heartbeat.id and not liveness.of(run):
                store.storage.remove(f"runs/{run['id']}.json")
        state = "done"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    finally:
        heartbeat.close(state)
    return removed


class _Sweep:
    """The garbage of a store, found while it is removed, so that little time is between the two.

    Args:
        store: the store.
        keep_examples: keep adversarial examples.
        failures: forget why tasks failed.
        own: the run as which this sweep is known; empty if nothing will be removed.
    """

    def __init__(self, store: Store, *, keep_examples: bool, failures: bool, own: str = "") -> None:
        self._storage = store.storage
        self._survey = Survey(store)
        self._keep_examples = keep_examples
        self._failures = failures
        self._own = own

    def preview(self) -> dict[str, Amount]:
        """What would be removed."""
        amounts: dict[str, Amount] = {}
        for garbage in (self._files(), self._leases()):
            for what, found in garbage:
                amounts.setdefault(what, Amount()).add(found.size)
        return amounts

    def carry_out(self, leases: Leases, check: Callable[[], None]) -> dict[str, Amount]:
        """Remove it; `check` is called now and then, and stops it by raising."""
        amounts: dict[str, Amount] = {}

        def remove(garbage: Garbage) -> Garbage:
            self._storage.remove(garbage[1].name)
            return garbage

        for what, found in in_parallel(remove, _checked(self._files(), check)):
            amounts.setdefault(what, Amount()).add(found.size)
        for what, found in _checked(self._leases(), check):
            if leases.acquire(found.key):  # a driver that begins this moment may want it too
                leases.release(found.key)
                amounts.setdefault(what, Amount()).add(found.size)
        return amounts

    def _files(self) -> Iterator[Garbage]:
        """All garbage but leases that can be read."""
        survey = self._survey
        yield from _damaged(survey.records())
        if not self._keep_examples:
            yield from self._examples()
        for found in survey.artifacts():
            if found.problem in ("damaged", "unrecorded"):
                yield f"{found.problem} artifacts", found
        for found in survey.partial():
            if found.problem == "damaged":
                yield "damaged states", found
            elif not found.problem and found.key in survey.whole:
                yield "states of tasks that are done", found
        for found in survey.entries("failures"):
            if found.problem == "damaged":
                yield "damaged failures", found
            elif not found.problem and (self._failures or found.key in survey.whole):
                yield "failures", found
        for what, found in _damaged(survey.entries("leases")):
            survey.items["leases"].remove((found.name, found.key))
            yield what, found
        yield from self._heartbeats()
        now = survey.now(f"runs/{self._own}.json")
        for found in survey.unread("temporary"):
            if survey.old(found.name, now):
                yield "temporary files", found

    def _examples(self) -> Iterator[Garbage]:
        survey = self._survey
        items = survey.items["artifacts"]
        crafted = {key for key, task in survey.tasks.items() if task.kind == "craft"}
        survey.items["artifacts"] = [item for item in items if item[1] not in crafted]
        gone = (item for item in items if item[1] in crafted)
        for found in in_parallel(lambda item: Found("artifacts", *item, survey.size(item[0])), gone):
            yield "examples", found

    def _heartbeats(self) -> Iterator[Garbage]:
        """Damaged ones, and runs' but the last; all have ended or died."""
        yield from _damaged(self._survey.entries("runs"))
        entries = (run for run in runs(self._storage) if "upkeep" not in run)
        for _, driver in sorted(((run["started"], run["id"]) for run in entries), reverse=True)[HEARTBEATS:]:
            name = f"runs/{driver}.json"
            yield "heartbeats", Found("runs", name, driver, self._survey.size(name))

    def _leases(self) -> Iterator[Garbage]:
        """One for each task."""
        names: dict[str, list[str]] = {}
        for name, key in self._survey.items["leases"]:
            names.setdefault(key, []).append(name)
        for key, each in names.items():
            yield "leases", Found("leases", in_order(each)[-1], key, sum(map(self._survey.size, each)))


def _damaged(found: Iterable[Found]) -> Iterator[Garbage]:
    return ((f"damaged {each.sort}", each) for each in found if each.problem == "damaged")


def _checked(garbage: Iterable[Garbage], check: Callable[[], None]) -> Iterator[Garbage]:
    last = -math.inf
    for each in garbage:
        if time.monotonic() - last > CHECK:
            check()
            last = time.monotonic()
        yield each


def _refuse_use(store: Store, liveness: Liveness, silence: float, own: str = "") -> None:
    """Refuse a store that a driver uses; one on another machine is watched until it beats or was silent for long.

    Raises:
        InputError: one does.
    """
    beats: dict[str, int] = {}
    while living := [run for run in runs(store.storage) if run["id"] != own and liveness.of(run)]:
        for run in living:
            if run["machine"] == machine() or beats.get(run["id"], run["beats"]) != run["beats"]:
                who = f"run {run['id'][:8]} ({run.get('about')}), process {run['pid']} on {run.get('host')}"
                raise InputError(
                    f"store {store.url!r} is in use by {who}", remedy="wait until that has ended, or stop it"
                )
        if not beats:
            message = f"a run on another machine may use store {store.url}; it is watched for up to {silence:.0f} s"
            warnings.warn(message, StoreWarning, stacklevel=2)
        beats = {run["id"]: run["beats"] for run in living} | beats
        time.sleep(min(1.0, silence / 4))

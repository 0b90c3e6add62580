"""What runs when, what a failure stops, and who may run it: on plans of made-up tasks."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import dead_process, other, some_inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from advbench.errors import StoreError
from advbench.grid.estimates import Measured, Measurements, measured
from advbench.grid.executors import Began, Ended, Event, Failure
from advbench.grid.plan import Plan, Task
from advbench.grid.queue import Backlog, longest_chain
from advbench.grid.scheduler import Outcome, Scheduler, failed_before, outstanding
from advbench.grid.spec import make_spec
from advbench.progress import Progress
from advbench.store.heartbeat import Heartbeat, Liveness, runs
from advbench.store.leases import Leases
from advbench.store.records import Store

SPEC = make_spec({"defenses": ["erm"], "attacks": ["fgsm"]})


class Named(Task):
    """A task whose label and key are the name that a test gives it."""

    @property
    def label(self) -> str:
        return self.key.rstrip("-")


def task(name: str, *needs: str, kind: Any = "train", cost: float = 1.0, profile: str = "") -> Task:
    needed = tuple(n.ljust(64, "-") for n in needs)
    return Named(some_inputs(kind), name.ljust(64, "-"), needed, cost=cost, net="net", profile=profile)


def plan_of(*tasks: Task) -> Plan:
    return Plan(SPEC, {each.key: each for each in tasks}, ())


class FakeExecutor:
    """Ends tasks in the order in which they began, some of them with a failure; writes records as workers do."""

    def __init__(self, store: Store, failures: Mapping[str, list[Failure]] | None = None, places: int = 1) -> None:
        self.places = places
        self.began: list[str] = []
        self.most = 0
        self._store = store
        self._failures = {label: list(each) for label, each in (failures or {}).items()}
        self._running: list[Task] = []

    def has_room(self, known: Measured | None) -> bool:
        return len(self._running) < self.places

    def start(self, task: Task, known: Measured | None) -> None:
        for need in task.needs:
            assert self._store.is_done(need, with_artifact=True)
        self._running.append(task)
        self.most = max(self.most, len(self._running))
        self.began.append(task.label)

    def wait(self, seconds: float, report: Callable[[Event], None]) -> None:
        task = self._running.pop(0)
        report(Began(task.key, "here"))
        failures = self._failures.get(task.label)
        if failures:
            failure = failures.pop(0)
            self._store.drop_artifact(failure.gone or task.key)
            report(Ended(task.key, failure=failure))
            return
        record = {
            "kind": task.kind,
            "inputs": task.inputs.to_json(),
            "result": {},
            "artifact": self._store.write_artifact(task.key, task.label.encode()),
            "seconds": task.cost,
            "memory": {"peak": 5, "device": 100},
        }
        self._store.write_record(task.key, record)
        report(Ended(task.key, record=record))

    def close(self) -> None:
        self._running.clear()


def run(plan: Plan, store: Store, executor: Any, **options: Any) -> Outcome:
    heartbeat = Heartbeat(store.storage)
    heartbeat.open()
    scheduler = Scheduler(plan, outstanding(plan, store), store, heartbeat, lambda *_, **__: None, **options)
    try:
        outcome = scheduler.run(executor)
    finally:
        heartbeat.close("done")
    scheduler.drop_left()
    return outcome


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


GRID = (
    task("short", cost=1),
    task("long", cost=9),
    task("judge short", "short", kind="evaluate", cost=0.1),
    task("judge long", "long", kind="evaluate", cost=0.1),
    task("craft a", "short", kind="craft", cost=2),
    task("craft b", "short", kind="craft", cost=5),
    task("judge a", "short", "craft a", kind="evaluate", cost=0.1),
    task("judge b", "long", "craft b", kind="evaluate", cost=0.1),
)


def test_long_tasks_come_first_and_evaluations_before_all(store: Store) -> None:
    executor = FakeExecutor(store)
    outcome = run(plan_of(*GRID), store, executor)
    assert executor.began == "long,judge long,short,judge short,craft b,judge b,craft a,judge a".split(",")
    assert [*outcome.failed, *outcome.skipped] == []
    assert longest_chain({t.key: t for t in GRID}, Measurements({}).weight) == pytest.approx(9.1)


def test_measured_times_count_for_more_than_passes() -> None:
    found = Measurements({})
    quick, slow = task("quick", cost=100, profile="q"), task("slow", cost=1, profile="s")
    for each, seconds in ((quick, 1.0), (slow, 50.0)):
        found.add(each, {"seconds": seconds, "memory": {"peak": 7, "device": 10}})
    backlog = Backlog({t.key: t for t in (quick, slow)}, found.weight)
    assert backlog.first() == slow
    assert found.seconds(task("again", cost=200, profile="q")) == pytest.approx(2.0)
    assert found.seconds(task("another", cost=202, profile="?")) == pytest.approx(51 / 101 * 202)
    assert found.seconds(task("other kind", kind="craft", cost=2)) is None
    assert Measurements({}).total([quick]) is None
    brief = Measurements({})
    brief.add(task("brief", cost=1, profile="b"), {"seconds": 0.2, "memory": {"peak": 7, "device": 10}})
    assert brief.seconds(task("similar", cost=4, profile="?")) == pytest.approx(0.8)
    assert brief.seconds(task("much longer", cost=400, profile="?")) is None  # mostly overhead was measured
    assert [known.peak for known in (found.of(slow), found.of(task("unknown"))) if known] == [7]


def test_examples_go_after_their_last_use_and_stay_if_asked(tmp_path: Path) -> None:
    for keep in (False, True):
        store = Store(str(tmp_path / str(keep)))
        run(plan_of(*GRID), store, FakeExecutor(store), keep_examples=keep)
        assert store.is_done(GRID[4].key, with_artifact=True) is keep
        assert store.is_done(GRID[0].key, with_artifact=True)


def test_a_failure_stops_what_needs_it_alone_and_is_kept(store: Store) -> None:
    plan = plan_of(*GRID)
    executor = FakeExecutor(store, {"short": [Failure("plugin", "no luck")]})
    outcome = run(plan, store, executor)
    labels = {plan.tasks[key].label: reason for key, reason in outcome.failed.items()}
    assert labels.pop("short") == "no luck"
    assert set(labels) == {"judge short", "craft a", "craft b", "judge a", "judge b"}
    assert labels["craft a"] == labels["judge b"] == "depends on a failed task: short: no luck"
    assert executor.began == ["long", "judge long", "short"]
    waiting = outstanding(plan, store)
    assert failed_before(plan, waiting, store) == {GRID[0].key: "no luck"}
    again = FakeExecutor(store)
    outcome = run(plan, store, again, failed=failed_before(plan, waiting, store))
    assert (again.began, outcome.before) == ([], {GRID[0].key})
    assert list(outcome.why(plan.tasks)) == [
        "failed: short: no luck",
        "5 dependent tasks did not run",
        "1 failed in a previous run and were not retried; use --retry-failed",
    ]
    third = FakeExecutor(store)
    run(plan, store, third)
    assert len(third.began) == 6


@pytest.mark.parametrize("cause", ["input", "gone"])
def test_what_the_user_can_mend_is_tried_again_unasked(cause: Any, store: Store) -> None:
    outcome = run(plan_of(GRID[0]), store, FakeExecutor(store, {"short": [Failure(cause, "not here", gone="?")]}))
    assert outcome.failed == {}  # no evaluation needs it, so nothing runs
    plan = plan_of(GRID[0], GRID[2])
    outcome = run(plan, store, FakeExecutor(store, {"short": [Failure(cause, "not here", gone="?")]}))
    assert len(outcome.failed) == 2
    assert store.failed_keys() == set()


def test_what_vanished_is_made_again(store: Store) -> None:
    plan = plan_of(*GRID)
    gone = Failure("gone", "gone", gone=GRID[0].key)
    executor = FakeExecutor(store, {"judge a": [gone, gone]})
    outcome = run(plan, store, executor)
    assert outcome.failed == {}
    assert executor.began.count("short") == 3
    assert executor.began.count("judge a") == 3
    assert executor.began[-2:] == ["short", "judge a"]


def test_what_vanishes_again_and_again_fails(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    gone = Failure("gone", "result is gone", gone=GRID[0].key)
    outcome = run(plan_of(*GRID), store, FakeExecutor(store, {"judge a": [gone] * 9}))
    assert list(outcome.failed.values()) == ["result is gone"]


def test_a_store_that_fails_ends_the_run(store: Store) -> None:
    with pytest.raises(StoreError, match="disk full"):
        run(plan_of(*GRID), store, FakeExecutor(store, {"long": [Failure("store", "disk full")]}))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_plan_ends_with_each_task_run_once_and_after_its_needs(data: st.DataObject) -> None:
    import tempfile

    count = data.draw(st.integers(1, 14))
    tasks: list[Task] = []
    for index in range(count):
        possible = [t.label for t in tasks if t.kind != "evaluate"]
        needs = data.draw(st.lists(st.sampled_from(possible), unique=True, max_size=3)) if possible else []
        kind = data.draw(st.sampled_from(["train", "craft", "evaluate"]))
        tasks.append(task(f"t{index}", *needs, kind=kind, cost=data.draw(st.floats(0, 10))))
    bad = data.draw(st.sets(st.sampled_from([t.label for t in tasks])))
    places = data.draw(st.integers(1, 3))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        plan = plan_of(*tasks)
        waiting = outstanding(plan, store)
        executor = FakeExecutor(store, {label: [Failure("plugin", "bad")] for label in bad}, places)
        outcome = run(plan, store, executor)
        assert len(executor.began) == len(set(executor.began))
        assert executor.most <= places
        assert {*outcome.run, *outcome.failed} == set(waiting)
        assert set(outcome.run).isdisjoint(outcome.failed)
        doomed = {key for key, t in waiting.items() if t.label in bad}
        for key, each in waiting.items():
            if doomed & set(each.needs):
                doomed.add(key)
        assert set(outcome.failed) == doomed
        kept = [t for t in tasks if t.kind == "craft" and store.is_done(t.key, with_artifact=True)]
        assert not [t for t in kept if any(t.key in user.needs for user in waiting.values())]
        assert not store.storage.names("leases")


# Several drivers


def test_a_driver_here_lives_as_long_as_its_process(store: Store) -> None:
    pid, birth = dead_process()
    liveness = Liveness(store.storage)
    assert liveness.alive(other("running", store))
    assert not liveness.alive(other("done", store))
    assert not liveness.alive(other("running", store, pid=pid, born=birth))
    assert not liveness.alive(other("running", store, born="1")), "the process id was given to another process"
    assert not liveness.alive("nobody")


def test_a_driver_that_hangs_is_dead_but_an_outage_is_not_its_silence(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = other("running", store)
    liveness = Liveness(store.storage, silence=0.2)
    assert liveness.alive(driver)
    time.sleep(0.15)
    assert liveness.alive(driver)
    time.sleep(0.15)
    assert not liveness.alive(driver), "its process is there, but stopped"
    monkeypatch.setattr("advbench.store.heartbeat.GAP", 0.1)
    time.sleep(0.2)
    assert liveness.alive(driver), "nobody looked meanwhile"


def test_a_driver_elsewhere_lives_as_long_as_its_beats_change(store: Store) -> None:
    liveness = Liveness(store.storage, silence=0.2)
    driver = other("running", store, machine="another", updated="1970-01-01T00:00:00+00:00")
    assert liveness.alive(driver)
    time.sleep(0.3)
    entry = json.loads(store.storage.read(f"runs/{driver}.json") or b"")
    store.storage.write(f"runs/{driver}.json", json.dumps({**entry, "beats": entry["beats"] + 1}).encode())
    assert liveness.alive(driver)
    time.sleep(0.3)
    assert not liveness.alive(driver)


def test_a_living_drivers_task_is_waited_for_and_a_dead_ones_is_taken_over(store: Store) -> None:
    mine = other("running", store)
    theirs = other("running", store, machine="another")
    silent = Liveness(store.storage, silence=0.2)
    key = GRID[0].key
    assert Leases(store.storage, theirs, silent).acquire(key)
    leases = Leases(store.storage, mine, silent)
    assert not leases.acquire(key)
    time.sleep(0.3)
    assert leases.acquire(key)
    assert not Leases(store.storage, other("running", store), silent).acquire(key)
    assert store.storage.names("leases") == [f"leases/{key[:2]}/{key}.{number}.json" for number in (0, 1)]
    woken = Leases(store.storage, theirs, silent)
    woken._held[key] = 0
    woken.release(key)
    assert not Leases(store.storage, other("running", store), silent).acquire(key), "the one after it holds"
    leases.release(key)
    assert store.storage.names("leases") == []


@pytest.mark.parametrize(
    "changes",
    [
        {"beats": "x"},
        {"pid": None},
        {"host": 3},
        {"measured": []},
        {"measured": {"p": {"seconds": "abc"}}},
        {"id": "x"},
        {"tasks": 3},
        {"running": [{"task": "train erm"}]},
        {"failures": [{"task": "train erm", "reason": None}]},
    ],
)
def test_a_foreign_entry_counts_as_absent(changes: dict[str, Any], store: Store) -> None:
    driver = other("running", store, machine="another", **changes)
    assert len(list(runs(store.storage))) == ("p" in str(changes.get("measured")))
    run(plan_of(*GRID), store, FakeExecutor(store), liveness=Liveness(store.storage, silence=0.0))
    assert driver


def test_only_drivers_that_may_live_are_looked_up_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(20):
        other("done", store, started=str(index))
    other("running", store, born="1")
    monkeypatch.setattr("advbench.store.heartbeat.LOOK", 0.0)
    liveness = Liveness(store.storage)
    assert not liveness.others("me")
    reads: list[str] = []
    real = store.storage.read
    monkeypatch.setattr(store.storage, "read", lambda name: reads.append(name) or real(name))
    assert not liveness.others("me")
    assert reads == []


def test_tasks_of_another_driver_are_taken_from_the_store(store: Store) -> None:
    plan = plan_of(*GRID)
    theirs = other("running", store)
    held = Leases(store.storage, theirs, Liveness(store.storage))
    assert held.acquire(GRID[1].key)

    class Other(FakeExecutor):
        """Does the other driver's task meanwhile."""

        def wait(self, seconds: float, report: Callable[[Event], None]) -> None:
            super().wait(seconds, report)
            if GRID[1].key in held._held and len(self.began) == 5:
                digest = store.write_artifact(GRID[1].key, b"theirs")
                store.write_record(GRID[1].key, {"kind": "train", "inputs": {}, "result": {}, "artifact": digest})
                held.release(GRID[1].key)

    executor = Other(store)
    outcome = run(plan, store, executor)
    assert [plan.tasks[key].label for key in outcome.elsewhere] == ["long"]
    assert "long" not in executor.began
    assert len(outcome.run) == len(GRID) - 1
    assert store.is_done(GRID[4].key, with_artifact=True), "the other driver lives and may still read examples"


def test_drivers_that_end_together_leave_no_examples(store: Store) -> None:
    plan = plan_of(*GRID)
    heartbeats = [Heartbeat(store.storage), Heartbeat(store.storage)]
    for heartbeat in heartbeats:
        heartbeat.open()
    schedulers = [Scheduler(plan, outstanding(plan, store), store, each, lambda *_, **__: None) for each in heartbeats]
    for scheduler in schedulers:
        scheduler.run(FakeExecutor(store))
    assert store.is_done(GRID[4].key, with_artifact=True)
    heartbeats[0].close("done")
    schedulers[0].drop_left()
    assert store.is_done(GRID[4].key, with_artifact=True), "the other has not ended"
    heartbeats[1].close("done")
    schedulers[1].drop_left()
    assert not store.is_done(GRID[4].key, with_artifact=True)


def test_what_failed_at_another_driver_is_not_tried_again(store: Store) -> None:
    plan = plan_of(*GRID)
    held = Leases(store.storage, other("running", store), Liveness(store.storage))
    assert held.acquire(GRID[1].key)

    class Other(FakeExecutor):
        """The other driver's task fails meanwhile."""

        def wait(self, seconds: float, report: Callable[[Event], None]) -> None:
            super().wait(seconds, report)
            if len(self.began) == 5 and not self._running:
                store.write_failure(GRID[1].key, {"reason": "took too long"})
                held.release(GRID[1].key)

    executor = Other(store)
    outcome = run(plan, store, executor)
    assert outcome.failed[GRID[1].key] == "took too long"
    assert len(outcome.failed) == 3
    assert "long" not in executor.began


def test_measurements_outlive_their_run(store: Store) -> None:
    plan = plan_of(*(task(t.label, *(n.rstrip("-") for n in t.needs), kind=t.kind, profile=t.label) for t in GRID))
    run(plan, store, FakeExecutor(store))
    found = measured(store.storage)
    assert {t.label for t in GRID} == {label for t in GRID if found.of(t2 := plan.tasks[t.key]) for label in [t2.label]}
    assert found.total(plan.tasks.values()) == pytest.approx(len(GRID))


def test_a_heartbeat_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    heartbeat = Heartbeat(store.storage, beat=0.01)
    heartbeat.open()
    entry = tmp_path / "store" / "runs"
    while not entry.is_file():  # the heartbeat makes its folder again meanwhile
        shutil.rmtree(entry, ignore_errors=True)
        with suppress(OSError):
            entry.write_text("in the way")
    end = time.monotonic() + 10
    while heartbeat._error is None:
        assert time.monotonic() < end
    with pytest.raises(StoreError, match="cannot write"):
        heartbeat.check()
    heartbeat.close("stopped")


def test_ten_thousand_tasks_are_scheduled_without_a_quadratic_cost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in looks at tasks, not in seconds."""
    looks = 0
    real = Backlog.first

    def counted(self: Backlog) -> Task | None:
        nonlocal looks
        looks += 1
        return real(self)

    monkeypatch.setattr(Backlog, "first", counted)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    models = [task(f"m{i}") for i in range(20)]
    judges = [task(f"e{i}", f"m{i % 20}", kind="evaluate") for i in range(600)]
    outcome = run(plan_of(*models, *judges), store, FakeExecutor(store, places=4))
    assert len(outcome.run) == 620
    assert looks <= 4 * 620
    assert Progress(1, 2).values == {}

"""Where tasks run: what fits on a device, what memory does to a task, what workers say and how they end."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import some_inputs

from advbench.cli.options import EXECUTION_OPTIONS
from advbench.errors import GoneError, InputError, PluginError, StoreError, out_of_memory
from advbench.grid import devices
from advbench.grid.devices import Device
from advbench.grid.estimates import Measured
from advbench.grid.execution import Execution
from advbench.grid.executors import Began, Ended, Failure, Moved, Said, attempt, one_line
from advbench.grid.executors.local import LocalExecutor, Pool, pools
from advbench.grid.inputs import CraftInputs, TrainInputs
from advbench.grid.plan import Plan, Task
from advbench.grid.run import prepare
from advbench.grid.spec import make_spec
from advbench.grid.tasks import Runner, Runtime
from advbench.progress import Progress
from advbench.training.base import Resources

GIB = 2**30


def known(peak: int | None) -> Measured:
    return Measured("train", "net", 1.0, 1.0, peak, None, 0.0)


class Paper(LocalExecutor):
    """An executor that starts no processes."""

    def _send(self, worker: Any, task: Task) -> None:
        worker.task = task


def gpu(index: int, workers: int, memory: int) -> Pool:
    return Pool(Device(f"cuda:{index}", "a GPU", memory), workers)


def cpu(workers: int, memory: int = 16 * GIB) -> Pool:
    return Pool(Device("cpu", "cpu", memory), workers)


def pool(*found: Pool) -> Paper:
    return Paper(Runtime("store", "digits"), list(found))


def task(name: str) -> Task:
    return Task(some_inputs("train"), name)


def busy(executor: LocalExecutor) -> dict[str, int]:
    counts: dict[str, int] = {}
    for worker in executor._workers:
        counts[worker.pool.device.name] = counts.get(worker.pool.device.name, 0) + (worker.task is not None)
    return counts


def test_a_task_nobody_knows_has_a_gpu_to_itself() -> None:
    executor = pool(gpu(0, 4, 10 * GIB))
    executor.start(task("a"), None)
    assert not executor.has_room(None)
    assert not executor.has_room(known(GIB))


def test_tasks_are_packed_by_what_they_needed() -> None:
    executor = pool(gpu(0, 8, 10 * GIB), gpu(1, 8, 10 * GIB))
    started = 0
    while executor.has_room(known(2 * GIB)):
        executor.start(task(f"t{started}"), known(2 * GIB))
        started += 1
    assert busy(executor) == {"cuda:0": 3, "cuda:1": 3}, "2.2 GiB with headroom, and a context each: 3 in 10 GiB"
    assert executor.has_room(known(GIB // 2))
    assert not executor.has_room(known(GIB))
    assert not executor.has_room(None)


def test_a_task_larger_than_a_device_gets_one_to_itself() -> None:
    executor = pool(gpu(0, 4, GIB))
    assert executor.has_room(known(50 * GIB))
    executor.start(task("a"), known(50 * GIB))
    assert not executor.has_room(known(1))


def test_cpu_workers_share_the_machine_without_a_probe() -> None:
    executor = pool(cpu(3))
    for name in "abc":
        assert executor.has_room(None)
        executor.start(task(name), None)
    assert not executor.has_room(None)
    executor = pool(cpu(3))
    executor.start(task("large"), known(12 * GIB))
    assert not executor.has_room(known(6 * GIB))
    assert executor.has_room(known(GIB))


def test_as_many_workers_as_do_not_fight_for_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    here = devices.look(["cpu"])
    assert here[0].memory > GIB
    assert [pool.workers for pool in pools(here, 1, None)] == [cores]
    assert [pool.workers for pool in pools(here, 2 * cores, None)] == [1]
    assert [pool.workers for pool in pools(here, 1, 7)] == [7]


def test_few_workers_share_a_gpu_unless_more_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    found = [Device("cuda:0", "a GPU", 80 * GIB), Device("cuda:1", "a GPU", 80 * GIB)]
    assert [pool.workers for pool in pools(found, 1, None)] == [4, 4]
    assert [pool.workers for pool in pools(found, 1, 6)] == [6, 6]


class Living:
    """A worker's process that does nothing."""

    def kill(self) -> None:
        """Do nothing."""


def test_idle_workers_keep_a_context_and_nets_on_a_gpu_and_make_room_where_it_is_needed() -> None:
    executor = pool(gpu(0, 4, 5 * GIB))
    for worker in executor._workers[:3]:
        worker.process = Living()  # type: ignore[assignment]
    executor.start(task("a"), known(GIB))
    assert not executor.has_room(known(int(1.1 * GIB))), "1.7 and 1.8 GiB, and an idle one of 1.6"
    executor._workers[1].kill()
    executor._workers[2].kill()
    assert executor.has_room(known(int(1.1 * GIB)))
    for worker in executor._workers[1:3]:
        worker.process = Living()  # type: ignore[assignment]
    executor._workers[0].free()
    executor.start(task("large"), None)
    assert [worker.process is not None for worker in executor._workers[1:3]] == [False, False]


def test_a_task_whose_memory_ran_out_beside_others_is_tried_once_more_alone() -> None:
    executor = pool(gpu(0, 3, 10 * GIB))
    told: list[Any] = []
    for name in "ab":
        executor.start(task(name), known(GIB))
    first, second = executor._workers[:2]

    def ends(worker: Any, key: str, cause: Any) -> None:
        worker.process = Process([Ended(key, failure=cause and Failure(cause, "no memory"))])
        executor.wait(0.0, told.append)

    ends(first, "a", "memory")
    assert told == []
    assert not executor.has_room(known(GIB)), "the device is wanted for one task alone"
    ends(second, "b", "memory")
    assert told == [], "it too ran beside another"
    assert [worker.task and worker.task.key for worker in executor._workers] == ["a", None, None]
    assert executor._workers[0].share == 1.0
    ends(executor._workers[0], "a", None)
    assert [event.key for event in told] == ["a"]
    assert [worker.task and worker.task.key for worker in executor._workers] == ["b", None, None]
    ends(executor._workers[0], "b", "memory")
    assert [(event.key, event.failure and event.failure.cause) for event in told] == [("a", None), ("b", "memory")]


def test_a_training_whose_memory_ran_out_unsplit_is_tried_alone_and_other_tasks_have_been_split() -> None:
    executor = pool(gpu(0, 2, 10 * GIB))
    events: list[Any] = []
    for kind, alone in (("train", True), ("craft", False)):
        executor.start(Task(some_inputs(kind), kind), known(GIB))
        worker = executor._workers[0]
        assert worker.shared
        worker.process = Process([Ended(kind, failure=Failure("memory", "no memory"))])
        executor.wait(0.0, events.append)
        assert (worker.task is not None) is alone
        if alone:
            assert events == []
            assert (worker.share, worker.shared) == (1.0, False)
            worker.process = Process([Ended(kind, failure=Failure("memory", "no memory"))])
            executor.wait(0.0, events.append)
    assert [event.key for event in events] == ["train", "craft"]


def test_a_worker_that_lost_its_device_is_replaced_and_its_next_task_is_not() -> None:
    executor = pool(gpu(0, 1, 10 * GIB))
    events: list[Any] = []
    executor.start(task("a"), None)
    lost = executor._workers[0].process = Process([Ended("a", failure=Failure("bug", "assert"), last=True)])
    lost.handle.wait, lost.handle.returncode = lambda seconds: None, 0
    executor.wait(0.0, events.append)
    assert [(event.key, event.failure.cause) for event in events] == [("a", "bug")]
    assert executor._workers[0].process is None
    assert executor.has_room(None)


class Process:
    """A worker's process that has said something."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events
        self.handle = SimpleNamespace(poll=lambda: None)  # it lives
        self.line = self

    def sources(self) -> list[Any]:
        """Nothing to wait for."""
        return []

    def printed(self) -> list[bytes]:
        """Nothing."""
        return []

    def poll(self) -> bool:
        """Whether there is an event."""
        return bool(self.events)

    def recv(self) -> Any:
        """The next event."""
        return self.events.pop(0)

    def kill(self) -> None:
        """Do nothing."""


def test_chunks_are_halved_down_to_one() -> None:
    assert list(devices.halvings(None, 20)) == [None, 10, 5, 2, 1]
    assert list(devices.halvings(8, 20)) == [8, 4, 2, 1]
    assert list(devices.halvings(64, 4)) == [64, 2, 1]
    assert list(devices.halvings(1, 4)) == [1]


def test_memory_that_ran_out_is_recognised() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as told:
        torch.empty(10**16)
    assert out_of_memory(told.value)
    assert not out_of_memory(RuntimeError("shape mismatch"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux resets a process's peak")
def test_the_peak_of_a_task_is_its_own() -> None:
    devices.reset_peak("cpu")
    before = devices.peak("cpu") or 0
    large = torch.ones(64 * 2**20)
    during = devices.peak("cpu") or 0
    del large
    devices.reset_peak("cpu")
    after = devices.peak("cpu") or 0
    assert during - before > 200 * 2**20
    assert during - after > 200 * 2**20


def test_memory_that_is_kept_needs_no_new_pages() -> None:
    """In a process of its own, as the setting stays."""
    code = """
import resource, sys
import torch
from advbench.models.classifier import Classifier
if sys.argv[1] == "keep":
    Classifier(torch.nn.Identity())
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
before = faults()
for _ in range(20):
    torch.ones(2**24)
print(faults() - before)
"""
    made = {
        how: int(subprocess.run([sys.executable, "-c", code, how], check=True, capture_output=True, text=True).stdout)
        for how in ("keep", "leave")
    }
    assert made["keep"] < 0.1 * made["leave"]


# Tasks in this process


def runner_of(folder: Path, chunk: int | None = None, **options: Any) -> Runner:
    return Runner(replace(Runtime(str(folder), "digits", resources=Resources(chunk=chunk)), **options))


def tasks_of(plan: Plan, kind: str) -> list[Task]:
    return [each for each in plan.tasks.values() if each.kind == kind]


SPEC = make_spec({"defenses": ["erm"], "attacks": ["fgsm"], "eps": [0.1], "limit": 20, "set": {"erm": {"stages": [1]}}})


def hungry(runner: Runner, room: int) -> Runner:
    """The same, with memory for crafting on so many images at once."""
    real = runner._craft

    def craft(inputs: CraftInputs, on_progress: Any) -> Any:
        if (runner._resources.chunk or inputs.batch_size) > room:
            raise torch.OutOfMemoryError("Tried to allocate 7 GiB\nand more")
        return real(inputs, on_progress)

    runner._craft = craft  # type: ignore[method-assign]
    return runner


def test_a_training_is_only_split_where_it_has_the_device_to_itself(tmp_path: Path) -> None:
    (train,) = tasks_of(prepare(SPEC), "train")
    runner, tried = runner_of(tmp_path), []

    def hungry(inputs: Any, on_progress: Any) -> Any:
        tried.append(runner._resources.chunk)
        raise torch.OutOfMemoryError("no room")

    runner._train = hungry  # type: ignore[method-assign]
    for shared in (True, False):
        with pytest.raises(PluginError, match="memory of cpu ran out"):
            runner.run(train, shared=shared)
    assert tried == [None, None, 32, 16, 8, 4, 2, 1]


def test_out_of_memory_halves_the_chunk_and_changes_rounding_alone(tmp_path: Path) -> None:
    plan = prepare(make_spec({**SPEC.model_dump(), "attacks": ["pgd"], "affinity": None, "batch_size": 20}))
    (train,), (craft,) = tasks_of(plan, "train"), tasks_of(plan, "craft")
    images = []
    for folder, room in ((tmp_path / "ample", 100), (tmp_path / "scarce", 5)):
        runner = hungry(runner_of(folder), room)
        runner.run(train)
        record = runner.run(craft)
        assert record["ran"]["chunk"] == (None if room == 100 else 5)
        images.append(runner._tensors(craft.key)["images"])
    assert torch.allclose(images[0], images[1], atol=1e-5)
    with pytest.raises(
        PluginError, match=r"memory of cpu ran out with 20, 10, 5, 2, 1 images at once \(Tried to .*GiB\)"
    ):
        hungry(runner_of(tmp_path / "ample"), 0).run(craft)


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), torch.OutOfMemoryError("no room")])
def test_a_training_that_went_on_took_the_time_of_all_its_parts(
    fault: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds a report, by a clock of our own; a fault after the third costs the time since the last save."""
    now = 1000.0
    clock = SimpleNamespace(perf_counter=lambda: now, time=time.time)
    monkeypatch.setattr("advbench.grid.tasks.time", clock)
    (train,) = tasks_of(prepare(make_spec({**SPEC.model_dump(), "set": {"erm": {"stages": [6]}}})), "train")
    reports = 0

    def report(progress: Progress) -> None:
        nonlocal now, reports
        reports += 1
        now += 10
        if reports == 3:
            raise fault

    runner = runner_of(tmp_path, checkpoint_seconds=0.0)
    try:
        record = runner.run(train, report)
    except KeyboardInterrupt:
        now += 10_000
        record = runner_of(tmp_path, checkpoint_seconds=0.0).run(train, report)
        assert record["seconds"] == 10 * (reports - 1)
    else:
        assert record["seconds"] == 10 * reports


def test_workers_import_what_their_driver_does_wherever_they_start(tmp_path: Path) -> None:
    """A folder of that name in the folder in which a run is started is somebody's, perhaps another version's."""
    (tmp_path / "advbench").mkdir()
    (tmp_path / "advbench" / "__init__.py").write_text("raise RuntimeError('the wrong advbench')")
    options = "--defense erm --attack fgsm --eps 0.1 --limit 20 --set erm.stages=[1] --executor local --workers 1"
    code = "import sys; sys.path.remove(''); from advbench.cli.app import script; script()"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, "-c", code, "run", *options.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "the wrong advbench" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_a_failure_says_whose_it_is_and_travels_between_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = prepare(SPEC)
    runner = runner_of(tmp_path)
    causes: dict[str, BaseException] = {
        "gone": GoneError("k" * 64),
        "store": StoreError("disk full"),
        "input": InputError("bad"),
        "plugin": PluginError("shape"),
        "bug": ZeroDivisionError("\x1b[31mred\n" * 1000),
    }
    for cause, error in causes.items():

        def fail(task: Task, progress: Any, error: BaseException = error, *, shared: bool) -> None:
            raise error

        monkeypatch.setattr(runner, "run", fail)
        ended = attempt(runner, tasks_of(plan, "train")[0], lambda moved: None)
        assert ended.failure is not None
        assert ended.failure.cause == cause
        assert ended.failure.reason.isprintable()
        assert len(ended.failure.reason) <= 500
        assert (ended.failure.trace is not None) is (cause == "bug")
        assert ended.failure.lasting is (cause in ("plugin", "bug"))
        assert pickle.loads(pickle.dumps(ended)) == ended
    assert Ended("k", failure=Failure("gone", "x", gone="k" * 64)).failure is not None
    assert one_line("a\n b\x00\u202e") == r"a b\x00\u202e"


def test_an_interrupt_is_nobodys_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of(tmp_path)

    def interrupted(task: Task, progress: Any, *, shared: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        attempt(runner, tasks_of(prepare(SPEC), "train")[0], lambda moved: None)


def test_workers_must_have_the_versions_of_the_plan(tmp_path: Path) -> None:
    train = tasks_of(prepare(SPEC), "train")[0]
    with pytest.raises(InputError, match=r"versions on .*: expected .*torch 0\.1.*, got .*; install the same"):
        runner_of(tmp_path, libraries={"torch": "0.1"}).run(train)
    assert isinstance(train.inputs, TrainInputs)
    other = replace(train.inputs, defense=replace(train.inputs.defense, version="9.9"))
    with pytest.raises(InputError, match=r"expected advbench erm 9\.9, .*got advbench erm 1"):
        runner_of(tmp_path).run(replace(train, inputs=other))
    other = replace(train.inputs, architecture=replace(train.inputs.architecture, version="9.9"))
    with pytest.raises(InputError, match=r"expected .*advbench small_cnn 9\.9, got .*advbench small_cnn 1"):
        runner_of(tmp_path).run(replace(train, inputs=other))


def test_workers_must_have_the_versions_of_an_attack_s_parts(tmp_path: Path) -> None:
    craft = tasks_of(prepare(SPEC.model_copy(update={"attacks": ("gray_box",), "affinity": ()})), "craft")[0]
    assert isinstance(craft.inputs, CraftInputs)
    other = replace(craft.inputs, attack=replace(craft.inputs.attack, parts={"pgd": "9.9"}))
    with pytest.raises(InputError, match=r"expected .*part pgd 9\.9, got .*part pgd 2"):
        runner_of(tmp_path).run(replace(craft, inputs=other))


def test_what_a_task_prints_goes_to_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = runner_of(tmp_path)

    def talk(task: Task, on_progress: Any) -> Any:
        sys.stdout.write("hello\n")
        return {}, b""

    runner._train = talk  # type: ignore[method-assign]
    runner.run(tasks_of(prepare(SPEC), "train")[0])
    assert capsys.readouterr() == ("", "hello\n")


# Real workers


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalExecutor]:
    runtime = Execution(str(tmp_path / "store"), device="cpu").runtime("digits", 1)
    executor = LocalExecutor(runtime, pools(devices.look(["cpu"]), 1, 1), retries=1)
    yield executor
    executor.close()


def events(executor: LocalExecutor, seconds: float = 400) -> list[Any]:
    """What happens until a task ends."""
    told: list[Any] = []
    end = time.monotonic() + seconds
    while not any(isinstance(event, Ended) for event in told):
        assert time.monotonic() < end
        executor.wait(1.0, told.append)
    return told


def test_a_worker_tells_what_it_does_and_is_used_again(local: LocalExecutor) -> None:
    plan = prepare(make_spec({**SPEC.model_dump(), "set": {"erm": {"stages": [30]}}}))
    first, second = tasks_of(plan, "train")[0], tasks_of(plan, "evaluate")[0]
    local.start(first, None)
    told = events(local)
    assert told[0] == Began(first.key, "cpu")
    assert any(isinstance(event, Moved) and event.progress.total > 100 for event in told)
    assert told[-1].record["ran"]["pid"] != os.getpid()
    assert local.has_room(None)
    local.start(second, None)
    *_, ended = events(local)
    assert ended.record["ran"]["pid"] == told[-1].record["ran"]["pid"]


def test_an_idle_worker_that_was_killed_is_replaced(local: LocalExecutor) -> None:
    plan = prepare(SPEC)
    local.start(tasks_of(plan, "train")[0], None)
    *_, ended = events(local)
    os.kill(ended.record["ran"]["pid"], signal.SIGKILL)
    time.sleep(0.2)
    local.start(tasks_of(plan, "evaluate")[0], None)
    *_, after = events(local)
    assert after.record["ran"]["pid"] != ended.record["ran"]["pid"]


def test_a_warning_of_a_worker_is_passed_on(local: LocalExecutor, tmp_path: Path) -> None:
    plan = prepare(SPEC)
    train = tasks_of(plan, "train")[0]
    local.start(train, None)
    events(local)
    for path in (tmp_path / "store" / "records").rglob("*.json"):
        path.write_text("damaged")
    local.start(tasks_of(plan, "evaluate")[0], None)
    told = events(local)
    assert any(isinstance(event, Said) and "is damaged or unknown" in event.line for event in told)
    assert told[-1].failure.gone == train.key


def test_a_script_without_a_guard_runs_once_and_leaves_no_thread(tmp_path: Path) -> None:
    code = """
import threading
from advbench.grid.execution import Execution
from advbench.grid.devices import look
from advbench.grid.executors.local import LocalExecutor, pools
from advbench.grid.run import prepare
from advbench.grid.spec import make_spec
plan = prepare(make_spec({"defenses": ["erm"], "attacks": ["fgsm"], "set": {"erm": {"stages": [1]}}}))
executor = LocalExecutor(Execution("store", device="cpu").runtime("digits", 1), pools(look(["cpu"]), 1, 1))
executor.start(next(iter(plan.tasks.values())), None)
told = []
while not any(event.__class__.__name__ == "Ended" for event in told):
    executor.wait(1.0, told.append)
executor.close()
assert threading.active_count() == 1
"""
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_workers_that_cannot_be_started_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Execution(str(tmp_path / "store"), device="cpu").runtime("digits", 1)
    executor = LocalExecutor(runtime, pools(devices.look(["cpu"]), 1, 3))

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", full)
    with pytest.raises(InputError, match=r"--workers: expected .* start, got 3 \(.*Too many open files\); use fewer"):
        executor.start(tasks_of(prepare(SPEC), "train")[0], None)
    executor.close()


BAD = {
    "inline with workers": ({"executor": "inline", "workers": 2}, "--workers: expected --executor local or ray"),
    "inline with a limit": (
        {"executor": "inline", "time_limit": 3.0},
        "--time-limit: expected --executor local or ray",
    ),
    "local with an address": ({"address": "a:1"}, "--address: expected --executor ray as well"),
    "part above one": ({"executor": "ray", "gpus_per_task": 1.5}, "--gpus-per-task: expected a fraction of a GPU"),
    "no number": ({"time_limit": float("nan")}, "--time-limit: expected a number of seconds, got nan"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_options_that_do_not_go_together_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Execution("store", **options)


def test_options_and_execution_have_the_same_defaults() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(Execution)}
    assert {option.name: option.default for option in EXECUTION_OPTIONS if option.name != "store"} == {
        name: default for name, default in fields.items() if name != "store"
    }


def test_a_store_that_workers_do_not_see_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"store 'memory://x': expected a store that other processes can access; or use"
    ):
        Execution("memory://x").open_store()
    assert Execution("memory://x", executor="inline").open_store()


@pytest.mark.parametrize("device", ["cpu,cpu", "tpu9", "", "cuda:99"])
def test_devices_that_cannot_be_used_are_one_line(device: str) -> None:
    with pytest.raises(InputError, match="--device: expected"):
        Execution("store", device=device).runtime("digits", 1)


def test_progress_of_a_task_that_runs_here_is_told_while_it_runs(tmp_path: Path) -> None:
    told: list[Any] = []
    execution = Execution(str(tmp_path), executor="inline", device="cpu")
    executor = execution.start(execution.runtime("digits", 1))
    train = tasks_of(prepare(SPEC), "train")[0]
    executor.start(train, None)
    assert not executor.has_room(None)
    executor.wait(1.0, told.append)
    assert told[0] == Began(train.key, "cpu")
    assert {type(event) for event in told[1:-1]} == {Moved}
    assert isinstance(told[-1], Ended)
    assert executor.has_room(None)

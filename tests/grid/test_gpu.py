"""What only a GPU shows: memory that runs out, and workers that share it. Skipped where there is none."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from advbench.errors import out_of_memory
from advbench.grid import devices
from advbench.grid.execution import Execution
from advbench.grid.plan import Plan
from advbench.grid.run import carry_out, prepare
from advbench.grid.scheduler import outstanding
from advbench.grid.spec import make_spec
from advbench.grid.tasks import Runner

GPU = "cuda:0"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def planned(defenses: tuple[str, ...], device: str, **values: Any) -> Plan:
    stages = {name: {"stages": [2]} for name in defenses}
    spec = make_spec({"defenses": defenses, "attacks": ["fgsm"], "affinity": [], "set": stages, **values})
    return prepare(Execution(".", device=device).placed(spec))


@needs_gpu
def test_a_task_that_does_not_fit_is_done_in_parts(tmp_path: Path) -> None:
    total = devices.total(GPU)
    with pytest.raises(Exception, match="memory") as raised:
        torch.empty(2 * total, dtype=torch.uint8, device=GPU)
    assert out_of_memory(raised.value)
    runner = Runner(Execution(str(tmp_path), executor="inline", device=GPU).runtime("digits", 1))
    train, craft = (task for task in planned(("erm",), GPU).tasks.values() if task.kind in ("train", "craft"))
    runner.run(train)
    whole = runner.run(craft)
    runner._classifiers.clear()
    devices.reset_peak(GPU)
    room = torch.cuda.memory_reserved(GPU) + 2**21
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / total), GPU)
    try:
        parts = runner.run(craft)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
    assert parts["ran"]["chunk"] is not None, "2 MiB were enough"
    assert whole["result"] == parts["result"]


@pytest.mark.parametrize("device", [pytest.param(GPU, marks=needs_gpu), pytest.param("cpu", marks=pytest.mark.slow)])
def test_packed_trainings_give_the_same_bytes(device: str, tmp_path: Path) -> None:
    artifacts: list[dict[str, object]] = []
    seconds: list[float] = []
    for workers in (1, 4):
        execution = Execution(str(tmp_path / str(workers)), device=device, workers=workers)
        # The first run measures what tasks take, by which those of the second are packed.
        for defenses in (("erm@a", "bnn@a"), ("erm@a", "erm@b", "bnn@a", "bnn@b")):
            plan, started = planned(defenses, device, limit=64), time.perf_counter()
            store, runtime = execution.open_store(), execution.runtime("digits", 1)
            waiting = outstanding(plan, store)
            outcome = carry_out(plan, waiting, store, lambda: execution.start(runtime), lambda *_, **__: None)  # noqa: B023
            assert not outcome.failed
        seconds.append(time.perf_counter() - started)
        records = {key: store.read_record(key) for key in plan.tasks}
        artifacts.append({key: record["artifact"] for key, record in records.items() if record})
    assert artifacts[0] == artifacts[1] != {}
    print(f"4 workers take {seconds[1] / seconds[0]:.2f} of the time of 1")  # noqa: T201

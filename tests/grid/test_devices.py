"""Devices without a GPU: torch.cuda replaced by stand-ins that record, specs for another kind, memory that runs out."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from advbench.errors import InputError, ModelWarning, OutOfMemoryError, out_of_memory
from advbench.grid import devices
from advbench.grid.devices import Device
from advbench.grid.estimates import Measurements
from advbench.grid.execution import Execution
from advbench.grid.plan import Plan
from advbench.grid.run import prepare
from advbench.grid.spec import RunSpec, make_spec
from advbench.grid.tasks import Runner
from advbench.models.classifier import Classifier
from advbench.models.gradient_watch import Passes

GIB = 2**30
H100 = "NVIDIA H100 80GB HBM3"
SPEC: dict[str, Any] = {
    "defenses": ["erm", "adv_bnn"],
    "attacks": ["fgsm"],
    "limit": 20,
    "set": {"erm": {"stages": [1]}, "adv_bnn": {"stages": [1]}},
}


def planned(**changes: Any) -> Plan:
    return prepare(make_spec({**SPEC, **changes}))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is called of torch.cuda, in its order, on a machine that pretends to have two GPUs."""
    calls: list[str] = []

    def note(name: str, result: Any = None) -> Any:
        def called(*given: Any) -> Any:
            calls.append(" ".join([name, *map(str, given)]))
            return result

        return called

    properties = SimpleNamespace(name=H100, total_memory=80 * GIB)
    for name, result in {
        "init": None,
        "set_device": None,
        "device_count": 2,
        "get_device_name": H100,
        "get_device_properties": properties,
        "reset_peak_memory_stats": None,
        "max_memory_reserved": GIB,
        "empty_cache": None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, note(name, result))
    return calls


# what a process does first


def test_a_runner_makes_its_gpu_the_current_one_before_all_else(cuda: list[str], tmp_path: Path) -> None:
    Runner(Execution(str(tmp_path), device="cpu", executor="inline").runtime("digits", 1).on("cuda:1", "cuda:1"))
    assert cuda[:2] == ["init", "set_device cuda:1"]
    devices.reset_peak("cuda:1")
    assert cuda[2:] == ["empty_cache", "reset_peak_memory_stats cuda:1"]
    assert devices.peak("cuda:1") == GIB
    assert devices.total("cuda:1") == 80 * GIB
    assert devices.kind_of("cuda:1") == H100
    assert set(devices.versions_of("cuda:1")) == {"cuda", "cudnn", "driver"}


def test_the_drivers_version_is_that_of_the_kernels_module(
    cuda: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert devices.versions_of("cuda:0")["driver"] == "unknown"
    (tmp_path / "version").write_text("570.86.15\n")
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "version")
    assert devices.versions_of("cuda:0")["driver"] == "570.86.15"


def test_a_device_that_answers_nothing_more_is_lost(cuda: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(device: str) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert devices.responds("cuda:0")
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    assert not devices.responds("cuda:0")
    assert devices.responds("cpu")


def test_a_machine_whose_gpus_torch_cannot_use_does_not_compute_on_the_cpu_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(devices, "FIRST_GPU", tmp_path)
    with pytest.raises(InputError, match=r"--device: expected a torch and a driver [^\n]*; use --device cpu for the"):
        devices.look()
    assert [device.name for device in devices.look(["cpu"])] == ["cpu"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [device.name for device in devices.look()] == ["cpu"]


def test_the_first_gpu_may_be_named_without_its_index(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got 'cuda:0' "):
        devices.look(["cuda"])
    with pytest.raises(InputError, match="--device: expected each device once, got 'cuda,cuda:0'"):
        Execution(str(tmp_path), device="cuda,cuda:0").devices  # noqa: B018
    with pytest.raises(InputError, match="--device: expected cpu or cuda, because Ray assigns GPUs, got 'cuda:1'"):
        Execution(str(tmp_path), device="cuda:1", executor="ray").devices  # noqa: B018


def test_a_ray_worker_on_a_gpu_that_torch_cannot_use_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from advbench.grid.executors.ray import run_in_worker

    about = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": ["3"]}, get_node_id=lambda: "0123456789")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: about)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runtime = Execution("store", device="cpu", executor="inline").runtime("digits", 1)
    ended = run_in_worker(next(iter(planned().tasks.values())), runtime, None)
    assert ended.failure is not None
    assert ended.failure.cause == "input"
    assert ended.failure.reason.startswith("node 01234567 GPU 3 has a GPU that torch cannot use")


def test_a_driver_looks_at_gpus_in_another_process(cuda: list[str]) -> None:
    with pytest.raises(InputError, match=r"--device: expected [^\n]*got 'cuda:0' \([^\n]+\); use --device cpu for"):
        devices.look()  # the other process knows that there are none
    assert cuda == ["device_count"], "no call that makes a context"


def test_numerics_are_full_float32_and_put_back() -> None:
    cudnn: Any = torch.backends.cudnn
    deterministic: Any = torch.utils.deterministic

    def state() -> tuple[Any, ...]:
        precision, fill = torch.get_float32_matmul_precision(), deterministic.fill_uninitialized_memory
        return precision, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, fill

    before = state()
    with devices.numerics(1):
        assert state() == ("highest", False, False, True, False)
        torch.set_float32_matmul_precision("medium")
        cudnn.benchmark = True
    assert state() == before


def test_attention_on_a_gpu_uses_no_kernel_whose_gradient_differs_next_time() -> None:
    cuda = torch.backends.cuda

    def fused() -> list[bool]:
        return [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()]

    before = fused()
    assert any(before)
    with devices.numerics(1):
        assert fused() == before
    with devices.numerics(1, "cuda:0"):
        assert fused() == [False, False, False]
        assert cuda.math_sdp_enabled()
    assert fused() == before


def test_a_result_of_kernels_that_differ_next_time_is_flagged_with_all_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "kind_of", lambda device: H100)
    runtime = Execution(str(tmp_path), device="cpu", executor="inline").runtime("digits", 1)
    runner = Runner(dataclasses.replace(runtime, kind=H100))
    fit = runner._train

    def unsteady(*given: Any) -> Any:
        torch.zeros(3).put_(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
        return fit(*given)

    monkeypatch.setattr(runner, "_train", unsteady)
    plan = planned(defenses=["erm"], set={"erm": {"stages": [1]}}, device=H100)
    results = [runner.run(task)["result"] for task in plan.tasks.values()]
    assert [result["nondeterministic"] for result in results] == [["put_"]] * len(results)
    flagged = [result["flags"] for result in results if "flags" in result]
    assert flagged
    assert all("nondeterministic_kernels" in flags for flags in flagged)


MIXED = """
import torch, warnings
from advbench.grid import devices
torch.backends.cuda.matmul.fp32_precision = "tf32"  # torch's newer setting, after which the older ones raise
with devices.numerics(1):
    assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "ieee"
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    torch._C._set_mkldnn_enabled(False)
assert torch.backends.cuda.matmul.fp32_precision == "tf32"
assert torch.backends.mkldnn.conv.fp32_precision == "none"
assert torch._C._get_mkldnn_enabled()
"""


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has the older settings alone")
def test_numerics_hold_beside_torchs_newer_settings() -> None:
    subprocess.run([sys.executable, "-c", MIXED], check=True)


def test_operations_that_may_differ_next_time_are_collected_and_odd_models_are_not_shown() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with devices.numerics(1), devices.unsteady_kernels() as found:
            torch.zeros(3).put_(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
            warnings.warn(ModelWarning("odd"), stacklevel=1)
            warnings.warn("something else", stacklevel=1)
    assert found == {"put_"}
    assert [str(warning.message) for warning in shown] == ["something else"]


# the kind of device in keys


def test_the_cpu_leaves_keys_alone_and_a_gpu_changes_all_of_them() -> None:
    plain, cpu, gpu, other = (planned(device=kind) for kind in (None, "cpu", H100, "NVIDIA A100"))
    assert plain.tasks.keys() == cpu.tasks.keys()
    assert not gpu.tasks.keys() & cpu.tasks.keys()
    assert not gpu.tasks.keys() & other.tasks.keys()
    assert not {task.profile for task in gpu.tasks.values()} & {task.profile for task in cpu.tasks.values()}


def test_a_spec_names_the_kind_and_reads_it_again(tmp_path: Path) -> None:
    spec = make_spec({**SPEC, "device": H100})
    path = tmp_path / "spec.toml"
    path.write_text(spec.to_toml())
    from advbench.grid.spec import parse_toml

    assert make_spec(parse_toml(path)) == spec
    assert spec.device == H100


def on(*kinds: str, monkeypatch: pytest.MonkeyPatch) -> Execution:
    execution = Execution("store", executor="local")
    found = [Device(f"cuda:{index}", kind, 80 * GIB) for index, kind in enumerate(kinds)]
    monkeypatch.setattr("advbench.grid.execution.look", lambda names: found)
    return execution


def test_a_run_is_placed_on_one_kind_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    spec: RunSpec = make_spec(SPEC)
    assert Execution("store", device="cpu").placed(spec).device == "cpu"
    stated = spec.model_copy(update={"device": H100})
    with pytest.raises(InputError, match=r"device of the spec: expected NVIDIA H100[^\n]*, got cpu; choose such a"):
        Execution("store", device="cpu").placed(stated)
    assert on(H100, H100, monkeypatch=monkeypatch).placed(spec).device == H100
    with pytest.raises(InputError, match=r"--device: expected devices of one kind, got A100, H100"):
        on("H100", "A100", monkeypatch=monkeypatch).placed(spec)
    assert on(H100, monkeypatch=monkeypatch).placed(stated) == stated


def test_a_worker_of_another_kind_refuses_the_task(tmp_path: Path) -> None:
    runtime = Execution(str(tmp_path / "store"), device="cpu", executor="inline").runtime("digits", 1)
    task = next(iter(planned().tasks.values()))
    with pytest.raises(InputError, match=r"device cpu of [^\n]*: expected NVIDIA H100[^\n]*, got cpu"):
        Runner(dataclasses.replace(runtime, kind=H100)).run(task)


def test_measurements_of_another_kind_of_device_are_left_alone() -> None:
    entries: dict[str, dict[str, Any]] = {}
    task = next(iter(planned().tasks.values()))
    record = {"seconds": 2.0, "memory": {"peak": GIB, "device": 80 * GIB}}
    Measurements(entries, H100).add(task, record)
    assert Measurements(entries).of(task) is None
    assert Measurements(entries).seconds(task) is None
    assert Measurements(entries, H100).seconds(task) == 2.0


# memory


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_recognised(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) is expected


def test_before_halving_nets_that_were_kept_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(Execution(str(tmp_path / "store"), device="cpu", executor="inline").runtime("digits", 1))
    tasks = list(planned().tasks.values())
    for task in tasks[:2]:
        runner.run(task)
    craft = next(task for task in tasks if task.kind == "craft")
    evaluate = next(task for task in tasks if task.kind == "evaluate" and not task.needs[1:])
    runner.run(evaluate)
    kept: list[int] = []
    forward = Classifier.at

    def narrow(clf: Classifier, draw: Any, x: torch.Tensor, offset: int = 0) -> torch.Tensor:
        kept.append(len(runner._classifiers))
        if clf.chunk is None or clf.chunk > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(clf, draw, x, offset)

    monkeypatch.setattr(Classifier, "at", narrow)
    monkeypatch.setattr(Passes, "check_finite", lambda _: None)
    record = runner.run(craft)
    assert record["ran"]["chunk"] <= 5
    assert set(kept) == {1}, "only the one that is attacked"

    def none(clf: Classifier, draw: Any, x: torch.Tensor, offset: int = 0) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Classifier, "at", none)
    with pytest.raises(OutOfMemoryError, match="memory of cpu ran out with"):
        runner.run(craft)


def test_kept_nets_are_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(Execution(str(tmp_path / "store"), device="cpu", executor="inline").runtime("digits", 1))
    monkeypatch.setattr(runner, "_load_classifier", lambda key: Classifier(nn.Linear(1000, 1000)))
    monkeypatch.setattr("advbench.grid.tasks.KEPT", 3 * 4 * 1001 * 1000)
    for key in "abcad":
        runner._at_hand(key)
    assert list(runner._classifiers) == ["c", "a", "d"]

"""Devices: discovery, set-up of a process on a device, and memory use of tasks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from advbench.errors import InputError, ModelWarning
from advbench.grid.inputs import CPU
from advbench.models.memory import release

HEADROOM = 1.1  # factor on a measured peak
CONTEXT = 600 * 2**20  # bytes; memory of a process on a GPU in addition to its tensors
GPU_WORKERS = 4  # default maximum per GPU: each worker has a CUDA context and keeps nets
PROBE_TIME = 120.0  # seconds; time limit of the process that queries the devices
DRIVER = Path("/sys/module/nvidia/version")
FIRST_GPU = Path("/dev/nvidia0")
_UNSTEADY = re.compile(r"(\S+) does not have a deterministic implementation")
# Runs in a separate process, so that no CUDA context remains: a GPU may be restricted to one process.
_PROBE = """
import json, sys, torch
found = []
for name in sys.argv[1:]:
    try:
        torch.empty(1, device=name).cpu()
        about = torch.cuda.get_device_properties(name) if torch.device(name).type == "cuda" else None
        found.append([about.name, about.total_memory] if about else [torch.device(name).type, None])
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found.append((str(error).strip() or type(error).__name__).splitlines()[0])
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Device:
    """A device of this machine."""

    name: str  # name in torch
    kind: str  # model of a GPU, or type of the device
    memory: int  # total memory in bytes

    @property
    def is_gpu(self) -> bool:
        """True if it is a CUDA GPU, whose memory processes share."""
        return self.name.startswith("cuda")


def indexed(name: str) -> str:
    """Name of a device with its index: the first GPU for `cuda`."""
    return "cuda:0" if name == "cuda" else name


def look(names: Sequence[str] | None = None) -> list[Device]:
    """Return the devices with given names; by default all GPUs, or the CPU if there is none.

    Raises:
        InputError: torch cannot use one of them, or by default the GPUs of this machine.
    """
    wanted = list(map(indexed, names or ())) or [f"cuda:{index}" for index in range(torch.cuda.device_count())] or [CPU]
    if not names and wanted == [CPU] and FIRST_GPU.exists() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        expected = "a torch and a driver that can use the GPUs of this machine"
        got = f"torch {torch.__version__} without a GPU"
        raise InputError("--device", expected=expected, got=got, remedy="use --device cpu for the CPU")
    memory = int(psutil.virtual_memory().total)
    if set(wanted) == {CPU}:
        return [Device(CPU, CPU, memory)] * len(wanted)
    command = [sys.executable, "-c", _PROBE, *wanted]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PROBE_TIME)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise InputError("--device", expected="responding devices", got=f"none within {PROBE_TIME:g} s") from error
    lines = done.stdout.splitlines()
    seen = json.loads(lines[-1]) if done.returncode == 0 and lines else [done.stderr.strip().splitlines()[-1:]]
    devices = []
    for name, about in zip(wanted, seen, strict=False):
        if isinstance(about, str) or len(about) != 2:
            raise InputError(
                "--device",
                expected="devices that torch can use here, such as cpu or cuda:0,cuda:1",
                got=f"{name!r} ({about})",
                remedy="" if names else "use --device cpu for the CPU",
            )
        devices.append(Device(name, about[0], about[1] or memory))
    return devices


def enter(device: str) -> None:
    """Select the device of this process, before anything else uses it.

    Libraries seed and allocate on the current device, regardless of their arguments.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]  # which measuring memory does not do by itself
        torch.cuda.set_device(device)


def responds(device: str) -> bool:
    """False if a device is lost to this process: after some errors, CUDA refuses everything."""
    if torch.device(device).type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError:
            return False
    return True


def kind_of(device: str) -> str:
    """Kind of a device that this process has entered."""
    kind = torch.device(device).type
    return torch.cuda.get_device_name(device) if kind == "cuda" else kind


def versions_of(device: str) -> dict[str, str]:
    """Versions of libraries that compute on a device, in addition to torch."""
    if torch.device(device).type != "cuda":
        return {}
    driver = DRIVER.read_text().strip() if DRIVER.is_file() else "unknown"
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return {"cuda": str(torch.version.cuda), "cudnn": str(cudnn), "driver": driver}


@contextmanager
def numerics(threads: int, device: str = CPU) -> Iterator[None]:
    """Context with a fixed number of threads, deterministic kernels, full float32 and torch's defaults.

    Previous settings are restored afterwards. TensorFloat-32 has a 10-bit mantissa and is torch's default for
    convolutions. Fused kernels of attention have gradients that differ from run to run on GPUs.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn: Any = torch.backends.cudnn
    deterministic: Any = torch.utils.deterministic
    count, strict = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    fill, onednn = deterministic.fill_uninitialized_memory, torch._C._get_mkldnn_enabled()
    before = torch.is_grad_enabled(), torch.get_default_dtype()
    flags = cudnn.benchmark, cudnn.deterministic
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("warn")  # as use_deterministic_algorithms, which also imports the compiler
    deterministic.fill_uninitialized_memory = False  # a debugging aid of the mode that costs a kernel per tensor
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        with _full_float32(), _plain_attention() if torch.device(device).type == "cuda" else nullcontext():
            yield
    finally:
        torch.set_grad_enabled(before[0])
        torch.set_default_dtype(before[1])
        torch.set_default_device(None)
        torch.set_deterministic_debug_mode(strict)
        deterministic.fill_uninitialized_memory = fill
        cudnn.benchmark, cudnn.deterministic = flags
        torch._C._set_mkldnn_enabled(onednn)
        torch.set_num_threads(count)


@contextmanager
def _full_float32() -> Iterator[None]:
    """Full float32 precision in products and convolutions, by torch's old or, if both are mixed, its new settings.

    The old settings raise if the new ones have been used.
    """
    backends: Any = torch.backends
    onednn = [backends.mkldnn, *(getattr(backends.mkldnn, name, None) for name in ("conv", "matmul", "rnn"))]
    cuda = [backends, backends.cuda.matmul, backends.cudnn]
    cuda += [getattr(backends.cudnn, name, None) for name in ("conv", "rnn")]
    newer = [(knob, knob.fp32_precision) for knob in (*cuda, *onednn) if hasattr(knob, "fp32_precision")]
    older: tuple[str, bool] | None = None
    with suppress(RuntimeError):
        older = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    if older is not None:
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = False
    for knob, _ in newer:
        if older is None or knob in onednn:
            knob.fp32_precision = "ieee"
    try:
        yield
    finally:
        for knob, value in newer:
            knob.fp32_precision = value
        if older is not None:
            torch.set_float32_matmul_precision(older[0])
            backends.cudnn.allow_tf32 = older[1]


@contextmanager
def _plain_attention() -> Iterator[None]:
    cuda: Any = torch.backends.cuda
    fused = [name for name in ("flash", "mem_efficient", "cudnn") if hasattr(cuda, f"enable_{name}_sdp")]
    before = {name: getattr(cuda, f"{name}_sdp_enabled")() for name in fused}
    for name in fused:
        getattr(cuda, f"enable_{name}_sdp")(False)
    try:
        yield
    finally:
        for name, enabled in before.items():
            getattr(cuda, f"enable_{name}_sdp")(enabled)


@contextmanager
def unsteady_kernels() -> Iterator[set[str]]:
    """Collect the names of operations without deterministic results, in a block under `numerics`.

    Other warnings are shown as usual, except `ModelWarning`, which evaluations store as flags.
    """
    found: set[str] = set()
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            named = _UNSTEADY.match(str(message))
            if named:
                found.add(named[1])
            else:
                show(message, category, *rest, **more)

        warnings.showwarning = note
        warnings.filterwarnings("always", message=_UNSTEADY.pattern)
        warnings.simplefilter("ignore", ModelWarning)
        yield found


def part(peak: int, memory: int, *, gpu: bool) -> float:
    """Fraction of a device's memory that a task needs, from its peak and the total in bytes; at most 1."""
    return min(1.0, (HEADROOM * peak + (CONTEXT if gpu else 0)) / memory)


def reset_peak(device: str) -> None:
    """Start to measure peak memory, with an empty cache."""
    release(device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the process on Linux


def peak(device: str) -> int | None:
    """Peak memory since `reset_peak` in bytes: reserved on a GPU, resident on a CPU; None if unknown."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_reserved(device))
    try:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def total(device: str) -> int:
    """Total memory of a device in bytes."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def halvings(chunk: int | None, largest: int) -> Iterator[int | None]:
    """Chunk sizes to try when memory runs out: the given one, then repeatedly halved, down to 1."""
    yield chunk
    size = min(chunk or largest, largest)
    while size > 1:
        size //= 2
        yield size

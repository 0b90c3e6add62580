"""Memory of a task: its peak, what there is, and what to try when it ran out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from advbench.models.memory import release

HEADROOM = 1.1  # of a measured peak
CONTEXT = 600 * 2**20  # bytes that a process takes on a GPU beside its tensors


def total(device: str) -> int:
    """Bytes that a device has in all."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def part(peak: int, memory: int, *, gpu: bool) -> float:
    """The part of a device's memory that a task of such a peak takes, in bytes of so many in all; at most 1."""
    return min(1.0, (HEADROOM * peak + (CONTEXT if gpu else 0)) / memory)


def reset_peak(device: str) -> None:
    """Begin to measure, with nothing cached."""
    release(device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux resets the process's peak


def peak(device: str) -> int | None:
    """The most bytes since `reset_peak`: reserved on a GPU, resident in this process on a CPU; None if unknown."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_reserved(device))
    try:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def halvings(chunk: int | None, largest: int) -> Iterator[int | None]:
    """Chunks to try when memory runs out: the one asked for, then halves of what passes at once, down to 1."""
    yield chunk
    size = min(chunk or largest, largest)
    while size > 1:
        size //= 2
        yield size

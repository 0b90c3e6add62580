"""Memory of a task: its peak, what there is, what to try when it ran out; and a pause of garbage collection."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

HEADROOM = 1.1  # of a measured peak
CONTEXT = 600 * 2**20  # bytes that a process takes on a GPU beside its tensors


def total(device: str) -> int | None:
    """Bytes that a device has in all, or None where that is not known."""
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def part(peak: int, memory: int, *, gpu: bool) -> float:
    """The part of a device's memory that a task of such a peak takes, in bytes of so many in all; at most 1."""
    return min(1.0, (HEADROOM * peak + (CONTEXT if gpu else 0)) / memory)


def keep() -> None:
    """Keep what torch frees on the CPU for its next tensors, until `release`.

    glibc gives large blocks back to the kernel at once, which clears every page of them when they are asked for again:
    of an attack on batches of 250 images that was a third of the time. Does nothing without glibc.
    """
    libc = _glibc()
    if libc is not None:
        for threshold in (-3, -1):  # of blocks with pages of their own, and of what is free at the heap's end
            libc.mallopt(threshold, 2**31 - 1)


def release(device: str) -> None:
    """Give back what is cached on a GPU, or kept of the CPU's memory, so that another process can have it."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


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


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause garbage collection in a block or a function that makes many objects which all stay."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()

"""Settings of the CPU allocator under torch: keep freed memory for reuse, and release it."""

from __future__ import annotations

import ctypes
import functools
import platform

import torch

_THRESHOLDS = (-3, -1)  # glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
_MOST = 2**30  # bytes


@functools.cache
def keep() -> None:
    """Keep up to 1 GiB of the CPU memory that torch frees for reuse, for the rest of the process.

    By default glibc returns large blocks to the kernel at once, which zeroes every page when they are allocated again:
    half the time of an evaluation of a small convolutional net. Does nothing without glibc.
    """
    libc = _glibc()
    if libc is not None:
        for setting in _THRESHOLDS:
            libc.mallopt(setting, _MOST)


def release(device: str) -> None:
    """Release cached GPU memory, or kept CPU memory, to other processes."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None

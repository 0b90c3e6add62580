"""The CPU memory that torch's tensors come from: kept for the next ones, and given back."""

from __future__ import annotations

import ctypes
import functools
import platform

import torch

_THRESHOLDS = (-3, -1)  # of glibc's mallopt: for blocks with pages of their own, and for what is free at the heap's end
_MOST = 2**30  # bytes


@functools.cache
def keep() -> None:
    """Keep up to 1 GiB of what torch frees on the CPU for its next tensors, in this process from now on.

    glibc gives large blocks back to the kernel at once, which clears every page of them when they are asked for again:
    half the time of an evaluation of a small convolutional net. Does nothing without glibc.
    """
    libc = _glibc()
    if libc is not None:
        for setting in _THRESHOLDS:
            libc.mallopt(setting, _MOST)


def release(device: str) -> None:
    """Give back what is cached on a GPU, or kept of the CPU's memory, so that another process can have it."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None

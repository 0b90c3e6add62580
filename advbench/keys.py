"""Content-addressed keys of results, derived seeds, and isolation of global random state.

Imports torch only for isolated random state.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Raise the number of a kind of task when its results change for unchanged inputs; a change in a plugin's own code
# raises the `version` of its class instead. Releases do not change either.
SCHEMA = {"train": 4, "craft": 6, "evaluate": 5, "audit": 2}
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: object) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8; equal values give equal bytes."""
    return _ENCODER.encode(value).encode()


def content_key(value: object) -> str:
    """SHA-256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical(value)).hexdigest()


def derive(seed: int, *labels: object) -> int:
    """Derive a 63-bit seed from `seed` and labels.

    Seeds are SHA-256 digests of the labels: streams with different labels are independent in practice, equal on every
    platform, and no state has to be saved when a run is interrupted.
    """
    text = "/".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def isolated_rng(seed: int, device: torch.device | str, *, everywhere: bool = False) -> Iterator[None]:
    """Seed the global random state for a block, and restore the previous state afterwards.

    Affects torch's state on the CPU and on one device; other devices are neither read nor changed. (`torch.manual_seed`
    queries every kind of device, which costs more than a pass of a small net.)

    Args:
        seed: seed of up to 64 bits.
        device: device in addition to the CPU.
        everywhere: also seed the global state of numpy and Python, for code that may use it.
    """
    import torch

    device = torch.device(device)
    with _others_isolated(seed) if everywhere else nullcontext(), _torch_isolated(seed, device):
        yield


def seed_others(seed: int) -> None:
    """Seed the global random state of numpy and Python; allowed inside `isolated_rng(everywhere=True)` only."""
    import numpy as np

    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def _others_isolated(seed: int) -> Iterator[None]:
    import numpy as np

    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        seed_others(seed)
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def _torch_isolated(seed: int, device: torch.device) -> Iterator[None]:
    import torch

    before = torch.default_generator.get_state()
    module = None if device.type == "cpu" else torch.get_device_module(device)
    on_device = None if module is None else module.get_rng_state(device)
    try:
        torch.default_generator.manual_seed(seed)
        if module is not None:
            module.set_rng_state(torch.Generator(device).manual_seed(seed).get_state(), device)
        yield
    finally:
        torch.default_generator.set_state(before)
        if module is not None:
            module.set_rng_state(on_device, device)

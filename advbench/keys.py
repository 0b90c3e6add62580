"""Names and seeds that follow from content alone: keys of results, seeds of random choices, and a block under a seed.

Imports torch only where a block runs under a seed.
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

# Raised for a kind of task by whoever changes what its results mean without changing its inputs; a plugin's own code
# has its class's `version` instead. A release leaves both alone.
SCHEMA = {"train": 4, "craft": 6, "evaluate": 4, "audit": 1}
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: object) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8; equal values give equal bytes."""
    return _ENCODER.encode(value).encode()


def content_key(value: object) -> str:
    """SHA-256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical(value)).hexdigest()


def derive(seed: int, *labels: object) -> int:
    """A 63-bit seed for the choice addressed by `labels` under `seed`.

    SHA-256 of the labels: streams with different labels are independent for every practical purpose, the
    same on every platform, and need no state to be saved when a run is interrupted.
    """
    text = "/".join([str(seed), *map(str, labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def isolated_rng(seed: int, device: torch.device | str, *, everywhere: bool = False) -> Iterator[None]:
    """Run a block under global random state seeded by `seed`; put the former state back afterwards.

    torch's state on the CPU and on one device: other devices' is neither read nor changed. (`torch.manual_seed` asks
    every kind of device, which costs more than a small net's pass.)

    Args:
        seed: any of 64 bits.
        device: the device beside the CPU.
        everywhere: numpy's and Python's global state as well, for code that may draw from it.
    """
    import torch

    device = torch.device(device)
    with _others_isolated(seed) if everywhere else nullcontext(), _torch_isolated(seed, device):
        yield


def seed_others(seed: int) -> None:
    """Seed numpy's and Python's global random state, which code inside `isolated_rng(everywhere=True)` may do."""
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

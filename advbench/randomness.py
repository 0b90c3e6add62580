"""The global random state: seeded for a block, and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def isolated_rng(seed: int, device: torch.device | str) -> Iterator[None]:
    """Run a block under global random state seeded by `seed`; put the former state back afterwards."""
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        # torch.manual_seed asks every kind of device, which costs more than a small net's pass.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed_all(seed)
        yield

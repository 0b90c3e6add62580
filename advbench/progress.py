"""What long work reports while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Progress(NamedTuple):
    """How far a task is: `step` of `total`, with the latest values of what it watches."""

    step: int
    total: int
    values: Mapping[str, float] = {}


OnProgress = Callable[[Progress], None]

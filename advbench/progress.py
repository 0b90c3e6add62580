"""Progress reports of long-running work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Progress(NamedTuple):
    """Progress of a task: `step` of `total`, with the latest values of its monitored scalars."""

    step: int
    total: int
    values: Mapping[str, float] = {}


OnProgress = Callable[[Progress], None]

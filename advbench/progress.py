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


def duration(seconds: float) -> str:
    """Format a duration."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""Formatting of numbers and names: the only place where a number of a report becomes text."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal

from advbench.report.leaderboard import Measured

Value = str | int | Measured | None


def format_eps(eps: float) -> str:
    """Format a radius: `8/255` if it is a whole number of grey levels, otherwise decimal."""
    levels = eps * 255
    if 0 < levels < math.inf and abs(levels - round(levels)) < 1e-9 and f"{eps:.3g}" != f"{eps:.9g}":
        return f"{round(levels)}/255"
    return f"{eps:.4g}"


def images_text(attack: str, eps: float) -> str:
    """Description of the images of a row."""
    return "clean" if attack == "none" else attack if eps == 0 else f"{attack} {format_eps(eps)}"


def parts(value: Value, digits: int = 3) -> list[str]:
    """Parts of a cell of a table: a number and, if any, its interval and standard deviation over seeds.

    Upper bounds are marked.

    Missing numbers are replaced by a word: failed, missing, not run, or n/a.
    """
    if not isinstance(value, Measured):
        return ["n/a" if value is None else f"{value:,}" if isinstance(value, int) else value]
    if value.missing:
        word = value.note.partition(":")[0]
        return [word if word in ("failed", "missing", "not run") else "n/a"]
    found = [f"{'≤ ' if value.bound else ''}{rounded(value.value, digits)}"]
    if not math.isnan(value.low):
        found.append(f"[{rounded(value.low, digits)}, {rounded(value.high, digits)}]")
    if not math.isnan(value.deviation):
        found.append(f"sd {rounded(value.deviation, digits)}")
    return found


def rounded(value: float, digits: int = 3) -> str:
    """A number with fixed decimals; halves, such as 0.7775 of 400 images, are rounded away from zero.

    Binary fractions hold most halves inexactly, on either side.
    """
    if not math.isfinite(value):
        return f"{value:.{digits}f}"
    exact = Decimal(f"{value:.10f}").quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return f"{exact:zf}"


def duration(seconds: float) -> str:
    """A time in its largest unit: seconds, minutes or hours."""
    if math.isnan(seconds):
        return "n/a"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def short_name(name: str) -> str:
    """A name shortened for figures."""
    return name if len(name) <= 24 else f"{name[:14]}…{name[-9:]}"

"""What checks of one table after another share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from advbench.boards.findings import Findings, row_name

IDENTITY = ("dataset", "architecture", "norm")
TOLERANCE = 1e-9

Row = Mapping[str, Any]
Place = tuple[Any, ...]


def check_columns(file: str, found: Iterable[str], due: Iterable[str], findings: Findings) -> None:
    """Note other columns than are due."""
    if list(found) != list(due):
        findings.add(f"{file} has other columns than advbench writes")


def check_each_once(file: str, found: Sequence[Place], due: Iterable[Place], findings: Findings) -> None:
    """Note where a place that is due is not there once, and every other place."""
    count = Counter(found)
    wanted = set(due)
    for where in sorted(wanted - count.keys(), key=repr):
        findings.add(f"{file}: a row that belongs to the results is not there", ", ".join(map(str, where)))
    for where, number in count.items():
        if where not in wanted:
            findings.add(f"{file}: a row that belongs to no result", ", ".join(map(str, where)))
        elif number > 1:
            findings.add(f"{file}: a row is there more than once", ", ".join(map(str, where)))


def check_identity(file: str, row: Row, known: Row, findings: Findings) -> None:
    """Note where a row is of other data, another net or norm than its row of results."""
    if any(row[name] != known[name] for name in IDENTITY):
        findings.add(f"{file}: data set, net or norm are not those of results.csv", row_name(row))


def same(one: float, other: float) -> bool:
    """Whether two numbers are the same but for the order of sums; NaN is the same as NaN."""
    return (math.isnan(one) and math.isnan(other)) or abs(one - other) <= TOLERANCE

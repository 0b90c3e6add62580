"""Curves along one axis, and from where on the accuracy falls no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from advbench.grid.plan import Plan
from advbench.report.leaderboard import Measured, own_rows
from advbench.report.tables import Report
from advbench.report.texts import format_eps, parts

COLUMNS = (
    "dataset architecture defense attack norm eps seed axis value accuracy accuracy_low accuracy_high forward_passes "
    "backward_passes flags key"
).split()
AXES = {
    "samples": "samples of weights for each gradient",
    "steps": "steps of the attack",
    "restarts": "restarts of the attack",
    "draws": "draws of the evaluation",
}
LINE = ["defense", "attack", "eps", "seed"]
UNCONVERGED = "unconverged"


@dataclass(frozen=True)
class Curve:
    """Accuracies along one axis.

    Attributes:
        axis: what varies: a hyperparameter of the attack, or the draws of the evaluation.
        table: a row for each (defense, attack, seed, value), columns as `COLUMNS`.
    """

    axis: str
    table: pd.DataFrame

    def lines(self) -> Iterator[str]:
        """Where the accuracy converges, a line for each defense, attack, eps and seed."""
        for (defense, attack, eps, seed), rows in self.table.groupby(LINE, sort=False):
            where = f"{defense} under {attack} {format_eps(float(str(eps)))}, seed {seed}"
            last, value = rows.iloc[-1], converged(rows, self.axis)
            end = f"{parts(Measured(last.accuracy))[0]} at {self.axis} {last.value}"
            if value is None:
                yield f"{where}: still {'changing' if self.axis == 'draws' else 'falling'}, {end}: {UNCONVERGED}"
            else:
                row = rows[rows.value == value].iloc[0]
                there = " ".join(parts(Measured(row.accuracy, row.accuracy_low, row.accuracy_high)))
                yield f"{where}: falls no more from {self.axis} {value} on, {there}; {end}"


def converged(rows: pd.DataFrame, axis: str) -> int | None:
    """From which value on a line falls no more; None where it does to the end.

    The smallest value whose interval no later accuracy falls below. An attack that gets stronger can only lower it;
    more draws of the evaluation may raise it as well, so along those no later accuracy may lie outside the interval.

    Args:
        rows: of one line, by value.
        axis: along which.
    """
    accuracies, lows, highs = (rows[name].tolist() for name in ("accuracy", "accuracy_low", "accuracy_high"))
    for index, value in enumerate(rows.value.tolist()[:-1]):
        later = accuracies[index + 1 :]
        if min(later) >= lows[index] and (axis != "draws" or max(later) <= highs[index]):
            return int(value)
    return None


def trace(plans: Iterable[tuple[int, Plan]], axis: str, report_of: Callable[[Plan], Report]) -> Curve:
    """Make the curve.

    Args:
        plans: the runs that `along` gave, laid out, with their values.
        axis: along which.
        report_of: carries a plan out and gives its tables.
    """
    found = []
    for value, plan in plans:
        results = report_of(plan).results
        found.append(results[own_rows(results) & (results.attack != "none")].assign(axis=axis, value=value))
    table = pd.concat(found, ignore_index=True)
    table = table.sort_values(["defense", "attack", "seed", "value"], kind="stable", ignore_index=True)
    flags = table["flags"].copy()
    for _, rows in table.groupby(["defense", "attack", "seed"], sort=False):
        if converged(rows, axis) is None:
            last = rows.index[-1]
            flags[last] = ";".join(filter(None, [flags[last], UNCONVERGED]))
    return Curve(axis, table.assign(flags=flags)[COLUMNS])

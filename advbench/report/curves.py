"""Curves along one axis, and from where on the accuracy falls no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from advbench.grid.plan import Plan
from advbench.report.tables import Report
from advbench.report.texts import format_eps

COLUMNS = (
    "dataset architecture defense attack norm eps seed axis value accuracy accuracy_low accuracy_high forward_passes "
    "backward_passes flags key"
).split()
AXES = {
    "samples": "samples of weights for each gradient",
    "steps": "steps of the attack",
    "restarts": "restarts of the attack",
    "draws": "draws that judge",
}
LINE = ["defense", "attack", "eps", "seed"]
UNCONVERGED = "unconverged"


class Verdict(NamedTuple):
    """Where a line of a curve settles.

    Attributes:
        defense: label.
        attack: label.
        eps: radius.
        seed: of training, attack and draws.
        value: from which on the accuracy falls no more than its interval allows; None where it falls to the end.
        accuracy: there, with its interval; empty without a value.
        last: the largest value.
        end: the accuracy there.
    """

    defense: str
    attack: str
    eps: float
    seed: int
    value: int | None
    accuracy: str
    last: int
    end: float


@dataclass(frozen=True)
class Curve:
    """Accuracies along one axis.

    Attributes:
        axis: what varies: a hyperparameter of the attack, or the draws that judge.
        table: a row for each (defense, attack, seed, value), columns as `COLUMNS`.
    """

    axis: str
    table: pd.DataFrame

    def verdicts(self) -> Iterator[Verdict]:
        """One for each defense, attack, eps and seed."""
        for (defense, attack, eps, seed), rows in self.table.groupby(LINE, sort=False):
            value, last = settled(rows, self.axis), rows.iloc[-1]
            accuracy = ""
            if value is not None:
                row = rows[rows.value == value].iloc[0]
                accuracy = f"{row.accuracy:.3f} [{row.accuracy_low:.3f}, {row.accuracy_high:.3f}]"
            where = (str(defense), str(attack), float(str(eps)), int(str(seed)))
            yield Verdict(*where, value, accuracy, int(last.value), float(last.accuracy))

    def lines(self) -> Iterator[str]:
        """The verdicts, a line each."""
        for one in self.verdicts():
            where = f"{one.defense} under {one.attack} {format_eps(one.eps)}, seed {one.seed}"
            end = f"{one.end:.3f} at {self.axis} {one.last}"
            if one.value is None:
                yield f"{where}: still {'changing' if self.axis == 'draws' else 'falling'}, {end}: {UNCONVERGED}"
            else:
                yield f"{where}: falls no more from {self.axis} {one.value} on, {one.accuracy}; {end}"


def settled(rows: pd.DataFrame, axis: str) -> int | None:
    """From which value on a line falls no more; None where it does to the end.

    The smallest value whose interval no later accuracy falls below. An attack that gets stronger can only lower it;
    more draws that judge may raise it as well, so along those no later accuracy may lie outside the interval.

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
    parts = []
    for value, plan in plans:
        results = report_of(plan).results
        attacked = results[results.attack != "none"]
        own = attacked[attacked.source == attacked.defense]
        parts.append((own if len(own) else attacked).assign(axis=axis, value=value))
    table = pd.concat(parts, ignore_index=True)
    table = table.sort_values(["defense", "attack", "seed", "value"], kind="stable", ignore_index=True)
    flags = table["flags"].copy()
    for _, rows in table.groupby(["defense", "attack", "seed"], sort=False):
        if settled(rows, axis) is None:
            last = rows.index[-1]
            flags[last] = ";".join(filter(None, [flags[last], UNCONVERGED]))
    return Curve(axis, table.assign(flags=flags)[COLUMNS])

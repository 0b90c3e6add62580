"""One cell along one axis: does the accuracy stop falling as an attack gets stronger, or judges get more?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from advbench.config import RunSpec
from advbench.errors import InputError
from advbench.plan import Plan
from advbench.registry import registry
from advbench.report.tables import Report

AXES: dict[str, tuple[int, ...]] = {
    "samples": (1, 2, 5, 10, 20, 50),
    "steps": (1, 2, 5, 10, 20, 50, 100),
    "restarts": (1, 2, 5, 10),
    "draws": (1, 2, 5, 10, 20, 50, 100),
}
COLUMNS = "dataset architecture defense attack norm eps seed axis value accuracy accuracy_low accuracy_high".split()
COSTS = ["forward_passes", "backward_passes"]


@dataclass(frozen=True)
class Curve:
    """Accuracies along one axis.

    Attributes:
        axis: what varies: a hyperparameter of the attack, or the draws that judge.
        table: a row for each (defense, attack, seed, value).
    """

    axis: str
    table: pd.DataFrame

    def verdicts(self) -> Iterator[str]:
        """A line for each defense, attack and seed: from which value on the accuracy falls no more."""
        for (defense, attack, eps, seed), rows in self.table.groupby(["defense", "attack", "eps", "seed"], sort=False):
            where = f"{defense} under {attack} {float(str(eps)):.4g}, seed {seed}"
            first, last = settled(rows), rows.iloc[-1]
            end = f"{last.accuracy:.3f} at {self.axis} {last.value}"
            if first is None:
                yield f"{where}: still falling, {end}: unconverged"
            else:
                row = rows[rows.value == first].iloc[0]
                interval = f"{row.accuracy:.3f} [{row.accuracy_low:.3f}, {row.accuracy_high:.3f}]"
                yield f"{where}: falls no more from {self.axis} {first} on, {interval}; {end}"

    def figure(self, path: Path) -> None:
        """Draw accuracy with its interval against the axis, a line for each defense and attack, as PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for (defense, attack, seed), rows in self.table.groupby(["defense", "attack", "seed"], sort=False):
            label = f"{defense}, {attack}" + (f", seed {seed}" if self.table.seed.nunique() > 1 else "")
            axes.plot(rows.value, rows.accuracy, marker="o", label=label)
            axes.fill_between(rows.value, rows.accuracy_low, rows.accuracy_high, alpha=0.2)
        values = sorted(self.table.value.unique())
        axes.set_xscale("log")
        axes.set_xticks(values, [str(value) for value in values], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel(self.axis)
        axes.set_ylabel("accuracy, with its 95 % interval")
        axes.set_ylim(0, 1)
        axes.legend()
        figure.savefig(path, dpi=150, metadata={"Software": ""})


def settled(rows: pd.DataFrame) -> int | None:
    """The smallest value whose interval no later accuracy falls below; None where that is the last one alone."""
    accuracies, lows = rows.accuracy.tolist(), rows.accuracy_low.tolist()
    for index, value in enumerate(rows.value.tolist()[:-1]):
        if min(accuracies[index + 1 :]) >= lows[index]:
            return int(value)
    return None


def along(spec: RunSpec, axis: str, values: Sequence[int] = ()) -> list[tuple[int, RunSpec]]:
    """The runs of a curve, at the largest eps of the spec.

    Args:
        spec: the cell or cells; what it says of the axis itself gives way.
        axis: one of `AXES`.
        values: along it; by default those of `AXES`.

    Raises:
        InputError: an unknown axis, an attack that lacks it, or values that are not whole numbers >= 1.
    """
    if axis not in AXES:
        raise InputError("--over", expected=f"one of {', '.join(AXES)}", got=repr(axis))
    chosen = sorted(set(values or AXES[axis]))
    if chosen[0] < 1 or len(chosen) < 2:
        raise InputError("--values", expected="at least two whole numbers >= 1", got=",".join(map(str, values)))
    if spec.budget is not None or spec.sweep:
        option = "--sweep" if spec.budget is None else "--budget"
        raise InputError(option, expected=f"none in a curve, which it would bend along {axis}")
    base = spec.model_copy(update={"eps": spec.eps[-1:]})
    if axis == "draws":
        return [(value, base.model_copy(update={"draws": value})) for value in chosen]
    for label in spec.attacks:
        name = label.partition("@")[0]
        fields = registry().load("attack", name).Params.model_fields
        if axis not in fields:
            known = ", ".join(a for a in AXES if a in fields or a == "draws")
            raise InputError(f"--over {axis}", expected=f"an axis of attack {name!r}: {known}", got=repr(axis))
    return [(value, _with(base, axis, value)) for value in chosen]


def _with(spec: RunSpec, name: str, value: int) -> RunSpec:
    settings = {**spec.set, **{label: {**spec.set.get(label, {}), name: value} for label in spec.attacks}}
    return spec.model_copy(update={"set": settings})


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
        if settled(rows) is None:
            last = rows.index[-1]
            flags[last] = ";".join(filter(None, [flags[last], "unconverged"]))
    return Curve(axis, table.assign(flags=flags)[[*COLUMNS, *COSTS, "flags"]])

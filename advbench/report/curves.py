"""Searches of attacks run to convergence, with one row per setting."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from advbench.grid.convergence import EFFORT
from advbench.grid.plan import Cell, Plan
from advbench.report.evaluations import RecordSource, is_own, reading
from advbench.report.leaderboard import Measured
from advbench.report.texts import format_eps, parts

COLUMNS = (
    "dataset architecture defense attack norm eps seed axis value accuracy accuracy_low accuracy_high forward_passes "
    "fall fall_high settings chosen unconverged key"
).split()
AXES = {
    "steps": "number of steps",
    "queries": "number of queries",
    "samples": "samples of weights per gradient",
    "restarts": "number of restarts",
    EFFORT: "factor on the efforts of the components",
}


class Path(NamedTuple):
    """Search of a cell's attack to convergence, from its record."""

    cell: Cell
    found: Mapping[str, Any]  # result of `Converged.to_json`

    def line(self) -> str:
        """Start and end of the search, in one line."""
        first, last = self.found["path"][0], self.found["settings"]
        end = next(step for step in self.found["path"] if step["settings"] == last)
        attack = self.cell.attack
        assert attack is not None, "clean cells have no search"
        where = f"{self.cell.defense.label} under {attack.label} {format_eps(self.cell.eps)}, seed {self.cell.seed}"
        unconverged = ", ".join(self.found["unconverged"])
        along = f"; unconverged along {unconverged}: an upper bound" if unconverged else "; converged"
        low, high = end["interval"]
        bound = Measured(end["accuracy"], low, high, bound=bool(unconverged))
        began = f"{parts(Measured(first['accuracy']))[0]} at {_text(first['settings'])}"
        return f"{where}: {began}; {' '.join(parts(bound))} at {_text(last)}{along}"


def paths(plan: Plan, store: RecordSource) -> Iterator[Path]:
    """Searches of the cells in a plan with a record and an attack run to convergence on the defense itself."""
    for cell, record in zip(plan.cells, store.read_records([cell.key for cell in plan.cells]), strict=True):
        found = record["result"]["attack"].get("converge") if record else None
        if found and is_own(cell):
            yield Path(cell, found)


def curve_table(plan: Plan, found: list[Path]) -> pd.DataFrame:
    """`convergence.csv` and `curve.csv`: one row per value of each axis, including the initial one.

    `chosen` marks the final settings.
    """
    rows = []
    for cell, search in found:
        assert cell.attack is not None, "clean cells have no search"
        cells = [plan.spec.data_name, cell.defense.architecture, cell.defense.label, cell.attack.label]
        head = [*cells, plan.spec.norm, cell.eps, cell.seed]
        with reading(cell.key):
            rows += [[*head, *row, cell.key] for row in _steps(search)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _steps(search: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Columns from `axis` to `unconverged` of each row of a search."""
    tail = [";".join(search["unconverged"])]
    known = {_text(step["settings"]): step for step in search["path"]}
    before: set[str] = set()
    for step in search["path"][1:]:
        axis, settings = step["axis"], step["settings"]
        starts = [{**settings, axis: settings[axis] // 2}] if axis not in before else []
        before.add(axis)
        for at in (*starts, settings):
            one = known[_text(at)]
            numbers = [at[axis], one["accuracy"], *one["interval"], one["forward_passes"]]
            falls = [step.get("fall"), step.get("fall_high")] if at is settings else [None, None]
            chosen = float(at == search["settings"])
            yield [axis, *numbers, *falls, json.dumps(at, sort_keys=True), chosen, *tail]


def _text(settings: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(settings.items()))

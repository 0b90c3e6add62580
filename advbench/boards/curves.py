"""Whether a board's curves are of its spec, data and versions, and can be true."""

from __future__ import annotations

import math

import pandas as pd

from advbench.boards.board import Board, stated_versions
from advbench.boards.compare import same
from advbench.boards.findings import Findings
from advbench.boards.plans import lay_out, versions_of
from advbench.errors import InputError
from advbench.grid.convergence import along
from advbench.grid.plan import Plan
from advbench.grid.spec import RunSpec, narrowed
from advbench.report.curves import UNCONVERGED, Curve, settled
from advbench.report.flags import raised
from advbench.report.tables import as_rows

ENDS = ("accuracy", "accuracy_low", "accuracy_high")


def check_curves(board: Board, plan: Plan, findings: Findings) -> None:
    """Note what of a board's curves does not hold.

    Args:
        board: the board.
        plan: its plan, with the keys of the version that made it.
        findings: where it is noted.
    """
    known = {row["key"]: row for row in as_rows(board.results)}
    made_by = set(map(_version, board.results.versions))
    for name, curve in board.curves.items():
        for (defense, attack), rows in curve.table.groupby(["defense", "attack"], sort=False):
            where = f"{name}: {defense} under {attack}"
            _check_keys(board.spec, plan, curve, rows, where, findings)
            for _, line in rows.groupby(["eps", "seed"], sort=False):
                _check_flags(line, curve.axis, where, findings)
            for row in as_rows(rows):
                at = f"{where}, {curve.axis} {row['value']}"
                if not 0 <= row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] <= 1:
                    findings.add("a curve has an accuracy or interval that cannot be", at)
                if _version(row["versions"]) not in made_by:
                    findings.add("a curve was computed by another version than the board", at)
                result = known.get(row["key"])
                if result is not None and not all(same(row[end], result[end]) for end in ENDS):
                    findings.add("a curve differs from results.csv where they share a cell", at)


def _check_keys(spec: RunSpec, plan: Plan, curve: Curve, rows: pd.DataFrame, where: str, findings: Findings) -> None:
    """Whether rows are where the board's spec puts them, by their keys."""
    defense, attack = str(rows.defense.iloc[0]), str(rows.attack.iloc[0])
    if defense not in spec.defenses or attack not in spec.attacks or plan.identity is None:
        findings.add("a curve is of a defense or attack that the board does not have", where)
        return
    versions = versions_of(plan)
    part = narrowed(spec.model_copy(update={"defenses": (defense,), "attacks": (attack,)}), spec, spec.set)
    due = set()
    try:
        runs = along(part, curve.axis, sorted(set(rows.value)))
    except InputError as error:
        findings.add("a curve cannot be of the board's spec", f"{where}: {error}")
        return
    for value, run in runs:
        for cell in lay_out(run, plan.identity, versions).cells:
            place = (run.dataset.partition(":")[0], run.architecture, run.norm, cell.eps, cell.seed)
            due.add((*place, value, cell.key))
    columns = ["dataset", "architecture", "norm", "eps", "seed", "value", "key"]
    for row in rows[columns].itertuples(index=False, name=None):
        if row not in due:
            findings.add(
                "a curve is not of the board's spec; compute it again, or remove it", f"{where}, seed {row[4]}"
            )


def _check_flags(line: pd.DataFrame, axis: str, where: str, findings: Findings) -> None:
    """Whether `unconverged` stands where the accuracy falls to the end, and nowhere else."""
    stated = [UNCONVERGED in raised(note) for note in line["flags"]]
    due = [False] * (len(line) - 1) + [settled(line, axis) is None and not math.isnan(line.accuracy.iloc[-1])]
    if stated != due:
        findings.add(f"a curve's flag {UNCONVERGED} does not follow from its accuracies", where)


def _version(text: str) -> str | None:
    return stated_versions(text).get("advbench")

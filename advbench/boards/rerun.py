"""Computes some of a board's cells anew, from nothing, and compares."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from advbench.boards.board import Board
from advbench.boards.compare import Place, Row
from advbench.boards.findings import Findings, row_name
from advbench.boards.rows import SHARES, place, place_of
from advbench.errors import InputError
from advbench.grid.execution import Execution
from advbench.grid.plan import Cell, Plan
from advbench.grid.run import prepare
from advbench.report import Report, collect
from advbench.report.tables import records
from advbench.store.records import Store

Compute = Callable[[Plan, Execution, Store], Mapping[str, str]]
COMPARED = (*SHARES, "forward_passes", "backward_passes")
NEAR = 0.01  # what another processor's rounding may make of a number, where it changes no accuracy


@dataclass(frozen=True)
class Rerun:
    """What came of computing cells anew.

    Attributes:
        cells: how many were computed.
        equal: in how many of them all accuracies and intervals are equal to the last digit.
    """

    cells: int
    equal: int


def rerun(
    board: Board,
    count: int,
    execution: Execution,
    findings: Findings,
    compute: Compute,
    say: Callable[[str], None],
    seed: int | None = None,
) -> Rerun:
    """Compute cells of a board anew and note those that come out otherwise.

    The cells are chosen at random among those with a result. They and all that they need, trainings included, are
    computed by the installed versions in a store of their own, which is dropped afterwards. Two accuracies agree where
    each lies within the other's interval, and so do the mean accuracies of a single draw. Where all of them are equal
    to the last digit, and versions and kind of device are the same, retention, calibration, uncertainty, detection and
    histograms must agree too. Intervals of affinities are not compared: they rest on three cells.

    Args:
        board: the board.
        count: how many cells, or all where there are no more.
        execution: how to compute; its store is not used.
        findings: where it is noted what does not agree.
        compute: carries a plan out, with an execution, into a store; returns why tasks failed, by key.
        say: is told what came out in other digits.
        seed: of the choice; by default nobody can foresee it.

    Raises:
        InputError: the spec cannot be carried out here, the data is absent, or no cell has a result.
    """
    # Images of other data sets have no row in results, and their data may not be at hand.
    plan = prepare(board.spec.model_copy(update={"ood": ()}), execution.data_root)
    rows = {place(row): row for row in records(board.results) if not math.isnan(row["accuracy"])}
    known = [cell for cell in plan.cells if place_of(cell) in rows]
    if not known:
        raise InputError(f"board {board.folder}", expected="cells with a result to compute anew", got="none")
    generator = random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311
    chosen = set(generator.sample(range(len(known)), min(count, len(known))))
    part = part_of(plan, [cell for index, cell in enumerate(known) if index in chosen])
    with tempfile.TemporaryDirectory(prefix="advbench-rerun-") as folder:
        apart = replace(execution, store=folder)
        store = apart.open_store()
        again = collect(part, store, compute(part, apart, store))
    return Comparison(board, again, part, findings, say).made()


def part_of(plan: Plan, cells: Sequence[Cell]) -> Plan:
    """The part of a plan that leads to some of its cells: their tasks and whatever those need."""
    wanted = {cell.key for cell in cells}
    for task in reversed(list(plan.tasks.values())):
        if task.key in wanted:
            wanted.update(task.needs)
    labels = {cell.defense.label for cell in cells}
    return replace(
        plan,
        tasks={key: task for key, task in plan.tasks.items() if key in wanted},
        cells=tuple(cells),
        trained={which: key for which, key in plan.trained.items() if which[0] in labels},
        ood=(),
    )


class Comparison:
    """Tables of some cells, computed anew, beside a board's.

    Args:
        board: the board.
        again: the tables of the same cells.
        part: the plan of those cells.
        findings: where it is noted what does not agree.
        say: is told what is other by no more than rounding can make it.
    """

    def __init__(self, board: Board, again: Report, part: Plan, findings: Findings, say: Callable[[str], None]) -> None:
        self._board, self._again, self._part = board, again, part
        self._findings, self._say = findings, say
        self._known = {place(row): row for row in records(board.results)}

    def made(self) -> Rerun:
        """Compare everything that was measured."""
        equal = 0
        for cell, row in zip(self._part.cells, records(self._again.results), strict=True):
            known = self._known[place_of(cell)]
            if math.isnan(row["accuracy"]):
                self._findings.add("a cell could not be computed anew", f"{row_name(known)}: {row['flags']}")
                continue
            self._compare_models(cell)
            same = self._agree(known, row)
            equal += same
            other = [name for name in COMPARED if known[name] != row[name]]
            if same and known["versions"] == row["versions"]:
                other += self._details(known)
            if other:
                self._say(f"{row_name(known)}: other digits in {', '.join(other)}")
        return Rerun(len(self._part.cells), equal)

    def _agree(self, known: Row, row: Row) -> bool:
        """Note accuracies out of each other's intervals; returns whether all of them are equal."""
        for middle, head in (("accuracy", "accuracy"), ("draw_accuracy_mean", "draw_accuracy")):
            inside = [
                other[f"{head}_low"] <= one[middle] <= other[f"{head}_high"]
                for one, other in ((row, known), (known, row))
            ]
            if not all(inside):
                said = f"{middle} {known[middle]:.4f} on the board, {row[middle]:.4f} anew"
                self._findings.add("a cell computed anew is not what the board says", f"{row_name(known)}: {said}")
        return all(known[name] == row[name] for name in SHARES)

    def _details(self, known: Row) -> list[str]:
        """The columns that differ between cells of equal accuracies; what rounding cannot make of them is noted."""
        found, far = [], []
        if not math.isclose(known["forward_passes"], self._row(known)["forward_passes"], rel_tol=NEAR):
            far.append("forward_passes")
        if _own_flags(known) != _own_flags(self._row(known)):
            far.append("flags")
        for name in ("retention", "uncertainty", "histograms"):
            if f"{name}.csv" not in self._board.present:
                continue
            ours, theirs = (_of(getattr(report, name), place(known)) for report in (self._board.report, self._again))
            for one, other in zip(ours, theirs, strict=True):
                for column in one:
                    if not _alike(column, one[column], other[column], 0.0):
                        found.append(f"{column} of {name}.csv")
                        far += [] if _alike(column, one[column], other[column], NEAR) else [found[-1]]
        if far:
            where = f"{row_name(known)}: {', '.join(dict.fromkeys(far))}"
            self._findings.add("a cell computed anew has the board's accuracies, but not all of its numbers", where)
        return [name for name in dict.fromkeys(found) if name not in far]

    def _row(self, known: Row) -> Row:
        return next(row for row in records(self._again.results) if place(row) == place(known))

    def _compare_models(self, cell: Cell) -> None:
        said, now = (
            {(row["defense"], row["seed"]): row["posterior"] for row in records(report.models)}
            for report in (self._board.report, self._again)
        )
        which = cell.defense.label, cell.seed
        if which in said and said[which] != now.get(which):
            text = f"{which[0]}, seed {which[1]}: {said[which]} on the board, {now.get(which)} anew"
            self._findings.add("a training has another posterior than the board says", text)


def _of(frame: pd.DataFrame, where: Place) -> list[dict[str, Any]]:
    return [row for row in records(frame) if place(row) == where]


def _own_flags(row: Row) -> list[str]:
    return [flag for flag in row["flags"].split(";") if flag in ("one_draw", "vanished_gradients")]


def _alike(column: str, one: Any, other: Any, near: float) -> bool:
    """Whether two values of a table are the same; numbers and counts up to a share of the larger."""
    if column == "counts":
        before, after = (list(map(int, text.split())) for text in (one, other))
        moved = sum(abs(here - there) for here, there in zip(before, after, strict=True))
        return moved <= (max(2.0, near * sum(before)) if near else 0)
    if isinstance(one, str) or isinstance(other, str):
        return bool(one == other)
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return bool(abs(one - other) <= near * max(1.0, abs(one), abs(other)))

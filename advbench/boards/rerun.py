"""Computes some of a board's cells anew, from nothing, and compares."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from advbench.boards.board import Board, records
from advbench.boards.findings import Findings, row_name
from advbench.boards.rows import Place, Row, place, place_of
from advbench.describe import plan_lines
from advbench.display import make_display
from advbench.errors import InputError
from advbench.execution import Execution
from advbench.plan import Cell, Plan
from advbench.report.judgements import NUMBERS, Judgement, judgements
from advbench.run import carry_out, prepare
from advbench.scheduler import outstanding
from advbench.store import Store


@dataclass(frozen=True)
class Rerun:
    """What came of computing cells anew.

    Attributes:
        cells: how many were computed.
        equal: in how many of them accuracy and interval are equal to the last digit.
    """

    cells: int
    equal: int


def rerun(
    board: Board,
    count: int,
    execution: Execution,
    findings: Findings,
    say: Callable[[str], None],
    seed: int | None = None,
) -> Rerun:
    """Compute cells of a board anew and note those that come out otherwise.

    The cells are chosen at random among those with a result. They and all that they need, trainings included, are
    computed by the installed versions in a store of their own, which is dropped afterwards. Two accuracies agree where
    each lies within the other's interval.

    Args:
        board: the board.
        count: how many cells, or all where there are no more.
        execution: how to compute; its store is not used.
        findings: where it is noted what does not agree.
        say: is told what it will cost.
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
        say(f"computing {len(part.cells)} cells anew:")
        for line in plan_lines(part, store, every_task=False):
            say(line)
        failed = _compute(part, apart, store)
        found = list(judgements(part, store))
    return _compare(part, rows, found, failed, findings)


def part_of(plan: Plan, cells: Sequence[Cell]) -> Plan:
    """The part of a plan that leads to some of its cells: their tasks and whatever those need."""
    wanted = {cell.key for cell in cells}
    for task in reversed(list(plan.tasks.values())):
        if task.key in wanted:
            wanted.update(task.needs)
    return replace(plan, tasks={key: task for key, task in plan.tasks.items() if key in wanted}, cells=tuple(cells))


def _compute(part: Plan, execution: Execution, store: Store) -> dict[str, str]:
    """Carry the plan out; returns why tasks failed, by key."""
    runtime = execution.runtime(part.spec.dataset, part.spec.threads)
    waiting = outstanding(part, store)
    with make_display(part.tasks, waiting) as display:
        outcome = carry_out(
            part, waiting, store, lambda: execution.start(runtime, display.moved, display.printed), display
        )
    return outcome.failed


def _compare(
    part: Plan,
    rows: Mapping[Place, Row],
    found: Sequence[Judgement | None],
    failed: Mapping[str, str],
    findings: Findings,
) -> Rerun:
    equal = 0
    names = ("accuracy", "accuracy_low", "accuracy_high")
    for cell, judgement in zip(part.cells, found, strict=True):
        row = rows[place_of(cell)]
        if judgement is None:
            findings.add("a cell could not be computed anew", f"{row_name(row)}: {failed.get(cell.key, 'no record')}")
            continue
        again = dict(zip(NUMBERS, judgement.numbers, strict=True))
        equal += all(again[name] == row[name] for name in names)
        for one, other in ((again, row), (row, again)):
            if not other["accuracy_low"] <= one["accuracy"] <= other["accuracy_high"]:
                said = f"{row['accuracy']:.4f} on the board, {again['accuracy']:.4f} anew"
                findings.add("a cell computed anew is not what the board says", f"{row_name(row)}: {said}")
                break
    return Rerun(len(part.cells), equal)

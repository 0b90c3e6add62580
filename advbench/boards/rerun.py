"""Recomputation of cells of a board from scratch, and comparison of the results."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from advbench.boards.board import Board
from advbench.boards.check import Findings
from advbench.data.datasets import data_folder
from advbench.errors import InputError
from advbench.grid.execution import Execution
from advbench.grid.inputs import CPU
from advbench.grid.kept import FOLDER, placed
from advbench.grid.plan import Cell, Plan
from advbench.grid.run import WEIGHTS, keep, prepare
from advbench.grid.spec import Choice, narrowed
from advbench.registry import files, pinned
from advbench.store.records import Store

Compute = Callable[[Plan, Execution, Store], Mapping[str, str]]
EQUAL = ("accuracy", "draw_accuracy", "accuracy_interval", "draw_accuracy_interval", "draws", "n_examples", "right")


def rerun(
    board: Board,
    count: int,
    execution: Execution,
    findings: Findings,
    compute: Compute,
    seed: int | None = None,
    *,
    run_files: bool = False,
) -> tuple[int, int]:
    """Recompute cells of a board and report disagreements.

    The cells are chosen at random among those with a record. They and all their inputs, including trainings, are
    computed by the installed versions in a temporary store. Two accuracies agree if each lies within the other's
    interval; this applies to the ensemble's accuracy and to the mean accuracy of a single draw.

    Args:
        board: the board.
        count: number of cells; all if the board has fewer.
        execution: options of the execution; its store is not used.
        findings: collection to which disagreements are added.
        compute: function that executes a plan in a store and returns the reasons of failed tasks, by key.
        seed: seed of the choice; unpredictable by default.
        run_files: import and run the files stored in the board; otherwise only cells that need none are chosen.

    Returns:
        The number of cells, and the number of cells with all `EQUAL` values equal to the last digit.

    Raises:
        InputError: the spec cannot be executed here, the data are missing, or no cell has a record.
    """
    # Cells of out-of-distribution images and known draws have no row in the results, and their data may be unavailable.
    dataset = _in_root(board.spec.dataset, data_folder(execution.data_root))
    device = board.spec.device or CPU
    named = {cell.attack.label for cell in board.plan.cells if cell.attack}
    left = tuple(name for name in board.spec.attacks if name in named) or ("none",)
    spec = board.spec.model_copy(update={"ood": (), "attacks": left, "dataset": dataset, "device": device})
    spec = narrowed(spec, board.spec, set(board.spec.attacks) - named, board.kept_files)
    if run_files:
        for sources in placed(board.sources, board.folder):
            files.know(sources)
    plan = prepare(execution.placed(spec), execution.data_root, None if run_files else board.kept_files)
    if run_files and keep(plan) != keep(board.plan):
        findings.add("a file has other hyperparameters, nets or traits than the board states", FOLDER)
        return 0, 0
    left_out = frozenset() if run_files else board.in_files
    lacking = _lacking(plan)
    left_out |= lacking
    known = {_place(cell): cell.key for cell in board.plan.cells if cell.key in board.records}
    there = [cell for cell in plan.cells if _place(cell) in known and not left_out.intersection(_place(cell)[:3])]
    if not there:
        expected, remedy = "cells with a record, to recompute", ""
        if left_out:
            expected += f", without the files of {', '.join(sorted(left_out))}"
            remedy = "read these files; with --run-files they are imported and run"
        if lacking:
            place = data_folder(execution.data_root) / WEIGHTS
            remedy = f"put the files with the weights of {', '.join(sorted(lacking))} into {place}"
        raise InputError(f"board {board.folder}", expected=expected, got="none", remedy=remedy)
    generator = random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311
    chosen = generator.sample(there, min(count, len(there)))
    needed = {cell.key for cell in chosen}
    for task in reversed(list(plan.tasks.values())):
        if task.key in needed:
            needed.update(task.needs)
    tasks = {key: task for key, task in plan.tasks.items() if key in needed}
    part = Plan(plan.spec, tasks, tuple(chosen))
    equal = 0
    with tempfile.TemporaryDirectory(prefix="advbench-rerun-") as folder:
        execution = replace(execution, store=folder)
        store = execution.open_store()
        failed = compute(part, execution, store)
        for cell in part.cells:
            label, record = plan.tasks[cell.key].label, store.read_record(cell.key)
            if record is None:
                findings.add("a cell could not be recomputed", f"{label}: {failed.get(cell.key, 'unknown')}")
                continue
            before = board.records[known[_place(cell)]]
            equal += _agree(before["result"], record["result"], label, findings)
    return len(part.cells), equal


def _lacking(plan: Plan) -> frozenset[str]:
    """Labels of the plugins that need files unknown to this process, directly or for their initial weights."""
    found = set()
    for cell in plan.cells:
        for choice in filter(None, (cell.defense, cell.attack)):
            start: Choice | None = choice
            while start:
                if pinned.lacking(start.params):
                    found.add(choice.label)
                start = start.init
    return frozenset(found)


def _in_root(dataset: str, root: Path) -> str:
    """Resolve a data set of an untrusted board to a file or folder below the root of data sets.

    Raises:
        InputError: it does not exist.
    """
    kind, colon, path = dataset.partition(":")
    if not path:
        return dataset
    found = root / path
    there = os.path.isfile(found) or os.path.isdir(found)  # excludes devices and pipes
    if not there or not found.resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"data set {dataset!r} of the board",
            expected=f"a file or folder below the data root {root}",
            got="none",
            remedy="set the folder that contains it with --data-root",
        )
    return f"{kind}{colon}{found}"


def _place(cell: Cell) -> tuple[str, str, str, float, int]:
    attack = cell.attack.label if cell.attack else "none"
    return cell.source.label, cell.defense.label, attack, cell.eps, cell.seed


def _agree(before: Mapping[str, Any], now: Mapping[str, Any], label: str, findings: Findings) -> bool:
    """Compare two results of a cell; return True if they are equal to the last digit."""
    for name in ("accuracy", "draw_accuracy"):
        pairs = ((before, now), (now, before))
        inside = [low <= one[name] <= high for one, other in pairs for low, high in [other[f"{name}_interval"]]]
        if not all(inside):
            where = f"{label}: {name} {before[name]:.4f} on the board, {now[name]:.4f} recomputed"
            findings.add("a recomputed cell differs from the board", where)
    return all(before[name] == now[name] for name in EQUAL)

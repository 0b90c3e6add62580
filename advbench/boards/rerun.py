"""Recomputation of cells of a board from scratch, and comparison of the results."""

from __future__ import annotations

import math
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from advbench.boards.board import Board, described
from advbench.boards.check import Findings
from advbench.data.datasets import data_folder
from advbench.data.ood import OodSet, ood_digest
from advbench.errors import AdvbenchError, InputError
from advbench.evaluation.predictions import wilson
from advbench.grid.execution import Execution
from advbench.grid.inputs import CPU
from advbench.grid.kept import FOLDER, Kept, placed
from advbench.grid.plan import Cell, OodCell, Plan
from advbench.grid.run import WEIGHTS, keep, prepare
from advbench.grid.spec import installed, narrowed
from advbench.registry import Kind, files, pinned
from advbench.report.evaluations import unpacked
from advbench.store.records import Store

Compute = Callable[[Plan, Execution, Store], Mapping[str, str]]
BITS = ("right", "draws", "accuracy", "draw_accuracy", "draw_accuracy_min", "draw_accuracy_max")
SAME = 1e-4  # relative tolerance of numbers that follow from the same predictions on another machine
FRACTIONS = re.compile(
    r"draw_accuracy_m\w+|(draw_)?accuracy_interval\.\d+|calibration\.ece|(accepted_errors|detection)\..*|"
    r"retention\.\w+\.area(_interval\.\d+)?|persistence\.\d+\.broken|history\.\d+\.values\..*|training\..*accuracy"
)
MAGNITUDES = re.compile(r"attack\..*passes|statistics\.(tensors\.\d+\.)?(std|kld)")
SCORES = re.compile(r"calibration\.(brier|nll)|uncertainty\.\w+|training\.kl")
EXACT = re.compile(
    r"classifier\..*|statistics\.tensors\.\d+\.(name|weights)|history\.\d+\.step|attack\.(random|stopped_early)|"
    r"classes|draws|enumerated|n_examples|persistence\.\d+\.tries|"
    r"flags\.(?!vanished_gradients|unconverged|nondeterministic_kernels|ties)\w+"  # these depend on rounding
)
TRAINING = 100  # images of a training's fractions, whose number its result does not state; errs towards agreement
SIMILAR = 1e-2  # tolerance of those of the same predicted classes: ranks of images depend on the last digits
FEW = 3  # number of images by which those may differ
LEAST = 0.1  # difference of scores, in nats or squared probabilities, that is none
ALIKE = 2.0  # standard deviations by which two runs agree on which images are right beyond chance, at least
TELLING = 10  # number of right and of wrong images from which that is tested


class Recomputed(NamedTuple):
    """The outcome of a recomputation.

    Attributes:
        cells: number of recomputed cells.
        equal: number of those with equal results to the last digit, times apart.
        left_out: number of cells with a record that could not be chosen.
        reasons: why, one sentence for each plugin.
    """

    cells: int
    equal: int
    left_out: int = 0
    reasons: tuple[str, ...] = ()


def rerun(
    board: Board,
    count: int,
    execution: Execution,
    findings: Findings,
    compute: Compute,
    seed: int | None = None,
    *,
    run_files: bool = False,
) -> Recomputed:
    """Recompute cells of a board and report disagreements.

    The cells are chosen at random among those with a record, with those of known draws and of out-of-distribution
    images. They and all their inputs, including trainings, are computed by the installed versions in a temporary
    store; the records of these trainings are compared as well. Two accuracies agree if each lies within the other's
    interval, or if they differ by one image; this applies to the ensemble's accuracy and to the mean accuracy of a
    single draw. Other fractions and ends of intervals have twice that margin, and passes of an attack, deviations and
    divergences of posteriors, and scores (NLL, Brier, entropies, KL) a factor of two. Flags have to be
    the same unless they depend on rounding, and the right images have to be the same more often than by chance. If the
    predictions (of a training: the weights) are the same, all numbers have to be.

    Args:
        board: the board.
        count: number of cells; all if the board has fewer.
        execution: options of the execution; its store is not used.
        findings: collection to which disagreements are added.
        compute: function that executes a plan in a store and returns the reasons of failed tasks, by key.
        seed: seed of the choice; unpredictable by default.
        run_files: import and run the files stored in the board; otherwise only cells that need none are chosen.

    Raises:
        InputError: the spec cannot be executed here, the data are missing or others, or no cell has a record.
    """
    dataset = _in_root(board.spec.dataset, data_folder(execution.data_root))
    device = board.spec.device or CPU
    ood, absent = _available(board, data_folder(execution.data_root))
    named = {cell.attack.label for cell in board.plan.evaluated if cell.attack and (ood or isinstance(cell, Cell))}
    reasons = _not_installed(board)
    if not run_files:
        reasons = dict.fromkeys(board.in_files, "in a file of the board, which only --run-files runs") | reasons
    defenses = tuple(name for name in board.spec.defenses if name not in reasons)
    left = tuple(name for name in board.spec.attacks if name in named and name not in reasons) or ("none",)
    if not defenses:
        raise _nothing(board, reasons)
    affinity = tuple(name for name in board.spec.affinity or () if name in left)
    part = {"defenses": defenses, "attacks": left, "affinity": affinity}
    spec = board.spec.model_copy(update={**part, "ood": ood, "dataset": dataset, "device": device})
    spec = narrowed(spec, board.spec, {*board.spec.attacks, *board.spec.set}, board.kept_files)
    if run_files:
        for sources in placed(board.sources, board.folder):
            files.know(sources)
    plan = prepare(execution.placed(spec), execution.data_root, None if run_files else board.kept_files.in_files())
    _check_data(plan, board)
    if not _is_stated(keep(plan), keep(board.plan)):
        findings.add("a plugin has other hyperparameters, nets or traits than the board states", FOLDER)
        return Recomputed(0, 0)
    weights = f"without the files with its weights in {data_folder(execution.data_root) / WEIGHTS}"
    reasons |= dict.fromkeys(_lacking(plan), weights)
    reasons |= absent
    known = {place: cell.key for place, cell in _placed(board.plan, board).items() if cell.key in board.records}
    there = [each for each in _placed(plan, board).items() if each[0] in known and not reasons.keys() & {*each[0][:4]}]
    if not there:
        raise _nothing(board, reasons)
    generator = random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311
    chosen = generator.sample(there, min(count, len(there)))
    chosen_part = plan.part({cell.key for _, cell in chosen})
    equal = 0
    with tempfile.TemporaryDirectory(prefix="advbench-rerun-") as folder:
        execution = replace(execution, store=folder)
        store = execution.open_store()
        failed = compute(chosen_part, execution, store)
        for place, cell in chosen:
            label, record = plan.tasks[cell.key].label, store.read_record(cell.key)
            if record is None:
                findings.add("a cell could not be recomputed", f"{label}: {failed.get(cell.key, 'unknown')}")
                continue
            equal += _agree(board.records[known[place]], record, label, findings)
        trained = {(task.defense, task.seed): key for key, task in board.plan.tasks.items() if task.kind == "train"}
        unlike = absent and spec.history  # whose measurements include images that are not here
        for task in chosen_part.tasks.values():
            stated = board.records.get(trained.get((task.defense, task.seed), "")) if task.kind == "train" else None
            if stated and (record := store.read_record(task.key)):
                compared = _without_history if unlike else dict
                _agree(compared(stated), compared(record), task.label, findings)
    left_out = {label for place in known for label in place[:4]} & reasons.keys()
    why = tuple(f"{label} is {reasons[label]}" for label in sorted(left_out))
    return Recomputed(len(chosen), equal, len(known) - len(there), why)


def _check_data(plan: Plan, board: Board) -> None:
    assert plan.identity is not None, "a whole plan"
    if plan.identity.sha256 != board.identity.sha256:
        raise InputError(
            f"data set {plan.identity.name!r} of the board",
            expected=f"content with SHA-256 {board.identity.sha256}",
            got=plan.identity.sha256,
            remedy="set the folder that contains it with --data-root",
        )


def _nothing(board: Board, reasons: Mapping[str, str]) -> InputError:
    why = "; ".join(f"{label} is {reason}" for label, reason in sorted(reasons.items()))
    expected = "cells with a record that can be recomputed here"
    return InputError(f"board {board.folder}", expected=expected, got="none" + (f": {why}" if why else ""))


def _not_installed(board: Board) -> dict[str, str]:
    """Reasons of plugins that need a distribution that is not installed here in the version of the board."""
    found: dict[str, str] = {}
    for label, parts in board.needs.items():
        for part in parts:
            try:
                net = part in (board.kept_files.net, *(each.net for each in board.kept_files.choices.values()))
                kind: Kind = "architecture" if net else "attack" if label in board.spec.attacks else "defense"
                here = part.file is not None or installed(kind, part.name, part.params) == part
            except AdvbenchError:  # unknown here, or with other hyperparameters
                here = False
            if not here:
                found[label] = f"based on {described(part)}, which is not installed here"
    return found


def _is_stated(found: Kept, stated: Kept) -> bool:
    """True if the description of a part of a board is part of the board's."""
    return (
        found.choices.items() <= stated.choices.items()
        and found.net in (None, stated.net)
        and found.parameters.items() <= stated.parameters.items()
    )


def _lacking(plan: Plan) -> frozenset[str]:
    """Labels of the plugins that need files unknown to this process, directly or for their initial weights."""
    needs = (choice for choice in plan.choices() if any(pinned.lacking(each.params) for each in choice.lineage))
    return frozenset(choice.label for choice in needs)


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
            got="one outside it" if there else "none",
            remedy="set the folder that contains it with --data-root",
        )
    return f"{kind}{colon}{found}"


def _available(board: Board, root: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """The board's out-of-distribution data sets below the root of data sets, and why others are left out."""
    found, reasons = [], {}
    for name, stated in zip(board.spec.ood, board.identity.foreign, strict=True):
        try:
            here = _in_root(name, root)
            if ood_digest(here, str(root)) == stated.sha256:
                found.append(here)
            else:
                reasons[_of(stated)] = f"with other images in {root}"
        except AdvbenchError:
            reasons[_of(stated)] = f"without its images in {root}"
    return tuple(found), reasons


def _of(images: OodSet) -> str:
    return f"ood:{images.label}"


def _placed(plan: Plan, board: Board) -> dict[tuple[str, str, str, str, float, int], Cell | OodCell]:
    """Cells by labels of source, defense, attack and out-of-distribution images on the board, radius and seed."""
    assert plan.identity is not None, "a whole plan"
    labels = {each.sha256: _of(each) for each in board.identity.foreign}
    ood = {each.label: labels[each.sha256] for each in plan.identity.foreign}
    placed = {}
    for cell in plan.evaluated:
        source, images = (cell.source, "") if isinstance(cell, Cell) else (cell.defense, ood[cell.name])
        attack = cell.attack.label if cell.attack else "none"
        placed[source.label, cell.defense.label, attack, images, cell.eps, cell.seed] = cell
    return placed


def _without_history(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record, "result": {name: value for name, value in record["result"].items() if name != "history"}}


def _agree(board: Mapping[str, Any], found: Mapping[str, Any], label: str, findings: Findings) -> bool:
    """Compare two records of a task; return True if their results are equal to the last digit, times apart."""
    before, now = board["result"], found["result"]
    images = now.get("n_examples", TRAINING)
    apart = ""
    for name in [each for each in ("accuracy", "draw_accuracy") if each in before and each in now]:
        pairs = ((before, now), (now, before))
        inside = [low <= one[name] <= high for one, other in pairs for low, high in [other[f"{name}_interval"]]]
        if not all(inside) and not _is_one_image(before[name], now[name], images):
            apart = apart or f"{name} {before[name]:.4f} on the board, {now[name]:.4f} recomputed"
    if not apart and not _same_images(before, now):
        apart = "images that are right on the board are so no more often than others when recomputed"
    ours, theirs = dict(_values(before)), dict(_values(now))
    if not apart:
        tolerance = _tolerance(board, found)
        differing = (
            name
            for name in sorted(ours.keys() | theirs.keys())
            if not _is_close(name, ours.get(name), theirs.get(name), images, tolerance)
        )
        name = next(differing, "")
        apart = name and f"{name} {_shown(ours.get(name))} on the board, {_shown(theirs.get(name))} recomputed"
    if apart:
        what = "cell" if found["kind"] == "evaluate" else "training"
        findings.add(f"a recomputed {what} differs from the board", f"{label}: {apart}")
    return ours == theirs


def _tolerance(board: Mapping[str, Any], found: Mapping[str, Any]) -> float | None:
    """Relative tolerance of numbers other than accuracies; None if predictions or weights differ.

    Equal bits alone prove nothing where nearly all images are right or wrong, which weights that differ by rounding
    errors, amplified in training, can have in common.
    """
    if board["artifact"] == found["artifact"]:
        return SAME
    before, now = board["result"], found["result"]
    telling = 0.1 <= now.get("accuracy", math.nan) <= 0.9
    return SIMILAR if telling and all(before[name] == now[name] for name in BITS) else None


def _values(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers and texts in a result by dotted name, without times."""
    if isinstance(value, Mapping | list | tuple):
        if name == "flags":  # a set
            value = dict.fromkeys(value, True)
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            step = str(key).replace(".", r"\.")
            if key != "seconds":
                yield from _values(part, f"{name}.{step}" if name else step)
    else:
        yield name, value


def _is_close(name: str, ours: Any, theirs: Any, images: int, tolerance: float | None) -> bool:
    parts = name.split(".")
    first, last = parts[0], parts[-1]
    if ours == theirs:
        return True
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (ours, theirs))
    if tolerance is not None:
        text = first == "audit" and last in ("sentence", "means", "next")  # which contain rounded numbers
        text |= tolerance != SAME and first == "flags" and not EXACT.fullmatch(name)
        scale = images if first == "histograms" else 1
        least = max(tolerance, FEW / images) if tolerance == SIMILAR else tolerance
        return text or (numbers and math.isclose(ours, theirs, rel_tol=tolerance, abs_tol=least * scale))
    if EXACT.fullmatch(name):
        return False
    if numbers and (MAGNITUDES.fullmatch(name) or SCORES.fullmatch(name)):
        alike = min(ours, theirs) * 2 >= max(ours, theirs)  # these are not negative
        return bool(alike or (SCORES.fullmatch(name) and abs(ours - theirs) <= LEAST))
    if not FRACTIONS.fullmatch(name):
        return True
    pairs = ((ours, theirs), (theirs, ours))
    return numbers and (
        _is_one_image(ours, theirs, images)
        # A quarter of the images doubles the margin.
        or all(low <= one <= high for one, other in pairs for low, high in [_margin(other, images / 4)])
    )


def _same_images(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """False if two runs agree on which images are right no more often than by chance, where there are enough.

    The agreement is Pearson's phi of the two masks, whose standard deviation by chance is 1 / sqrt(N).
    """
    if None in (before.get("right"), now.get("right")) or before["n_examples"] != now["n_examples"]:
        return True
    masks = unpacked([before["right"], now["right"]], now["n_examples"]).astype(float)
    right = masks.sum(1)
    if min(right.min(), (masks.shape[1] - right).min()) < TELLING:
        return True
    return bool(np.corrcoef(masks)[0, 1] * masks.shape[1] ** 0.5 >= ALIKE)


def _is_one_image(one: float, other: float, images: int) -> bool:
    """True if two fractions differ by an image at most, such as 0 and 1/n, whose interval is above 0."""
    return abs(one - other) * images <= 1 + SAME


def _margin(fraction: float, size: float) -> tuple[float, float]:
    return wilson(min(max(fraction, 0.0), 1.0), size)


def _shown(value: Any) -> str:
    return "missing" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)

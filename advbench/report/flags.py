"""Flags of unreliable evaluations, from a run's cells (Carlini et al. 2019; Athalye et al. 2018).

All compare 95 % intervals, so that noise does not raise flags.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from advbench.grid.plan import Cell
from advbench.report.evaluations import Evaluation

UNCONVERGED = "unconverged"
FLAGS = {
    "misleads_attacks": "cheap checks of the classifier failed, so accuracies under attack are upper bounds: "
    "run advbench "
    "audit for the failed checks and next steps",
    "no_gradient": "the classifier has no gradient, so this attack left the images unchanged: only attacks "
    "without gradients are informative; run square and transfer",
    "one_draw": "a random defense was evaluated with one draw: the intervals do not cover other draws; raise --draws",
    "equal_draws": "all draws of a random defense are equal: its randomness has no effect; the accuracy is that of a "
    "deterministic classifier",
    "ties": "the largest probabilities are equal on over 1 % of images: predictions there depend on the order of the "
    "classes, the first of which counts; find what rounds, clips, saturates or shrinks the logits (a few "
    "members of an ensemble that disagree tie as well)",
    "unseeded": "the defense draws random numbers without a seed: results are not reproducible; draw from "
    "torch's global generator",
    "probabilities": "the defense returns probabilities in place of logits, which masks gradients: "
    "accuracies under gradient attacks are upper bounds; return logits",
    "train_mode": "batch norm is in train mode: predictions depend on the other images of a batch; call eval()",
    "nondeterministic_kernels": "nondeterministic GPU kernels were used, so a repetition may give a different number",
    "at_chance": "the accuracy on clean images is not demonstrably above chance: the training failed, or the images "
    "differ from those of training; change its hyperparameters, or start from trained weights (init_from)",
    "vanished_gradients": "over 1 % of the attack's gradients were exactly zero: the accuracy is an "
    "upper bound; run attacks without gradients (square, transfer)",
    "single_step_stronger": "an attack with one step is stronger than this one with many: the accuracy is an "
    "upper bound; "
    "run worst_case, and advbench audit",
    "black_box_stronger": "examples crafted without this defense's gradients are stronger than the best "
    "crafted with them: "
    "its gradients mislead, and the lowest accuracy is an upper bound; run square with more queries, and "
    "advbench audit",
    "rises_with_eps": "accuracy is higher than at a smaller eps: the attack fails here, and the lower "
    "accuracy is valid; "
    "raise its steps, or run with --sweep",
    "above_chance_at_eps_1": "accuracy is above chance although any image can become any other: the attack fails; run "
    "advbench audit",
    UNCONVERGED: "the attack reached its limit before convergence was shown: the accuracy is an upper bound",
}


def raised(note: str) -> list[str]:
    """Flags in the column `flags` of a row, which otherwise gives the reason of a missing result."""
    return [] if note.startswith(("failed", "missing")) else [flag for flag in note.split(";") if flag]


class _Seen(NamedTuple):
    """An attacked cell with its evaluation."""

    place: int
    line: tuple[str, str]  # attack and source
    eps: float
    low: float
    high: float
    classes: int
    white_box: bool
    mixed: bool  # has components with and without gradients, so counts as neither
    single_step: bool


def suspicious(cells: Sequence[Cell], evaluations: Sequence[Evaluation | None], norm: str) -> dict[int, list[str]]:
    """Flags from comparisons between cells, by position of the cell.

    Args:
        cells: cells of a run.
        evaluations: their evaluations; None if missing.
        norm: norm of the run.
    """
    groups: dict[tuple[str, int], list[_Seen]] = {}
    found: dict[int, set[str]] = {}
    for index, (cell, evaluation) in enumerate(zip(cells, evaluations, strict=True)):
        if evaluation is not None and cell.attack is None and evaluation.interval[0] <= 1 / evaluation.classes:
            found[index] = {"at_chance"}
        # Keeping the predicted class is not a failure of an attack that aims at high uncertainty.
        if evaluation is not None and (attack := cell.attack) is not None and "doubt" not in attack.traits:
            line = attack.label, cell.source.label
            white_box = cell.source.label == cell.defense.label and "black_box" not in attack.traits
            single_step = attack.passes is not None and attack.passes <= 1
            mixed, found_in = "mixed" in attack.traits, evaluation.interval
            seen = _Seen(index, line, cell.eps, *found_in, evaluation.classes, white_box, mixed, single_step)
            groups.setdefault((cell.defense.label, cell.seed), []).append(seen)
    for group in groups.values():
        for seen, flag in _of_one_defense(group, norm):
            found.setdefault(seen.place, set()).add(flag)
    return {index: [flag for flag in FLAGS if flag in flags] for index, flags in found.items()}


def _of_one_defense(group: list[_Seen], norm: str) -> Iterator[tuple[_Seen, str]]:
    radii: dict[float, list[_Seen]] = {}
    lines: dict[tuple[str, str], list[_Seen]] = {}
    for seen in sorted(group, key=lambda seen: seen.eps):
        radii.setdefault(seen.eps, []).append(seen)
        lines.setdefault(seen.line, []).append(seen)
    for alike in radii.values():
        yield from _at_one_eps(alike)
    for line in lines.values():
        lowest = math.inf
        for seen in line:
            if lowest < seen.low:
                yield seen, "rises_with_eps"
            lowest = min(lowest, seen.high)
    for seen in group:
        if norm == "linf" and seen.white_box and seen.eps >= 1 and seen.low > 1 / seen.classes:
            yield seen, "above_chance_at_eps_1"


def _at_one_eps(group: list[_Seen]) -> Iterator[tuple[_Seen, str]]:
    white = [seen for seen in group if seen.white_box]
    others = [seen for seen in group if not seen.white_box]
    quick = [seen for seen in white if seen.single_step]
    for seen in white:
        if not seen.single_step and any(one.high < seen.low for one in quick):
            yield seen, "single_step_stronger"
    pure = [seen for seen in white if not seen.mixed] or white
    best = min(pure, key=lambda seen: (seen.low + seen.high, seen.place), default=None)
    if best and any(seen.high < best.low for seen in others):
        yield best, "black_box_stronger"

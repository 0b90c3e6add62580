"""Signs that an evaluation cannot be trusted, read off a run's cells (Carlini et al. 2019; Athalye et al. 2018).

All of them compare 95 % intervals, so that noise alone raises none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from advbench.grid.plan import Cell
from advbench.report.evaluations import Evaluation

UNCONVERGED = "unconverged"
FLAGS = {
    "misleads_attacks": "cheap checks of the classifier failed, so numbers under attack are upper bounds: run advbench "
    "audit, which names the checks and what to run",
    "no_gradient": "the classifier lets no gradient through, so this attack left the images as they are: only attacks "
    "without gradients say anything; run square and transfer",
    "one_draw": "a random defense was evaluated with one draw: the intervals do not cover other draws; raise --draws",
    "equal_draws": "all draws of a random defense are equal: its randomness does not act; the number is that of a "
    "deterministic classifier",
    "unseeded": "the defense draws random numbers that no seed reaches: its results cannot be repeated; draw from "
    "torch's global generator",
    "probabilities": "the defense returns probabilities in place of logits, which hides gradients from attacks: "
    "numbers of gradient attacks are upper bounds; return logits",
    "train_mode": "batch norm is in train mode: predictions depend on the other images of a batch; call eval()",
    "nondeterministic_kernels": "kernels of the GPU ran that may give another number when the cell is repeated",
    "vanished_gradients": "over 1 % of the gradients that the attack asked for were exactly zero: the number is an "
    "upper bound; run attacks without gradients (square, transfer)",
    "single_step_stronger": "an attack of one step does more harm than this one of many: the number is an upper bound; "
    "run worst_case, and advbench audit",
    "black_box_stronger": "examples made without this defense's gradients do more harm than the best made with them: "
    "its gradients mislead, and the lowest number is an upper bound; run square with more queries, and advbench audit",
    "rises_with_eps": "accuracy is higher than at a smaller eps: the attack fails here, and the lower number holds; "
    "raise its steps, or run with --sweep",
    "above_chance_at_eps_1": "accuracy is above chance although any image may become any other: the attack fails; run "
    "advbench audit",
    UNCONVERGED: "the attack reached its limit before it was shown to lower the accuracy no more: an upper bound",
}


def raised(note: str) -> list[str]:
    """The flags in the column `flags` of a row, which else says why there is no result."""
    return [] if note.startswith(("failed", "missing")) else [flag for flag in note.split(";") if flag]


class _Seen(NamedTuple):
    """An attacked cell with its result."""

    place: int
    line: tuple[str, str]  # attack and source
    eps: float
    low: float
    high: float
    classes: int
    white_box: bool
    mixed: bool  # of parts with and without gradients, which counts as neither kind
    single_step: bool


def suspicious(cells: Sequence[Cell], evaluations: Sequence[Evaluation | None], norm: str) -> dict[int, list[str]]:
    """The flags that arise between cells, by the cell's position.

    Args:
        cells: of a run.
        evaluations: their results; None where one is missing.
        norm: of the run.
    """
    groups: dict[tuple[str, int], list[_Seen]] = {}
    for index, (cell, evaluation) in enumerate(zip(cells, evaluations, strict=True)):
        # To leave the class as it is is no failure of an attack that is after doubt.
        if evaluation is not None and (attack := cell.attack) is not None and "doubt" not in attack.traits:
            line = attack.label, cell.source.label
            white_box = cell.source.label == cell.defense.label and "black_box" not in attack.traits
            single_step = attack.passes is not None and attack.passes <= 1
            mixed, found_in = "mixed" in attack.traits, evaluation.interval
            seen = _Seen(index, line, cell.eps, *found_in, evaluation.classes, white_box, mixed, single_step)
            groups.setdefault((cell.defense.label, cell.seed), []).append(seen)
    found: dict[int, set[str]] = {}
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

"""Signs that an evaluation cannot be trusted, read off a run's cells (Carlini et al. 2019; Athalye et al. 2018).

All of them compare 95 % intervals, so that noise alone raises none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from advbench.grid.plan import Cell
from advbench.grid.spec import Choice
from advbench.report.evaluations import Evaluation

FLAGS = {
    "one_draw": "a random defense was evaluated with one draw: the intervals do not cover other draws",
    "vanished_gradients": "over 1 % of the gradients that the attack asked for were exactly zero",
    "single_step_stronger": "an attack of one step does more harm than this one of many",
    "black_box_stronger": "examples made without this defense's gradients do more harm than the best made with them",
    "rises_with_eps": "accuracy is higher than at a smaller eps",
    "above_chance_at_eps_1": "accuracy is above chance although any image may become any other",
    "unconverged": "accuracy was still falling at the end of a curve, or along draws still changing",
}


def raised(note: str) -> list[str]:
    """The flags in the column `flags` of a row, which else says why there is no result."""
    return [] if note.startswith(("failed", "missing")) else [flag for flag in note.split(";") if flag]


class _Seen(NamedTuple):
    """A cell with what its record says."""

    place: int
    cell: Cell
    attack: Choice
    low: float
    high: float
    classes: int

    @property
    def white_box(self) -> bool:
        return self.cell.source.label == self.cell.defense.label and "black_box" not in self.attack.traits

    @property
    def single_step(self) -> bool:
        return self.attack.passes is not None and self.attack.passes <= 1


def suspicious(cells: Sequence[Cell], evaluations: Sequence[Evaluation | None], norm: str) -> dict[int, list[str]]:
    """The flags that arise between cells, by the cell's position.

    Args:
        cells: of a run.
        evaluations: their results; None where one is missing.
        norm: of the run.
    """
    groups: dict[tuple[str, int], list[_Seen]] = {}
    for index, (cell, evaluation) in enumerate(zip(cells, evaluations, strict=True)):
        if evaluation is not None and cell.attack is not None:
            seen = _Seen(index, cell, cell.attack, *evaluation.interval, evaluation.classes)
            groups.setdefault((cell.defense.label, cell.seed), []).append(seen)
    found: dict[int, set[str]] = {}
    for group in groups.values():
        for seen, flag in _of_one_defense(group, norm):
            found.setdefault(seen.place, set()).add(flag)
    return {index: [flag for flag in FLAGS if flag in flags] for index, flags in found.items()}


def _of_one_defense(group: list[_Seen], norm: str) -> Iterator[tuple[_Seen, str]]:
    radii: dict[float, list[_Seen]] = {}
    for seen in group:
        radii.setdefault(seen.cell.eps, []).append(seen)
    for alike in radii.values():
        yield from _at_one_eps(alike)
    lines: dict[tuple[str, str], list[_Seen]] = {}
    for seen in sorted(group, key=lambda seen: seen.cell.eps):
        lines.setdefault((seen.attack.label, seen.cell.source.label), []).append(seen)
    for line in lines.values():
        lowest = math.inf
        for seen in line:
            if lowest < seen.low:
                yield seen, "rises_with_eps"
            lowest = min(lowest, seen.high)
    for seen in group:
        if norm == "linf" and seen.white_box and seen.cell.eps >= 1 and seen.low > 1 / seen.classes:
            yield seen, "above_chance_at_eps_1"


def _at_one_eps(group: list[_Seen]) -> Iterator[tuple[_Seen, str]]:
    white = [seen for seen in group if seen.white_box]
    others = [seen for seen in group if not seen.white_box]
    quick = [seen for seen in white if seen.single_step]
    for seen in white:
        if not seen.single_step and any(one.high < seen.low for one in quick):
            yield seen, "single_step_stronger"
    best = min(white, key=lambda seen: (seen.low + seen.high, seen.place), default=None)
    if best and any(seen.high < best.low for seen in others):
        yield best, "black_box_stronger"

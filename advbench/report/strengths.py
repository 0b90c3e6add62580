"""`attacks.csv`: excess of each attack's accuracies over the lowest ones, and its number of passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from advbench.evaluation import Bools, Floats, Spread, difference_intervals
from advbench.grid.plan import Cell
from advbench.grid.spec import Choice
from advbench.report.areas import DIGITS
from advbench.report.evaluations import Evaluation, correct, is_own

STRENGTH_COLUMNS = (
    "attack kind cells above_mean above_mean_low above_mean_high above_worst worst_defense worst_eps passes"
).split()


@dataclass
class _Attack:
    """Results of an attack over its cells."""

    kind: str
    passes: list[float] = field(default_factory=list)  # forward and backward passes per image
    cells: int = 0  # number of cells with another attack
    above: dict[int, Floats] = field(default_factory=dict)  # excess per image, summed over the cells of a seed
    at: dict[tuple[str, float], list[float]] = field(default_factory=dict)  # excess per seed, by defense and eps

    def row(self) -> list[Any]:
        passes = math.fsum(self.passes) / len(self.passes)
        if not self.cells:
            return [self.kind, 0, math.nan, math.nan, math.nan, math.nan, "", math.nan, passes]
        table = np.stack(list(self.above.values())) * len(self.above) / self.cells
        weights = np.full(round(self.cells / len(self.above)), len(self.above) / self.cells)
        # All evaluations of a defense and seed use the same draws, so draws add no variance.
        ((low, high),) = difference_intervals(table[None], weights, [Spread(0.0, math.inf)])
        means = {where: math.fsum(each) / len(each) for where, each in self.at.items()}
        worst = max(means, key=lambda where: means[where])
        numbers = [round(float(each), DIGITS) for each in (table.mean(), low, high, means[worst])]
        where = worst if means[worst] > 0 else ("", math.nan)
        return [self.kind, self.cells, *numbers, *where, passes]


def attack_table(cells: Sequence[Cell], evaluations: Sequence[Evaluation | None]) -> pd.DataFrame:
    """One row per attack on accuracy, ordered by lowest accuracies.

    In each cell (defense, eps, seed) with at least two attacks, an attack is compared with the strongest one on the
    same images. The images are split at random into halves: the strongest attack is selected on one half and compared
    on the other, and vice versa. Otherwise the minimum of several noisy accuracies would be biased, and equal attacks
    would seem to exceed it.

    Args:
        cells: cells of a run.
        evaluations: their evaluations.
    """
    groups: dict[tuple[str, float, int], list[tuple[_Attack, Evaluation]]] = {}
    attacks: dict[str, _Attack] = {}
    for cell, found in zip(cells, evaluations, strict=True):
        # An attack that aims at high uncertainty keeps the class.
        if found is None or cell.attack is None or "doubt" in cell.attack.traits or not is_own(cell):
            continue
        attack = attacks.setdefault(cell.attack.label, _Attack(_kind(cell.attack)))
        attack.passes.append(found.numbers[10] + found.numbers[11])
        if found.right is not None:
            groups.setdefault((cell.defense.label, cell.eps, cell.seed), []).append((attack, found))
    for (defense, eps, seed), alike in groups.items():
        if len(alike) > 1:
            right = correct([found for _, found in alike])
            for (attack, _), above in zip(alike, right - _strongest(right), strict=True):
                attack.cells += 1
                attack.above[seed] = attack.above.get(seed, 0.0) + above
                attack.at.setdefault((defense, eps), []).append(float(above.mean()))
    table = pd.DataFrame([[name, *attack.row()] for name, attack in attacks.items()], columns=STRENGTH_COLUMNS)
    return table.sort_values(["above_mean", "passes"], kind="stable").reset_index(drop=True)


def _strongest(right: Bools) -> Floats:
    """Correctness per image of the attack with the lowest accuracy on the other half; the mean over ties.

    Args:
        right: mask of correct predictions of each attack, `(attacks, N)`.
    """
    count = right.shape[1]
    found = np.empty(count)
    halves = np.array_split(np.random.default_rng(0).permutation(count), 2)  # independent of the order of the images
    for half, other in (halves, reversed(halves)):
        accuracies = right[:, other if len(other) else half].mean(1)
        found[half] = right[accuracies == accuracies.min()][:, half].mean(0)
    return found


def _kind(attack: Choice) -> str:
    """Kind of an attack: knowledge, and its aim if that is more than an error."""
    if attack.init is not None:
        kind = "transfer"
    elif "black_box" in attack.traits:
        kind = "black box"
    else:
        kind = "mixed" if "mixed" in attack.traits else "white box"
    aims = {"a_draw": "another draw", "certain_error": "certain errors"}
    return ", ".join([kind, *(aim for trait, aim in aims.items() if trait in attack.traits)])

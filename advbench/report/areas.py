"""`areas.csv` and `differences.csv`: the basis of the ranking, from predictions per image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from advbench.evaluation import Floats, Spread, area_interval, area_weights, difference_intervals
from advbench.report.evaluations import Evaluation, correct
from advbench.report.leaderboard import CLEAN, Measured, accuracies, own_rows, worst_cases

AREA_COLUMNS = "dataset architecture defense norm seeds n_examples area area_low area_high area_sd".split()
DIFFERENCE_COLUMNS = "defense other eps difference difference_low difference_high".split()
AREA = -1.0  # in place of a radius
DIGITS = 6  # decimals of interval ends, independent of processors' rounding


class _Scores(NamedTuple):
    """Scores of a defense per image, which average to its area or to its lowest accuracy at one radius."""

    table: Floats  # weighted sum over the radii of correct predictions, `(seeds, N)`
    weights: Floats  # weights of the radii
    draws: Spread  # variance of the score due to draws; 0 for several seeds, whose variation includes it

    @property
    def mean(self) -> float:
        return float(self.table.mean())

    def interval(self) -> tuple[float, ...]:
        return tuple(round(end, DIGITS) for end in area_interval(self.table, self.weights, self.draws))


def area_tables(results: pd.DataFrame, evaluations: Sequence[Evaluation | None]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Area of each defense, and difference of each pair with known predictions per image.

    At each radius the attack with the lowest accuracy, averaged over seeds, counts; without attacks, clean images
    count.

    The differences are of the areas (`eps` is NaN) and, with several radii, of the lowest accuracies at each.

    Args:
        results: `results.csv`.
        evaluations: evaluation of each row.
    """
    own = results[own_rows(results)]
    seeds = sorted(own.seed.unique())
    place = {
        row: index
        for index, row in zip(
            own.index, own[["defense", "attack", "eps", "seed"]].itertuples(index=False, name=None), strict=True
        )
    }
    by_defense = accuracies(own, len(seeds))
    rows: list[tuple[Any, ...]] = []
    known: dict[str, dict[float, _Scores]] = {}
    for first in own.drop_duplicates("defense").itertuples():
        name = str(first.defense)
        chosen = _chosen(by_defense[name])
        area = [math.nan] * 4
        if not any(each.missing for each in chosen.values()):
            weights = area_weights([eps for _, eps in chosen])
            cells = [[place[name, *where, seed] for where in chosen] for seed in seeds]
            of_seeds = [math.fsum(weights * results.accuracy[some].to_numpy(float)) for some in cells]
            found = _scores([[evaluations[each] for each in some] for some in cells], [eps for _, eps in chosen])
            ends = found[AREA].interval() if found else (math.nan, math.nan)
            if found:
                known[name] = found
            deviation = float(np.std(of_seeds, ddof=1)) if len(seeds) > 1 else math.nan
            area = [round(math.fsum(of_seeds) / len(seeds), 12), *ends, deviation]
        images = own.n_examples[own.defense == name].max()
        head = (first.dataset, first.architecture, name, first.norm, len(seeds), images)
        rows.append((*head, *area))
    areas = pd.DataFrame(rows, columns=AREA_COLUMNS).astype({"n_examples": "Int64"})
    return areas, _differences(known)


def _chosen(cells: Mapping[tuple[str, float], Measured]) -> dict[tuple[str, float], Measured]:
    """Strongest attack and eps at each radius, ascending."""
    worst = worst_cases(cells)
    return {(each.attack, eps): each.accuracy for eps, each in worst.items()} or {CLEAN: cells.get(CLEAN, Measured())}


def _scores(found: list[list[Evaluation | None]], radii: Sequence[float]) -> dict[float, _Scores]:
    """Scores by radius, `AREA` first, from the evaluations of each seed and radius; of the area alone with one radius.

    Empty if an evaluation lacks predictions per image.
    """
    cells = [each for some in found for each in some if each is not None and each.right is not None]
    if len(cells) < len(found) * len(radii):
        return {}
    weights, verdicts = area_weights(radii), correct(cells).reshape(len(found), len(radii), -1).astype(np.float64)
    # All evaluations of a seed use the same draws, so their variances at the radii are fully correlated.
    shifts = np.sqrt([each.draw_variance for each in cells[: len(radii)]]) * (len(found) == 1)
    freedom = max(1.0, min(each.numbers[1] for each in cells) - 1)
    table = np.einsum("r,srn->sn", weights, verdicts)
    scores = {AREA: _Scores(table, weights, Spread(math.fsum(weights * shifts) ** 2, freedom))}
    for place, eps in enumerate(radii if len(radii) > 1 else ()):
        scores[eps] = _Scores(verdicts[:, place], np.ones(1), Spread(float(shifts[place]) ** 2, freedom))
    return scores


def paired_difference(ones: Sequence[Evaluation], others: Sequence[Evaluation]) -> Measured | None:
    """Difference of two accuracies on the same images, as in `differences.csv`; None without predictions per image.

    Args:
        ones: an evaluation for each seed.
        others: likewise, of the same seeds.
    """
    found = [_scores([[each] for each in some], [0.0]) for some in (ones, others)]
    if not all(found):
        return None
    one, other = (scores[AREA] for scores in found)
    tables = (one.table - other.table)[None]
    ((low, high),) = difference_intervals(tables, one.weights, [_sum(one.draws, other.draws)]).round(DIGITS).tolist()
    return Measured(one.mean - other.mean, low, high)


def _differences(known: Mapping[str, Mapping[float, _Scores]]) -> pd.DataFrame:
    """Rows of `differences.csv`: of the areas of all pairs, then of the accuracies at each radius."""
    rows: list[tuple[Any, ...]] = []
    for eps in sorted({eps for scores in known.values() for eps in scores}):
        scores = {name: each[eps] for name, each in known.items() if eps in each}
        names = list(scores)
        for index, name in enumerate(names[:-1]):
            one, others = scores[name], [scores[other] for other in names[index + 1 :]]
            tables = one.table - np.stack([each.table for each in others])
            draws = [_sum(one.draws, each.draws) for each in others]
            ends = difference_intervals(tables, one.weights, draws).round(DIGITS).tolist()
            place = math.nan if eps == AREA else eps
            for other, score, interval in zip(names[index + 1 :], others, ends, strict=True):
                rows.append((name, other, place, round(one.mean - score.mean, 12), *interval))
    return pd.DataFrame(rows, columns=DIFFERENCE_COLUMNS)


def _sum(one: Spread, other: Spread) -> Spread:
    """Variance of the difference of two independent quantities, with Satterthwaite's degrees of freedom."""
    variance = one.variance + other.variance
    scatter = one.variance**2 / one.freedom + other.variance**2 / other.freedom
    return Spread(variance, variance**2 / scatter if scatter else math.inf)

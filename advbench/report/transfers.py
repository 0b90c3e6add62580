"""The affinity of every pair of defenses (Adv-BNN eq. 17), with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from advbench.evaluation import HARMLESS, MISSING, affinities, affinity_intervals, resampled_accuracies
from advbench.report.judgements import Judgement, correct

COLUMNS = (
    "dataset architecture attack norm eps seed source target affinity affinity_low affinity_high clean_accuracy "
    "transfer_accuracy white_box_accuracy reason"
).split()
UNBOUNDED = "no interval: in over 2.5 % of resamples the attack on the target itself does not lower its accuracy"
REASONS = ["", MISSING, HARMLESS, UNBOUNDED]
ABSENT = -1  # in place of the position of a row that is not there

Positions = NDArray[np.int64]


def affinity_table(results: pd.DataFrame, judged: Sequence[Judgement | None] = ()) -> pd.DataFrame:
    """A row for each (attack, eps, seed, source, target); undefined values keep the reason.

    Args:
        results: rows of `results.csv`, without those of attacks that have a source of their own.
        judged: what lies behind each row; without it there are no intervals.
    """
    triples = _triples(results)
    accuracy = np.append(results.accuracy.to_numpy(np.float64, na_value=math.nan), math.nan)[triples]
    known = _known(triples, judged)
    ends = _intervals(triples, known, judged)
    values, reasons = affinities(accuracy)
    for index in np.flatnonzero(known & ~np.isnan(values) & np.isnan(ends[:, 0])):
        reasons[index] = UNBOUNDED
    columns = ["dataset", "architecture", "attack", "norm", "eps", "seed", "source", "defense"]
    table = results[columns].iloc[triples[:, 1]].rename(columns={"defense": "target"})
    table = table.assign(
        affinity=values,
        affinity_low=ends[:, 0].round(6),  # what other processors' rounding leaves alone
        affinity_high=ends[:, 1].round(6),
        clean_accuracy=accuracy[:, 0],
        transfer_accuracy=accuracy[:, 1],
        white_box_accuracy=accuracy[:, 2],
        reason=pd.Categorical(reasons, categories=REASONS),
    )
    return table[COLUMNS].reset_index(drop=True)


def affinity_matrix(cells: pd.DataFrame, names: Sequence[str], column: str = "affinity") -> NDArray[np.float64]:
    """A column of the affinities of one attack and eps, mean over seeds, NaN where one seed's is, `(source, target)`.

    Args:
        cells: rows of the table of affinities.
        names: of the sources and targets, in the order wanted.
        column: which.
    """
    place = {name: index for index, name in enumerate(names)}
    rows, columns = (cells[which].map(place).to_numpy(np.float64, na_value=math.nan) for which in ("source", "target"))
    kept = ~(np.isnan(rows) | np.isnan(columns))
    at = rows[kept].astype(int), columns[kept].astype(int)
    sums, counts = np.zeros((2, len(names), len(names)))
    np.add.at(sums, at, cells[column].to_numpy(np.float64, na_value=math.nan)[kept])
    np.add.at(counts, at, 1.0)
    return np.divide(sums, counts, out=np.full_like(sums, math.nan), where=counts > 0)


def _known(triples: Positions, judged: Sequence[Judgement | None]) -> NDArray[np.bool_]:
    """Of which pairs all three cells are known image by image."""
    known = np.array([each is not None and each.right is not None for each in judged] + [False])
    if not len(judged):
        return np.zeros(len(triples), np.bool_)
    return np.asarray(known[triples].all(axis=1))


def _triples(results: pd.DataFrame) -> Positions:
    """For each attacked row the positions of three: the target clean, itself, and the target's own, `(pairs, 3)`."""
    columns = (results[name].tolist() for name in ("attack", "eps", "seed", "source", "defense"))
    rows = list(zip(*columns, strict=True))
    place = {row: index for index, row in enumerate(rows)}
    found = [
        (
            place.get(("none", 0.0, seed, target, target), ABSENT),
            index,
            place.get((attack, eps, seed, target, target), ABSENT),
        )
        for index, (attack, eps, seed, _, target) in enumerate(rows)
        if attack != "none"
    ]
    return np.array(found, np.int64).reshape(-1, 3)


def _intervals(triples: Positions, known: NDArray[np.bool_], judged: Sequence[Judgement | None]) -> NDArray[np.float64]:
    """95 % intervals of the affinities that are known image by image."""
    ends = np.full((len(triples), 2), math.nan)
    pairs = np.flatnonzero(known)
    step = 2**11  # pairs at a time, to bound memory
    for some in (pairs[start : start + step] for start in range(0, len(pairs), step)):
        used, inverse = np.unique(triples[some], return_inverse=True)
        cells = [each for index in used if (each := judged[index]) is not None]
        spreads = np.array([each.draw_variance for each in cells])
        accuracies = resampled_accuracies(correct(cells), spreads)
        clean, transfer, white = (accuracies[column] for column in inverse.reshape(-1, 3).T)
        ends[some] = affinity_intervals(clean, transfer, white)
    itself = triples[:, 1] == triples[:, 2]
    ends[itself & ~np.isnan(ends[:, 0])] = 1.0
    return ends

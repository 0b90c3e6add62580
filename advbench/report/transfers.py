"""Affinity of every pair of defenses (Adv-BNN eq. 17), with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from advbench.evaluation import HARMLESS, MISSING, affinities, affinity_intervals
from advbench.report.evaluations import Evaluation, correct

COLUMNS = (
    "dataset architecture attack norm eps seed source target affinity affinity_low affinity_high clean_accuracy "
    "transfer_accuracy white_box_accuracy reason"
).split()
UNBOUNDED = "no interval: the attack on the target itself may not lower its accuracy"
REASONS = ["", MISSING, HARMLESS, UNBOUNDED]
ABSENT = -1  # position of a missing row

Positions = NDArray[np.int64]


def affinity_table(results: pd.DataFrame, evaluations: Sequence[Evaluation | None]) -> pd.DataFrame:
    """One row per (attack, eps, seed, source, target), with reasons for undefined values.

    Args:
        results: rows of `results.csv`, without those of attacks with a fixed source.
        evaluations: evaluation of each row.
    """
    triples = _triples(results)
    accuracy = np.append(results.accuracy.to_numpy(np.float64, na_value=math.nan), math.nan)[triples]
    by_image = np.array([each is not None and each.right is not None for each in evaluations] + [False])
    known = np.asarray(by_image[triples].all(axis=1))
    ends = _intervals(triples, known, evaluations)
    values, reasons = affinities(accuracy)
    for index in np.flatnonzero(known & ~np.isnan(values) & np.isnan(ends[:, 0])):
        reasons[index] = UNBOUNDED
    columns = ["dataset", "architecture", "attack", "norm", "eps", "seed", "source", "defense"]
    table = results[columns].iloc[triples[:, 1]].rename(columns={"defense": "target"})
    table = table.assign(
        affinity=values,
        affinity_low=ends[:, 0].round(6),  # independent of processors' rounding
        affinity_high=ends[:, 1].round(6),
        clean_accuracy=accuracy[:, 0],
        transfer_accuracy=accuracy[:, 1],
        white_box_accuracy=accuracy[:, 2],
        reason=pd.Categorical(reasons, categories=REASONS),
    )
    return table[COLUMNS].reset_index(drop=True)


def _triples(results: pd.DataFrame) -> Positions:
    """Positions of the clean, transfer and white-box rows of each attacked row, `(pairs, 3)`."""
    keys = ["attack", "eps", "seed", "source", "defense"]
    place = {row: index for index, row in enumerate(results[keys].itertuples(index=False, name=None))}
    found = [
        (
            place.get(("none", 0.0, seed, target, target), ABSENT),
            index,
            place.get((attack, eps, seed, target, target), ABSENT),
        )
        for (attack, eps, seed, _, target), index in place.items()
        if attack != "none"
    ]
    return np.array(found, np.int64).reshape(-1, 3)


def _intervals(
    triples: Positions, known: NDArray[np.bool_], evaluations: Sequence[Evaluation | None]
) -> NDArray[np.float64]:
    """95 % intervals of affinities with known predictions per image."""
    ends = np.full((len(triples), 2), math.nan)
    pairs = np.flatnonzero(known)
    step = 2**8  # pairs per step, to limit memory
    for some in (pairs[start : start + step] for start in range(0, len(pairs), step)):
        used, inverse = np.unique(triples[some], return_inverse=True)
        cells = [each for index in used if (each := evaluations[index]) is not None]
        spreads, right = np.array([each.draw_variance for each in cells]), correct(cells)
        places = inverse.reshape(-1, 3)
        clean, transfer, white = (right[column] for column in places.T)
        ends[some] = affinity_intervals(clean, transfer, white, spreads[places])
    itself = triples[:, 1] == triples[:, 2]
    ends[itself & ~np.isnan(ends[:, 0])] = 1.0
    return ends

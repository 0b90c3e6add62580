"""The tables below the main one, as texts: affinity, retention, calibration, detection."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from advbench.evaluation.summary import ENTROPIES
from advbench.report.tables import Report
from advbench.report.texts import format_eps, number_text
from advbench.report.transfers import affinity_matrix
from advbench.report.uncertainty import CALIBRATION, SCORES

HEADINGS = {"auroc": "AUROC", "aupr_positive": "AUPR+", "aupr_negative": "AUPR-"}
DETECTED_BY = ("total", "epistemic")
COLOURS = 10  # steps of the scale of colours from affinity 0 to 1


class Table(NamedTuple):
    """A table: headings of its columns, then rows of texts, of which the first is the row's heading."""

    headings: list[str]
    rows: list[list[str]]


class Square(NamedTuple):
    """A cell of the table of affinities: its number, interval, colour's class, and why there is no number."""

    text: str
    interval: str
    colour: str
    note: str
    was_run: bool


def affinity_data(report: Report, names: list[str]) -> dict[str, Any]:
    """The affinities as the script reads them: thousandths, or in a list of its own the position of a reason.

    Returns:
        `reasons`; `eps`; `attacks`, each with `name`; `values`, for each eps a list of sources times targets, None
        where the run has none; `lows` and `highs`, the ends of the intervals at the largest eps.
    """
    table = report.affinity
    crossed = table[table.source != table.target].attack.unique()
    kept = table[table.attack.isin(crossed)]
    radii = sorted(map(float, kept.eps.unique()))
    reasons: dict[str, int] = {}
    attacks: list[dict[str, Any]] = []
    for attack, cells in kept.groupby("attack", sort=False):
        values = []
        lows: list[Any] = []
        highs: list[Any] = []
        for eps in radii:
            block = cells[cells.eps == eps]
            values.append(_thousandths(block, names, "affinity", reasons))
            if eps == radii[-1]:
                lows = _thousandths(block, names, "affinity_low", reasons)
                highs = _thousandths(block, names, "affinity_high", reasons)
        attacks.append({"name": str(attack), "values": values, "lows": lows, "highs": highs})
    return {"eps": list(map(format_eps, radii)), "attacks": attacks, "reasons": list(reasons)}


def _thousandths(block: pd.DataFrame, names: list[str], column: str, reasons: dict[str, int]) -> list[Any]:
    matrix = affinity_matrix(block, names, column)
    known = np.isfinite(matrix)
    flat: list[Any] = np.where(known, np.rint(np.where(known, matrix, 0.0) * 1000), 0).astype(np.int64).ravel().tolist()
    missing = block[block[column].isna()]
    why = dict(zip(zip(missing.source, missing.target, strict=True), missing.reason, strict=True))
    for row, place in zip(*np.nonzero(~known), strict=True):
        reason = why.get((names[row], names[place]))
        index = None if reason is None else [reasons.setdefault(reason or "not known", len(reasons))]
        flat[row * len(names) + place] = index
    return flat


def affinity_squares(data: dict[str, Any], attack: int, size: int) -> list[list[Square]]:
    """The table of affinities of an attack at the largest eps, as the script draws it: a list for each source.

    Args:
        data: of `affinity_data`.
        attack: position of one of its attacks.
        size: how many defenses it has.
    """
    chosen = data["attacks"][attack]
    ends = zip(chosen["values"][-1], chosen["lows"], chosen["highs"], strict=True)
    squares = [_square(*one, data["reasons"]) for one in ends]
    return [squares[start : start + size] for start in range(0, len(squares), size)]


def _square(value: Any, low: Any, high: Any, reasons: list[str]) -> Square:
    if not isinstance(value, int):
        note = reasons[value[0]] if value else "not part of the run"
        return Square("n/a" if value else "not run", "", "none", note, bool(value))
    step = min(COLOURS, max(0, math.floor(value / 100 + 0.5)))
    interval = f"[{low / 1000:.2f}, {high / 1000:.2f}]" if isinstance(low, int) and isinstance(high, int) else ""
    note = reasons[low[0]] if isinstance(low, list) else ""
    return Square(f"{value / 1000:.2f}", interval, f"a{step}", note, was_run=True)


def retention_table(report: Report) -> Table:
    """Accuracy on the surest images by total uncertainty, clean and at the largest eps: a row for each attack."""
    table = report.retention[report.retention.measure == "total"]
    shown = _ends(table)
    if shown.empty:
        return Table([], [])
    kept = sorted(shown.kept.unique())
    seeds = report.results.seed.nunique()
    curves = _mean(shown, ["defense", "attack", "eps", "kept"], ["accuracy"], seeds).accuracy.to_dict()
    rows = [
        [
            str(key[0]),
            images_text(str(key[1]), float(key[2])),
            *(number_text(curves.get((*key, fraction), math.nan)) for fraction in kept),
            number_text(area),
        ]
        for key, area in _mean(shown, ["defense", "attack", "eps"], ["area"], seeds).area.items()
        if isinstance(key, tuple)
    ]
    return Table(["defense", "images", *(f"{fraction:.0%} kept" for fraction in kept), "area"], _in_order(report, rows))


def calibration_table(report: Report) -> Table:
    """Calibration and mean entropies, clean and at the largest eps."""
    shown = _ends(report.uncertainty)
    columns = [*CALIBRATION, *ENTROPIES]
    rows = _means(report, shown[shown.images != "ood"], columns) if shown.ece.notna().any() else []
    headings = ["defense", "images", *(name.upper() for name in CALIBRATION[:2]), "Brier", *ENTROPIES]
    return Table(headings, _in_order(report, rows))


def detection_table(report: Report) -> Table:
    """How well uncertainty tells attacked and out-of-distribution images from clean ones."""
    shown = _ends(report.uncertainty)
    columns = [f"{score}_{measure}" for measure in DETECTED_BY for score in SCORES]
    headings = [f"{HEADINGS[score]} {measure}" for measure in DETECTED_BY for score in SCORES]
    rows = _means(report, shown[shown.images != "clean"], columns)
    return Table(["defense", "to be found", *headings], _in_order(report, rows))


def images_text(attack: str, eps: float) -> str:
    """Which images a row is about."""
    return "clean" if attack == "none" else attack if eps == 0 else f"{attack} {format_eps(eps)}"


def _ends(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of eps 0 and of the largest eps."""
    kept: pd.DataFrame = table[(table.eps == 0) | (table.eps == table.eps.max())]
    return kept


def _mean(shown: pd.DataFrame, keys: list[str], columns: list[str], seeds: int) -> pd.DataFrame:
    """Means over seeds; NaN where one of the seeds is missing, never a mean of the rest."""
    groups = shown.groupby(keys, sort=False)
    gaps = shown[columns].isna().groupby([shown[key] for key in keys], sort=False).any()
    whole = (groups.seed.nunique() == seeds).to_numpy()[:, None]
    return groups[columns].mean().where(whole & ~gaps.to_numpy())


def _means(report: Report, shown: pd.DataFrame, columns: list[str]) -> list[list[str]]:
    if shown.empty:
        return []
    means = _mean(shown, ["defense", "attack", "eps"], columns, report.results.seed.nunique())
    return [
        [str(key[0]), images_text(str(key[1]), float(key[2])), *map(number_text, map(float, values))]
        for key, values in zip(means.index, means.to_numpy(np.float64), strict=True)
    ]


def _in_order(report: Report, rows: list[list[str]]) -> list[list[str]]:
    """Rows in the order of the leaderboard."""
    place = {name: index for index, name in enumerate(report.leaderboard.defense)}
    return sorted(rows, key=lambda row: place.get(row[0], len(place)))

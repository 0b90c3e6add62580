"""The leaderboard: a row for each defense, ranked by its lowest accuracy at the largest radius, or by the clean one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from advbench.report.flags import FLAGS, raised


def own_rows(results: pd.DataFrame) -> pd.Series[bool]:
    """Which rows say how a defense stands up to an attack: crafted on itself, or on the attack's one source."""
    own = results.source == results.defense
    return own | results.attack.isin(with_own_source(results))


def with_own_source(results: pd.DataFrame) -> list[str]:
    """The attacks that have a source of their own: some defense has no row of theirs crafted on itself."""
    own = results.source == results.defense
    pairs = results[["attack", "defense"]].drop_duplicates()
    crafted = set(results[own][["attack", "defense"]].itertuples(index=False, name=None))
    return list(dict.fromkeys(row[0] for row in pairs.itertuples(index=False, name=None) if row not in crafted))


def leaderboard_table(results: pd.DataFrame, retention: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """A row for each defense: clean accuracy, accuracy under each attack, the lowest of them, and its rank.

    Several seeds: mean of accuracies and of interval ends (images are shared, so seeds do not narrow them),
    and the deviation over seeds.
    """
    own = results[own_rows(results)]
    headline = own.eps.max()
    areas = _areas(retention)
    accuracies = _accuracies(own)
    rows = []
    for defense, mine in own.groupby("defense", sort=False):
        columns: dict[str, dict[str, float]] = {"clean": dict.fromkeys(("clean", "clean_low", "clean_high"), math.nan)}
        at_headline: dict[str, dict[str, float]] = {}
        for attack, eps, found in accuracies[str(defense)]:
            name = "clean" if attack == "none" else f"{attack}@{eps:.10g}"
            columns[name] = {f"{name}{end}": value for end, value in found.items()}
            if eps == headline and attack != "none":
                at_headline[attack] = {f"worst{end}": value for end, value in found.items()}
        seeds = mine.seed.nunique()
        known = models[models.defense == defense].parameters.dropna()
        area, complete = areas.get(str(defense), (math.nan, 0))
        rows.append(
            {
                "defense": defense,
                "dataset": mine.dataset.iloc[0],
                "architecture": mine.architecture.iloc[0],
                "parameters": int(known.iloc[0]) if len(known) else pd.NA,
                "norm": mine.norm.iloc[0],
                "seeds": seeds,
                "n_examples": mine.n_examples.max(),
                "draws": mine.draws.max(),
                **{name: value for each in columns.values() for name, value in each.items()},
                **_worst(at_headline),
                "retention_area": area if complete == seeds else math.nan,
                "passes_to_predict": mine.draws.max(),
                "flags": _flags(mine["flags"]),
                "failed_cells": int(mine.accuracy.isna().sum()),
            }
        )
    return _ranked(pd.DataFrame(rows), attacked=bool((own.attack != "none").any()))


def _accuracies(own: pd.DataFrame) -> dict[str, list[tuple[str, float, dict[str, float]]]]:
    """For each defense the attack, eps, and mean accuracy and interval over seeds, by the ending of their columns.

    NaN as soon as one seed is missing, never a mean of the rest; of several seeds, the deviation as well.
    """
    keys = ["defense", "attack", "eps"]
    ends = {"accuracy": "", "accuracy_low": "_low", "accuracy_high": "_high"}
    groups = own[[*keys, *ends]].groupby(keys, sort=False)
    table = groups.mean().rename(columns=ends)
    missing = own[list(ends)].isna().groupby([own[key] for key in keys], sort=False).any()
    table = table.where(~missing.to_numpy())
    seeds = groups.size().tolist()
    deviations = groups.accuracy.std(ddof=1).where(~missing.accuracy).tolist()
    found: dict[str, list[tuple[str, float, dict[str, float]]]] = {}
    for key, row, count, deviation in zip(table.index, table.to_dict("records"), seeds, deviations, strict=True):
        defense, attack, eps = key
        columns = {str(end): float(value) for end, value in row.items()}
        found.setdefault(defense, []).append((attack, eps, columns | ({"_sd": deviation} if count > 1 else {})))
    return found


def ranks(lows: Sequence[float], highs: Sequence[float]) -> list[int | None]:
    """Ranks with ties: one more than the number of others whose whole interval lies above one's own.

    So two whose intervals overlap are never told apart by each other, and a rank says how many are surely better. It
    is None where there is no interval.
    """
    ends = np.sort([low for low in lows if not math.isnan(low)])
    better = len(ends) - np.searchsorted(ends, highs, side="right")
    missing = np.isnan(np.asarray(highs, np.float64))
    return [None if lost else 1 + int(count) for lost, count in zip(missing, better, strict=True)]


def _ranked(frame: pd.DataFrame, *, attacked: bool) -> pd.DataFrame:
    judged = "worst" if attacked else "clean"
    found = ranks(frame[f"{judged}_low"].tolist(), frame[f"{judged}_high"].tolist())
    frame.insert(0, "rank", pd.Series(found, dtype="Int64"))
    order = ["worst", "clean"] if attacked else ["clean"]
    return frame.sort_values(order, ascending=False, kind="stable", na_position="last", ignore_index=True)


def _worst(at_headline: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The lowest accuracy; that of some attacks says nothing as long as another one is missing."""
    names = ("worst", "worst_low", "worst_high")
    if not at_headline or any(math.isnan(columns["worst"]) for columns in at_headline.values()):
        return {**dict.fromkeys(names, math.nan), "worst_attack": ""}
    attack = min(at_headline, key=lambda name: at_headline[name]["worst"])
    return {**at_headline[attack], "worst_attack": attack}


def _areas(retention: pd.DataFrame) -> dict[str, tuple[float, int]]:
    """Each defense's area under retention on clean images, mean over seeds, and over how many."""
    clean = retention[(retention.attack == "none") & (retention.measure == "total")]
    grouped = clean.groupby("defense", sort=False)
    return {str(name): (rows.area.mean(), rows.seed.nunique()) for name, rows in grouped}


def _flags(notes: pd.Series[str]) -> str:
    """The flags of a defense's cells, each once."""
    found = {flag for note in notes.unique() for flag in raised(note)}
    return ";".join(flag for flag in FLAGS if flag in found)

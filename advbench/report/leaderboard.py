"""The leaderboard: a row for each defense, ranked by its lowest accuracy at the largest radius, or by the clean one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from advbench.report.flags import FLAGS, UNCONVERGED, raised

CLEAN = ("none", 0.0)
MISLEADS = "misleads_attacks"
LEADING = "rank defense dataset architecture parameters norm seeds n_examples draws".split()
COUNTS = ("rank", "parameters", "n_examples", "draws", "passes_to_predict")  # may be missing


class Measured(NamedTuple):
    """A number as tables carry it; only what is written out is text."""

    value: float = math.nan  # mean over seeds; NaN where there is none
    low: float = math.nan  # lower end of its 95 % interval; NaN without one
    high: float = math.nan  # upper end
    deviation: float = math.nan  # over seeds; NaN for one seed
    note: str = ""  # why there is no value or no interval
    bound: bool = False  # whether it is an upper bound: an attack that did not converge

    @property
    def missing(self) -> bool:
        """Whether there is no value."""
        return math.isnan(self.value)


NOT_RUN = Measured(note="not run: not part of this run")


@dataclass(frozen=True)
class Standing:
    """A defense on the leaderboard."""

    defense: str
    dataset: str
    architecture: str
    parameters: int | None  # weights of its net
    norm: str
    seeds: int
    n_examples: int | None
    draws: int | None  # of one prediction, which are its forward passes
    accuracies: Mapping[tuple[str, float], Measured]  # by attack and eps, `CLEAN` first
    lowest: Measured  # at the largest eps; missing as long as that of one attack is
    lowest_attack: str
    retention: Measured  # area under accuracy against the fraction of clean images kept
    flags: tuple[str, ...]  # those of its cells, each once
    failed_cells: int  # accuracies that are missing
    misleads: bool = False  # attacks, in most of its seeds: then it has no rank
    rank: int | None = None

    def accuracy(self, attack: str, eps: float) -> Measured:
        """The accuracy under an attack."""
        return self.accuracies.get((attack, eps), NOT_RUN)


def over_seeds(frame: pd.DataFrame, keys: list[str], columns: list[str], seeds: int) -> pd.DataFrame:
    """Means over seeds; NaN where one of the seeds is missing, never a mean of the rest."""
    groups = frame.groupby(keys, sort=False)[columns]
    return groups.mean().where(groups.count() == seeds)


def own_rows(results: pd.DataFrame) -> pd.Series[bool]:
    """Which rows say how a defense stands up to an attack: crafted on itself, or on the attack's one source."""
    own = results.source == results.defense
    return own | results.attack.isin(with_own_source(results))


def with_own_source(results: pd.DataFrame) -> list[str]:
    """The attacks that have a source of their own: some defense has no row of theirs crafted on itself."""
    own = (results.source == results.defense).groupby([results.attack, results.defense], sort=False).any()
    return list(own[~own].index.unique("attack"))


def standings(results: pd.DataFrame, retention: pd.DataFrame, models: pd.DataFrame) -> list[Standing]:
    """The defenses, the most robust first.

    Several seeds: mean of accuracies and of interval ends (images are shared, so seeds do not narrow them),
    and the deviation over seeds.
    """
    own = results[own_rows(results)]
    headline, seeds = own.eps.max(), results.seed.nunique()
    clean = retention[(retention.attack == "none") & (retention.measure == "total")]
    curves = clean.groupby("defense", sort=False)  # an area stands in each of its curve's rows
    areas = {name: rows.area.mean() for name, rows in curves if rows.seed.nunique() == seeds}
    sizes = models.dropna(subset="parameters").set_index("defense").parameters.to_dict()
    by_defense = _accuracies(own, seeds)
    found = []
    for defense, mine in own.groupby("defense", sort=False):
        name, first = str(defense), mine.iloc[0]
        cells = by_defense[name]
        lowest, attack = _lowest({at: each for (at, eps), each in cells.items() if at != "none" and eps == headline})
        raises = {flag for note in mine["flags"].unique() for flag in raised(note)}
        found.append(
            Standing(
                defense=name,
                dataset=first.dataset,
                architecture=first.architecture,
                parameters=sizes.get(name),
                norm=first.norm,
                seeds=mine.seed.nunique(),
                n_examples=_whole(mine.n_examples.max()),
                draws=_whole(mine.draws.max()),
                accuracies={CLEAN: cells.get(CLEAN, NOT_RUN), **cells},
                lowest=lowest,
                lowest_attack=attack,
                retention=Measured(areas.get(name, math.nan)),
                flags=tuple(flag for flag in FLAGS if flag in raises),
                failed_cells=int(mine.accuracy.isna().sum()),
                misleads=_misleads(mine),
            )
        )
    return _ranked(found, attacked=bool((own.attack != "none").any()))


def _misleads(mine: pd.DataFrame) -> bool:
    """Whether the cheap checks found, in most seeds, that a defense misleads attacks."""
    seeds = mine[mine["flags"].map(lambda note: MISLEADS in raised(note))].seed.nunique()
    return 2 * seeds > mine.seed.nunique()


def _accuracies(own: pd.DataFrame, seeds: int) -> dict[str, dict[tuple[str, float], Measured]]:
    """For each defense the accuracies by attack and eps."""
    keys = ["defense", "attack", "eps"]
    means = over_seeds(own, keys, ["accuracy", "accuracy_low", "accuracy_high"], seeds)
    deviations = own.groupby(keys, sort=False).accuracy.std(ddof=1).where(means.accuracy.notna())
    why = own[own.accuracy.isna()].drop_duplicates(keys).set_index(keys)["flags"].to_dict()
    found: dict[str, dict[tuple[str, float], Measured]] = {}
    unconverged = own[own["flags"].map(lambda note: UNCONVERGED in raised(note)).astype(bool)]
    bounds = set(unconverged[keys].itertuples(index=False, name=None))
    for key, accuracy, deviation in zip(means.index, means.to_numpy(float).tolist(), deviations.tolist(), strict=True):
        defense, attack, eps = key
        value, low, high = accuracy
        note = why.get(key, "missing") if math.isnan(value) else ""
        found.setdefault(defense, {})[attack, eps] = Measured(value, low, high, deviation, note, key in bounds)
    return found


def _lowest(cells: Mapping[str, Measured]) -> tuple[Measured, str]:
    """The lowest accuracy and its attack; that of some attacks says nothing as long as another one is missing.

    It is an upper bound where one of the accuracies is.
    """
    missing = next((each for each in cells.values() if each.missing), None if cells else Measured())
    if missing:
        return missing, ""
    attack = min(cells, key=lambda name: cells[name].value)
    return cells[attack]._replace(bound=any(each.bound for each in cells.values())), attack


def _whole(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def ranks(lows: Sequence[float], highs: Sequence[float]) -> list[int | None]:
    """Ranks with ties: one more than the number of others whose whole interval lies above one's own.

    So of two whose intervals overlap neither ranks the other lower, and a rank says how many are surely better. It is
    None where there is no interval.
    """
    ends = np.sort([low for low in lows if not math.isnan(low)])
    better = len(ends) - np.searchsorted(ends, highs, side="right")
    missing = np.isnan(np.asarray(highs, np.float64))
    return [None if lost else 1 + int(count) for lost, count in zip(missing, better, strict=True)]


def _ranked(found: list[Standing], *, attacked: bool) -> list[Standing]:
    ranked = [Measured() if one.misleads else one.lowest if attacked else one.accuracies[CLEAN] for one in found]
    lows = [-math.inf if each.bound else each.low for each in ranked]  # what is at most so much is surely above nothing
    places = ranks(lows, [each.high for each in ranked])
    placed = [replace(one, rank=rank) for one, rank in zip(found, places, strict=True)]

    def order(one: Standing) -> list[float]:
        numbers = (one.lowest, one.accuracies[CLEAN])
        return [float(one.misleads), *(math.inf if each.missing else -each.value for each in numbers)]

    return sorted(placed, key=order)


def leaderboard_table(found: Iterable[Standing]) -> pd.DataFrame:
    """`leaderboard.csv`: accuracies with the ends of their intervals, and of several seeds the deviation."""
    rows = []
    for one in found:
        row: dict[str, Any] = {name: getattr(one, name) for name in LEADING}
        names = {place: "clean" if place == CLEAN else f"{place[0]}@{place[1]:.10g}" for place in one.accuracies}
        for name, each in [*((names[place], each) for place, each in one.accuracies.items()), ("worst", one.lowest)]:
            row |= {name: each.value, f"{name}_low": each.low, f"{name}_high": each.high}
            row |= {f"{name}_bound": True} if each.bound else {}
            row |= {f"{name}_sd": each.deviation} if one.seeds > 1 else {}
        row |= {"worst_attack": one.lowest_attack, "retention_area": one.retention.value}
        row |= {"passes_to_predict": one.draws, "flags": ";".join(one.flags), "failed_cells": one.failed_cells}
        rows.append(row)
    return pd.DataFrame(rows).astype(dict.fromkeys(COUNTS, "Int64"))

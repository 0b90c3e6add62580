"""The leaderboard: one row per defense, ranked by the area under its lowest accuracies over the radii."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd

from advbench.report.flags import FLAGS, UNCONVERGED, raised

CLEAN = ("none", 0.0)
MISLEADS = "misleads_attacks"
LEADING = "rank rank_low rank_high defense dataset architecture parameters norm seeds n_examples draws".split()
COUNTS = ("rank", "rank_low", "rank_high", "parameters", "n_examples", "draws", "passes_to_predict")  # may be missing


class Measured(NamedTuple):
    """A number in a table, with its interval and notes; formatted only on output."""

    value: float = math.nan  # mean over seeds; NaN if missing
    low: float = math.nan  # lower end of the 95 % interval; NaN if none
    high: float = math.nan  # upper end of the 95 % interval
    deviation: float = math.nan  # standard deviation over seeds; NaN for one seed
    note: str = ""  # reason of a missing value or interval
    bound: bool = False  # True for an upper bound, from an attack that did not converge

    @property
    def missing(self) -> bool:
        """True if there is no value."""
        return math.isnan(self.value)


NOT_RUN = Measured(note="not run: not part of this run")


class Worst(NamedTuple):
    """The lowest accuracy of a defense at one radius."""

    accuracy: Measured  # missing if that of any attack is
    attack: str = ""


@dataclass(frozen=True)
class Standing:
    """A row of the leaderboard."""

    defense: str
    dataset: str
    architecture: str
    parameters: int | None  # number of weights
    norm: str
    seeds: int
    n_examples: int | None
    draws: int | None  # draws per prediction, each a forward pass
    accuracies: Mapping[tuple[str, float], Measured]  # by attack and eps, `CLEAN` first
    worst: Mapping[float, Worst]  # by eps, ascending; empty without attacks
    area: Measured  # area under the worst cases over the radii, or clean accuracy without attacks
    retention: Measured  # area under accuracy against the fraction of clean images kept
    flags: tuple[str, ...]  # flags of its cells
    failed_cells: int  # number of missing accuracies
    misleads: bool = False  # True if it misleads attacks in most seeds; it then has no rank
    rank: int | None = None  # 1 + number of defenses with a larger area
    rank_low: int | None = None  # best possible rank: 1 + number of significantly better defenses
    rank_high: int | None = None  # worst possible rank

    @property
    def lowest(self) -> Measured:
        """Lowest accuracy at the largest eps."""
        return self.worst[max(self.worst)].accuracy if self.worst else Measured()

    @property
    def lowest_attack(self) -> str:
        """Attack with the lowest accuracy at the largest eps."""
        return self.worst[max(self.worst)].attack if self.worst else ""

    def accuracy(self, attack: str, eps: float) -> Measured:
        """Accuracy under an attack."""
        return self.accuracies.get((attack, eps), NOT_RUN)


def over_seeds(frame: pd.DataFrame, keys: list[str], columns: list[str], seeds: int) -> pd.DataFrame:
    """Means over seeds; NaN if any seed is missing."""
    groups = frame.groupby(keys, sort=False)[columns]
    return groups.mean().where(groups.count() == seeds)


def own_rows(results: pd.DataFrame) -> pd.Series[bool]:
    """Mask of the rows with examples crafted on the defense itself, or on the attack's fixed source."""
    own = results.source == results.defense
    return own | results.attack.isin(with_own_source(results))


def with_own_source(results: pd.DataFrame) -> list[str]:
    """Attacks with a fixed source: some defense has no row crafted on itself."""
    own = (results.source == results.defense).groupby([results.attack, results.defense], sort=False).any()
    return list(own[~own].index.unique("attack"))


def standings(
    results: pd.DataFrame,
    retention: pd.DataFrame,
    models: pd.DataFrame,
    areas: pd.DataFrame,
    differences: pd.DataFrame,
) -> list[Standing]:
    """Rows of the leaderboard, largest area first.

    For several seeds: mean of accuracies and of interval ends (images are shared, so seeds do not narrow them), and the
    standard deviation over seeds; the interval of the area also covers other seeds.
    """
    own = results[own_rows(results)]
    seeds = results.seed.nunique()
    clean = retention[(retention.attack == "none") & (retention.measure == "total")]
    curves = clean.groupby("defense", sort=False)  # each row of a curve contains the area
    kept = {name: rows.area.mean() for name, rows in curves if rows.seed.nunique() == seeds}
    sizes = models.dropna(subset="parameters").set_index("defense").parameters.to_dict()
    by_defense = accuracies(own, seeds)
    known = areas.set_index("defense")[["area", "area_low", "area_high", "area_sd"]].astype(float).T.to_dict("list")
    found = []
    for defense, mine in own.groupby("defense", sort=False):
        name, first = str(defense), mine.iloc[0]
        cells = by_defense[name]
        worst = worst_cases(cells)
        cases = [each.accuracy for each in worst.values()]
        note = next((each.note for each in cases if each.missing), "")
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
                worst=worst,
                area=Measured(*known.get(name, ()))._replace(note=note, bound=any(each.bound for each in cases)),
                retention=Measured(kept.get(name, math.nan)),
                flags=tuple(flag for flag in FLAGS if flag in raises),
                failed_cells=int(mine.accuracy.isna().sum()),
                misleads=_misleads(mine),
            )
        )
    return _ranked(found, differences)


def _misleads(mine: pd.DataFrame) -> bool:
    """True if the cheap checks found, in most seeds, that a defense misleads attacks."""
    seeds = mine[mine["flags"].map(lambda note: MISLEADS in raised(note))].seed.nunique()
    return 2 * seeds > mine.seed.nunique()


def accuracies(own: pd.DataFrame, seeds: int) -> dict[str, dict[tuple[str, float], Measured]]:
    """Accuracies of each defense by attack and eps."""
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


def worst_cases(cells: Mapping[tuple[str, float], Measured]) -> dict[float, Worst]:
    """Lowest accuracy over the attacks at each radius; missing if that of any attack is.

    It is an upper bound if any of the accuracies is.
    """
    by_eps: dict[float, dict[str, Measured]] = {}
    for (attack, eps), each in cells.items():
        if attack != "none":
            by_eps.setdefault(eps, {})[attack] = each
    found = {}
    for eps, alike in sorted(by_eps.items()):
        if missing := next((each for each in alike.values() if each.missing), None):
            found[eps] = Worst(missing)
        else:
            attack = min(alike, key=lambda name: alike[name].value)
            bound = any(each.bound for each in alike.values())
            found[eps] = Worst(alike[attack]._replace(bound=bound), attack)
    return found


def _whole(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def _ranked(found: list[Standing], differences: pd.DataFrame) -> list[Standing]:
    """Add ranks to rows with an area and without misled attacks.

    A defense is significantly better than another if the interval of their difference excludes 0 and its own area is
    not an upper bound.
    """
    ranked = {one.defense: one.area for one in found if not (one.misleads or one.area.missing)}
    better: Counter[str] = Counter()  # numbers of significantly better, and worse, defenses
    worse: Counter[str] = Counter()
    columns = differences[differences.eps.isna()][["defense", "other", "difference_low", "difference_high"]]
    for one, other, low, high in columns.itertuples(index=False, name=None):
        if one in ranked and other in ranked and (low > 0 or high < 0):
            above, below = (one, other) if low > 0 else (other, one)
            if not ranked[above].bound:
                better[below] += 1
                worse[above] += 1
    areas = sorted(-area.value for area in ranked.values())
    placed = [
        replace(
            one,
            rank=1 + bisect.bisect_left(areas, -one.area.value),
            rank_low=1 + better[one.defense],
            rank_high=len(ranked) - worse[one.defense],
        )
        if one.defense in ranked
        else one
        for one in found
    ]

    def order(one: Standing) -> list[float]:
        numbers = (one.area, one.lowest, one.accuracies[CLEAN])
        return [float(one.misleads), *(math.inf if each.missing else -each.value for each in numbers)]

    return sorted(placed, key=order)


def leaderboard_table(found: Iterable[Standing]) -> pd.DataFrame:
    """`leaderboard.csv`: accuracies with interval ends and, for several seeds, standard deviations."""
    rows = []
    for one in found:
        row: dict[str, Any] = {name: getattr(one, name) for name in LEADING}
        names = {place: "clean" if place == CLEAN else f"{place[0]}@{place[1]:.10g}" for place in one.accuracies}
        worst = {f"worst@{eps:.10g}": each for eps, each in one.worst.items()}
        numbers = [
            ("area", one.area),
            *((names[place], each) for place, each in one.accuracies.items()),
            *((name, each.accuracy) for name, each in worst.items()),
            ("worst", one.lowest),
        ]
        for name, each in numbers:
            row |= {name: each.value, f"{name}_low": each.low, f"{name}_high": each.high}
            row |= {f"{name}_bound": True} if each.bound else {}
            row |= {f"{name}_sd": each.deviation} if one.seeds > 1 else {}
        row |= {f"{name}_attack": each.attack for name, each in worst.items()}
        row |= {"worst_attack": one.lowest_attack, "retention_area": one.retention.value}
        row |= {"passes_to_predict": one.draws, "flags": ";".join(one.flags), "failed_cells": one.failed_cells}
        rows.append(row)
    return pd.DataFrame(rows).astype(dict.fromkeys(COUNTS, "Int64"))

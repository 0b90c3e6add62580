"""Reports whose every number is known, for tests of what is made of reports."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from advbench.evaluation.summary import ENTROPIES
from advbench.report import Report
from advbench.report.areas import DIFFERENCE_COLUMNS, area_tables
from advbench.report.strengths import STRENGTH_COLUMNS
from advbench.report.tables import (
    ADVERSARY_COLUMNS,
    HISTOGRAM_COLUMNS,
    MEASURES,
    METHOD_COLUMNS,
    MODEL_COLUMNS,
    PERSISTENCE_COLUMNS,
    RESULT_COLUMNS,
    RETENTION_COLUMNS,
    UNCERTAINTY_COLUMNS,
)
from advbench.report.transfers import affinity_table

IMAGES = 200
DEFENSE = json.dumps({"lr": 0.001, "init_from": None, "stages": [40, 10]})
ATTACK = json.dumps({"steps": 20, "loss": "ce"})
HOSTILE = ("<script>alert(1)</script>", "a\"b\\c'd</script><!--<script>&amp;", "$x$ {{ 7 * 7 }}")


def made_report(
    names: Sequence[str] = ("adv_bnn", "pgd_at", "erm"),
    attacks: Sequence[str] = ("fgsm", "pgd"),
    radii: Sequence[float] = (0.05, 8 / 255),
    seeds: Sequence[int] = (0,),
) -> Report:
    """Tables whose accuracies are known: 0.9 clean, and under attack a tenth lower for each step of eps, attack, name.

    The last defense's cells under the last attack at the largest eps failed.
    """
    radii = sorted(radii)
    rows, details = [], []
    cells = [("none", 0.0)] + [(attack, eps) for attack in attacks for eps in radii]
    for seed in seeds:
        for attack, eps in cells:
            for source in names:
                for target in names if eps else [source]:
                    failed = (attack, eps, target) == (attacks[-1], radii[-1], names[-1])
                    accuracy = (
                        math.nan if failed else known_accuracy(names, attacks, radii, source, target, attack, eps)
                    )
                    numbers = [accuracy, accuracy - 0.05, accuracy + 0.05] * 2 + [accuracy - 0.02, accuracy + 0.02]
                    key = hashlib.sha256(f"{source} {target} {attack} {eps} {seed}".encode()).hexdigest()
                    flags = "failed: Error: <b>bad</b> & worse" if failed else ""
                    counts = (pd.NA, pd.NA) if failed else (IMAGES, 20)
                    place = ("digits", "small_cnn", target, attack, source, "linf", eps, seed)
                    rows.append((*place, *counts, *numbers, 20.0, 20.0, 1.5, flags, key))
                    if source == target and not failed:
                        details.append(("digits", "small_cnn", target, attack, target, "linf", eps, seed))
    results = pd.DataFrame(rows, columns=RESULT_COLUMNS).astype({"n_examples": "Int64", "draws": "Int64"})
    affinity = affinity_table(results, [None] * len(results))
    affinity = affinity.assign(affinity_low=affinity.affinity - 0.1, affinity_high=affinity.affinity + 0.1)
    models = [
        (name, seed, "small_cnn", 38282, "gaussian", 0.0, 0.1, 1.0, 5.0, f"key of {name}")
        for name in names
        for seed in seeds
    ]
    paper = ("A title", "Somebody", "2020", "https://example.org/a")
    methods = [("defense", name, name, "advbench", "1", DEFENSE, '{"torch": "2"}', *paper) for name in names]
    methods += [("attack", name, name, "advbench", "1", ATTACK, '{"torch": "2"}', *[""] * 4) for name in attacks]
    return Report(
        results=results,
        methods=pd.DataFrame(methods, columns=METHOD_COLUMNS),
        models=pd.DataFrame(models, columns=MODEL_COLUMNS).astype({"parameters": "Int64"}),
        affinity=affinity,
        adversaries=known_adversaries(results),
        **known_areas(results),
        strengths=known_strengths(attacks),
        **details_of(details),
    )


def known_areas(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Areas known to 0.05, distinguishable if they differ by more than 0.1; at eps 0.05 by twice as much."""
    areas, _ = area_tables(results, [None] * len(results))
    areas = areas.assign(area_low=areas.area - 0.05, area_high=areas.area + 0.05)
    known = itertools.combinations(areas[["defense", "area"]].dropna().itertuples(index=False), 2)
    pairs = [(one.defense, other.defense, one.area - other.area) for one, other in known]
    rows = [(one, other, math.nan, each, each - 0.1, each + 0.1) for one, other, each in pairs]
    rows += [(one, other, 0.05, 2 * each, 2 * each - 0.1, 2 * each + 0.1) for one, other, each in pairs]
    return {"areas": areas, "differences": pd.DataFrame(rows, columns=DIFFERENCE_COLUMNS)}


def known_strengths(attacks: Sequence[str]) -> pd.DataFrame:
    """Each attack 0.05 above the next, the last of which is the strongest."""
    rows = [
        (name, "white box", 4, 0.05 * place, 0.05 * place - 0.01, 0.05 * place + 0.01, 0.1, "erm", 0.05, 40.0)
        for place, name in enumerate(reversed(attacks))
    ]
    return pd.DataFrame(rows, columns=STRENGTH_COLUMNS)


def known_adversaries(results: pd.DataFrame) -> pd.DataFrame:
    own = results[(results.source == results.defense) & results.accuracy.notna()]
    knows = own.attack.eq("none").map({True: "nothing", False: "posterior"})
    table = own.assign(knows=knows).sort_values("accuracy").drop_duplicates(["defense", "eps", "seed", "knows"])
    return table[ADVERSARY_COLUMNS]


def known_accuracy(
    names: Sequence[str],
    attacks: Sequence[str],
    radii: Sequence[float],
    source: str,
    target: str,
    attack: str,
    eps: float,
) -> float:
    if not eps:
        return 0.9
    steps = (
        (radii.index(eps) + 1) / len(radii) + attacks.index(attack) / len(attacks) + names.index(target) / len(names)
    )
    return round(0.9 - 0.25 * steps * (1.0 if source == target else 0.5), 4)


def details_of(places: list[tuple[Any, ...]]) -> dict[str, pd.DataFrame]:
    counts = (IMAGES - 19, *[1] * 19)
    kinds = ["clean" if place[3] == "none" else "attacked" for place in places]
    retention = [
        (*p, k, round(k * IMAGES), 1 - k / 10, 0.9 - k / 10, 1.0, 0.95, 0.93, 0.97, m)
        for p in places
        for m in MEASURES
        for k in (0.2, 0.6, 1.0)
    ]
    scores = [0.75] * (3 * len(MEASURES)) + [0.05] * len(ENTROPIES)
    persistence = [(*place, tries, 1 - 0.9**tries, 0.0, 1.0) for place in places for tries in (1, 5, 20)]
    uncertain = [
        (*place, kind, 0.02, 0.1, 0.05, *[0.3] * 5, *(scores if kind == "attacked" else [math.nan] * len(scores)))
        for place, kind in zip(places, kinds, strict=True)
    ]
    histograms = [(*p, kind, m, math.log(10), counts) for p, kind in zip(places, kinds, strict=True) for m in ENTROPIES]
    return {
        "retention": pd.DataFrame(retention, columns=RETENTION_COLUMNS),
        "uncertainty": pd.DataFrame(uncertain, columns=UNCERTAINTY_COLUMNS),
        "histograms": pd.DataFrame(histograms, columns=HISTOGRAM_COLUMNS),
        "persistence": pd.DataFrame(persistence, columns=PERSISTENCE_COLUMNS),
    }

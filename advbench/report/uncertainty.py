"""Tables of uncertainty: calibration, detection, histograms, and accuracy on the surest images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from advbench.evaluation.summary import ENTROPIES

IDENTITY = "dataset architecture defense attack source norm eps seed".split()
MEASURES = (*ENTROPIES, "variation_ratio", "model_variance")
CALIBRATION = ("ece", "nll", "brier")
SCORES = ("auroc", "aupr_positive", "aupr_negative")
RETENTION_COLUMNS = [*IDENTITY, "kept", "n_kept", "accuracy", "area", "measure"]
UNCERTAINTY_COLUMNS = [
    *IDENTITY,
    "images",
    *CALIBRATION,
    *MEASURES,
    *(f"{score}_{measure}" for measure in MEASURES for score in SCORES),
]
HISTOGRAM_COLUMNS = [*IDENTITY, "images", "measure", "top", "counts"]

Row = Mapping[str, Any]


def retention_table(rows: Iterable[tuple[Row, Row]]) -> pd.DataFrame:
    """A row for each (defense, attack, eps, seed, measure, fraction kept).

    Args:
        rows: the columns of `IDENTITY` of each cell, and what its record says in detail.
    """
    columns: list[tuple[Any, ...]] = []
    for identity, details in rows:
        head = tuple(identity[name] for name in IDENTITY)
        for measure, curve in _in_order(details, "retention"):
            points = zip(curve["fractions"], curve["counts"], curve["accuracies"], strict=True)
            columns += [(*head, *point, curve["area"], measure) for point in points]
    return pd.DataFrame(columns, columns=RETENTION_COLUMNS)


def _in_order(details: Row, name: str) -> list[tuple[str, Any]]:
    found = details.get(name, {})
    return [(measure, found[measure]) for measure in ENTROPIES if measure in found]


def uncertainty_table(rows: Iterable[tuple[Row, Row]]) -> pd.DataFrame:
    """A row for each (defense, attack, eps, seed), and for each set of out-of-distribution images."""
    found = []
    for identity, details in rows:
        found.append(
            {
                **{name: identity[name] for name in IDENTITY},
                "images": identity["images"],
                **details.get("calibration", {}),
                **details.get("uncertainty", {}),
                **{
                    f"{score}_{measure}": value
                    for measure, scores in details.get("detection", {}).items()
                    for score, value in scores.items()
                },
            }
        )
    return pd.DataFrame(found, columns=UNCERTAINTY_COLUMNS)


def histogram_table(rows: Iterable[tuple[Row, Row]]) -> pd.DataFrame:
    """Counts of images in bins of equal width from 0 to `top` nats, a row for each cell and measure."""
    found = [
        (
            *(identity[name] for name in IDENTITY),
            identity["images"],
            measure,
            math.log(identity["classes"]),
            " ".join(map(str, counts)),
        )
        for identity, details in rows
        for measure, counts in _in_order(details, "histograms")
    ]
    return pd.DataFrame(found, columns=HISTOGRAM_COLUMNS)

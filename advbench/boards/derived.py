"""Whether the other tables agree with the results, and with themselves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from advbench.boards.board import Board, records, stated_versions
from advbench.boards.findings import Findings, row_name
from advbench.boards.rows import Place, Row, place, place_of
from advbench.foreign import foreign_labels
from advbench.metrics import BINS, RETENTION_FRACTIONS
from advbench.plan import Plan
from advbench.report.judgements import is_own
from advbench.report.ranks import with_own_source
from advbench.report.tables import MODEL_COLUMNS
from advbench.report.transfers import affinity_table
from advbench.report.uncertainty import HISTOGRAM_COLUMNS, RETENTION_COLUMNS, UNCERTAINTY_COLUMNS
from advbench.summary import ENTROPIES

IDENTITY = ("dataset", "architecture", "norm")
TOLERANCE = 1e-9


def check_tables(board: Board, plan: Plan, findings: Findings) -> None:
    """Note where a board's other tables contradict its results; tables that are not there are not missed.

    Args:
        board: the board.
        plan: its plan, with the keys of the version that made it.
        findings: where it is noted.
    """
    own_places = {place_of(cell) for cell in plan.cells if is_own(cell)}
    judged = {place(row): row for row in records(board.results) if not math.isnan(row["accuracy"])}
    own = {where: row for where, row in judged.items() if where in own_places}
    if "models.csv" in board.present:
        _check_models(board, plan, judged.values(), findings)
    if "affinity.csv" in board.present:
        _check_affinity(board, findings)
    if "retention.csv" in board.present:
        _check_retention(board, own, findings)
    if "uncertainty.csv" in board.present:
        _check_uncertainty(board, own, findings)
    if "histograms.csv" in board.present:
        _check_histograms(board, own, findings)


def _check_models(board: Board, plan: Plan, judged: Iterable[Row], findings: Findings) -> None:
    frame = board.report.models
    _check_columns("models.csv", frame.columns, MODEL_COLUMNS, findings)
    nets = {cell.defense.label: cell.defense.architecture["name"] for cell in plan.cells}
    random = {(row["defense"], row["seed"]): row["draws"] > 1 for row in judged}
    versions = {row["versions"] for row in judged}
    stated = [stated_versions(text) for text in versions]
    libraries = {name: {found.get(name) for found in stated} for name in ("advbench", "torch", "numpy")}
    rows = records(frame)
    _check_each_once("models.csv", [(row["defense"], row["seed"]) for row in rows], plan.trained, findings)
    sizes: dict[str, set[float]] = {}
    for row in rows:
        where = f"{row['defense']}, seed {row['seed']}"
        known = plan.trained.get((row["defense"], row["seed"]))
        if known is not None and row["key"] != known:
            findings.add("models.csv: the key is not that of the spec, data and version", where)
        if row["architecture"] != nets.get(row["defense"]):
            findings.add("models.csv: the net is not the spec's", where)
        weights = math.nan if pd.isna(row["parameters"]) else float(row["parameters"])
        sizes.setdefault(row["architecture"], set()).add(weights)
        if weights != plan.parameters.get(row["architecture"], weights) or not weights > 0:
            findings.add("models.csv: the number of weights is not the net's", where)
        trained = stated_versions(row["versions"])
        if (row["defense"], row["seed"]) not in random:
            continue
        if not (trained and row["posterior"] and row["seconds"] >= 0):
            findings.add("models.csv: a defense with results has no training", where)
        elif any(trained.get(name) not in found for name, found in libraries.items()):
            findings.add("models.csv: a training was made by other versions than the results", where)
        if row["posterior"] not in ("", "point") and not random[row["defense"], row["seed"]] and board.spec.draws > 1:
            findings.add("models.csv: a defense with a random posterior was judged by one draw", where)
    for net, found in sizes.items():
        if len(found) > 1:
            findings.add("models.csv: a net has several numbers of weights", net)


def _check_affinity(board: Board, findings: Findings) -> None:
    results, frame = board.results, board.report.affinity
    due = affinity_table(results[~results.attack.isin(with_own_source(results))])
    _check_columns("affinity.csv", frame.columns, due.columns, findings)
    names = ("attack", "eps", "seed", "source", "target")
    expected = {tuple(row[name] for name in names): row for row in records(due)}
    rows = records(frame)
    _check_each_once("affinity.csv", [tuple(row[name] for name in names) for row in rows], expected, findings)
    for row in rows:
        know = expected.get(tuple(row[name] for name in names))
        if know is None:
            continue
        where = row_name({**row, "defense": row["target"]})
        values = ("affinity", "clean_accuracy", "transfer_accuracy", "white_box_accuracy")
        if not all(_same(row[name], know[name]) for name in values) or any(row[n] != know[n] for n in IDENTITY):
            findings.add("affinity.csv contradicts results.csv", where)
        low, high = row["affinity_low"], row["affinity_high"]
        bounded = math.isfinite(low) and math.isfinite(high) and low <= high
        if not bounded and not (math.isnan(low) and math.isnan(high)):
            findings.add("affinity.csv: an interval has no order", where)
        if math.isnan(row["affinity"]) and (row["reason"] != know["reason"] or not math.isnan(low)):
            findings.add("affinity.csv: the reason of an undefined affinity is another", where)
        if row["source"] == row["target"] and bounded and not (low == high == 1):
            findings.add("affinity.csv: the interval of a defense on itself is not 1", where)


def _check_retention(board: Board, own: Mapping[Place, Row], findings: Findings) -> None:
    frame = board.report.retention
    _check_columns("retention.csv", frame.columns, RETENTION_COLUMNS, findings)
    rows = records(frame)
    due = [(*where, measure, kept) for where in own for measure in ENTROPIES for kept in RETENTION_FRACTIONS]
    _check_each_once("retention.csv", [(*place(row), row["measure"], row["kept"]) for row in rows], due, findings)
    curves: dict[Place, list[Row]] = {}
    for row in rows:
        curves.setdefault((*place(row), row["measure"]), []).append(row)
        known = own.get(place(row))
        if known is None:
            continue
        _check_identity("retention.csv", row, known, findings)
        right = row["accuracy"] * row["n_kept"]
        if row["n_kept"] != max(1, round(row["kept"] * known["n_examples"])):
            findings.add("retention.csv: n_kept is not the fraction of the images", row_name(row))
        elif not 0 <= right <= min(row["n_kept"], known["accuracy"] * known["n_examples"]) + 1e-6:
            findings.add("retention.csv: more images are right than can be", row_name(row))
        if row["kept"] == 1 and not _same(row["accuracy"], known["accuracy"]):
            findings.add("retention.csv: the accuracy on all images is not that of results.csv", row_name(row))
    for curve in curves.values():
        accuracies = [row["accuracy"] for row in curve]
        area = float(np.trapezoid([accuracies[0], *accuracies], [0.0, *(row["kept"] for row in curve)]))
        if not all(_same(row["area"], area) for row in curve):
            findings.add("retention.csv: the area is not that under the curve", row_name(curve[0]))


def _check_uncertainty(board: Board, own: Mapping[Place, Row], findings: Findings) -> None:
    frame = board.report.uncertainty
    _check_columns("uncertainty.csv", frame.columns, UNCERTAINTY_COLUMNS, findings)
    rows = records(frame)
    due = {**own, **{place(row): row for row in rows if _is_foreign(row, board, own)}}
    _check_each_once("uncertainty.csv", [place(row) for row in rows], due, findings)
    bounded = [name for name in UNCERTAINTY_COLUMNS if name.startswith(("auroc", "aupr"))]
    for row in rows:
        known = own.get(place(row))
        numbers = [row[name] for name in UNCERTAINTY_COLUMNS[9:]]
        if any(value < 0 or math.isinf(value) for value in numbers):
            findings.add("uncertainty.csv: a number is negative or not finite", row_name(row))
        if any(row[name] > 1 for name in (*bounded, "ece", "variation_ratio")) or row["brier"] > 2:
            findings.add("uncertainty.csv: a number is larger than can be", row_name(row))
        if row["images"] != "ood" and known is not None:
            _check_identity("uncertainty.csv", row, known, findings)
            if row["images"] != ("clean" if row["attack"] == "none" else "attacked"):
                findings.add("uncertainty.csv: the images are not those of the attack", row_name(row))
            if any(math.isnan(value) for value in numbers[:8]):
                findings.add("uncertainty.csv: a number is missing", row_name(row))
            elif row["epistemic"] < row["total"] - row["aleatoric"] - 1e-6:
                findings.add("uncertainty.csv: the parts of the uncertainty do not make up the whole", row_name(row))


def _check_histograms(board: Board, own: Mapping[Place, Row], findings: Findings) -> None:
    frame = board.report.histograms
    _check_columns("histograms.csv", frame.columns, HISTOGRAM_COLUMNS, findings)
    rows = records(frame)
    due = [(*where, measure) for where in own for measure in ENTROPIES]
    due += [(*place(row), row["measure"]) for row in rows if _is_foreign(row, board, own)]
    _check_each_once("histograms.csv", [(*place(row), row["measure"]) for row in rows], due, findings)
    means = {}
    if "uncertainty.csv" in board.present:
        means = {place(row): row for row in records(board.report.uncertainty) if row["images"] != "ood"}
    for row in rows:
        known = own.get(place(row))
        if known is None:
            continue
        _check_identity("histograms.csv", row, known, findings)
        counts = [int(text) if text.isdecimal() else -1 for text in row["counts"].split(" ")]
        if len(counts) != BINS or min(counts) < 0 or sum(counts) != known["n_examples"]:
            findings.add("histograms.csv: the counts are not those of the images", row_name(row))
            continue
        mean = means.get(place(row), {}).get(row["measure"], math.nan)
        width = row["top"] / BINS
        low = width * sum(index * count for index, count in enumerate(counts)) / known["n_examples"]
        if mean < low - 1e-6 or mean > low + width + 1e-6:
            findings.add("histograms.csv contradicts the mean in uncertainty.csv", row_name(row))


def _is_foreign(row: Row, board: Board, own: Mapping[Place, Row]) -> bool:
    """Whether a row is about images of other data, shown to a defense that has results."""
    names = [f"ood:{label}" for label in foreign_labels(board.spec.ood)]
    clean = (row["source"], row["defense"], "none", row["eps"], row["seed"])
    return row["images"] == "ood" and row["attack"] in names and clean in own


def _check_columns(file: str, found: Iterable[str], due: Iterable[str], findings: Findings) -> None:
    if list(found) != list(due):
        findings.add(f"{file} has other columns than advbench writes")


def _check_each_once(file: str, found: Sequence[Place], due: Iterable[Place], findings: Findings) -> None:
    """Each place that is due is there once, and no other."""
    count = Counter(found)
    wanted = set(due)
    for where in wanted - count.keys():
        findings.add(f"{file}: a row that belongs to the results is not there", ", ".join(map(str, where)))
    for where, number in count.items():
        if where not in wanted:
            findings.add(f"{file}: a row that belongs to no result", ", ".join(map(str, where)))
        elif number > 1:
            findings.add(f"{file}: a row is there more than once", ", ".join(map(str, where)))


def _check_identity(file: str, row: Row, known: Row, findings: Findings) -> None:
    if any(row[name] != known[name] for name in IDENTITY):
        findings.add(f"{file}: data set, net or norm are not those of results.csv", row_name(row))


def _same(one: float, other: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or abs(one - other) <= TOLERANCE

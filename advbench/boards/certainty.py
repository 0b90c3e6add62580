"""Whether the tables of uncertainty can be true: retention, calibration, detection, histograms."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise

import numpy as np

from advbench.boards.board import Board
from advbench.boards.compare import Place, Row, check_columns, check_each_once, check_identity, same
from advbench.boards.findings import Findings, row_name
from advbench.boards.rows import place
from advbench.data.datasets import Dataset
from advbench.data.ood import ood_labels
from advbench.evaluation import BINS, RETENTION_FRACTIONS
from advbench.evaluation.summary import ENTROPIES
from advbench.grid.plan import Plan
from advbench.report.tables import records
from advbench.report.uncertainty import (
    CALIBRATION,
    HISTOGRAM_COLUMNS,
    MEASURES,
    RETENTION_COLUMNS,
    SCORES,
    UNCERTAINTY_COLUMNS,
)

PRECISE = 1e-5  # of what follows from probabilities and entropies that are kept in float32
SURPRISE = 16.0  # nats of a label of probability 1.2e-7, the least that counts
AMONG_DRAWS = MEASURES[2:]  # which are 0 where draws agree


def classes_of(board: Board, dataset: Dataset | None = None) -> int | None:
    """How many classes a board's data has: as the data set says, or the histograms' range; else None.

    Args:
        board: the board.
        dataset: its data set, where that is at hand.
    """
    if dataset is not None:
        return dataset.test.classes
    tops = set(board.report.histograms.top)
    classes = round(math.exp(tops.pop())) if len(tops) == 1 else 0
    return classes if classes > 1 else None


def foreign_places(board: Board, plan: Plan) -> dict[Place, tuple[Place, int | None]]:
    """The rows about images of other data: by place, the row of the clean images, and how many images, if known."""
    images = {
        (cell.defense.label, cell.name, cell.seed): plan.tasks[cell.key].inputs.to_json()["images"] for cell in plan.ood
    }
    found = {}
    for cell in plan.cells:
        if cell.attack is None:
            name = cell.defense.label
            for label in ood_labels(board.spec.ood):
                head, tail = (name, name), (0.0, cell.seed)
                found[(*head, f"ood:{label}", *tail)] = (*head, "none", *tail), images.get((name, label, cell.seed))
    return found


def check_retention(board: Board, own: Mapping[Place, Row], findings: Findings) -> None:
    """Note what of the retention curves cannot be.

    Args:
        board: the board.
        own: the results of each defense's own attacks, by place.
        findings: where it is noted.
    """
    frame = board.report.retention
    check_columns("retention.csv", frame.columns, RETENTION_COLUMNS, findings)
    rows = records(frame)
    due = [(*where, measure, kept) for where in own for measure in ENTROPIES for kept in RETENTION_FRACTIONS]
    check_each_once("retention.csv", [(*place(row), row["measure"], row["kept"]) for row in rows], due, findings)
    curves: dict[Place, list[Row]] = {}
    for row in rows:
        known = own.get(place(row))
        if known is None:
            continue
        curves.setdefault((*place(row), row["measure"]), []).append(row)
        check_identity("retention.csv", row, known, findings)
        if row["n_kept"] != max(1, round(row["kept"] * known["n_examples"])):
            findings.add("retention.csv: n_kept is not the fraction of the images", row_name(row))
        if row["kept"] == 1 and not same(row["accuracy"], known["accuracy"]):
            findings.add("retention.csv: the accuracy on all images is not that of results.csv", row_name(row))
    for curve in curves.values():
        curve.sort(key=lambda row: row["kept"])
        known = own[place(curve[0])]
        points = [(0.0, 0.0), *((row["n_kept"], row["accuracy"] * row["n_kept"]) for row in curve)]
        points.append((known["n_examples"], known["accuracy"] * known["n_examples"]))
        # Of the images that a further point keeps, none to all are right.
        if not all(-1e-6 <= then - now <= more - few + 1e-6 for (few, now), (more, then) in pairwise(points)):
            findings.add("retention.csv: more or fewer images are right than can be", row_name(curve[0]))
        accuracies = [row["accuracy"] for row in curve]
        area = float(np.trapezoid([accuracies[0], *accuracies], [0.0, *(row["kept"] for row in curve)]))
        if not all(same(row["area"], area) for row in curve):
            findings.add("retention.csv: the area is not that under the curve", row_name(curve[0]))


def check_uncertainty(
    board: Board, plan: Plan, own: Mapping[Place, Row], classes: int | None, findings: Findings
) -> None:
    """Note what of calibration, uncertainty and detection cannot be.

    Args:
        board: the board.
        plan: its plan.
        own: the results of each defense's own attacks, by place.
        classes: of its data, if known.
        findings: where it is noted.
    """
    frame = board.report.uncertainty
    check_columns("uncertainty.csv", frame.columns, UNCERTAINTY_COLUMNS, findings)
    rows = records(frame)
    by_place = {place(row): row for row in rows}
    foreign = foreign_places(board, plan)
    check_each_once("uncertainty.csv", [place(row) for row in rows], {*own, *foreign}, findings)
    for row in rows:
        where = place(row)
        clean, images = foreign.get(where, ((where[1], where[1], "none", 0.0, where[4]), None))
        known = own.get(clean if where in foreign else where)
        numbers = [row[name] for name in UNCERTAINTY_COLUMNS[9:]]
        if where in foreign and all(map(math.isnan, numbers)) and row["images"] == "ood":
            continue  # which has not been computed, and says so
        if known is None:
            if where in foreign:
                findings.add("uncertainty.csv: a defense without results has a row of other data", row_name(row))
            continue
        check_identity("uncertainty.csv", row, known, findings)
        images = images if where in foreign else int(known["n_examples"])
        kind = _kind(row, foreign)
        if row["images"] != kind:
            findings.add("uncertainty.csv: the images are not those of the attack", row_name(row))
        for problem in (
            *_numbers(row, kind),
            *_entropies(row, known["draws"], classes),
            *(_calibration(row, known["accuracy"], classes) if kind != "ood" else ()),
            *_detection(row, by_place.get(clean, {}), known["n_examples"], images),
        ):
            findings.add(f"uncertainty.csv: {problem}", row_name(row))


def _kind(row: Row, foreign: Collection[Place]) -> str:
    """What the images of a row are, by its place."""
    if place(row) in foreign:
        return "ood"
    return "clean" if row["attack"] == "none" else "attacked"


def _numbers(row: Row, kind: str) -> Iterator[str]:
    """Which numbers are there, and within the bounds of their kind."""
    detection = [f"{score}_{measure}" for measure in MEASURES for score in SCORES]
    due = {"clean": (*CALIBRATION, *MEASURES), "attacked": (*CALIBRATION, *MEASURES, *detection)}
    due["ood"] = (*MEASURES, *detection)
    names = UNCERTAINTY_COLUMNS[9:]
    there = {name for name in names if not math.isnan(row[name])}
    if set(due[kind]) - there:
        yield "a number is missing"
    if there - set(due[kind]):
        yield "there is a number where nothing can be measured"
    if any(row[name] < 0 for name in there):
        yield "a number is negative"
    if any(row[name] > 1 for name in (*detection, "ece", "variation_ratio")) or row["brier"] > 2:
        yield "a number is larger than can be"


def _entropies(row: Row, draws: float, classes: int | None) -> Iterator[str]:
    """Total, aleatoric and epistemic uncertainty, and how far K draws can disagree."""
    total, aleatoric, epistemic, ratio, variance = (row[name] for name in MEASURES)
    if abs(total - aleatoric - epistemic) > PRECISE:
        yield "the parts of the uncertainty do not make up the whole"
    if classes is not None and total > math.log(classes) + PRECISE:
        yield "the uncertainty is larger than of a guess"
    most = 1 - 1 / draws
    if epistemic > math.log(draws) + PRECISE or ratio > most + PRECISE or variance > most + PRECISE:
        yield "draws disagree more than so many can"
    if variance / 2 > epistemic + PRECISE:  # Pinsker's inequality, of every draw and the mean
        yield "the draws' variance and their information contradict each other"


def _calibration(row: Row, accuracy: float, classes: int | None) -> Iterator[str]:
    """On a wrong image the label has at most the probability of another class, so at most 1/2."""
    wrong = 1 - accuracy
    known = SURPRISE if classes is None else math.log(classes)  # of a right image, whose label is the likeliest class
    brier, nll = row["brier"], row["nll"]
    if brier < wrong / 2 - PRECISE or nll < wrong * math.log(2) - PRECISE:
        yield "the calibration is better than so many wrong images allow"
    if brier > 2 * wrong + accuracy + PRECISE or nll > wrong * SURPRISE + accuracy * known + PRECISE:
        yield "the calibration is worse than so many right images allow"
    # The likeliest class has at least probability exp(-entropy), so on average at least exp(-mean entropy).
    if row["ece"] < math.exp(-row["total"]) - accuracy - PRECISE:
        yield "the calibration error is less than the confidence exceeds the accuracy"


def _detection(row: Row, clean: Row, negatives: float, positives: float | None) -> Iterator[str]:
    """A score that is 0 on all images tells nothing apart; one that tells all apart does so by any measure."""
    for measure in MEASURES:
        auroc, *areas = (row[f"{score}_{measure}"] for score in SCORES)
        if auroc == 1 and not all(same(area, 1) for area in areas):
            yield "a detection without error has errors"
        blind = measure in AMONG_DRAWS and row[measure] == 0 and clean.get(measure) == 0
        if blind and not math.isnan(auroc):
            shares = [positives / (positives + negatives), negatives / (positives + negatives)] if positives else areas
            if not same(auroc, 0.5) or not all(map(same, areas, shares)):
                yield "images are told apart by what is 0 of all of them"


def check_histograms(
    board: Board, plan: Plan, own: Mapping[Place, Row], classes: int | None, findings: Findings
) -> None:
    """Note what of the histograms cannot be.

    Args:
        board: the board.
        plan: its plan.
        own: the results of each defense's own attacks, by place.
        classes: of its data, if known.
        findings: where it is noted.
    """
    frame = board.report.histograms
    check_columns("histograms.csv", frame.columns, HISTOGRAM_COLUMNS, findings)
    rows, foreign = records(frame), foreign_places(board, plan)
    if len(set(frame.top)) > 1:
        findings.add("histograms.csv has several ranges")
    means = {}
    shown: Collection[Place] = {place(row) for row in rows if place(row) in foreign}
    if "uncertainty.csv" in board.present:
        means = {place(row): row for row in records(board.report.uncertainty)}
        shown = [where for where in foreign if where in means and not math.isnan(means[where]["total"])]
    due = [(*where, measure) for where in (*own, *shown) for measure in ENTROPIES]
    check_each_once("histograms.csv", [(*place(row), row["measure"]) for row in rows], due, findings)
    for row in rows:
        where = place(row)
        clean, images = foreign.get(where, (where, None))
        known = own.get(clean)
        if known is None:
            continue
        check_identity("histograms.csv", row, known, findings)
        if row["images"] != _kind(row, foreign):
            findings.add("histograms.csv: the images are not those of the attack", row_name(row))
        if classes is not None and not same(row["top"], math.log(classes)):
            findings.add("histograms.csv: the range is not that of so many classes", row_name(row))
        counts = list(map(int, row["counts"].split()))
        number = sum(counts)
        if number != (known["n_examples"] if where not in foreign else number if images is None else images):
            findings.add("histograms.csv: the counts are not those of the images", row_name(row))
        elif number:
            mean = means.get(where, {}).get(row["measure"], math.nan)
            width = row["top"] / BINS
            low = width * sum(index * count for index, count in enumerate(counts)) / number
            if mean < low - PRECISE or mean > low + width + PRECISE:
                findings.add("histograms.csv contradicts the mean in uncertainty.csv", row_name(row))

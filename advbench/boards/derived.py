"""Whether the other tables agree with the results, and with themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from advbench.boards.board import LIBRARIES, Board, stated_versions
from advbench.boards.certainty import check_histograms, check_retention, check_uncertainty
from advbench.boards.compare import IDENTITY, Row, check_columns, check_each_once, same
from advbench.boards.findings import Findings, row_name
from advbench.boards.rows import place, place_of
from advbench.grid.plan import Plan
from advbench.report.judgements import is_own
from advbench.report.ranks import with_own_source
from advbench.report.tables import MODEL_COLUMNS, records
from advbench.report.transfers import UNBOUNDED, affinity_table

NOT_AT_HAND = "no interval: the predictions are not at hand"


def check_tables(board: Board, plan: Plan, findings: Findings, classes: int | None = None) -> None:
    """Note where a board's other tables contradict its results; tables that are not there are not missed.

    Args:
        board: the board.
        plan: its plan, with the keys of the version that made it.
        findings: where it is noted.
        classes: of the data; None where nobody knows.
    """
    own_places = {place_of(cell) for cell in plan.cells if is_own(cell)}
    judged = {place(row): row for row in records(board.results) if not math.isnan(row["accuracy"])}
    own = {where: row for where, row in judged.items() if where in own_places}
    if "models.csv" in board.present:
        _check_models(board, plan, judged.values(), findings)
    if "affinity.csv" in board.present:
        _check_affinity(board, findings)
    if "retention.csv" in board.present:
        check_retention(board, own, findings)
    if "uncertainty.csv" in board.present:
        check_uncertainty(board, plan, own, classes, findings)
    if "histograms.csv" in board.present:
        check_histograms(board, plan, own, classes, findings)


def _check_models(board: Board, plan: Plan, judged: Iterable[Row], findings: Findings) -> None:
    frame = board.report.models
    check_columns("models.csv", frame.columns, MODEL_COLUMNS, findings)
    nets = {cell.defense.label: cell.defense.architecture for cell in plan.cells}
    random = {(row["defense"], row["seed"]): row["draws"] > 1 for row in judged}
    versions = {row["versions"] for row in judged}
    stated = [stated_versions(text) for text in versions]
    libraries = {name: {found.get(name) for found in stated} for name in LIBRARIES}
    rows = records(frame)
    check_each_once("models.csv", [(row["defense"], row["seed"]) for row in rows], plan.trained, findings)
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
    check_columns("affinity.csv", frame.columns, due.columns, findings)
    names = ("attack", "eps", "seed", "source", "target")
    expected = {tuple(row[name] for name in names): row for row in records(due)}
    rows = records(frame)
    check_each_once("affinity.csv", [tuple(row[name] for name in names) for row in rows], expected, findings)
    for row in rows:
        know = expected.get(tuple(row[name] for name in names))
        if know is None:
            continue
        where = row_name({**row, "defense": row["target"]})
        values = ("affinity", "clean_accuracy", "transfer_accuracy", "white_box_accuracy")
        if not all(same(row[name], know[name]) for name in values) or any(row[n] != know[n] for n in IDENTITY):
            findings.add("affinity.csv contradicts results.csv", where)
        low, high = row["affinity_low"], row["affinity_high"]
        bounded = low <= high
        if not bounded and not (math.isnan(low) and math.isnan(high)):
            findings.add("affinity.csv: an interval has no order", where)
        if math.isnan(row["affinity"]):
            if row["reason"] != know["reason"] or not math.isnan(low):
                findings.add("affinity.csv: the reason of an undefined affinity is another", where)
        elif row["reason"] not in (("",) if bounded else (UNBOUNDED, NOT_AT_HAND)):
            findings.add("affinity.csv: an interval and its reason contradict each other", where)
        elif bounded and not 2 * low - high - 1e-6 <= row["affinity"] <= 2 * high - low + 1e-6:
            findings.add("affinity.csv: an interval is about another affinity", where)  # bias moves it, but not so far
        if row["source"] == row["target"] and bounded and not (low == high == 1):
            findings.add("affinity.csv: the interval of a defense on itself is not 1", where)

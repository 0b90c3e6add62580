"""The tables of a run, as data frames made from records, or read back from its files."""

from __future__ import annotations

import io
import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from advbench.grid.plan import Cell, Plan
from advbench.grid.spec import Choice, swept
from advbench.report import uncertainty
from advbench.report.flags import suspicious
from advbench.report.judgements import NUMBERS, Judgement, RecordSource, found_out, is_own, judgements
from advbench.report.ranks import leaderboard_table, with_own_source
from advbench.report.transfers import affinity_table

RESULT_COLUMNS = (
    "dataset architecture defense attack source norm eps seed n_examples draws "
    "accuracy accuracy_low accuracy_high draw_accuracy_mean draw_accuracy_low draw_accuracy_high "
    "draw_accuracy_min draw_accuracy_max forward_passes backward_passes seconds flags key"
).split()
MODEL_COLUMNS = "defense seed architecture parameters posterior seconds key".split()
METHOD_COLUMNS = "kind label name distribution version params versions".split()
COUNTS = ("n_examples", "draws", "parameters")  # missing where there is no result
MEASURED = ("results", "methods", "models", "affinity", "retention", "uncertainty", "histograms")


@dataclass(frozen=True)
class Report:
    """The tables of a run; all but the leaderboard, which follows from them, are measured.

    Attributes:
        results: a row for each (source, target, attack, eps, seed), columns as `RESULT_COLUMNS`.
        methods: a row for each defense and attack: what it is and with which hyperparameters, and what computed it.
        models: a row for each (defense, seed): its net's weights, how long it trained, the key of its training.
        affinity: a row for each (attack, eps, seed, source, target).
        retention: a row for each (defense, attack, eps, seed, measure, fraction kept); clean and white-box.
        uncertainty: a row for each (defense, attack, eps, seed): calibration, uncertainty, detection; and for each
            (defense, seed) and set of out-of-distribution images.
        histograms: likewise, for each measure of uncertainty in nats.
    """

    results: pd.DataFrame
    methods: pd.DataFrame
    models: pd.DataFrame
    affinity: pd.DataFrame
    retention: pd.DataFrame
    uncertainty: pd.DataFrame
    histograms: pd.DataFrame

    @cached_property
    def leaderboard(self) -> pd.DataFrame:
        """A row for each defense, the most robust first."""
        return leaderboard_table(self.results, self.retention, self.models)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that were measured, by the name of their file."""
        return {f"{name}.csv": getattr(self, name) for name in MEASURED}

    @property
    def incomplete(self) -> bool:
        """Whether a cell failed or is missing."""
        ood = self.uncertainty[self.uncertainty.images == "ood"]
        return bool(self.results.accuracy.isna().any() or ood.total.isna().any())


def to_csv(frame: pd.DataFrame) -> bytes:
    """A table as CSV in UTF-8, in which every number reads back as it was."""
    file = io.BytesIO()  # a file of text would take four times the memory
    # As objects, fractions are written in fewer steps, with the same digits.
    frame = frame.astype({name: object for name, kind in frame.dtypes.items() if kind == np.float64})
    frame.to_csv(file, index=False, lineterminator="\n", mode="wb")
    return file.getvalue()


def collect(plan: Plan, store: RecordSource, failed: Mapping[str, str] | None = None) -> Report:
    """Make the tables of a plan from what the store holds.

    Args:
        plan: the run.
        store: its records.
        failed: why each failed task failed, by key; shown in the cells that it was to fill.
    """
    judged = list(judgements(plan, store))
    results = _results(plan, judged, failed or {})
    apart = with_own_source(results)
    mutual = ~results.attack.isin(apart)
    details = [*_details(plan, judged), *_ood(plan, store)]
    return Report(
        results=results,
        methods=_methods(plan, judged),
        models=_models(plan, store),
        affinity=affinity_table(results[mutual], [j for j, kept in zip(judged, mutual, strict=True) if kept]),
        retention=uncertainty.retention_table(details),
        uncertainty=uncertainty.uncertainty_table(details),
        histograms=uncertainty.histogram_table(details),
    )


def as_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table by column, with whole numbers as such, and NA where one is missing."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _identity(plan: Plan, cell: Cell) -> dict[str, Any]:
    """The columns by which a row of any table is found."""
    return {
        "dataset": plan.spec.dataset.partition(":")[0],
        "architecture": cell.defense.architecture,
        "defense": cell.defense.label,
        "attack": cell.attack.label if cell.attack else "none",
        "source": cell.source.label,
        "norm": plan.spec.norm,
        "eps": cell.eps,
        "seed": cell.seed,
    }


def _attack_params(plan: Plan, cell: Cell) -> Mapping[str, Any]:
    """The attack's hyperparameters, and what of the run's settings makes it another attack."""
    if cell.attack is None:
        return {}
    settings: dict[str, Any] = {} if plan.spec.budget is None else {"budget": plan.spec.budget}
    if swept(plan.spec, cell.attack):
        settings["sweep"] = True
    return {**cell.attack.params, **settings}


def _results(plan: Plan, judged: Sequence[Judgement | None], reasons: Mapping[str, str]) -> pd.DataFrame:
    """`results.csv`, column by column."""
    doubts = suspicious(plan.cells, judged, plan.spec.norm)
    columns: dict[str, Any] = {name: [] for name in uncertainty.IDENTITY}
    for cell in plan.cells:
        for name, value in _identity(plan, cell).items():
            columns[name].append(value)
    columns["key"] = [cell.key for cell in plan.cells]
    columns["flags"] = [
        ";".join([*judgement.flags, *doubts.get(index, ())]) if judgement else _absence(reasons.get(cell.key))
        for index, (cell, judgement) in enumerate(zip(plan.cells, judged, strict=True))
    ]
    absent = array("d", [math.nan] * len(NUMBERS))
    numbers = np.frombuffer(b"".join(each.numbers if each else absent for each in judged))
    columns |= dict(zip(NUMBERS, numbers.reshape(-1, len(NUMBERS)).T, strict=True))
    for name in COUNTS[:2]:
        columns[name] = pd.array(columns[name], dtype="Int64")
    return pd.DataFrame(columns, columns=RESULT_COLUMNS)


def _methods(plan: Plan, judged: Sequence[Judgement | None]) -> pd.DataFrame:
    """`methods.csv`: what is the same in all rows of a defense or attack."""
    found: dict[tuple[str, str], tuple[Choice, Mapping[str, Any]]] = {}
    made_by: dict[tuple[str, str], set[str]] = {}
    for cell, judgement in zip(plan.cells, judged, strict=True):
        chosen: list[tuple[str, Choice, Mapping[str, Any]]] = [("defense", cell.defense, cell.defense.params)]
        chosen += [("attack", cell.attack, _attack_params(plan, cell))] if cell.attack else []
        for kind, choice, params in chosen:
            found.setdefault((kind, choice.label), (choice, params))
            made_by.setdefault((kind, choice.label), set()).update([judgement.versions] if judgement else [])
    rows = []
    for kind, label in sorted(found, key=lambda which: which[0] != "defense"):
        choice, params = found[kind, label]
        component = choice.component
        said = [json.loads(text) for text in sorted(made_by[kind, label])]
        names = sorted({name for each in said for name in each})
        versions = {name: " and ".join(sorted({str(each[name]) for each in said if name in each})) for name in names}
        versions |= {**choice.built_on, **choice.parts}
        where = (component.name, component.distribution, component.version)
        rows.append((kind, label, *where, _one_line(params), _one_line(versions) if said else ""))
    return pd.DataFrame(rows, columns=METHOD_COLUMNS)


def _absence(reason: str | None) -> str:
    return f"failed: {reason}" if reason else "missing"


def _one_line(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), sort_keys=True)


def _details(plan: Plan, judged: Sequence[Judgement | None]) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    """What the records of a defense's own cells say in detail."""
    for cell, judgement in zip(plan.cells, judged, strict=True):
        if judgement is not None and judgement.details is not None and is_own(cell):
            images = "clean" if cell.attack is None else "attacked"
            yield {**_identity(plan, cell), "images": images, "classes": judgement.classes}, judgement.details


def _ood(plan: Plan, store: RecordSource) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    """What the records say of images of other data sets."""
    for cell, classes, details in found_out(plan, store):
        identity = _identity(plan, Cell(cell.defense, cell.defense, None, 0.0, cell.seed, cell.key))
        yield {**identity, "attack": f"ood:{cell.name}", "images": "ood", "classes": classes}, details


def _models(plan: Plan, store: RecordSource) -> pd.DataFrame:
    rows = []
    for (label, seed), key in plan.trained.items():
        record = store.read_record(key)
        choice = next(cell.defense for cell in plan.cells if cell.defense.label == label)
        architecture = choice.architecture
        classifier = record["result"]["classifier"] if record else {}
        rows.append(
            {
                "defense": label,
                "seed": seed,
                "architecture": architecture,
                "parameters": plan.parameters.get(architecture),
                "posterior": classifier.get("posterior", ""),
                "seconds": record["seconds"] if record else math.nan,
                "key": key,
            }
        )
    frame = pd.DataFrame(rows, columns=MODEL_COLUMNS)
    return frame.astype({"parameters": "Int64"})

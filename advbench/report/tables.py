"""The tables of a run, as data frames made from records, or read back from its files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from advbench.errors import InputError
from advbench.plan import Cell, Plan
from advbench.report import uncertainty
from advbench.report.flags import suspicious
from advbench.report.judgements import NUMBERS, Judgement, is_own, judgements
from advbench.report.ranks import leaderboard_table, with_own_source
from advbench.report.transfers import COLUMNS as AFFINITY_COLUMNS
from advbench.report.transfers import affinity_table
from advbench.store import Store

RESULT_COLUMNS = (
    "dataset architecture defense defense_params attack attack_params source norm eps seed n_examples draws "
    "accuracy accuracy_low accuracy_high draw_accuracy_mean draw_accuracy_low draw_accuracy_high "
    "draw_accuracy_min draw_accuracy_max forward_passes backward_passes seconds flags key versions"
).split()
MODEL_COLUMNS = "defense seed architecture parameters posterior seconds key versions".split()
COUNTS = ("n_examples", "draws")
MEASURED = ("results", "models", "affinity", "retention", "uncertainty", "histograms")
FILES = (*(f"{name}.csv" for name in MEASURED), "leaderboard.csv", "leaderboard.md")
TEXTS = "defense defense_params attack attack_params source flags key versions reason images measure counts posterior"


@dataclass(frozen=True)
class Report:
    """The tables of a run; all but the leaderboard, which follows from them, are measured.

    Attributes:
        results: a row for each (source, target, attack, eps, seed), columns as `RESULT_COLUMNS`.
        models: a row for each (defense, seed): its net's weights, how long it trained, the key of its training.
        affinity: a row for each (attack, eps, seed, source, target).
        retention: a row for each (defense, attack, eps, seed, measure, fraction kept); clean and white-box.
        uncertainty: a row for each (defense, attack, eps, seed): calibration, uncertainty, detection; and for each
            (defense, seed) and set of out-of-distribution images.
        histograms: likewise, for each measure of uncertainty in nats.
    """

    results: pd.DataFrame
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

    def files(self) -> dict[str, str]:
        """The text of each file by its name: all tables as CSV, and the leaderboard as Markdown too."""
        frames = {**self.tables(), "leaderboard.csv": self.leaderboard}
        return {**{name: to_csv(frame) for name, frame in frames.items()}, "leaderboard.md": self.markdown()}

    def markdown(self) -> str:
        """The leaderboard and what it rests on, for people."""
        from advbench.report.markdown import render

        return render(self)


def to_csv(frame: pd.DataFrame) -> str:
    """A table as CSV, in which every number reads back as it was."""
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text


def collect(plan: Plan, store: Store, failed: Mapping[str, str] | None = None) -> Report:
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
    details = list(_details(plan, judged))
    return Report(
        results=results,
        models=_models(plan, store),
        affinity=affinity_table(results[mutual], [j for j, kept in zip(judged, mutual, strict=True) if kept]),
        retention=uncertainty.retention_table(details),
        uncertainty=uncertainty.uncertainty_table(details),
        histograms=uncertainty.histogram_table(details),
    )


def read_report(folder: Path) -> Report:
    """The tables that a folder holds; `results.csv` must be there, from which the affinities follow if need be.

    Raises:
        InputError: a file cannot be read, or lacks a column.
    """
    results = _read(folder / "results.csv", RESULT_COLUMNS)
    mutual = ~results.attack.isin(with_own_source(results))
    found = {
        name: _read(folder / f"{name}.csv", columns) if (folder / f"{name}.csv").exists() else None
        for name, columns in (
            ("models", MODEL_COLUMNS),
            ("affinity", AFFINITY_COLUMNS),
            ("retention", uncertainty.RETENTION_COLUMNS),
            ("uncertainty", uncertainty.UNCERTAINTY_COLUMNS),
            ("histograms", uncertainty.HISTOGRAM_COLUMNS),
        )
    }
    if found["affinity"] is None:
        found["affinity"] = affinity_table(results[mutual])
    empty = {
        "models": MODEL_COLUMNS,
        "retention": uncertainty.RETENTION_COLUMNS,
        "uncertainty": uncertainty.UNCERTAINTY_COLUMNS,
        "histograms": uncertainty.HISTOGRAM_COLUMNS,
    }
    frames = {name: pd.DataFrame(columns=empty[name]) if frame is None else frame for name, frame in found.items()}
    return Report(results=results, **frames)


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    texts = dict.fromkeys(TEXTS.split(), str)
    try:
        frame = pd.read_csv(
            path,
            dtype=texts,
            keep_default_na=False,
            na_values={name: [""] for name in _numeric(columns)},
            float_precision="round_trip",
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise InputError(f"table {path}", expected="a CSV file that advbench wrote", got=reason) from error
    missing = [name for name in columns if name not in frame]
    if missing:
        raise InputError(f"table {path}", expected=f"columns {', '.join(columns)}", got=f"no {', '.join(missing)}")
    return frame.astype({name: "Int64" for name in COUNTS if name in frame})


def _numeric(columns: Sequence[str]) -> list[str]:
    texts = {*TEXTS.split(), "dataset", "architecture", "norm"}
    return [name for name in columns if name not in texts]


def _identity(plan: Plan, cell: Cell) -> dict[str, Any]:
    """The columns by which a row of any table is found."""
    return {
        "dataset": plan.spec.dataset.partition(":")[0],
        "architecture": cell.defense.architecture["name"],
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
    if plan.spec.sweep and "minimal_norm" not in cell.attack.traits:
        settings["sweep"] = True
    return {**cell.attack.params, **settings}


def _results(plan: Plan, judged: Sequence[Judgement | None], reasons: Mapping[str, str]) -> pd.DataFrame:
    """`results.csv`, column by column."""
    cells = plan.cells
    columns: dict[str, Any] = {name: [] for name in RESULT_COLUMNS}
    doubts = suspicious(cells, judged, plan.spec.norm)
    params: dict[tuple[str, str], str] = {}
    absent = (None,) * len(NUMBERS)
    for index, (cell, judgement) in enumerate(zip(cells, judged, strict=True)):
        for name, value in _identity(plan, cell).items():
            columns[name].append(value)
        attack = columns["attack"][-1]
        for kind, label, values in (
            ("defense", cell.defense.label, cell.defense.params),
            ("attack", attack, None),
        ):
            if (kind, label) not in params:
                params[kind, label] = _one_line(_attack_params(plan, cell) if values is None else values)
            columns[f"{kind}_params"].append(params[kind, label])
        for name, number in zip(NUMBERS, judgement.numbers if judgement else absent, strict=True):
            columns[name].append(number)
        reason = reasons.get(cell.key)
        if judgement:
            columns["flags"].append(";".join([*judgement.flags, *doubts.get(index, ())]))
        else:
            columns["flags"].append(f"failed: {reason}" if reason else "missing")
        columns["key"].append(cell.key)
        columns["versions"].append(judgement.versions if judgement else "")
    frame = pd.DataFrame(columns, columns=RESULT_COLUMNS)
    floats = [name for name in NUMBERS if name not in COUNTS]
    return frame.astype({**dict.fromkeys(COUNTS, "Int64"), **dict.fromkeys(floats, "float64")})


def _one_line(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), sort_keys=True)


def _details(plan: Plan, judged: Sequence[Judgement | None]) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    """What the records of a defense's own cells say in detail."""
    for cell, judgement in zip(plan.cells, judged, strict=True):
        if judgement is not None and judgement.details is not None and is_own(cell):
            images = "clean" if cell.attack is None else "attacked"
            yield {**_identity(plan, cell), "images": images, "classes": judgement.classes}, judgement.details


def _models(plan: Plan, store: Store) -> pd.DataFrame:
    rows = []
    for (label, seed), key in plan.trained.items():
        record = store.read_record(key)
        architecture = next(cell.defense.architecture["name"] for cell in plan.cells if cell.defense.label == label)
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
                "versions": _one_line(record["versions"]) if record else "",
            }
        )
    frame = pd.DataFrame(rows, columns=MODEL_COLUMNS)
    return frame.astype({"parameters": "Int64"})

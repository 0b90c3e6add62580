"""The tables of a run, as data frames from records."""

from __future__ import annotations

import io
import json
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from advbench.errors import InputError
from advbench.evaluation.summary import ENTROPIES
from advbench.grid.plan import Cell, Plan
from advbench.grid.spec import Choice, converges, stops_early, swept
from advbench.report.areas import AREA_COLUMNS, DIFFERENCE_COLUMNS, area_tables
from advbench.report.curves import COLUMNS as CONVERGENCE_COLUMNS
from advbench.report.curves import curve_table, paths
from advbench.report.evaluations import (
    NUMBERS,
    Evaluation,
    RecordSource,
    read_evaluations,
    reading,
    versions_line,
)
from advbench.report.flags import suspicious
from advbench.report.leaderboard import Standing, leaderboard_table, standings, with_own_source
from advbench.report.strengths import STRENGTH_COLUMNS, attack_table
from advbench.report.transfers import COLUMNS as AFFINITY_COLUMNS
from advbench.report.transfers import affinity_table

IDENTITY = "dataset architecture defense attack source norm eps seed".split()
RESULT_COLUMNS = [*IDENTITY, *NUMBERS, "flags", "key"]
HISTORY_COLUMNS = "defense seed step measure value".split()
MODEL_COLUMNS = "defense seed architecture parameters posterior mean std kld seconds key".split()
METHOD_COLUMNS = "kind label name distribution version params versions title authors year link".split()
CALIBRATION = ("ece", "nll", "brier")
MEASURES = (*ENTROPIES, "variation_ratio", "model_variance")
SCORES = ("auroc", "aupr_positive", "aupr_negative")
RETENTION_POINTS = "kept n_kept accuracy accuracy_low accuracy_high".split()
RETENTION_COLUMNS = [*IDENTITY, *RETENTION_POINTS, "area", "area_low", "area_high", "measure"]
DETECTION = [f"{score}_{measure}" for measure in MEASURES for score in SCORES]
ACCEPTED_ERRORS = [f"accepted_errors_{measure}" for measure in ENTROPIES]
UNCERTAINTY_NUMBERS = [*CALIBRATION, *MEASURES, *DETECTION, *ACCEPTED_ERRORS]
UNCERTAINTY_COLUMNS = [*IDENTITY, "images", *UNCERTAINTY_NUMBERS]
HISTOGRAM_COLUMNS = [*IDENTITY, "images", "measure", "top", "counts"]
PERSISTENCE_COLUMNS = [*IDENTITY, "tries", "broken", "broken_low", "broken_high"]
SINGLE = "draws draw_accuracy_mean draw_accuracy_low draw_accuracy_high draw_accuracy_min draw_accuracy_max".split()
ADVERSARY_COLUMNS = [*IDENTITY, "knows", "accuracy", "accuracy_low", "accuracy_high", *SINGLE, "key"]
NO_ENDS = (math.nan, math.nan)
KNOWLEDGE = {  # knowledge of adversaries, ascending
    "nothing": "no attack",
    "another": "another classifier",
    "answers": "its answers",
    "a_draw": "another draw",
    "posterior": "all draws",
    "the_draw": "the draw that answers",
}
CSV_ROWS = 50_000  # that are written at once
COLUMNS = {
    "results": RESULT_COLUMNS,
    "methods": METHOD_COLUMNS,
    "models": MODEL_COLUMNS,
    "affinity": AFFINITY_COLUMNS,
    "retention": RETENTION_COLUMNS,
    "uncertainty": UNCERTAINTY_COLUMNS,
    "histograms": HISTOGRAM_COLUMNS,
    "persistence": PERSISTENCE_COLUMNS,
    "adversaries": ADVERSARY_COLUMNS,
    "areas": AREA_COLUMNS,
    "differences": DIFFERENCE_COLUMNS,
    "strengths": STRENGTH_COLUMNS,
}
FILES = {name: f"{'attacks' if name == 'strengths' else name}.csv" for name in COLUMNS}
OPTIONAL = {"history": HISTORY_COLUMNS, "convergence": CONVERGENCE_COLUMNS}  # only if requested by the run
TEXT = (  # columns of text in any table
    "architecture attack authors axis counts dataset defense distribution flags images key kind knows label link "
    "measure name norm other params posterior reason settings source target title unconverged version versions "
    "worst_defense year"
).split()


@dataclass(frozen=True)
class Report:
    """The tables of a run, from which the leaderboard is derived."""

    results: pd.DataFrame  # one row per (source, target, attack, eps, seed)
    methods: pd.DataFrame  # per defense and attack: description, hyperparameters, versions
    models: pd.DataFrame  # per (defense, seed): number of weights, training time, key of the training
    affinity: pd.DataFrame  # per (attack, eps, seed, source, target)
    retention: pd.DataFrame  # per (defense, attack, eps, seed, measure, fraction kept); no transfers
    uncertainty: pd.DataFrame  # per (defense, attack, eps, seed), and for out-of-distribution images
    histograms: pd.DataFrame  # the same per measure of uncertainty in nats
    persistence: pd.DataFrame  # per (defense, attack, eps, seed, number of tries); no transfers
    adversaries: pd.DataFrame  # strongest attack per (defense, eps, seed, knowledge)
    areas: pd.DataFrame  # per defense: area under its lowest accuracies over the radii
    differences: pd.DataFrame  # per pair of defenses: difference of areas, and of lowest accuracies per eps
    strengths: pd.DataFrame  # per attack: excess of its accuracies over the lowest ones
    history: pd.DataFrame = field(
        default_factory=partial(pd.DataFrame, columns=HISTORY_COLUMNS)
    )  # measurements during trainings
    convergence: pd.DataFrame = field(
        default_factory=partial(pd.DataFrame, columns=CONVERGENCE_COLUMNS)
    )  # settings on the way of attacks run to convergence
    gradients_alone: bool = False  # True if all attacks use the gradient of the attacked defense

    left_alone: tuple[str, ...] = ()  # out-of-distribution images that cannot be attacked

    @cached_property
    def standings(self) -> list[Standing]:
        """Rows of the leaderboard, the most robust first."""
        return standings(self.results, self.retention, self.models, self.areas, self.differences)

    @cached_property
    def leaderboard(self) -> pd.DataFrame:
        """One row per defense, the most robust first."""
        return leaderboard_table(self.standings)

    @cached_property
    def places(self) -> list[tuple[str, float]]:
        """All pairs of an attack and one of its radii."""
        pairs = self.results[["attack", "eps"]].drop_duplicates().itertuples(index=False, name=None)
        return [(str(attack), float(eps)) for attack, eps in pairs if attack != "none"]

    @property
    def attacks(self) -> list[str]:
        """Labels of the attacks."""
        return list(dict.fromkeys(attack for attack, _ in self.places))

    def radii(self, attack: str = "") -> list[float]:
        """Radii of an attack, or of all attacks, ascending."""
        return sorted({eps for name, eps in self.places if attack in ("", name)})

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return int(self.results.seed.nunique())

    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables by the name of their file, without the leaderboard."""
        counts = [" ".join(map(str, each)) for each in self.histograms.counts]
        measured = replace(self, histograms=self.histograms.assign(counts=counts))
        there = {name: f"{name}.csv" for name in OPTIONAL if len(getattr(self, name))}
        return {file: getattr(measured, name) for name, file in {**FILES, **there}.items()}

    @property
    def incomplete(self) -> bool:
        """True if a cell failed or is missing."""
        ood = self.uncertainty[self.uncertainty.images.isin(["ood", "attacked_ood"])]
        return bool(self.results.accuracy.isna().any() or ood.total.isna().any())


def to_csv(frame: pd.DataFrame) -> bytes:
    """A table as CSV in UTF-8, in which every number reads back as it was.

    Most values stand in many rows, so each becomes a text once; pandas formats every cell, at several times the cost.
    """
    columns = [_texts(frame[name]) for name in frame]
    file = io.BytesIO()
    file.write(",".join(_quoted(str(name)) for name in frame).encode() + b"\n")
    for start in range(0, len(frame), CSV_ROWS):
        parts = [texts[places[start : start + CSV_ROWS]].tolist() for texts, places in columns]
        file.write("".join(f"{','.join(row)}\n" for row in zip(*parts, strict=True)).encode())
    return file.getvalue()


def _texts(column: pd.Series[Any]) -> tuple[NDArray[np.object_], NDArray[np.intp]]:
    """The distinct values of a column as they are written, a missing one as an empty text; and each row's place."""
    if column.dtype == np.float64:  # by their bits, as 0.0 and -0.0 are equal
        places, bits = pd.factorize(column.to_numpy().view(np.int64))
        texts = ["" if math.isnan(value) else repr(value) for value in bits.view(np.float64).tolist()]
    else:
        places, values = pd.factorize(column)
        texts = [_quoted(str(value)) for value in np.asarray(values, dtype=object).tolist()]
    return np.array([*texts, ""], dtype=object), places


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(each in text for each in ',"\n\r') else text


def read_report(folder: Path) -> Report:
    """Read the tables of a folder from CSV.

    Raises:
        InputError: a table is missing or invalid.
    """
    frames: dict[str, Any] = {name: _read_csv(folder / FILES[name], each) for name, each in COLUMNS.items()}
    there = {name: each for name, each in OPTIONAL.items() if (folder / f"{name}.csv").is_file()}
    frames |= {name: _read_csv(folder / f"{name}.csv", each) for name, each in there.items()}
    try:
        for name in ("results", "models", "areas"):
            whole = [each for each in ("n_examples", "draws", "parameters") if each in frames[name]]
            frames[name] = frames[name].astype(dict.fromkeys(whole, "Int64"))
        counts = frames["histograms"].counts.map(lambda text: tuple(map(int, text.split())))
    except (TypeError, ValueError) as error:
        raise InputError(f"tables of {folder}", expected="tables written by a run", got=str(error)) from error
    return Report(**{**frames, "histograms": frames["histograms"].assign(counts=counts)})


def _read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a table written by `to_csv`: text columns unchanged, missing numbers as NaN."""
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        numbers = [str(name) for name in frame if name not in TEXT]
        frame[numbers] = frame[numbers].replace("", "nan").astype(np.float64)  # to the last digit
        integers = ("seed", "seeds", "cells", "n_kept", "step")
        whole = [name for name in integers if name in frame]
        frame[whole] = frame[whole].astype(np.int64)
    except (OSError, ValueError) as error:
        got = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(f"table {path}", expected="a table written by a run", got=got) from error
    absent = [name for name in columns if name not in frame]
    if absent:
        raise InputError(f"table {path}", expected="a table written by a run", got=f"none with a column {absent[0]}")
    return frame


def collect(plan: Plan, store: RecordSource, failed: Mapping[str, str] | None = None) -> Report:
    """Make the tables of a plan from the records in a store.

    Args:
        plan: the run.
        store: source of its records.
        failed: reasons of failed tasks, by key; shown in their cells.
    """
    uncertainty = _UncertaintyTables()
    evaluations: list[Evaluation | None] = []
    for cell, (found, details) in zip(plan.cells, read_evaluations(plan, store), strict=True):
        evaluations.append(found)
        if found and details:  # of examples that stopped early there are none
            with reading(cell.key):
                uncertainty.add(_identity(plan, cell), _images(cell.attack), found.classes, details)
    _add_ood(uncertainty, plan, store)
    results = _results(plan, evaluations, failed or {})
    areas, differences = area_tables(results, evaluations)
    mutual = ~results.attack.isin(with_own_source(results))
    kept = [each for each, wanted in zip(evaluations, mutual, strict=True) if wanted]
    return Report(
        results=results,
        methods=_methods(plan, evaluations, store),
        models=_models(plan, store),
        history=_history(plan, store),
        convergence=curve_table(plan, list(paths(plan, store)) if plan.spec.converge else []),
        affinity=affinity_table(results[mutual], kept),
        adversaries=_adversaries(plan, store, results),
        areas=areas,
        differences=differences,
        strengths=attack_table(plan.cells, evaluations),
        gradients_alone=_gradients_alone(plan),
        left_alone=plan.left_alone,
        **uncertainty.tables(),
    )


def as_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as dicts, with integers as such and missing values as NA."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _gradients_alone(plan: Plan) -> bool:
    attacked = [(cell, cell.attack) for cell in plan.cells if cell.attack is not None]
    return bool(attacked) and not any(
        attack.traits & {"black_box", "mixed"} or cell.source.label != cell.defense.label for cell, attack in attacked
    )


def _identity(plan: Plan, cell: Cell) -> dict[str, Any]:
    """Columns that identify a row of any table."""
    return {
        "dataset": plan.spec.data_name,
        "architecture": cell.defense.architecture,
        "defense": cell.defense.label,
        "attack": cell.attack.label if cell.attack else "none",
        "source": cell.source.label,
        "norm": plan.spec.norm,
        "eps": cell.eps,
        "seed": cell.seed,
    }


def _results(plan: Plan, evaluations: Sequence[Evaluation | None], reasons: Mapping[str, str]) -> pd.DataFrame:
    """`results.csv`, column by column."""
    between = suspicious(plan.cells, evaluations, plan.spec.norm)
    columns: dict[str, Any] = {name: [] for name in (*IDENTITY, "key", "flags")}
    for index, (cell, found) in enumerate(zip(plan.cells, evaluations, strict=True)):
        for name, value in _identity(plan, cell).items():
            columns[name].append(value)
        reason = reasons.get(cell.key)
        absent = f"failed: {reason}" if reason else "missing"
        columns["key"].append(cell.key)
        columns["flags"].append(";".join([*found.flags, *between.get(index, ())]) if found else absent)
    nothing = array("d", [math.nan] * len(NUMBERS))
    numbers = np.frombuffer(b"".join(each.numbers if each else nothing for each in evaluations))
    columns |= dict(zip(NUMBERS, numbers.reshape(-1, len(NUMBERS)).T, strict=True))
    return pd.DataFrame(columns, columns=RESULT_COLUMNS).astype({"n_examples": "Int64", "draws": "Int64"})


def _methods(plan: Plan, evaluations: Sequence[Evaluation | None], store: RecordSource) -> pd.DataFrame:
    """`methods.csv`: values shared by all rows of a defense or attack."""
    made_by: dict[str, dict[str, tuple[Choice, set[str]]]] = {"defense": {}, "attack": {}}
    for cell, evaluation in zip(plan.cells, evaluations, strict=True):
        for kind, choice in (("defense", cell.defense), ("attack", cell.attack)):
            if choice is not None:
                _, texts = made_by[kind].setdefault(choice.label, (choice, set()))
                texts.update([evaluation.versions] if evaluation else [])
    apart = [(each.attack, each.key) for each in plan.ood] + [(cell.attack, cell.key) for cell in plan.known]
    for attack, key in apart:  # these have no row in the results
        if attack is not None:
            record = store.read_record(key)
            made = made_by["attack"].setdefault(attack.label, (attack, set()))[1]
            made.update([versions_line(record)] if record else [])
    rows = []
    for kind, label in ((kind, label) for kind, methods in made_by.items() for label in methods):
        choice, texts = made_by[kind][label]
        makers = [json.loads(text) for text in sorted(texts)]
        names = sorted({name for each in makers for name in each})
        versions = {name: " and ".join(sorted({str(each[name]) for each in makers if name in each})) for name in names}
        versions |= {**choice.built_on, **choice.parts}
        params = {**choice.params, **(_run_settings(plan, choice) if kind == "attack" else {})}
        where = (choice.component.name, choice.component.distribution, choice.component.version)
        paper = choice.paper
        about = (paper.title, paper.authors, str(paper.year), paper.link) if paper else ("", "", "", "")
        rows.append((kind, label, *where, _one_line(params), _one_line(versions) if makers else "", *about))
    return pd.DataFrame(rows, columns=METHOD_COLUMNS)


def _run_settings(plan: Plan, attack: Choice) -> dict[str, Any]:
    """Settings of the run that change an attack."""
    found: dict[str, Any] = {} if plan.spec.budget is None else {"budget": plan.spec.budget}
    found |= {"stop_early": True} if stops_early(plan.spec, attack) else {}
    found |= {"converge": plan.spec.converge} if converges(plan.spec, attack) else {}
    return found | ({"sweep": True} if swept(plan.spec, attack) else {})


def _one_line(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), sort_keys=True)


def _add_ood(tables: _UncertaintyTables, plan: Plan, store: RecordSource) -> None:
    """Details on out-of-distribution images in records."""
    for ood in plan.ood:
        record = store.read_record(ood.key)
        result = record["result"] if record else {}
        identity = _identity(plan, Cell(ood.defense, ood.defense, None, ood.eps, ood.seed, ood.key))
        attack, images = (ood.attack.label, "attacked_ood") if ood.attack else ("ood", "ood")
        with reading(ood.key):
            tables.add({**identity, "attack": f"{attack}:{ood.name}"}, images, result.get("classes", 0), result)


def _images(attack: Choice | None) -> str:
    """Kind of images of an attack: `clean`, `attacked`, or attacked on the uncertainty."""
    if attack is None:
        return "clean"
    return "certain" if "certain_error" in attack.traits else "doubt" if "doubt" in attack.traits else "attacked"


class _UncertaintyTables:
    """Tables of uncertainty and persistence from records; bins of histograms have equal width, 0 to `top`.

    A record's values are taken apart as it is read: those of a large grid would take gigabytes.
    """

    def __init__(self) -> None:
        self._curves: list[tuple[Any, ...]] = []
        self._sizes: list[int] = []  # points of each curve
        self._points = {name: array("d") for name in RETENTION_POINTS}
        self._persistence: list[tuple[Any, ...]] = []
        self._images: list[tuple[Any, ...]] = []
        self._numbers = array("d")  # `UNCERTAINTY_NUMBERS` of each of those
        self._histograms: list[tuple[Any, ...]] = []

    def add(self, identity: dict[str, Any], images: str, classes: int, values: Mapping[str, Any]) -> None:
        """Add what a record says of images of a kind."""
        head = [identity[name] for name in IDENTITY]
        for measure in ENTROPIES:
            if curve := values.get("retention", {}).get(measure):
                size = len(curve["fractions"])
                ends = zip(*(curve.get("intervals") or [NO_ENDS] * size), strict=True)
                points = (curve["fractions"], curve["counts"], curve["accuracies"], *ends)
                for column, numbers in zip(self._points.values(), points, strict=True):
                    column.fromlist(list(numbers))
                self._sizes.append(size)
                self._curves.append((*head, curve["area"], *(curve.get("area_interval") or NO_ENDS), measure))
            if counts := values.get("histograms", {}).get(measure):
                self._histograms.append((*head, images, measure, math.log(classes), tuple(counts)))
        scores = {
            f"{score}_{measure}": value
            for measure, scores in values.get("detection", {}).items()
            for score, value in scores.items()
        }
        self._persistence += [
            (*head, each["tries"], each["broken"], *each["interval"]) for each in values.get("persistence", ())
        ]
        scores |= {f"accepted_errors_{name}": share for name, share in values.get("accepted_errors", {}).items()}
        scores |= {**values.get("calibration", {}), **values.get("uncertainty", {})}
        self._images.append((*head, images))
        self._numbers.fromlist([scores.get(name, math.nan) for name in UNCERTAINTY_NUMBERS])

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables of all that was added."""
        curves = pd.DataFrame(self._curves, columns=[*IDENTITY, "area", "area_low", "area_high", "measure"])
        retention = curves.take(np.repeat(np.arange(len(curves)), self._sizes)).reset_index(drop=True)
        retention = retention.assign(**{name: np.array(each) for name, each in self._points.items()})
        numbers = np.array(self._numbers).reshape(-1, len(UNCERTAINTY_NUMBERS))
        images = pd.DataFrame(self._images, columns=[*IDENTITY, "images"])
        return {
            "retention": retention[RETENTION_COLUMNS].astype({"n_kept": np.int64}),
            "uncertainty": pd.concat([images, pd.DataFrame(numbers, columns=UNCERTAINTY_NUMBERS)], axis=1),
            "histograms": pd.DataFrame(self._histograms, columns=HISTOGRAM_COLUMNS),
            "persistence": pd.DataFrame(self._persistence, columns=PERSISTENCE_COLUMNS),
        }


def _adversaries(plan: Plan, store: RecordSource, results: pd.DataFrame) -> pd.DataFrame:
    """`adversaries.csv`: the attack of lowest accuracy for each knowledge, in the order of `KNOWLEDGE`.

    If the adversary knows the evaluated draw there is no ensemble; accuracy is the mean over draws.
    """
    known = results.assign(knows=list(map(_knows, plan.cells)))[ADVERSARY_COLUMNS]
    rows = []
    for cell in plan.known:
        if record := store.read_record(cell.key):
            result = record["result"]
            mean, ends = result["draw_accuracy"], result["draw_accuracy_interval"]
            numbers = (result["draws"], mean, *ends, result["draw_accuracy_min"], result["draw_accuracy_max"])
            found = dict(
                zip([*SINGLE, "accuracy", "accuracy_low", "accuracy_high"], (*numbers, mean, *ends), strict=True)
            )
            rows.append({**_identity(plan, cell), **found, "knows": "the_draw", "key": cell.key})
    frames = [known[known.accuracy.notna()], pd.DataFrame(rows, columns=ADVERSARY_COLUMNS)]
    table = pd.concat([each for each in frames if len(each)] or frames[:1])
    table = table.sort_values("accuracy", kind="stable").drop_duplicates(["defense", "eps", "seed", "knows"])
    order = {name: place for place, name in enumerate(dict.fromkeys(cell.defense.label for cell in plan.cells))}
    places = [table.defense.map(order), table.seed, table.eps, table.knows.map(list(KNOWLEDGE).index)]
    return table.iloc[np.lexsort([each.to_numpy(float) for each in reversed(places)])].reset_index(drop=True)


def _knows(cell: Cell) -> str:
    """Knowledge of a cell's adversary, one of `KNOWLEDGE`."""
    if cell.attack is None:
        return "nothing"
    if cell.source.label != cell.defense.label or cell.attack.init is not None:
        return "another"
    if "black_box" in cell.attack.traits:
        return "answers"
    return "a_draw" if "a_draw" in cell.attack.traits else "posterior"


def _history(plan: Plan, store: RecordSource) -> pd.DataFrame:
    """`history.csv`: one row per value measured during each training."""
    rows = []
    if plan.spec.history:
        for (label, seed), key in plan.trained.items():
            record = store.read_record(key)
            for moment in record["result"].get("history", ()) if record else ():
                rows += [(label, seed, moment["step"], *each) for each in moment["values"].items()]
    return pd.DataFrame(rows, columns=HISTORY_COLUMNS)


def _models(plan: Plan, store: RecordSource) -> pd.DataFrame:
    choices = {cell.defense.label: cell.defense for cell in plan.cells}
    rows = []
    for (label, seed), key in plan.trained.items():
        record = store.read_record(key)
        architecture = choices[label].architecture
        result = record["result"] if record else {}
        with reading(key):
            posterior, stated = result.get("classifier", {}).get("posterior", ""), result.get("statistics", {})
        # Values of a Gaussian posterior; other methods may use these names for non-numbers.
        numbers = [each if isinstance(each := stated.get(name), float) else math.nan for name in ("mean", "std", "kld")]
        seconds = record["seconds"] if record else math.nan
        rows.append((label, seed, architecture, plan.parameters.get(architecture), posterior, *numbers, seconds, key))
    return pd.DataFrame(rows, columns=MODEL_COLUMNS).astype({"parameters": "Int64"})

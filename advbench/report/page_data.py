"""What the leaderboard's page shows, as plain values: the rows of its tables, and the data that its script reads."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from advbench.grid.spec import RunSpec
from advbench.report.ranks import own_rows
from advbench.report.references import Reference
from advbench.report.tables import Report, as_rows
from advbench.report.texts import accuracy_text, count_text, format_eps, number_text

Cells = dict[tuple[str, str, float], list[dict[str, Any]]]
ROW_NUMBERS = (
    "accuracy accuracy_low accuracy_high draw_accuracy_mean draw_accuracy_low draw_accuracy_high draw_accuracy_min "
    "draw_accuracy_max forward_passes backward_passes seconds"
).split()


class Shown(NamedTuple):
    """A cell of the main table.

    Attributes:
        text: an accuracy, or why there is none, in a word.
        interval: of 95 %, with the deviation over seeds; empty where there is no accuracy.
        note: why there is no accuracy.
        key: where the script finds what lies behind it: positions of defense, attack (-1: clean) and eps.
        order: what the column is sorted by; empty where there is no accuracy.
    """

    text: str
    interval: str
    note: str
    key: str
    order: str


class Row(NamedTuple):
    """A defense in the main table."""

    place: int
    rank: str
    defense: str
    net: str
    weights: str
    seeds: int
    clean: Shown
    attacked: tuple[Shown, ...]
    lowest: Shown
    lowest_attack: str
    retention: str
    passes: str
    flags: tuple[str, ...]


class Board:
    """A report, made ready to be shown.

    Args:
        report: the tables.
        spec: of the run, if a spec file lies beside the page.
    """

    def __init__(self, report: Report, spec: RunSpec | None) -> None:
        self.report = report
        self.spec = spec
        results = report.results
        attacked = results[results.attack != "none"]
        self.names: list[str] = list(report.leaderboard.defense)
        self.attacks: list[str] = list(attacked.attack.unique())
        self.radii: list[float] = sorted(map(float, attacked.eps.unique()))
        self.seeds: list[int] = sorted(map(int, results.seed.unique()))
        self._cells: Cells = {}
        for row in as_rows(results[own_rows(results)]):
            self._cells.setdefault((row["defense"], row["attack"], row["eps"]), []).append(row)
        self._methods = {(row["kind"], row["label"]): row for row in as_rows(report.methods)}
        self._records = {row["defense"]: row for row in as_rows(report.leaderboard)}

    @property
    def headline(self) -> int:
        """The position of the largest eps, at which defenses are ranked; -1 in a run without attacks."""
        return len(self.radii) - 1

    def rows(self) -> list[Row]:
        """The main table at the headline eps, the most robust defense first."""
        return [self._row(place, name) for place, name in enumerate(self.names)]

    def _row(self, place: int, name: str) -> Row:
        record = self._records[name]
        attacked = tuple(self.shown(place, attack, self.headline) for attack in range(len(self.attacks)))
        worst = str(record["worst_attack"])
        lowest = Shown(number_text(record["worst"]), "", "an accuracy is missing", "", "")
        if worst in self.attacks:
            lowest = attacked[self.attacks.index(worst)]
        return Row(
            place=place,
            rank="n/a" if pd.isna(record["rank"]) else str(record["rank"]),
            defense=name,
            net=str(record["architecture"]),
            weights=count_text(record["parameters"]),
            seeds=int(record["seeds"]),
            clean=self.shown(place, -1, -1),
            attacked=attacked,
            lowest=lowest,
            lowest_attack=worst if worst in self.attacks else "",
            retention=number_text(record["retention_area"]),
            passes=count_text(record["passes_to_predict"]),
            flags=tuple(filter(None, record["flags"].split(";"))),
        )

    def shown(self, place: int, attack: int, eps: int) -> Shown:
        """The accuracy of a defense under an attack at an eps, all by position; attack -1 is none."""
        name = self.names[place]
        which, radius = ("none", 0.0) if attack < 0 else (self.attacks[attack], self.radii[eps])
        text = accuracy_text(self._records[name], "clean" if attack < 0 else f"{which}@{radius:.10g}")
        key = f"{place},{attack},{eps}"
        if text != "failed":
            value, _, interval = text.partition(" ")
            return Shown(value, interval, "", key, value)
        notes = [row["flags"] for row in self._cells.get((name, which, radius), []) if math.isnan(row["accuracy"])]
        note = notes[0] if notes else "not part of the run"
        return Shown(note.partition(":")[0] if notes else "not run", "", note, key, "")

    def failures(self) -> list[tuple[str, int]]:
        """Why cells are missing, and how many."""
        notes = self.report.results["flags"]
        counted = notes[notes.str.startswith(("failed", "missing"))].value_counts(sort=False)
        return [(str(reason), int(count)) for reason, count in counted.items()]

    def references(self, references: Sequence[Reference]) -> tuple[list[Reference], int]:
        """Those judged on the same data under the same norm, the most robust first, and how many others there are."""
        first = self.report.results.iloc[0]
        alike = [one for one in references if one.dataset == first.dataset and one.norm in ("", first.norm)]
        ordered = sorted(alike, key=lambda one: (one.robust is None, -(one.robust or 0.0), one.model))
        return ordered, len(references) - len(alike)

    def data(self) -> dict[str, Any]:
        """What the script needs to show any eps, and what lies behind each number."""
        rows: list[list[Any]] = []
        versions: dict[str, int] = {}
        notes: dict[str, int] = {}
        cells = {}
        for place, attack, eps in self._places():
            shown = self.shown(place, attack, eps)
            which, radius = ("none", 0.0) if attack < 0 else (self.attacks[attack], self.radii[eps])
            behind = self._cells.get((self.names[place], which, radius), [])
            start = len(rows)
            for row in behind:
                version = versions.setdefault(self._methods["defense", row["defense"]]["versions"], len(versions))
                note = notes.setdefault(row["flags"], len(notes))
                counts = [_whole(row["n_examples"]), _whole(row["draws"])]
                numbers = [_rounded(row[name]) for name in ROW_NUMBERS]
                rows.append([row["seed"], row["source"], *counts, *numbers, note, row["key"], version])
            note = notes.setdefault(shown.note, len(notes))
            cells[shown.key] = [shown.text, shown.interval, note, start, len(rows)]
        first = self.report.results.iloc[0]
        return {
            "dataset": first.dataset,
            "norm": first.norm,
            "command": _base_command(self.report.results, self.spec),
            "eps": [[format_eps(eps), self._radii_option(eps)] for eps in self.radii],
            "attacks": [self._attack(name) for name in self.attacks],
            "defenses": [self._defense(name) for name in self.names],
            "cells": cells,
            "rows": rows,
            "notes": list(notes),
            "versions": list(versions),
        }

    def _places(self) -> Iterator[tuple[int, int, int]]:
        for place in range(len(self.names)):
            yield place, -1, -1
            for attack in range(len(self.attacks)):
                yield from ((place, attack, eps) for eps in range(len(self.radii)))

    @property
    def _swept(self) -> bool:
        """Whether a radius was attacked after the smaller ones, so that its cells come of all of them."""
        return any(_params(row["params"]).get("sweep") for row in self._methods.values())

    def _radii_option(self, eps: float) -> str:
        before = [radius for radius in self.radii if radius < eps] if self._swept else []
        return ",".join(map(repr, (*before, eps)))

    def _attack(self, name: str) -> dict[str, Any]:
        params = _params(self._methods["attack", name]["params"])
        return {"name": name, "params": _pairs(params), "option": self._options("attack", name, params)}

    def _defense(self, name: str) -> dict[str, Any]:
        record, models = self._records[name], self.report.models
        params = _params(self._methods["defense", name]["params"])
        mine = models[models.defense == name]
        trained = zip(mine.seed, mine.posterior, mine.seconds, mine.key, strict=True)
        return {
            "name": name,
            "net": record["architecture"],
            "weights": count_text(record["parameters"]),
            "params": _pairs(params),
            "option": self._options("defense", name, params),
            "models": [[int(seed), str(kind), _rounded(spent), str(key)] for seed, kind, spent, key in trained],
        }

    def _options(self, kind: str, name: str, params: Mapping[str, Any]) -> str:
        """The options that choose a plugin, and without a spec file its hyperparameters."""
        chosen = f"--{kind} {shlex.quote(name)}"
        if self.spec is not None:
            return chosen
        run = {"budget": "--budget {}", "sweep": "--sweep"} if kind == "attack" else {}
        settings = [run[key].format(value) for key, value in params.items() if key in run]
        settings += [
            "--set " + shlex.quote(f"{name}.{key}={_toml(value)}")
            for key, value in params.items()
            if key not in run and value is not None
        ]
        return " ".join([chosen, *settings])


def _base_command(results: pd.DataFrame, spec: RunSpec | None) -> str:
    if spec is not None:
        return "advbench run --spec spec.toml"
    first = results.iloc[0]
    parts = ["advbench run", f"--dataset {shlex.quote(first.dataset)}", f"--arch {shlex.quote(first.architecture)}"]
    parts.append(f"--norm {first.norm}")
    images, draws = results.n_examples.max(), results.draws.max()
    # Draws of a classifier that has none to make are 1, whatever the run asked for.
    parts += [] if pd.isna(images) else [f"--limit {images}", f"--draws {draws}"]
    return " ".join(parts)


def _params(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _pairs(params: Mapping[str, Any]) -> list[list[str]]:
    return [[name, json.dumps(value)] for name, value in params.items()]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)


def _whole(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)

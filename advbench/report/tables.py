"""The tables of a run, as data frames made from records alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from advbench.metrics import affinity
from advbench.plan import Cell, Plan
from advbench.report.flags import suspicious
from advbench.report.markdown import main_table, render
from advbench.store import Store

Record = Mapping[str, Any]

RESULT_COLUMNS = (
    "dataset architecture defense defense_params attack attack_params source norm eps seed n_examples draws "
    "accuracy accuracy_low accuracy_high draw_accuracy_mean draw_accuracy_low draw_accuracy_high "
    "draw_accuracy_min draw_accuracy_max forward_passes backward_passes seconds flags key versions"
).split()

COUNTS = ("n_examples", "draws")


@dataclass(frozen=True)
class Report:
    """The tables of a run.

    Attributes:
        results: a row for each (source, target, attack, eps, seed), columns as `RESULT_COLUMNS`.
        leaderboard: a row for each defense, the most robust first.
        affinity: a row for each (attack, eps, seed, source, target).
        retention: a row for each (defense, attack, eps, seed, fraction kept); clean and white-box.
    """

    results: pd.DataFrame
    leaderboard: pd.DataFrame
    affinity: pd.DataFrame
    retention: pd.DataFrame

    def markdown(self) -> str:
        """The leaderboard and what it rests on, for people."""
        return render(self.results, self.leaderboard, self.affinity, self.retention)

    def summary(self) -> str:
        """The main table, for the end of a run."""
        return main_table(self.results, self.leaderboard)

    def files(self) -> dict[str, str]:
        """The text of each file by its name."""
        frames = {
            "results.csv": self.results,
            "leaderboard.csv": self.leaderboard,
            "affinity.csv": self.affinity,
            "retention.csv": self.retention,
        }
        texts = {name: frame.to_csv(index=False, lineterminator="\n") for name, frame in frames.items()}
        return {**texts, "leaderboard.md": self.markdown()}


def collect(plan: Plan, store: Store, failed: Mapping[str, str] | None = None) -> Report:
    """Make the tables of a plan from what the store holds.

    Args:
        plan: the run.
        store: its records.
        failed: why each failed task failed, by key; shown in the cells that it was to fill.
    """
    keys = [cell.key for cell in plan.cells]
    records = dict(zip(keys, store.storage.each(store.read_record, keys), strict=True))
    reasons = failed or {}
    flags = suspicious(plan.cells, records, plan.spec.norm)
    rows = [
        _result_row(plan, cell, records[cell.key], reasons.get(cell.key), flags.get(index, []))
        for index, cell in enumerate(plan.cells)
    ]
    results = pd.DataFrame(rows, columns=RESULT_COLUMNS).astype(dict.fromkeys(COUNTS, "Int64"))
    own, mutual = np.array([[_is_own(cell), not _is_transfer(cell)] for cell in plan.cells]).T
    curves = _retention_table(plan, records)
    return Report(results, _leaderboard_table(results[own], curves), _affinity_table(results[mutual]), curves)


def _is_own(cell: Cell) -> bool:
    """Whether a cell says how its defense stands up to an attack: crafted on itself, or on the attack's one source."""
    return cell.source == cell.defense or _is_transfer(cell)


def _is_transfer(cell: Cell) -> bool:
    return cell.attack is not None and cell.attack.init is not None


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


def _result_row(plan: Plan, cell: Cell, record: Record | None, reason: str | None, flags: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        **_identity(plan, cell),
        "defense_params": _one_line(cell.defense.params),
        "attack_params": _one_line(_attack_params(plan, cell)),
        "key": cell.key,
    }
    if record is None:
        return row | {"flags": f"failed: {reason}" if reason else "missing", "versions": ""}
    result = record["result"]
    attack = result["attack"]
    return row | {
        "n_examples": result["n_examples"],
        "draws": result["draws"],
        "accuracy": result["accuracy"],
        "accuracy_low": result["accuracy_interval"][0],
        "accuracy_high": result["accuracy_interval"][1],
        "draw_accuracy_mean": result["draw_accuracy"],
        "draw_accuracy_low": result["draw_accuracy_interval"][0],
        "draw_accuracy_high": result["draw_accuracy_interval"][1],
        "draw_accuracy_min": result["draw_accuracy_min"],
        "draw_accuracy_max": result["draw_accuracy_max"],
        "forward_passes": attack["forward_passes"],
        "backward_passes": attack["backward_passes"],
        "seconds": round(record["seconds"] + attack["seconds"], 3),
        "flags": ";".join([*result.get("flags", []), *flags]),
        "versions": _one_line(record["versions"]),
    }


def _one_line(values: Mapping[str, Any]) -> str:
    return json.dumps(dict(values), sort_keys=True)


def _retention_table(plan: Plan, records: Mapping[str, Record | None]) -> pd.DataFrame:
    rows = []
    for cell in plan.cells:
        record = records[cell.key]
        if record is None or not _is_own(cell):
            continue
        curve = record["result"]["retention"]
        points = zip(curve["fractions"], curve["counts"], curve["accuracies"], strict=True)
        for kept, count, accuracy in points:
            rows.append(
                _identity(plan, cell) | {"kept": kept, "n_kept": count, "accuracy": accuracy, "area": curve["area"]}
            )
    columns = "dataset architecture defense attack source norm eps seed".split()
    return pd.DataFrame(rows, columns=[*columns, "kept", "n_kept", "accuracy", "area"])


AFFINITY_COLUMNS = (
    "dataset",
    "architecture",
    "attack",
    "norm",
    "eps",
    "seed",
    "source",
    "target",
    "affinity",
    "clean_accuracy",
    "transfer_accuracy",
    "white_box_accuracy",
    "reason",
)


def _affinity_table(results: pd.DataFrame) -> pd.DataFrame:
    """Adv-BNN eq. 17 for every pair; undefined values keep the reason."""
    attacked = results[results.attack != "none"].rename(columns={"defense": "target", "accuracy": "transfer_accuracy"})
    cell = ["attack", "eps", "target", "seed"]
    white = attacked[attacked.source == attacked.target].set_index(cell).transfer_accuracy
    clean = results[results.attack == "none"].set_index(["defense", "seed"]).accuracy
    pairs = pd.MultiIndex.from_frame(attacked[["target", "seed"]])
    table = attacked.assign(
        clean_accuracy=clean.reindex(pairs).to_numpy(),
        white_box_accuracy=white.reindex(pd.MultiIndex.from_frame(attacked[cell])).to_numpy(),
    )
    accuracies = table[["clean_accuracy", "transfer_accuracy", "white_box_accuracy"]].astype(float).to_numpy()
    rhos = [affinity(*row) for row in accuracies.tolist()]
    table = table.assign(affinity=[rho.value for rho in rhos], reason=[rho.reason for rho in rhos])
    return table[list(AFFINITY_COLUMNS)]


def _leaderboard_table(own: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """A row for each defense: clean accuracy, accuracy under each attack, and the lowest of them.

    Several seeds: mean of accuracies and of interval ends (images are shared, so seeds do not narrow them),
    and the deviation over seeds.
    """
    headline = own.eps.max()
    rows = []
    for defense, mine in own.groupby("defense", sort=False):
        row: dict[str, Any] = {
            "defense": defense,
            "dataset": mine.dataset.iloc[0],
            "architecture": mine.architecture.iloc[0],
            "norm": mine.norm.iloc[0],
            "seeds": mine.seed.nunique(),
            "n_examples": mine.n_examples.max(),
            "draws": mine.draws.max(),
            **_accuracy_columns("clean", mine[mine.attack == "none"]),
        }
        at_headline: dict[str, float] = {}
        for (attack, eps), cells in mine[mine.attack != "none"].groupby(["attack", "eps"], sort=False):
            columns = _accuracy_columns(f"{attack}@{eps:.10g}", cells)
            row |= columns
            if eps == headline:
                at_headline[str(attack)] = next(iter(columns.values()))
        # The lowest of some attacks says nothing as long as another one is missing.
        missing = any(map(math.isnan, at_headline.values())) or not at_headline
        worst_attack = "" if missing else min(at_headline, key=lambda attack: at_headline[attack])
        worst = math.nan if missing else at_headline[worst_attack]
        clean_curves = curves[(curves.defense == defense) & (curves.attack == "none")]
        complete = clean_curves.seed.nunique() == mine.seed.nunique()
        area = clean_curves.area.mean() if complete else math.nan
        failed = int((~mine.accuracy.notna()).sum())
        rows.append(
            row | {"worst": worst, "worst_attack": worst_attack, "retention_area": area, "failed_cells": failed}
        )
    frame = pd.DataFrame(rows)
    order = ["worst", "clean"] if frame.worst.notna().any() else ["clean"]
    return frame.sort_values(order, ascending=False, kind="stable", na_position="last")


def _accuracy_columns(name: str, cells: pd.DataFrame) -> dict[str, float]:
    """Mean accuracy and interval over seeds; NaN as soon as one seed is missing, never a mean of the rest."""
    mean = {
        name: cells.accuracy.mean(skipna=False),
        f"{name}_low": cells.accuracy_low.mean(skipna=False),
        f"{name}_high": cells.accuracy_high.mean(skipna=False),
    }
    return mean | ({f"{name}_sd": cells.accuracy.std(ddof=1, skipna=False)} if len(cells) > 1 else {})

"""The leaderboard as Markdown: what a person reads first, then the tables it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
from tabulate import tabulate

from advbench.report.flags import FLAGS


def format_eps(eps: float) -> str:
    """A radius as people write it: `8/255` where it is a whole number of grey levels, else decimal."""
    levels = eps * 255
    if eps > 0 and abs(levels - round(levels)) < 1e-9 and f"{eps:.3g}" != f"{eps:.9g}":
        return f"{round(levels)}/255"
    return f"{eps:.4g}"


def render(results: pd.DataFrame, leaderboard: pd.DataFrame, affinity: pd.DataFrame, retention: pd.DataFrame) -> str:
    """The Markdown file of a run."""
    sections = [_heading(results), main_table(results, leaderboard), *_failures(results), *_doubts(results)]
    sections += _eps_tables(results, leaderboard)
    sections += _affinity_tables(affinity)
    sections += _retention_table(retention)
    return "\n\n".join(sections) + "\n"


def main_table(results: pd.DataFrame, leaderboard: pd.DataFrame) -> str:
    """A row for each defense: clean, each attack at the headline eps, the lowest of them."""
    attacked = results[results.attack != "none"]
    attacks = list(attacked.attack.unique())
    headline = attacked.eps.max() if len(attacked) else math.nan
    rows = []
    for record in _records(leaderboard):
        row = {"defense": record["defense"], "clean": _accuracy(record, "clean")}
        for attack in attacks:
            row[f"{attack} {format_eps(headline)}"] = _accuracy(record, f"{attack}@{headline:.10g}")
        if len(attacks) > 1:
            row["lowest"] = f"{_number(record['worst'])} ({record['worst_attack'] or 'failed'})"
        rows.append(row | {"retention": _number(record["retention_area"])})
    return _table(pd.DataFrame(rows))


def _heading(results: pd.DataFrame) -> str:
    first = results.iloc[0]
    images = results.n_examples.max()
    draws = results.draws.max()
    counts = f"{images:.0f} images, up to {draws:.0f} draws" if pd.notna(images) else "no results"
    seeds = results.seed.nunique()
    nets = " and ".join(results.architecture.unique())
    return (
        f"# {first.dataset}, {nets}, {first.norm}\n\n"
        f"{counts}, {seeds} seed{'s' if seeds > 1 else ''}. Accuracy of the ensemble with its 95 % interval; "
        "retention is the area under accuracy against the fraction of clean images kept, surest first."
    )


def _failures(results: pd.DataFrame) -> Iterator[str]:
    notes = results["flags"]
    reasons = notes[notes.str.startswith(("failed", "missing"))].value_counts(sort=False)
    if len(reasons):
        yield "## Not computed\n\n" + "\n".join(f"- {n} cells {escape(str(r))}" for r, n in reasons.items())


def _doubts(results: pd.DataFrame) -> Iterator[str]:
    """The cells whose accuracy may not be what it seems, by flag."""
    lines = []
    for flag, meaning in FLAGS.items():
        cells = results[[flag in text.split(";") for text in results["flags"]]]
        if len(cells):
            names = dict.fromkeys(
                f"{row['defense']} under {row['attack']} {format_eps(row['eps'])}" for row in _records(cells)
            )
            lines.append(f"- **{escape(flag)}**: {meaning}. {escape(', '.join(names))}")
    if lines:
        yield "## Read with doubt\n\n" + "\n".join(lines)


def _eps_tables(results: pd.DataFrame, leaderboard: pd.DataFrame) -> Iterator[str]:
    attacked = results[results.attack != "none"]
    radii = sorted(attacked.eps.unique())
    for attack in attacked.attack.unique():
        if len(radii) < 2:
            return
        rows = [
            {"defense": r["defense"], "0": _accuracy(r, "clean")}
            | {format_eps(eps): _accuracy(r, f"{attack}@{eps:.10g}") for eps in radii}
            for r in _records(leaderboard)
        ]
        yield f"## {escape(attack)}: accuracy against eps\n\n" + _table(pd.DataFrame(rows))


def _affinity_tables(affinity: pd.DataFrame) -> Iterator[str]:
    if affinity.source.nunique() < 2:
        return
    headline = affinity[affinity.eps == affinity.eps.max()]
    for attack, cells in headline.groupby("attack", sort=False):
        labels = list(cells.target.unique())
        mean = cells.groupby(["source", "target"]).affinity.mean()
        rows = [
            {"from \\ to": source} | {target: _number(mean.loc[(source, target)]) for target in labels}
            for source in labels
        ]
        yield (
            f"## Affinity under {escape(str(attack))} {format_eps(headline.eps.max())}\n\n"
            "How well examples crafted on the row's defense work on the column's: 1 as well as its own.\n\n"
            + _table(pd.DataFrame(rows))
        )


def _retention_table(retention: pd.DataFrame) -> Iterator[str]:
    if retention.empty:
        return
    shown = retention[(retention.eps == 0) | (retention.eps == retention.eps.max())]
    rows = []
    for (defense, attack, eps), cells in shown.groupby(["defense", "attack", "eps"], sort=False):
        on = "clean" if attack == "none" else f"{attack} {format_eps(float(str(eps)))}"
        kept = cells.groupby("kept").accuracy.mean()
        row = {"defense": defense, "images": on} | {f"{k:.0%}": _number(v) for k, v in kept.items()}
        rows.append(row | {"area": _number(cells.area.mean())})
    yield "## Retention: accuracy on the surest images\n\n" + _table(pd.DataFrame(rows))


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _accuracy(record: dict[str, Any], name: str) -> str:
    value = record.get(name, math.nan)
    if math.isnan(value):
        return "failed"
    text = f"{value:.3f} [{record[name + '_low']:.3f}, {record[name + '_high']:.3f}]"
    deviation = record.get(name + "_sd", math.nan)
    return text if math.isnan(deviation) else f"{text} sd {deviation:.3f}"


def _number(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, "&lt;" if character == "<" else f"\\{character}")
    return text


def _table(frame: pd.DataFrame) -> str:
    safe = frame.astype(str).map(_cell).rename(columns=_cell)
    return tabulate(safe.to_dict("list"), headers="keys", tablefmt="github", disable_numparse=True)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")

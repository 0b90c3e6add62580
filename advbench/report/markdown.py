"""The leaderboard as Markdown: what a person reads first, then the tables it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
from tabulate import tabulate

from advbench.report.flags import FLAGS
from advbench.report.tables import Report

RANKING = (
    "Ranked by the lowest accuracy at the largest eps. A rank is one more than the number of defenses whose whole "
    "interval lies above the defense's own, so those that the intervals do not tell apart may share it."
)


def format_eps(eps: float) -> str:
    """A radius as people write it: `8/255` where it is a whole number of grey levels, else decimal."""
    levels = eps * 255
    if eps > 0 and abs(levels - round(levels)) < 1e-9 and f"{eps:.3g}" != f"{eps:.9g}":
        return f"{round(levels)}/255"
    return f"{eps:.4g}"


def render(report: Report) -> str:
    """The Markdown file of a run."""
    results, leaderboard = report.results, report.leaderboard
    sections = [f"# {title(report)}", explanation(report), main_table(report), RANKING]
    sections += [*_failures(results), *_doubts(results), *_eps_tables(results, leaderboard)]
    sections += [*_affinity_tables(report.affinity), *_uncertainty_tables(report.uncertainty)]
    sections += _retention_table(report.retention)
    return "\n\n".join(sections) + "\n"


def main_table(report: Report) -> str:
    """A row for each defense: rank, clean, each attack at the headline eps, the lowest of them, what it costs."""
    return _table(pd.DataFrame(main_rows(report)))


def main_rows(report: Report) -> list[dict[str, str]]:
    """The main table's cells as text, by the heading of their column."""
    attacked = report.results[report.results.attack != "none"]
    attacks = list(attacked.attack.unique())
    headline = attacked.eps.max() if len(attacked) else math.nan
    several_nets = report.leaderboard.architecture.nunique() > 1
    flagged = report.leaderboard["flags"].ne("").any()
    rows = []
    for record in _records(report.leaderboard):
        row = {"rank": "n/a" if pd.isna(record["rank"]) else str(record["rank"]), "defense": record["defense"]}
        if several_nets:
            row |= {"net": record["architecture"], "weights": _count(record["parameters"])}
        row["clean"] = accuracy_text(record, "clean")
        for attack in attacks:
            row[f"{attack} {format_eps(headline)}"] = accuracy_text(record, f"{attack}@{headline:.10g}")
        if len(attacks) > 1:
            row["lowest"] = f"{number_text(record['worst'])} ({record['worst_attack'] or 'failed'})"
        row |= {"retention": number_text(record["retention_area"]), "passes": _count(record["passes_to_predict"])}
        rows.append(row | ({"flags": record["flags"].replace(";", ", ")} if flagged else {}))
    return rows


def title(report: Report) -> str:
    """What was judged: data, nets, norm."""
    first = report.results.iloc[0]
    return f"{first.dataset}, {' and '.join(report.results.architecture.unique())}, {first.norm}"


def explanation(report: Report) -> str:
    """What the numbers of the main table are."""
    results, board = report.results, report.leaderboard
    images, draws = results.n_examples.max(), results.draws.max()
    counts = f"{images:.0f} images, up to {draws:.0f} draws" if pd.notna(images) else "no results"
    seeds = results.seed.nunique()
    sizes = board.drop_duplicates("architecture").dropna(subset="parameters")
    nets = [f"{row.architecture} has {row.parameters:,} weights" for row in sizes.itertuples()]
    over = f"{seeds} seeds (mean, and sd their deviation)" if seeds > 1 else "1 seed"
    return (
        f"{counts}, {over}. Accuracy of the ensemble with its 95 % interval; retention is the area under accuracy "
        "against the fraction of clean images kept, surest first; passes are those of one prediction."
        + (f" {'; '.join(nets)}." if nets else "")
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
    for attack in attacked.attack.unique() if len(radii) > 1 else ():
        rows = [
            {"defense": r["defense"], "0": accuracy_text(r, "clean")}
            | {format_eps(eps): accuracy_text(r, f"{attack}@{eps:.10g}") for eps in radii}
            for r in _records(leaderboard)
        ]
        yield f"## {escape(attack)}: accuracy against eps\n\n" + _table(pd.DataFrame(rows))


def _affinity_tables(affinity: pd.DataFrame) -> Iterator[str]:
    if affinity.source.nunique() < 2:
        return
    headline = affinity[affinity.eps == affinity.eps.max()]
    crossed = headline[headline.source != headline.target].attack.unique()
    for attack, cells in headline[headline.attack.isin(crossed)].groupby("attack", sort=False):
        labels = list(cells.target.unique())
        mean = cells.groupby(["source", "target"]).affinity.mean()
        rows = [
            {"from \\ to": source} | {target: number_text(mean.get((source, target), math.nan)) for target in labels}
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
    total = retention[retention.measure == "total"]
    shown = total[(total.eps == 0) | (total.eps == total.eps.max())]
    rows = []
    for (defense, attack, eps), cells in shown.groupby(["defense", "attack", "eps"], sort=False):
        on = "clean" if attack == "none" else f"{attack} {format_eps(float(str(eps)))}"
        kept = cells.groupby("kept").accuracy.mean()
        row = {"defense": defense, "images": on} | {f"{k:.0%}": number_text(v) for k, v in kept.items()}
        rows.append(row | {"area": number_text(cells.area.mean())})
    yield "## Retention: accuracy on the surest images\n\n" + _table(pd.DataFrame(rows))


def _uncertainty_tables(uncertainty: pd.DataFrame) -> Iterator[str]:
    if uncertainty.empty:
        return
    shown = uncertainty[(uncertainty.eps == 0) | (uncertainty.eps == uncertainty.eps.max())]
    judged = shown[shown.images != "ood"].groupby(["defense", "attack", "eps"], sort=False)
    if shown.ece.notna().any():
        rows = [
            {"defense": defense, "images": _images(attack, eps)}
            | {name.upper(): number_text(cells[name].mean()) for name in ("ece", "nll", "brier")}
            | {name: number_text(cells[name].mean()) for name in ("total", "aleatoric", "epistemic")}
            for (defense, attack, eps), cells in judged
        ]
        yield (
            "## Calibration and uncertainty\n\nECE: expected calibration error; NLL: negative log-likelihood in nats; "
            "Brier score in [0, 2]; mean entropy of the images in nats, total and its parts.\n\n"
            + _table(pd.DataFrame(rows))
        )
    found = shown[shown.auroc_total.notna()].groupby(["defense", "attack", "eps"], sort=False)
    rows = [
        {"defense": defense, "to be found": _images(attack, eps)}
        | {
            f"{name} {measure}": number_text(cells[f"{column}_{measure}"].mean())
            for measure in ("total", "epistemic")
            for name, column in (("AUROC", "auroc"), ("AUPR+", "aupr_positive"), ("AUPR-", "aupr_negative"))
        }
        for (defense, attack, eps), cells in found
    ]
    if rows:
        yield (
            "## Detection\n\nHow well uncertainty tells adversarial or foreign images (positive) from clean ones; 0.5 "
            "AUROC is chance.\n\n" + _table(pd.DataFrame(rows))
        )


def _images(attack: str, eps: float) -> str:
    return "clean" if attack == "none" else attack if eps == 0 else f"{attack} {format_eps(eps)}"


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def accuracy_text(record: dict[str, Any], name: str) -> str:
    """An accuracy with its interval, and its deviation over seeds; `failed` where it is missing."""
    value = record.get(name, math.nan)
    if math.isnan(value):
        return "failed"
    text = f"{value:.3f} [{record[name + '_low']:.3f}, {record[name + '_high']:.3f}]"
    deviation = record.get(name + "_sd", math.nan)
    return text if math.isnan(deviation) else f"{text} sd {deviation:.3f}"


def number_text(value: float) -> str:
    """A number with three decimals, or n/a."""
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def _count(value: Any) -> str:
    return "n/a" if pd.isna(value) else f"{value:,.0f}"


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

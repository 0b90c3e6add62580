"""The leaderboard as Markdown: what a person reads first, then the tables it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd
from tabulate import tabulate

from advbench.report import details
from advbench.report.flags import FLAGS, raised
from advbench.report.tables import Report, as_rows
from advbench.report.texts import accuracy_text, count_text, escape, escape_cell, format_eps, number_text
from advbench.report.transfers import affinity_matrix


def render(report: Report, about: str = "") -> str:
    """The Markdown file of a run.

    Args:
        report: the tables.
        about: what else there is to say of it, as Markdown.
    """
    results, leaderboard = report.results, report.leaderboard
    sections = [
        f"# {title(report)}",
        *([about] if about else []),
        explanation(report),
        main_table(report),
        ranking(report),
    ]
    sections += [*_failures(results), *_doubts(results), *_eps_tables(results, leaderboard)]
    sections += [*_affinity_tables(report.affinity), *_detail_tables(report)]
    return "\n\n".join(filter(None, sections)) + "\n"


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
    absences = _absences(report.results)
    rows = []
    for record in as_rows(report.leaderboard):
        absent = absences.get(record["defense"], "missing")
        row = {"rank": "n/a" if pd.isna(record["rank"]) else str(record["rank"]), "defense": record["defense"]}
        if several_nets:
            row |= {"net": record["architecture"], "weights": count_text(record["parameters"])}
        row["clean"] = accuracy_text(record, "clean", absent)
        for attack in attacks:
            row[f"{attack} {format_eps(headline)}"] = accuracy_text(record, f"{attack}@{headline:.10g}", absent)
        if len(attacks) > 1:
            row["lowest"] = f"{number_text(record['worst'])} ({record['worst_attack'] or absent})"
        row |= {"retention": number_text(record["retention_area"]), "passes": count_text(record["passes_to_predict"])}
        rows.append(row | ({"flags": record["flags"].replace(";", ", ")} if flagged else {}))
    return rows


def _absences(results: pd.DataFrame) -> dict[str, str]:
    """For each defense with a cell that failed, that word; the others' cells are not computed yet, or not any more."""
    failed = results[results["flags"].str.startswith("failed")]
    return dict.fromkeys(failed.defense.unique(), "failed")


def ranking(report: Report) -> str:
    """How the defenses are ranked."""
    attacked = (report.results.attack != "none").any()
    by = "the lowest accuracy at the largest eps" if attacked else "the accuracy on clean images"
    return (
        f"Ranked by {by}. A rank is one more than the number of defenses whose whole interval lies above the defense's "
        "own, so those that the intervals do not tell apart may share it."
    )


def title(report: Report) -> str:
    """What was judged: data, nets, norm."""
    first = report.results.iloc[0]
    return f"{first.dataset}, {' and '.join(report.results.architecture.unique())}, {first.norm}"


def explanation(report: Report) -> str:
    """What the numbers of the main table are."""
    results, board = report.results, report.leaderboard
    images, draws = results.n_examples.max(), results.draws.max()
    drawn = "1 draw" if draws == 1 else f"up to {draws:.0f} draws"
    counts = f"{images:.0f} images, {drawn}" if pd.notna(images) else "no results"
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


def doubts(results: pd.DataFrame) -> Iterator[tuple[str, str, list[str]]]:
    """The flags that were raised, what they mean, and by which cells."""
    notes = {note: raised(note) for note in results["flags"].unique()}
    for flag, meaning in FLAGS.items():
        cells = results[results["flags"].isin([note for note, flags in notes.items() if flag in flags])]
        places = cells[["defense", "attack", "eps"]].drop_duplicates().itertuples(index=False, name=None)
        names = [f"{defense} under {attack} {format_eps(eps)}" for defense, attack, eps in places]
        if names:
            yield flag, meaning, list(dict.fromkeys(names))


def _doubts(results: pd.DataFrame) -> Iterator[str]:
    lines = [f"- **{escape(flag)}**: {meaning}. {escape(', '.join(names))}" for flag, meaning, names in doubts(results)]
    if lines:
        yield "## Read with doubt\n\n" + "\n".join(lines)


def _eps_tables(results: pd.DataFrame, leaderboard: pd.DataFrame) -> Iterator[str]:
    attacked = results[results.attack != "none"]
    radii = sorted(attacked.eps.unique())
    absences = _absences(results)
    for attack in attacked.attack.unique() if len(radii) > 1 else ():
        rows = [
            {"defense": r["defense"], "0": accuracy_text(r, "clean", absences.get(r["defense"], "missing"))}
            | {
                format_eps(eps): accuracy_text(r, f"{attack}@{eps:.10g}", absences.get(r["defense"], "missing"))
                for eps in radii
            }
            for r in as_rows(leaderboard)
        ]
        yield f"## {escape(attack)}: accuracy against eps\n\n" + _table(pd.DataFrame(rows))


def _affinity_tables(affinity: pd.DataFrame) -> Iterator[str]:
    if affinity.source.nunique() < 2:
        return
    headline = affinity[affinity.eps == affinity.eps.max()]
    crossed = headline[headline.source != headline.target].attack.unique()
    for attack, cells in headline[headline.attack.isin(crossed)].groupby("attack", sort=False):
        labels = list(cells.target.unique())
        matrix = affinity_matrix(cells, labels).tolist()
        rows = [
            {"from \\ to": source} | dict(zip(labels, map(number_text, values), strict=True))
            for source, values in zip(labels, matrix, strict=True)
        ]
        yield (
            f"## Affinity under {escape(str(attack))} {format_eps(headline.eps.max())}\n\n"
            "How well examples crafted on the row's defense work on the column's: 1 as well as its own.\n\n"
            + _table(pd.DataFrame(rows))
        )


def _detail_tables(report: Report) -> Iterator[str]:
    for heading, note, table in (
        (
            "Calibration and uncertainty",
            "ECE: expected calibration error; NLL: negative log-likelihood in nats; Brier score in [0, 2]; mean "
            "entropy of the images in nats, total and its parts.",
            details.calibration_table(report),
        ),
        (
            "Detection",
            "How well uncertainty tells adversarial or foreign images (positive) from clean ones; 0.5 AUROC is chance.",
            details.detection_table(report),
        ),
        ("Retention: accuracy on the surest images", "", details.retention_table(report)),
    ):
        yield from _detail(heading, note, table)


def _detail(heading: str, note: str, table: details.Table) -> list[str]:
    if not table.rows:
        return []
    rows = [dict(zip(table.headings, row, strict=True)) for row in table.rows]
    return ["\n\n".join(filter(None, (f"## {heading}", note, _table(pd.DataFrame(rows)))))]


def _table(frame: pd.DataFrame) -> str:
    safe = frame.astype(str).map(escape_cell).rename(columns=escape_cell)
    return tabulate(safe.to_dict("list"), headers="keys", tablefmt="github", disable_numparse=True)

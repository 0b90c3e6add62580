"""The leaderboard as Markdown: main table, then supporting tables; the main table also as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd
from tabulate import tabulate

from advbench.report import views
from advbench.report.leaderboard import Measured
from advbench.report.tables import Report
from advbench.report.texts import Value, format_eps, parts
from advbench.report.views import Table

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "≤": r"$\leq$",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def render(report: Report, about: str = "") -> str:
    """Render the Markdown file of a run.

    Args:
        report: the tables.
        about: further description, as Markdown.
    """
    head = [f"# {views.title(report)}", about, views.explanation(report)]
    sections = [*head, main_table(report), views.ranking(report), *_notes(report), *_tables(report)]
    return "\n\n".join(filter(None, sections)) + "\n"


def main_table(report: Report) -> str:
    """Main table with one row per defense."""
    return _table(views.main_table(report))


def _notes(report: Report) -> Iterator[str]:
    if missing := [f"- {count} cells {escape(reason)}" for reason, count in views.not_computed(report)]:
        yield "## Not computed\n\n" + "\n".join(missing)
    flags = views.raised_flags(report)
    if lines := [f"- **{escape(flag)}**: {meaning}. {escape(', '.join(cells))}" for flag, meaning, cells in flags]:
        yield "## Flagged as unreliable\n\n" + "\n".join(lines)


def _tables(report: Report) -> Iterator[str]:
    several = len(report.radii()) > 1
    if several and len(report.attacks) > 1:
        yield f"## Lowest accuracy against eps\n\n{_table(views.worst_table(report))}"
    for attack in report.attacks if several else ():
        yield f"## {escape(attack)}: accuracy against eps\n\n{_table(views.eps_table(report, attack))}"
    if (strengths := views.attacks_table(report)).rows:
        reading = escape(views.attacks_reading(report))
        yield f"## Attacks\n\n{views.ATTACKS_NOTE} {reading}\n\n{_table(strengths)}"
    if (searches := views.convergence_table(report)).rows:
        yield f"## Convergence\n\n{views.CONVERGENCE_NOTE}\n\n{_table(searches)}"
    for attack, by_eps in views.affinities(report, report.radii()[-1:]).items():
        ((eps, pairs),) = by_eps.items()
        names = list(dict.fromkeys(target for _, target in pairs))
        matrix = views.squares(pairs, names)
        rows: list[list[Value]] = [
            [name, *(Measured(each.value) for each in row)] for name, row in zip(names, matrix, strict=True)
        ]
        yield (
            f"## Affinity under {escape(attack)} {format_eps(eps)}\n\n"
            "Effect on the column's defense of examples crafted on the row's; 1 is as strong as its own examples."
            "\n\n" + _table(Table(["from \\ to", *names], rows))
        )
    early = escape(views.stopped_early(report))
    for heading, note, table in (
        ("Calibration and uncertainty", views.CALIBRATION_NOTE, views.calibration_table(report)),
        ("Detection", views.detection_note(report), views.detection_table(report)),
        ("Retention: accuracy on the images of lowest uncertainty", "", views.retention_table(report)),
        ("Uncertainty under attack", views.UNDER_ATTACK_NOTE, views.under_attack_table(report)),
        ("Persistent adversary", views.PERSISTENCE_NOTE, views.persistence_table(report)),
        ("Adversaries by what they know", views.adversaries_note(report), views.adversaries_table(report)),
    ):
        if table.rows:
            yield "\n\n".join(filter(None, (f"## {heading}", note, early, _table(table))))
    if lines := [f"- {escape(label)}: {escape(text)} <{link}>" for label, text, link in views.papers(report)]:
        yield "## Papers\n\n" + "\n".join(lines)


def _table(table: Table) -> str:
    rows = [[escape_cell(_text(value)) for value in row] for row in table.rows]
    return tabulate(rows, list(map(escape_cell, table.headings)), tablefmt="github", disable_numparse=True)


def _text(value: Value) -> str:
    """A value as text, followed by its note if it has both."""
    noted = f"({value.note})" if isinstance(value, Measured) and value.note and not value.missing else ""
    return " ".join([*parts(value), noted]).rstrip()


def escape(text: str) -> str:
    """Escape text for Markdown and HTML, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;")
    for character in "\\`*_[]<>|":
        text = text.replace(character, "&lt;" if character == "<" else f"\\{character}")
    return text


def escape_cell(text: str) -> str:
    """Escape text for a cell of a table, where brackets around numbers and underscores inside words need no escape."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")
    return re.sub(r"[`*|\\](?!\()|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


def render_latex(report: Report) -> str:
    """Render a `table` environment with the main table and its explanation as caption; needs the package booktabs.

    Intervals are in small type. Every name and message is escaped.
    """
    table = views.main_table(report)
    frame = pd.DataFrame(
        [list(map(_latex, row)) for row in table.rows], columns=list(map(escape_latex, table.headings))
    )
    caption = escape_latex(f"{views.title(report)}. {views.explanation(report)}")
    columns = "r" + "l" * (len(table.headings) - 1)
    text = frame.to_latex(index=False, escape=False, caption=caption, column_format=columns)
    return text.replace("\\begin{table}\n", "\\begin{table}\n\\centering\n", 1)


def _latex(value: Value) -> str:
    if not isinstance(value, Measured) or value.missing:
        return escape_latex(_text(value))
    number, *rest = parts(value)
    small = [f"{{\\scriptsize {text}}}" for text in rest]
    return " ".join([escape_latex(number), *small, *([f"({escape_latex(value.note)})"] if value.note else [])])


def escape_latex(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(LATEX.get(character, character) for character in text)

"""The main table as LaTeX, for papers (needs the package booktabs)."""

from __future__ import annotations

import re

from tabulate import tabulate

from advbench.report.markdown import explanation, main_rows, title
from advbench.report.tables import Report

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
INTERVAL = re.compile(r"^([\d.]+) \[([\d.]+), ([\d.]+)\]")


def render_latex(report: Report) -> str:
    """A `table` environment with the main table and its explanation as caption.

    An accuracy has its interval beside it in small type. Every name and message is escaped.
    """
    rows = [[_cell(text) for text in row.values()] for row in main_rows(report)]
    heads = [escape(name) for name in main_rows(report)[0]]
    body = tabulate(rows, headers=heads, tablefmt="latex_raw", disable_numparse=True)
    lines = [line for line in body.splitlines() if not line.startswith((r"\begin", r"\end"))]
    rules = iter((r"\toprule", r"\midrule", r"\bottomrule"))
    lines = [next(rules) if line.strip() == r"\hline" else line for line in lines]
    columns = "r" + "l" * (len(heads) - 1)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{escape(title(report))}. {escape(explanation(report))}}}",
            f"\\begin{{tabular}}{{{columns}}}",
            *lines,
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escape(text: str) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(SPECIAL.get(character, character) for character in text)


def _cell(text: str) -> str:
    found = INTERVAL.match(text)
    if not found:
        return escape(text)
    value, low, high = found.groups()
    return f"{value} {{\\scriptsize [{low}, {high}]}}{escape(text[found.end() :])}"

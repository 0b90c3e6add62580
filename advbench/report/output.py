"""A report as files: tables, leaderboard, page and figures; what draws is loaded only where something is drawn."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from advbench.config import RunSpec
from advbench.errors import unknown_name
from advbench.report.references import Reference
from advbench.report.tables import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = {
    "csv": "every table, and the leaderboard",
    "md": "the leaderboard, leaderboard.md",
    "html": "the page, leaderboard.html",
    "latex": "the main table, leaderboard.tex",
    "svg": "the figures, in figures/",
    "pdf": "likewise",
    "png": "likewise",
}
DEFAULT = ("csv", "md", "html")
DRAWN = ("latex", "svg", "pdf", "png")  # what a board does not have of itself
PAGE = "leaderboard.html"


def check_formats(names: Collection[str], known: Collection[str] = tuple(FORMATS)) -> None:
    """Refuse what is none of these formats.

    Raises:
        InputError: with what was probably meant.
    """
    for name in names:
        if name not in known:
            raise unknown_name("format", name, known)


def contents(
    report: Report, formats: Collection[str], spec: RunSpec | None = None, references: Sequence[Reference] = ()
) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file, one at a time; the same bytes for the same report and versions of libraries.

    Args:
        report: the tables.
        formats: keys of `FORMATS`.
        spec: of the run.
        references: models judged elsewhere, for the page.
    """
    beside = [] if spec is None else ["spec.toml", "data.json"]
    for name, raw in report.contents():
        if name.rpartition(".")[2] in formats:
            beside.append(name)
            yield name, raw
    if "html" in formats:
        from advbench.report.page import render_page

        yield PAGE, render_page(report, spec, references, beside=beside).encode()
    if "latex" in formats:
        from advbench.report.latex import render_latex

        yield "leaderboard.tex", render_latex(report).encode()
    pictures = [form for form in ("svg", "pdf", "png") if form in formats]
    for name, draw in _figures(report).items() if pictures else ():
        figure = draw()
        for form in pictures:
            yield f"figures/{name}.{form}", drawn(figure, form)


def _figures(report: Report) -> dict[str, Callable[[], Figure]]:
    """Each figure that the tables allow, by the name of its file."""
    from advbench.report import figures

    results, affinity = report.results, report.affinity
    found: dict[str, Callable[[], Figure]] = {}
    for attack in map(str, results[results.attack != "none"].attack.unique()):
        name = re.sub(r"[^\w.+-]", "-", attack)
        found[f"security-{name}"] = partial(figures.security_curves, report, attack)
        if not report.retention.empty:
            found[f"retention-{name}"] = partial(figures.retention_curves, report, attack)
        if not report.histograms.empty:
            found[f"uncertainty-{name}"] = partial(figures.uncertainty_histograms, report, attack)
        cells = affinity[affinity.attack == attack]
        if (cells.source != cells.target).any():
            found[f"affinity-{name}"] = partial(figures.affinity_heatmap, report, attack)
    return found


def drawn(figure: Figure, form: str) -> bytes:
    """A figure as a file: svg, pdf or png."""
    if form == "svg":
        from advbench.report.svg import svg

        return svg(figure).encode()
    file = io.BytesIO()
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None, "Creator": None}}[form]
    # Its text is dark: a picture that is transparent could not be read on a dark page.
    figure.savefig(file, format=form, dpi=150, metadata=undated, bbox_inches="tight", facecolor="white")
    return file.getvalue()

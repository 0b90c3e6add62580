"""Charts as files, drawn with matplotlib."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from advbench.report import charts
from advbench.report.charts import MOST, PAIR, Chart, Histograms, Panel, look
from advbench.report.tables import Report
from advbench.report.texts import format_eps, parts, short_name
from advbench.report.views import affinities, squares

INK = "#1b1f24"
MARKERS = "osD^vPX*<>phd8H"
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "grid.color", "hatch.color", "text.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "legend.labelcolor"), INK),
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.alpha": 0.2,
    "legend.frameon": False,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "advbench",
    "text.parse_math": False,  # names may contain dollar signs
}


@contextmanager
def house_style() -> Iterator[None]:
    """Context with fixed settings of matplotlib, independent of the user's."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def to_bytes(figure: Figure, form: str) -> bytes:
    """Serialise a figure as svg, pdf or png, with equal bytes for the same figure and version of matplotlib."""
    file = io.BytesIO()
    undated = {
        "svg": dict.fromkeys(("Date", "Creator")),
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    }[form]
    # Text is dark, so a transparent picture would be unreadable on a dark page. Warnings of missing glyphs are
    # irrelevant, because the reader's fonts show the text.
    with warnings.catch_warnings(), house_style():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format=form, dpi=150, metadata=undated, bbox_inches="tight", facecolor="white")
    return file.getvalue()


@house_style()
def draw_chart(chart: Chart) -> Figure:
    """Draw plots side by side with a common legend."""
    figure, row = _canvas(*((7.6, 4.2) if len(chart.panels) == 1 else (9.4, 4.0)), len(chart.panels))
    names = list(dict.fromkeys(line.name for line in chart.panels[0].lines))[:MOST]
    for axes, panel in zip(row, chart.panels, strict=True):
        _lines(axes, panel, names)
        axes.set_xlabel(chart.below)
        axes.set_xscale("log" if chart.log else "linear")
        places, texts = zip(*panel.ticks, strict=True)
        axes.set_xticks(places, texts, rotation=40 if len(texts) > 7 else 0)
        axes.set_xticks([], minor=True)
        axes.set_ylim(-0.02, 1.02)
    row[0].set_ylabel(f"{chart.beside}, with its 95 % interval")
    handles = [Line2D([], [], **_style(place)) for place in range(len(names))]
    _legend(figure, handles, names, "outside right upper", 1)
    figure.set_label(chart.label)
    return figure


def _lines(axes: Axes, panel: Panel, names: list[str]) -> None:
    for line in panel.lines:
        if line.name not in names:
            continue
        style = _style(names.index(line.name))
        xs = [x for x, _ in line.points]
        numbers = [each for _, each in line.points]
        if any(not math.isnan(each.low) for each in numbers):
            lows, highs = [each.low for each in numbers], [each.high for each in numbers]
            axes.fill_between(xs, lows, highs, color=style["color"], alpha=0.12, linewidth=0)
        axes.plot(xs, [each.value for each in numbers], **style)
    axes.set_title(panel.title)


@house_style()
def draw_histograms(chart: Histograms) -> Figure:
    """A panel for each defense, on a root scale."""
    columns = min(4, len(chart.panels))
    rows = -(-len(chart.panels) // columns)
    figure, grid = _canvas(1.2 + 2.1 * columns, 1.3 + 1.55 * rows, columns, rows)
    for axes, panel in zip(grid, chart.panels, strict=False):
        for shares, (colour, dash) in zip(panel.shares, PAIR, strict=True):
            if shares is not None:
                edges = np.linspace(0, panel.top, len(shares) + 1)
                axes.stairs(shares, edges, fill=True, color=colour, alpha=0.3)
                axes.stairs(shares, edges, color=colour, linestyle=_dashes(dash), linewidth=1.3)
        axes.set_title(short_name(panel.name), fontsize=10)
        axes.set_yscale("function", functions=(_root, np.square))
        axes.set_yticks([0, 0.1, 0.4, 1.0])
        axes.set_ylim(0, 1.02)
    for axes in grid[len(chart.panels) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(chart.panels) - columns) : len(chart.panels)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel(chart.below, fontsize=10)
    figure.supylabel(chart.beside, fontsize=10)
    handles = [Line2D([], [], color=colour, linestyle=_dashes(dash), linewidth=2) for colour, dash in PAIR]
    _legend(figure, handles, chart.kinds, "outside upper center", 2)
    figure.set_label(chart.label)
    return figure


@house_style()
def affinity_heatmap(report: Report, attack: str) -> Figure:
    """Draw the affinity of each row's defense (source) to each column's (target); hatched if undefined."""
    ((eps, pairs),) = affinities(report, report.radii(attack)[-1:])[attack].items()
    names = [one.defense for one in report.standings if any(one.defense == target for _, target in pairs)]
    matrix = squares(pairs, names)
    values = np.array([[each.value for each in row] for row in matrix])
    figure, (axes,) = _canvas(2.2 + 0.56 * len(names), 1.9 + 0.42 * len(names))
    axes.grid(visible=False)
    mesh = axes.pcolormesh(np.clip(values, 0, 1), cmap=matplotlib.colormaps["cividis"].resampled(11), vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(values):
        if math.isnan(value):
            axes.add_patch(Rectangle((column, row), 1, 1, fill=False, hatch="////", linewidth=0, alpha=0.35))
        colour = INK if math.isnan(value) else "white" if value < 0.5 else "black"
        text = parts(matrix[row][column], digits=2)[0]
        axes.annotate(text, (column + 0.5, row + 0.5), ha="center", va="center", fontsize=8, color=colour)
    ticks = np.arange(len(names)) + 0.5
    axes.set_xticks(ticks, list(map(short_name, names)), rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, list(map(short_name, names)))
    axes.invert_yaxis()
    axes.set_xlabel("target, evaluated on the examples")
    axes.set_ylabel("source of the examples")
    axes.set_title(f"affinity under {attack} {format_eps(eps)}")
    bar = figure.colorbar(mesh, ax=axes, label="affinity", extend="both")
    bar.outline.set_edgecolor(INK)
    figure.set_label(f"Affinity of each pair of defenses under {attack} {format_eps(eps)}")
    return figure


def all_figures(report: Report) -> Iterator[tuple[str, Figure]]:
    """All figures that the tables allow, with file names."""
    crossed = affinities(report, report.radii()[-1:])
    whole = charts.to_the_end(report)
    for attack in report.attacks:
        name = re.sub(r"[^\w.+-]", "-", attack)
        yield f"security-{name}", draw_chart(charts.security_curves(report, attack))
        if attack in whole:
            yield f"retention-{name}", draw_chart(charts.retention_curves(report, attack))
            yield f"uncertainty-{name}", draw_histograms(charts.uncertainty_histograms(report, attack))
        if attack in crossed:
            yield f"affinity-{name}", affinity_heatmap(report, attack)


def _root(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.maximum(values, 0.0))


def _canvas(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)


def _dashes(dash: str) -> Any:
    return (0, tuple(map(float, dash.split()))) if dash else "-"


def _style(place: int) -> dict[str, Any]:
    colour, dash = look(place)
    colour = INK if colour == "currentColor" else colour
    return {"color": colour, "linestyle": _dashes(dash), "marker": MARKERS[place % len(MARKERS)]}


def _legend(figure: Figure, lines: Sequence[Artist], names: Sequence[str], where: str, columns: int) -> None:
    """Draw a legend with unchanged names: matplotlib drops names that begin with an underscore."""
    legend = figure.legend(lines, [" "] * len(lines), loc=where, ncols=columns, handlelength=3)  # type: ignore[call-overload]
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(short_name(name))

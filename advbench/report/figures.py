"""The leaderboard's figures, drawn from its tables: curves, a matrix, histograms."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from advbench.errors import InputError, unknown_name
from advbench.evaluation.summary import ENTROPIES
from advbench.report import drawing
from advbench.report.curves import AXES, Curve
from advbench.report.drawing import BLUE, MOST, VERMILION
from advbench.report.tables import Report
from advbench.report.texts import format_eps, short_name
from advbench.report.transfers import affinity_matrix
from advbench.report.uncertainty import MEASURES

INK = "#1b1f24"
COLOURS = (*drawing.COLOURS[:-1], INK)
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.4)))
MARKERS = "osD^vPX*<>phd8H"

__all__ = [
    "affinity_heatmap",
    "convergence_curves",
    "retention_curves",
    "security_curves",
    "uncertainty_histograms",
]
Parameters = ParamSpec("Parameters")


class Look(NamedTuple):
    """How a defense is drawn, the same in all curves."""

    color: str
    linestyle: Any
    marker: str


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
    "text.parse_math": False,  # a name may hold dollars
}


@contextmanager
def house_style() -> Iterator[None]:
    """Settings under which figures are made and drawn, whatever the user's own settings of matplotlib are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def to_bytes(figure: Figure, form: str) -> bytes:
    """A figure as a file, svg, pdf or png; the same bytes for the same figure and version of matplotlib."""
    file = io.BytesIO()
    undated = {
        "svg": dict.fromkeys(("Date", "Creator")),
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    }[form]
    # Its text is dark: a picture that is transparent could not be read on a dark page. A glyph that matplotlib's font
    # lacks is none of the reader's, whose own fonts show the text.
    with warnings.catch_warnings(), house_style():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format=form, dpi=150, metadata=undated, bbox_inches="tight", facecolor="white")
    return file.getvalue()


def _styled(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Draw in the house style."""

    @wraps(draw)
    def drawn(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        with house_style():
            return draw(*args, **kwargs)

    return drawn


@_styled
def security_curves(report: Report, attack: str) -> Figure:
    """Accuracy against eps, which is 0 for the clean images, with bands of 95 %: a line for each defense.

    Raises:
        InputError: an attack that the tables do not have.
    """
    radii = _radii(report, attack)
    figure, (axes,) = _canvas((7.6, 4.2), 1)
    shown = _shown(report)
    for row, look in zip(shown.to_dict("records"), map(_look, range(len(shown))), strict=True):
        names = ["clean", *(f"{attack}@{eps:.10g}" for eps in radii)]
        middle, low, high = (
            np.array([row.get(name + end, math.nan) for name in names], np.float64) for end in ("", "_low", "_high")
        )
        axes.fill_between([0.0, *radii], low, high, color=look.color, alpha=0.12, linewidth=0)
        axes.plot([0.0, *radii], middle, **look._asdict())
    axes.set_xticks([0.0, *radii], ["0", *map(format_eps, radii)], rotation=40 if len(radii) > 6 else 0)
    axes.set_xlabel(f"eps ({report.results.norm.iloc[0]}, pixels in [0, 1])")
    axes.set_ylabel("accuracy, with its 95 % interval")
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(_title(report, f"accuracy under {attack}"))
    _name_lines(figure, shown.defense)
    return _labelled(figure, f"Accuracy against eps under {attack}, a line for each defense")


@_styled
def convergence_curves(curve: Curve) -> Figure:
    """Accuracy against what makes an attack stronger, or against draws, with bands of 95 %.

    A line for each defense and attack, and seed.
    """
    figure, (axes,) = _canvas((7.6, 4.2), 1)
    table = curve.table
    shown = table[["defense", "attack"]].drop_duplicates().head(MOST)
    for place, (defense, attack) in enumerate(shown.itertuples(index=False, name=None)):
        look = _look(place)
        for _, rows in table[(table.defense == defense) & (table.attack == attack)].groupby(["eps", "seed"]):
            axes.fill_between(
                rows.value, rows.accuracy_low, rows.accuracy_high, color=look.color, alpha=0.12, linewidth=0
            )
            axes.plot(rows.value, rows.accuracy, **look._asdict())
    values = sorted(table.value.unique())
    axes.set_xscale("log")
    axes.set_xticks(values, [str(value) for value in values])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(AXES[curve.axis])
    axes.set_ylabel("accuracy, with its 95 % interval")
    axes.set_ylim(-0.02, 1.02)
    radii = ", ".join(format_eps(float(eps)) for eps in sorted(table.eps.unique()))
    attacks = list(shown.attack.unique())
    what = attacks[0] if len(attacks) == 1 else "convergence"
    axes.set_title(f"{what} along {curve.axis} at {table.norm.iloc[0]} eps {radii}")
    _name_lines(figure, shown.defense if len(attacks) == 1 else shown.defense + ", " + shown.attack)
    return _labelled(figure, f"Accuracy against {AXES[curve.axis]}, a line for each defense")


@_styled
def retention_curves(report: Report, attack: str, measure: str = "total") -> Figure:
    """Accuracy on the most certain images against the fraction kept: clean, and attacked at the largest eps.

    Args:
        report: the tables.
        attack: whose images the second panel shows.
        measure: of the uncertainty by which images are given up, one of `total`, `aleatoric`, `epistemic`,
            `variation_ratio`, `model_variance`.

    Raises:
        InputError: an attack or a measure that the tables do not have.
    """
    eps = _radii(report, attack)[-1]
    _check_measure(measure, MEASURES)
    table = report.retention[report.retention.measure == measure]
    panels = {
        "clean images": table[table.attack == "none"],
        f"under {attack} {format_eps(eps)}": table[(table.attack == attack) & (table.eps == eps)],
    }
    _check_rows("retention", *panels.values())
    figure, row = _canvas((9.4, 4.0), 2, sharey=True)
    shown = _shown(report)
    for axes, (name, cells) in zip(row, panels.items(), strict=True):
        for place, defense in enumerate(shown.defense):
            kept = cells[cells.defense == defense].groupby("kept").accuracy.mean()
            axes.plot(kept.index.to_numpy(), kept.to_numpy(), **_look(place)._asdict())
        axes.set_title(name)
        axes.set_xlabel("fraction of images kept, most certain first")
        axes.set_xlim(0.15, 1.03)
        axes.set_ylim(-0.02, 1.02)
    row[0].set_ylabel("accuracy on the images kept")
    figure.suptitle(_title(report, f"retention by {_words(measure)} uncertainty"), fontsize=11)
    _name_lines(figure, shown.defense)
    return _labelled(figure, f"Accuracy against the fraction of images kept, clean and under {attack}")


@_styled
def affinity_heatmap(report: Report, attack: str, eps: float | None = None) -> Figure:
    """How well examples made on each row's defense work on each column's; hatched where that is not defined.

    Args:
        report: the tables.
        attack: one whose examples were evaluated on other defenses.
        eps: one of its radii; by default the largest.

    Raises:
        InputError: an attack or eps that the table of affinities does not have.
    """
    cells = report.affinity[report.affinity.attack == attack]
    if cells.empty:
        raise unknown_name("attack in the affinities", attack, report.affinity.attack.unique())
    radii = sorted(cells.eps.unique())
    wanted = radii[-1] if eps is None else eps
    if wanted not in radii:
        raise InputError("eps of the affinities", expected=f"one of {', '.join(map(format_eps, radii))}", got=wanted)
    names = [name for name in report.leaderboard.defense if name in set(cells.target)]
    values = affinity_matrix(cells[cells.eps == wanted], names)
    figure, (axes,) = _canvas((2.2 + 0.56 * len(names), 1.9 + 0.42 * len(names)), 1)
    axes.grid(visible=False)
    colours = matplotlib.colormaps["cividis"].resampled(11)
    mesh = axes.pcolormesh(np.clip(values, 0, 1), cmap=colours, vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(values):
        place = (column + 0.5, row + 0.5)
        if math.isnan(value):
            axes.add_patch(Rectangle((column, row), 1, 1, fill=False, hatch="////", linewidth=0, alpha=0.35))
        colour = INK if math.isnan(value) else "white" if value < 0.5 else "black"
        text = "n/a" if math.isnan(value) else f"{value:.2f}"
        axes.annotate(text, place, ha="center", va="center", fontsize=8, color=colour)
    ticks = np.arange(len(names)) + 0.5
    axes.set_xticks(ticks, list(map(short_name, names)), rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, list(map(short_name, names)))
    axes.invert_yaxis()
    axes.set_xlabel("target, evaluated on the examples")
    axes.set_ylabel("source of the examples")
    axes.set_title(f"affinity under {attack} {format_eps(wanted)}")
    bar = figure.colorbar(mesh, ax=axes, label="affinity", extend="both")
    bar.outline.set_edgecolor(INK)
    return _labelled(figure, f"Affinity of each pair of defenses under {attack} {format_eps(wanted)}")


@_styled
def uncertainty_histograms(report: Report, attack: str, measure: str = "total") -> Figure:
    """Uncertainty of clean images, and of attacked or out-of-distribution ones: a panel for each defense.

    As in figure 6 of Zhang et al. 2022 (adversarial sampling), which compares clean with blurred images.

    Args:
        report: the tables.
        attack: that the attacked images suffered; or what the tables call a set of out-of-distribution
            images, as `ood:svhn`.
        measure: `total`, `aleatoric` or `epistemic`, in nats.

    Raises:
        InputError: an attack or a measure that the tables do not have.
    """
    ood = attack in drawing.ood_images(report)
    eps = 0.0 if ood else _radii(report, attack)[-1]
    _check_measure(measure, ENTROPIES)
    table = report.histograms[report.histograms.measure == measure]
    kinds: dict[str, tuple[pd.DataFrame, str, Any]] = {
        "clean": (table[(table.attack == "none") & (table.images == "clean")], BLUE, "-"),
        attack if ood else f"{attack} {format_eps(eps)}": (
            table[(table.attack == attack) & (table.eps == eps)],
            VERMILION,
            "--",
        ),
    }
    _check_rows("histograms", *(cells for cells, _, _ in kinds.values()))
    names = list(_shown(report).defense)
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, panels = _canvas((1.2 + 2.1 * columns, 1.3 + 1.55 * rows), columns, rows, sharex=True, sharey=True)
    for axes, name in zip(panels, names, strict=False):
        for cells, colour, line in kinds.values():
            _histogram(axes, cells[cells.defense == name], colour, line)
        axes.set_title(short_name(name), fontsize=10)
        axes.set_yscale("function", functions=(_root, np.square))
        axes.set_yticks([0, 0.1, 0.4, 1.0])
        axes.set_ylim(0, 1.02)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(names) - columns) : len(names)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel(f"{_words(measure)} uncertainty, nats", fontsize=10)
    figure.supylabel("share of images, root scale", fontsize=10)
    lines = [Line2D([], [], color=colour, linestyle=line, linewidth=2) for _, colour, line in kinds.values()]
    _legend(figure, lines, list(kinds), "outside upper center", len(lines))
    return _labelled(figure, f"Histograms of {_words(measure)} uncertainty, clean and {list(kinds)[1]}")


def _root(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.maximum(values, 0.0))


def _histogram(axes: Axes, cells: pd.DataFrame, colour: str, line: Any) -> None:
    """Counts of all seeds as fractions of the images."""
    if cells.empty:
        return
    counts = np.sum([np.array(text.split(), np.float64) for text in cells.counts], axis=0)
    edges = np.linspace(0, float(cells.top.iloc[0]), len(counts) + 1)
    shares = counts / max(counts.sum(), 1.0)
    axes.stairs(shares, edges, fill=True, color=colour, alpha=0.3)
    axes.stairs(shares, edges, color=colour, linestyle=line, linewidth=1.3)


def _canvas(
    size: tuple[float, float], columns: int, rows: int = 1, *, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False)
    return figure, list(grid.flat)


def _labelled(figure: Figure, label: str) -> Figure:
    figure.set_label(label)
    return figure


def _look(place: int) -> Look:
    return Look(COLOURS[place % len(COLOURS)], LINES[place // len(COLOURS) % len(LINES)], MARKERS[place % len(MARKERS)])


def _name_lines(figure: Figure, names: Sequence[str] | pd.Series[str]) -> None:
    lines = [Line2D([], [], **_look(place)._asdict()) for place in range(len(names))]
    _legend(figure, lines, list(names), "outside right upper", 1)


def _legend(figure: Figure, lines: Sequence[Artist], names: Sequence[str], where: str, columns: int) -> None:
    """A legend of names as they are: matplotlib itself drops those that begin with an underscore."""
    legend = figure.legend(lines, [" "] * len(lines), loc=where, ncols=columns, handlelength=3)  # type: ignore[call-overload]
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(short_name(name))


def _words(measure: str) -> str:
    return measure.replace("_", " ")


def _shown(report: Report) -> pd.DataFrame:
    """The defenses of the leaderboard that a figure has room for, the most robust."""
    return report.leaderboard.head(MOST)


def _title(report: Report, text: str) -> str:
    count = len(report.leaderboard)
    return text if count <= MOST else f"{text}; the first {MOST} of {count}"


def _radii(report: Report, attack: str) -> list[float]:
    results = report.results[report.results.attack != "none"]
    found = sorted(results[results.attack == attack].eps.unique())
    if not found:
        raise unknown_name("attack", attack, results.attack.unique())
    return list(map(float, found))


def _check_measure(measure: str, known: Sequence[str]) -> None:
    if measure not in known:
        raise unknown_name("measure of uncertainty", measure, known)


def _check_rows(table: str, *frames: pd.DataFrame) -> None:
    if all(frame.empty for frame in frames):
        raise InputError(f"figure of {table}", expected=f"rows in {table}.csv", got="none")

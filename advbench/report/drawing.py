"""The page's figures as SVG, drawn without matplotlib, whose import takes longer than a small run's report.

Text takes the colour of the page, colours are presentation attributes, which a page's security policy allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from html import escape
from typing import NamedTuple

import numpy as np
import pandas as pd

from advbench.report.tables import Report
from advbench.report.texts import format_eps, short_name

MOST = 15  # lines or panels that colours, line styles and space still tell apart
# Okabe and Ito's colours that show on light and on dark paper; their black is the colour of the text.
BLUE, VERMILION = "#0072b2", "#d55e00"
COLOURS = (BLUE, VERMILION, "#009e73", "#cc79a7", "currentColor")
DASHES = ("", "7 3", "2 2")
LEFT, TOP, BOTTOM, LEGEND = 56, 34, 48, 190  # pixels around the plots


class Line(NamedTuple):
    """A curve: its name, and points with their intervals, None where there is none."""

    name: str
    points: list[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()


class Panel(NamedTuple):
    """One plot: its title, its lines, and ticks of its horizontal axis, each with a text."""

    title: str
    lines: list[Line]
    ticks: list[tuple[float, str]]


def security_curves(report: Report, attack: str) -> str:
    """Accuracy against eps, which is 0 for the clean images, with bands of 95 %: a line for each defense."""
    radii = _radii(report, attack)
    names = ["clean", *(f"{attack}@{eps:.10g}" for eps in radii)]
    lines = []
    for row in report.leaderboard.head(MOST).to_dict("records"):
        found = [
            (eps, row.get(name, math.nan), row.get(f"{name}_low", math.nan), row.get(f"{name}_high", math.nan))
            for eps, name in zip([0.0, *radii], names, strict=True)
        ]
        known = [each for each in found if not math.isnan(each[1])]
        lines.append(Line(row["defense"], [each[:2] for each in known], [(x, low, high) for x, _, low, high in known]))
    ticks = [(0.0, "0"), *((eps, format_eps(eps)) for eps in radii)]
    title = _title(report, f"accuracy under {attack}")
    label = f"Accuracy against eps under {attack}, a line for each defense"
    below = f"eps ({report.results.norm.iloc[0]}, pixels in [0, 1])"
    return _charts([Panel(title, lines, ticks)], label, below, "accuracy, with its 95 % interval")


def retention_curves(report: Report, attack: str) -> str:
    """Accuracy on the images of least total uncertainty against the share kept: clean, and at the largest eps."""
    table = report.retention[report.retention.measure == "total"]
    eps = _radii(report, attack)[-1]
    panels = []
    for title, cells in (
        ("clean images", table[table.attack == "none"]),
        (f"under {attack} {format_eps(eps)}", table[(table.attack == attack) & (table.eps == eps)]),
    ):
        lines = []
        for defense in report.leaderboard.defense.head(MOST):
            kept = cells[cells.defense == defense].groupby("kept").accuracy.mean()
            lines.append(Line(str(defense), list(zip(map(float, kept.index), map(float, kept), strict=True))))
        panels.append(Panel(title, lines, [(share / 5, f"{share / 5:g}") for share in range(1, 6)]))
    label = f"Accuracy against the share of images kept, clean and under {attack}"
    return _charts(panels, label, "share of images kept, most certain first", "accuracy on the images kept")


def uncertainty_histograms(report: Report, attack: str) -> str:
    """Total uncertainty of clean images, and of attacked or out-of-distribution ones: a panel for each defense.

    As in figure 6 of Zhang et al. 2022 (adversarial sampling), which compares clean with blurred images.
    """
    ood = attack in ood_images(report)
    eps = 0.0 if ood else _radii(report, attack)[-1]
    table = report.histograms[report.histograms.measure == "total"]
    kinds = {
        "clean": table[(table.attack == "none") & (table.images == "clean")],
        attack if ood else f"{attack} {format_eps(eps)}": table[(table.attack == attack) & (table.eps == eps)],
    }
    names = [str(name) for name in report.leaderboard.defense.head(MOST)]
    columns, (width, height) = min(4, max(len(names), 1)), (170, 120)
    parts = [
        f'<text x="{LEFT + 150 * place}" y="18" fill="{colour}">{escape(kind)}</text>'
        for place, (kind, colour) in enumerate(zip(kinds, (BLUE, VERMILION), strict=True))
    ]
    for place, name in enumerate(names):
        left, top = LEFT + place % columns * (width + 22), TOP + 16 + place // columns * (height + 44)
        parts.append(_text(left + width / 2, top - 5, short_name(name), "middle"))
        parts.append(f'<path d="M{left} {top}V{top + height}H{left + width}" fill="none" stroke="currentColor"/>')
        for cells, colour, dash in zip(kinds.values(), (BLUE, VERMILION), ("", "4 2"), strict=True):
            mine = cells[cells.defense == name]
            if mine.empty:
                continue
            parts.append(_steps(mine, left, top, width, height, colour, dash))
        tops = table[table.defense == name].top
        if not tops.empty:
            parts.append(_text(left + width, top + height + 14, f"{float(tops.iloc[0]):.2f}", "end"))
        parts.append(_text(left, top + height + 14, "0", "start"))
    rows = -(-len(names) // columns)
    size = LEFT + columns * (width + 22), TOP + 16 + rows * (height + 44) + 18
    parts.append(_text(size[0] / 2, size[1] - 6, "total uncertainty, nats", "middle"))
    parts.append(_text(14, size[1] / 2, "share of images, root scale", "middle", turned=True))
    return _svg(f"Histograms of total uncertainty, clean and {list(kinds)[1]}", size, parts)


def ood_images(report: Report) -> list[str]:
    """What the tables call the sets of out-of-distribution images that the defenses were shown."""
    return list(report.histograms[report.histograms.images == "ood"].attack.unique())


def _steps(cells: pd.DataFrame, left: float, top: float, width: float, height: float, colour: str, dash: str) -> str:
    """Counts of all seeds as shares of the images, on a root scale."""
    counts = np.sum([np.array(text.split(), np.float64) for text in cells.counts], axis=0)
    heights = np.sqrt(counts / max(counts.sum(), 1.0)) * height
    path = [f"M{left} {top + height:.1f}"]
    for index, value in enumerate(heights):
        path.append(f"V{top + height - value:.1f}H{left + (index + 1) * width / len(heights):.1f}")
    shape = "".join(path) + f"V{top + height:.1f}"
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="{shape}" fill="{colour}" fill-opacity="0.25" stroke="{colour}"{dashes}/>'


def _charts(panels: Sequence[Panel], label: str, below: str, beside: str) -> str:
    """Plots of accuracies side by side, with one legend."""
    width, height = (520, 300) if len(panels) == 1 else (320, 260)
    parts = list(_legend(panels[0].lines, LEFT + len(panels) * (width + 40)))
    for place, panel in enumerate(panels):
        left = LEFT + place * (width + 40)
        lowest, highest = panel.ticks[0][0], panel.ticks[-1][0]
        scale = width / ((highest - lowest) or 1.0)
        parts.append(_text(left + width / 2, TOP - 12, panel.title, "middle"))
        for x, text in panel.ticks:
            at = left + (x - lowest) * scale
            parts.append(_rule(at, TOP, at, TOP + height))
            parts.append(_text(at, TOP + height + 16, text, "middle"))
        for fifth in range(6):
            at = TOP + height * (1 - fifth / 5)
            parts.append(_rule(left, at, left + width, at))
            if place == 0:
                parts.append(_text(left - 6, at + 4, f"{fifth / 5:.1f}", "end"))
        for which, line in enumerate(panel.lines):
            parts += _curve(line, which, partial(_across, left, lowest, scale), height)
    size = LEFT + len(panels) * (width + 40) + LEGEND, TOP + height + BOTTOM
    parts.append(_text(LEFT + (size[0] - LEFT - LEGEND) / 2, size[1] - 10, below, "middle"))
    parts.append(_text(14, TOP + height / 2, beside, "middle", turned=True))
    return _svg(label, size, parts)


def _curve(line: Line, which: int, across: Callable[[float], float], height: float) -> Iterator[str]:
    colour, dash = _look(which)

    def at(x: float, y: float) -> str:
        return f"{across(x):.1f} {TOP + height * (1 - y):.1f}"

    if line.band:
        upper = [at(x, high) for x, _, high in line.band]
        lower = [at(x, low) for x, low, _ in reversed(line.band)]
        yield f'<path d="M{"L".join([*upper, *lower])}Z" fill="{colour}" fill-opacity="0.12"/>'
    if line.points:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        path = "L".join(at(*point) for point in line.points)
        yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dashes}/>'
        for point in line.points:
            x, y = at(*point).split()
            yield f'<circle cx="{x}" cy="{y}" r="2.6" fill="{colour}"/>'


def _across(left: float, lowest: float, scale: float, x: float) -> float:
    return left + (x - lowest) * scale


def _legend(lines: Sequence[Line], left: float) -> Iterator[str]:
    for which, line in enumerate(lines):
        colour, dash = _look(which)
        y = TOP + 8 + 18 * which
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        yield f'<path d="M{left} {y}h26" fill="none" stroke="{colour}" stroke-width="1.8"{dashes}/>'
        yield _text(left + 32, y + 4, short_name(line.name), "start")


def _look(which: int) -> tuple[str, str]:
    return COLOURS[which % len(COLOURS)], DASHES[which // len(COLOURS) % len(DASHES)]


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="currentColor" stroke-opacity="0.18"/>'


def _text(x: float, y: float, text: str, anchor: str, *, turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor"{turn}>{escape(text)}</text>'


def _svg(label: str, size: tuple[float, float], parts: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" width="{size[0]:.0f}" height="{size[1]:.0f}" font-size="12">'
    )
    return "\n".join([head, *parts, "</svg>"])


def _title(report: Report, text: str) -> str:
    count = len(report.leaderboard)
    return text if count <= MOST else f"{text}; the first {MOST} of {count}"


def _radii(report: Report, attack: str) -> list[float]:
    return sorted(map(float, report.results[report.results.attack == attack].eps.unique()))

"""Charts as SVG for the page, without matplotlib, whose import takes longer than the report of a small run.

Colours are set by class in the page's style: a curve is grey unless it leads, is hovered or has the focus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape

import numpy as np

from advbench.report.charts import Chart, Histogram, Histograms, Line
from advbench.report.leaderboard import Measured
from advbench.report.texts import parts, short_name

LEFT, TOP, BOTTOM, LABELS = 56, 34, 48, 190  # pixels around the plots
GAP = 14  # pixels between labels
LEADS = 4  # number of curves with a colour of their own
Point = tuple[float, float]


def draw_chart(chart: Chart) -> str:
    """Draw plots side by side; each curve is labelled at its end and is one element across all plots."""
    names = [line.name for line in chart.panels[0].lines]
    width = 640 if len(chart.panels) == 1 else 300
    height = max(340 if len(chart.panels) == 1 else 280, GAP * len(names))
    right = LEFT + len(chart.panels) * (width + 30)
    drawn = []
    ends: list[Point] = [(right - 14, TOP + height)] * len(names)
    curves: list[list[str]] = [[] for _ in names]
    for place, panel in enumerate(chart.panels):
        left = LEFT + place * (width + 30)
        lowest, highest = panel.ticks[0][0], panel.ticks[-1][0]
        scale = width / ((highest - lowest) or 1.0)

        def at(x: float, y: float, left: int = left, lowest: float = lowest, scale: float = scale) -> Point:
            return left + (x - lowest) * scale, TOP + height * (1 - y)

        drawn.append(_text(left + width / 2, TOP - 12, panel.title, "middle"))
        for x, text in panel.ticks:
            drawn.append(_rule(at(x, 1), at(x, 0)))
            drawn.append(_text(at(x, 0)[0], TOP + height + 16, text, "middle"))
        for fifth in range(6):
            y = at(lowest, fifth / 5)[1]
            drawn.append(_rule((left, y), (left + width, y)))
            if place == 0:
                drawn.append(_text(left - 6, y + 4, f"{fifth / 5:.1f}", "end"))
        for which, line in enumerate(panel.lines):
            curves[which] += _curve(line.points, at)
            if line.points:
                ends[which] = at(line.points[-1][0], line.points[-1][1].value)
    heights = _spread([y for _, y in ends], TOP, TOP + height)
    for place, (name, mine, (x, y), label) in reversed([*enumerate(zip(names, curves, ends, heights, strict=True))]):
        if mine:  # the first is drawn last, on top
            said = "; ".join(_said(panel.title, panel.lines[place]) for panel in chart.panels)
            lead = f" lead l{place}" if place < LEADS else ""
            start = [(x, y)] if x > right - 31 else []  # no line through a plot in which the curve is missing
            mine.append(f'<path class="leader" d="{_path([*start, (right - 14, label), (right - 8, label)])}"/>')
            mine.append(_text(right - 4, label + 4, short_name(name), "start"))
            head = f'<g class="line{lead}" tabindex="0" role="img" aria-label="{escape(name)}: {escape(said)}">'
            drawn += [head, f"<title>{escape(name)}</title>", *mine, "</g>"]
    size = right + LABELS, TOP + height + BOTTOM
    drawn.append(_text((LEFT + right) / 2, size[1] - 10, chart.below, "middle"))
    drawn.append(_text(14, TOP + height / 2, chart.beside, "middle", turned=True))
    return _svg("group", "curves", chart.label, size, drawn)


def draw_histograms(chart: Histograms) -> str:
    """Draw one panel per defense, on a root scale."""
    columns, (width, height) = min(5, max(len(chart.panels), 1)), (170, 100)
    rows = -(-len(chart.panels) // columns)
    size = LEFT + max(columns, 2) * (width + 22), TOP + 16 + rows * (height + 44) + 18
    drawn = []
    for which, kind in enumerate(chart.kinds):
        drawn.append(f'<path class="h{which}" d="M{LEFT + 150 * which} 8h14v10h-14z"/>')
        drawn.append(_text(LEFT + 150 * which + 20, 18, kind, "start"))
    for place, panel in enumerate(chart.panels):
        left, top = LEFT + place % columns * (width + 22), TOP + 16 + place // columns * (height + 44)
        drawn.append(_text(left + width / 2, top - 5, short_name(panel.name), "middle"))
        drawn.append(f'<path class="axis" d="M{left} {top}V{top + height}H{left + width}"/>')
        drawn += _steps(panel, left, top + height, width, height)
        if panel.top:
            drawn.append(_text(left + width, top + height + 14, f"{panel.top:.2f}", "end"))
        drawn.append(_text(left, top + height + 14, "0", "start"))
    drawn.append(_text(size[0] / 2, size[1] - 6, chart.below, "middle"))
    drawn.append(_text(14, size[1] / 2, chart.beside, "middle", turned=True))
    return _svg("img", "bars", chart.label, size, drawn)


def _steps(panel: Histogram, left: float, base: float, width: float, height: float) -> Iterator[str]:
    for which, shares in enumerate(panel.shares):
        if shares is None:
            continue
        path = [f"M{left} {base:.1f}"]
        for index, value in enumerate(np.sqrt(shares) * height):
            path.append(f"V{base - value:.1f}H{left + (index + 1) * width / len(shares):.1f}")
        yield f'<path class="h{which}" d="{"".join(path)}V{base:.1f}"/>'


def _curve(points: Sequence[tuple[float, Measured]], at: Callable[[float, float], Point]) -> Iterator[str]:
    band = [(x, each.low, each.high) for x, each in points if not math.isnan(each.low)]
    if band:
        edge = [at(x, high) for x, _, high in band] + [at(x, low) for x, low, _ in reversed(band)]
        yield f'<path class="band" d="{_path(edge)}Z"/>'
    if points:
        path = _path([at(x, each.value) for x, each in points])
        yield f'<path class="hit" d="{path}"/><path class="curve" d="{path}"/>'


def _said(title: str, line: Line) -> str:
    """Text alternative of a curve."""
    return f"{title}, {', '.join(f'{parts(each)[0]} at {x:.4g}' for x, each in line.points) or 'unknown'}"


def _spread(wanted: list[float], top: float, bottom: float) -> list[float]:
    """Heights close to the wanted ones, in the same order, at least `GAP` apart."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    found = list(wanted)
    least = top
    for place in order:
        found[place] = least = max(found[place], least)
        least += GAP
    most = bottom
    for place in reversed(order):
        found[place] = most = min(found[place], most)
        most -= GAP
    return found


def _path(points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _rule(start: Point, end: Point) -> str:
    return f'<path class="rule" d="{_path((start, end))}"/>'


def _text(x: float, y: float, text: str, anchor: str, *, turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{escape(text)}</text>'


def _svg(role: str, kind: str, label: str, size: tuple[float, float], drawn: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{kind}" role="{role}" aria-label="{escape(label)}" '
        f'viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" width="{size[0]:.0f}" height="{size[1]:.0f}">'
    )
    return "\n".join([head, *drawn, "</svg>"])

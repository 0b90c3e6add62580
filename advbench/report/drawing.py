"""Charts as SVG for the page, drawn without matplotlib, whose import takes longer than a small run's report.

Text takes the colour of the page, colours are presentation attributes, which a page's security policy allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from html import escape

import numpy as np

from advbench.report.charts import PAIR, Chart, Histogram, Histograms, Line, look
from advbench.report.texts import short_name

LEFT, TOP, BOTTOM, LEGEND = 56, 34, 48, 190  # pixels around the plots
Point = tuple[float, float]


def draw_chart(chart: Chart) -> str:
    """Plots side by side, with one legend."""
    width, height = (520, 300) if len(chart.panels) == 1 else (320, 260)
    right = LEFT + len(chart.panels) * (width + 40)
    parts = []
    for place, line in enumerate(chart.panels[0].lines):
        row = TOP + 8 + 18 * place
        parts.append(_stroke(f"M{right} {row}h26", *look(place)))
        parts.append(_text(right + 32, row + 4, short_name(line.name), "start"))
    for place, panel in enumerate(chart.panels):
        left = LEFT + place * (width + 40)
        lowest, highest = panel.ticks[0][0], panel.ticks[-1][0]
        scale = width / ((highest - lowest) or 1.0)

        def at(x: float, y: float, left: int = left, lowest: float = lowest, scale: float = scale) -> Point:
            return left + (x - lowest) * scale, TOP + height * (1 - y)

        parts.append(_text(left + width / 2, TOP - 12, panel.title, "middle"))
        for x, text in panel.ticks:
            parts.append(_rule(at(x, 1), at(x, 0)))
            parts.append(_text(at(x, 0)[0], TOP + height + 16, text, "middle"))
        for fifth in range(6):
            y = at(lowest, fifth / 5)[1]
            parts.append(_rule((left, y), (left + width, y)))
            if place == 0:
                parts.append(_text(left - 6, y + 4, f"{fifth / 5:.1f}", "end"))
        for which, line in enumerate(panel.lines):
            parts += _curve(line, at, *look(which))
    size = right + LEGEND, TOP + height + BOTTOM
    parts.append(_text((LEFT + right) / 2, size[1] - 10, chart.below, "middle"))
    parts.append(_text(14, TOP + height / 2, chart.beside, "middle", turned=True))
    return _svg(chart.label, size, parts)


def draw_histograms(chart: Histograms) -> str:
    """A panel for each defense, on a root scale."""
    columns, (width, height) = min(4, max(len(chart.panels), 1)), (170, 120)
    rows = -(-len(chart.panels) // columns)
    size = LEFT + columns * (width + 22), TOP + 16 + rows * (height + 44) + 18
    parts = [
        f'<text x="{LEFT + 150 * place}" y="18" fill="{colour}">{escape(kind)}</text>'
        for place, (kind, (colour, _)) in enumerate(zip(chart.kinds, PAIR, strict=True))
    ]
    for place, panel in enumerate(chart.panels):
        left, top = LEFT + place % columns * (width + 22), TOP + 16 + place // columns * (height + 44)
        parts.append(_text(left + width / 2, top - 5, short_name(panel.name), "middle"))
        parts.append(f'<path d="M{left} {top}V{top + height}H{left + width}" fill="none" stroke="currentColor"/>')
        parts += _steps(panel, left, top + height, width, height)
        if panel.top:
            parts.append(_text(left + width, top + height + 14, f"{panel.top:.2f}", "end"))
        parts.append(_text(left, top + height + 14, "0", "start"))
    parts.append(_text(size[0] / 2, size[1] - 6, chart.below, "middle"))
    parts.append(_text(14, size[1] / 2, chart.beside, "middle", turned=True))
    return _svg(chart.label, size, parts)


def _steps(panel: Histogram, left: float, base: float, width: float, height: float) -> Iterator[str]:
    for shares, (colour, dash) in zip(panel.shares, PAIR, strict=True):
        if shares is None:
            continue
        path = [f"M{left} {base:.1f}"]
        for index, value in enumerate(np.sqrt(shares) * height):
            path.append(f"V{base - value:.1f}H{left + (index + 1) * width / len(shares):.1f}")
        yield _stroke("".join(path) + f"V{base:.1f}", colour, dash, f'fill="{colour}" fill-opacity="0.25"')


def _curve(line: Line, at: Callable[[float, float], Point], colour: str, dash: str) -> Iterator[str]:
    band = [(x, each.low, each.high) for x, each in line.points if not math.isnan(each.low)]
    if band:
        edge = [at(x, high) for x, _, high in band] + [at(x, low) for x, low, _ in reversed(band)]
        yield f'<path d="{_path(edge)}Z" fill="{colour}" fill-opacity="0.12"/>'
    if line.points:
        points = [at(x, each.value) for x, each in line.points]
        yield _stroke(_path(points), colour, dash)
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in points)


def _path(points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _stroke(path: str, colour: str, dash: str, fill: str = 'fill="none" stroke-width="1.8"') -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="{path}" {fill} stroke="{colour}"{dashes}/>'


def _rule(start: Point, end: Point) -> str:
    return f'<path d="{_path((start, end))}" stroke="currentColor" stroke-opacity="0.18"/>'


def _text(x: float, y: float, text: str, anchor: str, *, turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor"{turn}>{escape(text)}</text>'


def _svg(label: str, size: tuple[float, float], parts: Iterable[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" width="{size[0]:.0f}" height="{size[1]:.0f}" font-size="12">'
    )
    return "\n".join([head, *parts, "</svg>"])

"""Figures as values, drawn as SVG for the page and by matplotlib for files."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from advbench.report.curves import AXES
from advbench.report.leaderboard import CLEAN, Measured, over_seeds
from advbench.report.tables import Report
from advbench.report.texts import format_eps, images_text

MOST = 15  # maximum number of lines or panels that stay distinct on paper
# Colours of Okabe and Ito that are visible on light and dark backgrounds, without black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "currentColor")
DASHES = ("", "7 3", "2 2")
PAIR = (("#0072b2", ""), ("#d55e00", "4 2"))  # colour and dashes of clean images and of others


class Line(NamedTuple):
    """A curve: its name, and its points with accuracies."""

    name: str
    points: list[tuple[float, Measured]]


class Panel(NamedTuple):
    """A plot: title, lines, and ticks of the horizontal axis with labels."""

    title: str
    lines: list[Line]
    ticks: list[tuple[float, str]]


class Chart(NamedTuple):
    """Plots of accuracy side by side with a common legend; `log` is the scale of the horizontal axis."""

    label: str
    panels: list[Panel]
    below: str
    beside: str
    log: bool = False


class Histogram(NamedTuple):
    """Fractions of clean and of other images in bins of equal width from 0 to `top`; None if missing."""

    name: str
    top: float
    shares: tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]


class Histograms(NamedTuple):
    """One panel per defense, with the names of the two kinds of images."""

    label: str
    kinds: tuple[str, str]
    panels: list[Histogram]
    below: str = "total uncertainty, nats"
    beside: str = "fraction of images, root scale"


def look(place: int) -> tuple[str, str]:
    """Colour and dashes of a line, the same in all charts."""
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def security_curves(report: Report, attack: str = "", most: int = MOST) -> Chart:
    """Accuracy against eps (0 for clean images) with 95 % bands: one line per defense.

    Args:
        report: the tables.
        attack: label of the attack; by default the strongest for each defense and eps.
        most: maximum number of lines.
    """
    radii = report.radii(attack)
    lines = []
    for one in report.standings[:most]:
        worst = {eps: each.accuracy for eps, each in one.worst.items()}
        under = {eps: one.accuracy(attack, eps) for eps in radii} if attack else worst
        points = {0.0: one.accuracies[CLEAN], **under}
        lines.append(Line(one.defense, [(eps, found) for eps, found in points.items() if not found.missing]))
    what = f"accuracy under {attack}" if attack else "lowest accuracy over the attacks"
    return Chart(
        f"{what[0].upper()}{what[1:]} against eps, one line per defense",
        [Panel(_title(report, what, most), lines, [(eps, format_eps(eps)) for eps in (0.0, *radii)])],
        f"eps ({report.results.norm.iloc[0]}, pixels in [0, 1])",
        "accuracy",
    )


def retention_curves(report: Report, attack: str, most: int = MOST) -> Chart:
    """Accuracy on the images of lowest total uncertainty against the fraction kept: clean and at the largest eps.

    An attack on the accuracy is accompanied by the first attack that also targets the uncertainty.
    """
    table = report.retention[report.retention.measure == "total"]
    numbers = ["accuracy", "accuracy_low", "accuracy_high"]
    means = over_seeds(table, ["attack", "eps", "defense", "kept"], numbers, report.seeds).dropna(subset="accuracy")
    curves: dict[tuple[str, float, str], list[tuple[float, Measured]]] = {}
    for (name, radius, defense, kept), found in zip(means.index, means.to_numpy(float).tolist(), strict=True):
        curves.setdefault((name, radius, defense), []).append((kept, Measured(*found)))
    ticks = [(share / 5, f"{share / 5:g}") for share in range(1, 6)]
    names = [one.defense for one in report.standings[:most]]
    certain = report.uncertainty[report.uncertainty.images == "certain"].attack.unique()
    attacks = [attack] if attack in certain else [attack, *certain[:1]]
    places = [(name, report.radii(name)[-1]) for name in attacks]
    titled = [("clean images", CLEAN), *((f"under {images_text(*place)}", place) for place in places)]
    panels = [
        Panel(title, [Line(name, curves.get((*place, name), [])) for name in names], ticks) for title, place in titled
    ]
    label = f"Accuracy against the fraction of images kept, clean and under {attack}"
    return Chart(
        label,
        panels,
        "fraction of images kept, most certain first",
        "accuracy on the images kept",
    )


def convergence_curves(table: pd.DataFrame) -> Chart:
    """Accuracy against the effort of an attack at the largest eps: one panel per axis; lines may be seeds.

    Args:
        table: result of `curves.curve_table`.
    """
    table = table[table.eps == table.eps.max()]
    attacks = table.attack.unique()
    panels = []
    for axis, mine in table.groupby("axis", sort=False):
        lines = []
        for (defense, attack, _), rows in mine.groupby(["defense", "attack", "seed"], sort=False):
            name = str(defense) if len(attacks) == 1 else f"{defense}, {attack}"
            numbers = zip(rows.value, rows.accuracy, rows.accuracy_low, rows.accuracy_high, strict=True)
            lines.append(Line(name, [(value, Measured(*each)) for value, *each in numbers]))
        ticks = [(float(value), str(value)) for value in sorted(mine.value.unique())]
        panels.append(Panel(AXES.get(str(axis), str(axis)), lines, ticks))
    what = attacks[0] if len(attacks) == 1 else "attacks"
    below = f"{what} at {table.norm.iloc[0]} eps {format_eps(float(table.eps.max()))}"
    label = f"Accuracy of each defense as the effort of {what} increases"
    return Chart(label, panels, below, "accuracy", log=True)


def uncertainty_histograms(report: Report, attack: str, most: int = MOST) -> Histograms:
    """Total uncertainty of clean and of attacked or out-of-distribution images: one panel per defense.

    As in figure 6 of Zhang et al. 2022 (adversarial sampling), which compares clean with blurred images.

    Args:
        report: the tables.
        attack: attack on the images, or one of `ood_images`, such as `ood:svhn`.
        most: maximum number of panels.
    """
    eps = 0.0 if attack in ood_images(report) else report.radii(attack)[-1]
    table = report.histograms[report.histograms.measure == "total"]
    panels = []
    for one in report.standings[:most]:
        mine = table[table.defense == one.defense]
        clean = mine[(mine.attack == "none") & (mine.images == "clean")]
        other = mine[(mine.attack == attack) & (mine.eps == eps)]
        top = float(mine.top.iloc[0]) if len(mine) else 0.0
        panels.append(Histogram(one.defense, top, (_shares(clean), _shares(other))))
    kind = images_text(attack, eps)
    return Histograms(f"Histograms of total uncertainty, clean and {kind}", ("clean", kind), panels)


def to_the_end(report: Report) -> list[str]:
    """Attacks with measures of uncertainty in the tables: those without early stopping."""
    table = report.histograms
    return [attack for attack in report.attacks if attack in set(table[table.images == "attacked"].attack)]


def ood_images(report: Report) -> list[str]:
    """Labels in the tables of the out-of-distribution images."""
    return list(report.histograms[report.histograms.images == "ood"].attack.unique())


def _shares(cells: pd.DataFrame) -> NDArray[np.float64] | None:
    """Counts of all seeds as fractions of the images."""
    if cells.empty:
        return None
    counts = np.sum(cells.counts.tolist(), axis=0)
    shares: NDArray[np.float64] = counts / max(counts.sum(), 1.0)
    return shares


def _title(report: Report, text: str, most: int) -> str:
    count = len(report.standings)
    return text if count <= most else f"{text}; the first {most} of {count}"

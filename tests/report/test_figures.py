"""The leaderboard's figures: what they draw, and as what text."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from reports import HOSTILE, made_report

from advbench.report import Report, charts, drawing
from advbench.report.figures import affinity_heatmap, draw_chart, draw_histograms, to_bytes
from advbench.report.views import affinities, squares


def security_curves(report: Report, attack: str) -> Figure:
    return draw_chart(charts.security_curves(report, attack))


def retention_curves(report: Report, attack: str) -> Figure:
    return draw_chart(charts.retention_curves(report, attack))


def uncertainty_histograms(report: Report, attack: str) -> Figure:
    return draw_histograms(charts.uncertainty_histograms(report, attack))


DRAWN: list[Callable[[Report, str], Figure]] = [
    security_curves,
    retention_curves,
    affinity_heatmap,
    uncertainty_histograms,
]


def page_curves(report: Report, attack: str) -> str:
    return drawing.draw_chart(charts.security_curves(report, attack))


def page_histograms(report: Report, attack: str) -> str:
    return drawing.draw_histograms(charts.uncertainty_histograms(report, attack))


# What the page draws by itself, without matplotlib.
PAGE: list[Callable[[Report, str], str]] = [
    page_curves,
    lambda report, attack: drawing.draw_chart(charts.retention_curves(report, attack)),
    page_histograms,
]


def svg(figure: Figure) -> str:
    return to_bytes(figure, "svg").decode()


@pytest.fixture(scope="module")
def report() -> Report:
    return made_report()


SVG = "{http://www.w3.org/2000/svg}"


def words(text: str) -> set[str]:
    return {"".join(node.itertext()).strip() for node in ElementTree.fromstring(text).iter(f"{SVG}text")}


def test_security_curves_go_from_clean_to_the_largest_eps(report: Report) -> None:
    (axes,) = security_curves(report, "fgsm").axes
    first = axes.lines[0]
    assert list(first.get_xdata()) == pytest.approx([0.0, 8 / 255, 0.05])
    # 0.9 - 0.25 * steps of eps, for the first defense under the first attack.
    assert list(first.get_ydata()) == pytest.approx([0.9, 0.775, 0.65])
    assert len(axes.collections) == 3
    assert axes.get_xlabel() == "eps (linf, pixels in [0, 1])"


def test_retention_is_drawn_clean_and_attacked(report: Report) -> None:
    clean, attacked = retention_curves(report, "pgd").axes
    assert (clean.get_title(), attacked.get_title()) == ("clean images", "under pgd 0.05")
    assert list(clean.lines[0].get_xdata()) == [0.2, 0.6, 1.0]
    assert list(clean.lines[0].get_ydata()) == pytest.approx([0.98, 0.94, 0.9])
    # What failed has no curve.
    assert len(attacked.lines[2].get_xdata()) == 0


def test_the_heatmap_shows_numbers_and_hatches_what_has_none(report: Report) -> None:
    axes = affinity_heatmap(report, "fgsm").axes[0]
    cells = squares(affinities(report)["fgsm"][0.05], ["adv_bnn", "pgd_at", "erm"])
    matrix = np.array([[each.value for each in row] for row in cells])
    assert [text.get_text() for text in axes.texts] == [f"{value:.2f}" for value in matrix.ravel()]
    # A transfer lowers the target's accuracy half as far as its own attack does.
    assert matrix == pytest.approx(np.full((3, 3), 0.5) + 0.5 * np.eye(3), abs=1e-3)
    failed = affinity_heatmap(report, "pgd").axes[0]
    assert [text.get_text() for text in failed.texts].count("n/a") == 3
    assert sum(patch.get_hatch() is not None for patch in failed.patches) == 3


def test_the_mean_over_seeds_is_missing_with_one_seed() -> None:
    report = made_report(seeds=(0, 1))
    cells = report.affinity
    one = (cells.seed == 1) & (cells.source == "adv_bnn") & (cells.target == "pgd_at")

    def mean(value: float) -> float:
        changed = replace(report, affinity=cells.assign(affinity=cells.affinity.mask(one, value)))
        return affinities(changed)["fgsm"][0.05]["adv_bnn", "pgd_at"].value

    assert mean(0.9) == pytest.approx(0.7, abs=1e-3)
    assert math.isnan(mean(math.nan))


def test_histograms_are_shares_of_the_images(report: Report) -> None:
    figure = uncertainty_histograms(report, "fgsm")
    assert [axes.get_title() for axes in figure.axes] == ["adv_bnn", "pgd_at", "erm"]
    values, edges, _ = figure.axes[0].patches[0].get_data()
    assert list(values) == pytest.approx([181 / 200] + [1 / 200] * 19)
    assert (edges[0], edges[-1]) == pytest.approx((0.0, math.log(10)))


def test_out_of_distribution_images_have_histograms_too(report: Report) -> None:
    clean = report.histograms[report.histograms.attack == "none"]
    others = clean.assign(attack="ood:svhn", images="ood", counts=[(10,) * 20] * len(clean))
    shown = replace(report, histograms=pd.concat([report.histograms, others]))
    first = uncertainty_histograms(shown, "ood:svhn").axes[0]
    # Filled and outlined, clean and then others.
    assert list(first.patches[2].get_data().values) == pytest.approx([1 / 20] * 20)  # type: ignore[attr-defined]
    assert "ood:svhn" in words(svg(uncertainty_histograms(shown, "ood:svhn")))


@pytest.mark.parametrize("draw", DRAWN)
def test_a_figure_is_the_same_text_every_time(draw: Callable[[Report, str], Figure], report: Report) -> None:
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "text.parse_math": True}):
        text = svg(draw(report, "fgsm"))
    assert text == svg(draw(report, "fgsm"))
    assert "adv_bnn" in words(text)
    assert "date" not in text.lower()


@pytest.mark.parametrize("draw", PAGE)
def test_the_page_draws_the_same_text_every_time_without_style_or_id(
    draw: Callable[[Report, str], str], report: Report
) -> None:
    text = draw(report, "fgsm")
    assert text == draw(report, "fgsm")
    assert {"adv_bnn", "pgd_at", "erm"} <= words(text)
    # The page's security policy allows no style, and two figures of a page may share no id.
    assert not re.findall(r"\b(?:style|id|on\w+)=", text)
    assert ElementTree.fromstring(text).get("aria-label")


def test_the_page_s_curves_are_where_the_tables_say(report: Report) -> None:
    text = page_curves(report, "fgsm")
    root = ElementTree.fromstring(text)
    lines = {node.findtext(f"{SVG}title"): node for node in root.iter(f"{SVG}g")}
    assert sorted(lines) == ["adv_bnn", "erm", "pgd_at"]
    assert "0.775 at 0.03137, 0.650 at 0.05" in lines["adv_bnn"].get("aria-label", "")
    (curve,) = [node for node in lines["adv_bnn"] if node.get("class") == "curve"]
    dots = [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", curve.get("d", ""))]
    # The first defense: 0.9 - 0.25 * steps of eps, on a plot of 640 x 340 pixels from 0 to eps 0.05.
    across = [drawing.LEFT + 640 * eps / 0.05 for eps in (0.0, 8 / 255, 0.05)]
    down = [drawing.TOP + 340 * (1 - accuracy) for accuracy in (0.9, 0.775, 0.65)]
    assert [x for x, _ in dots] == pytest.approx(across, abs=0.06)
    assert [y for _, y in dots] == pytest.approx(down, abs=0.06)


def test_names_beside_curves_do_not_overlap() -> None:
    report = made_report([f"defense_{index}" for index in range(19)], ["fgsm"], [0.1])
    root = ElementTree.fromstring(drawing.draw_chart(charts.security_curves(report, most=19)))
    names = [node.find(f"{SVG}text") for node in root.iter(f"{SVG}g")]
    heights = sorted(float(node.get("y", "")) for node in names if node is not None)
    assert len(heights) == 19
    assert min(above - below for below, above in itertools.pairwise(heights)) >= drawing.GAP - 0.1
    assert heights[0] >= drawing.TOP
    assert heights[-1] <= drawing.TOP + 340 + 4


def test_the_page_s_histograms_show_shares(report: Report) -> None:
    clean = report.histograms[report.histograms.attack == "none"]
    others = clean.assign(attack="ood:svhn", images="ood", counts=[(10,) * 20] * len(clean))
    shown = replace(report, histograms=pd.concat([report.histograms, others]))
    assert charts.ood_images(shown) == ["ood:svhn"]
    text = page_histograms(shown, "ood:svhn")
    assert "ood:svhn" in words(text)
    root = ElementTree.fromstring(text)
    filled = [node.get("d", "") for node in root.iter(f"{SVG}path") if node.get("class") in ("h0", "h1")]
    tops = {float(y) for y in re.findall(r"V([\d.]+)H", filled[3])}
    base = float(re.findall(r"V([\d.]+)$", filled[3])[0])
    # 20 bins of one twentieth each, on a root scale of 100 pixels.
    assert [base - top for top in tops] == pytest.approx([100 * math.sqrt(1 / 20)], abs=0.11)


def test_names_are_drawn_as_they_are() -> None:
    names = ["_hidden", "$a$", "<b>&", "a_name_that_is_too_long_for_any_legend"]
    texts = [svg(security_curves(made_report(names), "fgsm"))]
    texts += [draw(made_report(names), "fgsm") for draw in PAGE]
    for text in texts:
        assert {"_hidden", "$a$", "<b>&", "a_name_that_is…ny_legend"} <= words(text)
    for draw in DRAWN:
        ElementTree.fromstring(svg(draw(made_report(HOSTILE), "fgsm")))
    for draw_text in PAGE:
        ElementTree.fromstring(draw_text(made_report(HOSTILE), "fgsm"))


def test_more_defenses_than_can_be_told_apart_are_cut_and_said_so() -> None:
    report = made_report([f"defense_{index}" for index in range(charts.MOST + 2)], ["fgsm"], [0.1])
    (axes,) = security_curves(report, "fgsm").axes
    assert len(axes.lines) == charts.MOST
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == charts.MOST
    assert axes.get_title() == "accuracy under fgsm; the first 15 of 17"
    assert "accuracy under fgsm; the first 15 of 17" in words(page_curves(report, "fgsm"))


def test_numbers_in_texts_are_not_rounded() -> None:
    """Coordinates are, for the size of the file."""
    report = made_report(radii=(0.0314, 0.125))
    text = svg(security_curves(report, str(report.results.attack.iloc[-1])))
    assert ">0.125<" in text
    assert "0.0314" in text

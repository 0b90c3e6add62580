"""The leaderboard as a self-contained HTML file, without server or network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from advbench.report import charts, views
from advbench.report.drawing import draw_chart, draw_histograms
from advbench.report.evaluations import NUMBERS
from advbench.report.flags import FLAGS
from advbench.report.leaderboard import CLEAN, NOT_RUN, Measured, Standing, over_seeds, own_rows
from advbench.report.references import Reference
from advbench.report.tables import Report, as_rows
from advbench.report.texts import duration, format_eps, parts

LIBRARIES = {"advbench", "device", "numpy", "python", "torch"}  # in the versions of every method
FEW = 3  # up to this many attacks have all figures; otherwise uncertainty is only drawn for the strongest
ENDS = ("difference", "difference_low", "difference_high")
COLOURS = 10  # steps of the colour scale from affinity 0 to 1


class Certain(NamedTuple):
    """A defense under an attack that crafts errors with low uncertainty."""

    retention: Measured
    auroc: Measured  # of detecting the attacked images among clean ones by uncertainty
    attack: str


class Row(NamedTuple):
    """A defense in the page's first table."""

    standing: Standing
    ranks: str  # range of statistically indistinguishable ranks; empty if unique
    paper: tuple[str, str, str]  # authors and year, link, title; empty if none
    certain: dict[float, Certain]  # by eps: under an attack on the uncertainty
    seconds: list[float]  # training time of each seed
    text: str  # text for searching


def render_page(
    report: Report,
    references: Sequence[Reference] = (),
    beside: Sequence[str] = (),
    about: str = "",
    *,
    date: str = "",
    board: str = "",
    home: str = "",
) -> str:
    """Render the page: finding, ranking, figures, supporting tables, and methods.

    Equal input gives equal text. Tables can be sorted, filtered and inspected; without scripts the page shows the
    tables at the most telling eps and all figures. All text is escaped. Displayed commands use the run's spec.toml.

    Args:
        report: the tables.
        references: models evaluated elsewhere, shown if data and norm are the same.
        beside: files in the same folder, to link to.
        about: further description in paragraphs; text in backquotes is set as code.
        date: date of the page.
        board: name of the published board, to which a defense can be submitted; empty for a run.
        home: link to the index of the site; empty if there is none.
    """
    first = report.results.iloc[0]
    alike = [one for one in references if one.dataset == first.dataset and one.norm in ("", first.norm)]
    affinities = views.affinities(report)
    strongest = next((one.lowest_attack for one in report.standings if one.lowest_attack), "")
    data = page_data(report, affinities)
    rows = list(_rows(report))
    return _template("page.html.j2").render(
        report=report,
        rows=rows,
        radii=report.radii() or [0.0],
        telling=telling(report),
        certain=any(row.certain for row in rows),
        flagged=any(row.standing.flags for row in rows),
        home=home,
        views=views,
        headline=headline(report, about),
        about=[part.strip() for part in about.split("\n\n") if part.strip()],
        date=date,
        board=board,
        folder=shlex.quote(board),
        made_with=_made_with(report),
        clean=CLEAN,
        not_run=NOT_RUN,
        meanings=FLAGS,
        references=sorted(alike, key=lambda one: (one.robust is None, -(one.robust or 0.0), one.model)),
        left_out=len(references) - len(alike),
        affinities=affinities,
        reasons=data["affinity"]["reasons"],
        files=beside,
        data=_json(data),
        **_figures(report, strongest),
        **_inlined("theme.js", "page.js"),
    )


def telling(report: Report) -> int:
    """Position of the eps at which the worst cases of the defenses differ most, by their standard deviation.

    Where all defenses are broken, or none is, a table of them says little. Of equals it is the largest eps.
    """

    def spread(eps: float) -> float:
        worst = [one.worst[eps].accuracy.value for one in report.standings if eps in one.worst]
        known = [accuracy for accuracy in worst if not math.isnan(accuracy)]
        return round(statistics.pstdev(known), 6) if known else 0.0

    return max(enumerate(map(spread, report.radii())), key=lambda each: (each[1], each[0]), default=(0, 0.0))[0]


def headline(report: Report, about: str = "") -> str:
    """The finding in a sentence: the first of the description, or the leading and indistinguishable defenses.

    Args:
        report: the tables.
        about: the maintainers' description, as Markdown.
    """
    for paragraph in about.split("\n\n"):
        text = " ".join(paragraph.split())
        if text and not text.startswith("#"):
            return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", text, maxsplit=1)[0]
    first, *others = report.standings
    if first.rank is None:
        return "No defense has a rank yet."
    radii = report.radii()
    what = f"at eps {format_eps(radii[0])}" if radii else "on clean images"
    if len(radii) > 1:
        what = f"of the area from eps {format_eps(radii[0])} to {format_eps(radii[-1])}"
    equals = [f"`{one.defense}`" for one in others if one.rank_low == 1]
    shown = f"{', '.join(equals[:3])}{f' and {len(equals) - 3} more' if len(equals) > 3 else ''}"
    return f"`{first.defense}` keeps {parts(first.area)[0]} {what}" + (
        f"; indistinguishable from {shown}." if equals else ", more than any other." if others else "."
    )


def _rows(report: Report) -> Iterator[Row]:
    seconds = report.models.groupby("defense").seconds.agg(list).to_dict()
    papers = {row["label"]: row for row in as_rows(report.methods) if row["kind"] == "defense"}
    certain = _certain(report)
    for one in report.standings:
        paper = _cited(papers[one.defense])
        text = f"{one.defense} {one.architecture} {' '.join(paper)}"
        spent = [each for each in seconds.get(one.defense, []) if not math.isnan(each)]
        yield Row(one, views.rank_range(one), paper, certain.get(one.defense, {}), spent, text)


def _cited(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Authors and year, link and title of a method's paper."""
    if not row["title"]:
        return "", "", ""
    names = [name.strip() for name in row["authors"].split(",")]
    who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
    return f"{who} {row['year']}", row["link"] if re.match("https?://", row["link"]) else "", row["title"]


def _certain(report: Report) -> dict[str, dict[float, Certain]]:
    """Defenses by eps under the attack on their uncertainty with the lowest retention."""
    detected = report.uncertainty[report.uncertainty.images == "certain"]
    areas = report.retention[report.retention.measure == "total"].drop_duplicates([*views.KEYS, "seed"])
    table = detected.merge(areas[[*views.KEYS, "seed", "area", "area_low", "area_high"]], on=[*views.KEYS, "seed"])
    columns = ["area", "area_low", "area_high", "auroc_total"]
    means = over_seeds(table, views.KEYS, columns, report.seeds).dropna(subset="area")
    found: dict[str, dict[float, Certain]] = {}
    for (defense, attack, eps), (*area, auroc) in zip(means.index, means.to_numpy(float).tolist(), strict=True):
        mine, retention = found.setdefault(defense, {}), Measured(*area)
        if eps not in mine or retention.value < mine[eps].retention.value:
            mine[eps] = Certain(retention, Measured(auroc, note="n/a" if math.isnan(auroc) else ""), attack)
    return found


def _made_with(report: Report) -> str:
    """Versions of advbench and torch that computed the results."""
    made = [json.loads(text) for text in report.methods.versions.unique() if text]
    found = {name: sorted({str(each[name]) for each in made if name in each}) for name in ("advbench", "torch")}
    return ", ".join(f"{name} {' and '.join(versions)}" for name, versions in found.items() if versions)


class IndexEntry(NamedTuple):
    """A board in the index of a site."""

    name: str  # its folder, relative to the index
    link: str
    title: str
    finding: str
    defenses: int
    cells: int  # number of cells in its spec
    missing: int  # cells without a record

    @property
    def group(self) -> str:
        """The folder that it shares with other boards; empty if it stands alone."""
        first, inside, _ = self.name.partition("/")
        return first if inside else ""


def render_index(entries: Sequence[IndexEntry], date: str = "") -> str:
    """Render the index of a site of boards.

    Args:
        entries: the boards.
        date: date of the build.
    """
    return _template("site.html.j2").render(entries=entries, date=date, **_inlined("theme.js"))


def page_data(report: Report, affinities: Mapping[str, Mapping[float, views.Pairs]]) -> dict[str, Any]:
    """Data for the page's script: all eps, and details of each number.

    Returns:
        Among others `worst`, the position of the strongest attack (-1: none) and the accuracy for each defense and eps;
        `differences`, positions of two defenses and of eps (-1: the area), and their difference; `cells`, by positions
        of defense, attack (-1: clean) and eps: text of the cell, reason of a missing accuracy (a position in `notes`),
        the accuracy, and start and end of its `rows`.
    """
    results, attacks, radii = report.results, report.attacks, report.radii()
    behind: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in as_rows(results[own_rows(results)]):
        behind.setdefault((row["defense"], row["attack"], row["eps"]), []).append(row)
    methods = {(row["kind"], row["label"]): row for row in as_rows(report.methods)}
    places = [(-1, -1, CLEAN), *((a, e, (name, eps)) for a, name in enumerate(attacks) for e, eps in enumerate(radii))]
    rows: list[list[Any]] = []
    cells: dict[str, list[Any]] = {}
    notes: dict[str, int] = {}
    for place, one in enumerate(report.standings):
        for attack, eps, where in places:
            start = len(rows)
            for row in behind.get((one.defense, *where), ()):
                note = notes.setdefault(row["flags"], len(notes))
                counts = [None if pd.isna(row[name]) else int(row[name]) for name in NUMBERS[:2]]
                numbers = [_rounded(row[name], 4) for name in NUMBERS[2:]]
                rows.append([row["seed"], row["source"], *counts, *numbers, note, row["key"]])
            shown = one.accuracy(*where)
            note = notes.setdefault(shown.note, len(notes))
            cells[f"{place},{attack},{eps}"] = [parts(shown), note, _rounded(shown.value, 6), start, len(rows)]
    swept = any(_params(row).get("sweep") for row in methods.values())  # a cell also depends on all smaller radii
    first = results.iloc[0]
    names = [one.defense for one in report.standings]
    return {
        "dataset": first.dataset,
        "norm": first.norm,
        "command": "advbench run --spec spec.toml",
        "eps": [
            [format_eps(eps), ",".join(map(repr, radii[: place + 1] if swept else [eps]))]
            for place, eps in enumerate(radii)
        ],
        "attacks": [_method(methods["attack", name]) for name in attacks],
        "defenses": [
            _method(methods["defense", one.defense])
            | {
                "versions": methods["defense", one.defense]["versions"],
                "area": parts(one.area),
                "ranks": views.rank_range(one),
                "net": one.architecture,
                "weights": parts(one.parameters)[0],
                "models": [
                    [row["seed"], row["posterior"], _rounded(row["seconds"], 4), row["key"]]
                    for row in as_rows(report.models[report.models.defense == one.defense])
                ],
            }
            for one in report.standings
        ],
        "worst": [
            [[attacks.index(each.attack) if each.attack else -1, parts(each.accuracy)] for each in one.worst.values()]
            for one in report.standings
        ],
        "differences": sorted(_differences(report, names)),
        "cells": cells,
        "rows": rows,
        "notes": list(notes),
        "affinity": _affinity_data(report, affinities),
    }


def _differences(report: Report, names: list[str]) -> Iterator[list[Any]]:
    """Differences of the page's data, of the defense higher in the ranking minus the lower."""
    radii = report.radii()
    for row in as_rows(report.differences):
        pair = names.index(row["defense"]), names.index(row["other"])
        value, low, high = (row[name] for name in ENDS)
        shown = Measured(value, low, high) if pair[0] < pair[1] else Measured(0.0 - value, 0.0 - high, 0.0 - low)
        yield [*sorted(pair), -1 if math.isnan(row["eps"]) else radii.index(row["eps"]), *parts(shown)]


def _method(row: Mapping[str, Any]) -> dict[str, Any]:
    """A defense or attack, with the option that selects it."""
    made_of = ", ".join(sorted(json.loads(row["versions"] or "{}").keys() - LIBRARIES))
    shown = [[name, json.dumps(value)] for name, value in _params(row).items() if value != []]
    return {
        "name": row["label"],
        "params": [*([["made of", made_of]] if made_of else []), *shown],
        "paper": [f"{row['authors']} ({row['year']}). {row['title']}.", row["link"]] if row["title"] else [],
        "option": f"--{row['kind']} {shlex.quote(row['label'])}",
    }


def _params(row: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(row["params"])
    return values


def _rounded(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(float(value), digits)


def _affinity_data(report: Report, affinities: Mapping[str, Mapping[float, views.Pairs]]) -> dict[str, Any]:
    """Affinities in the format of the script: numbers, or lists with the position of a reason.

    Returns:
        `reasons`; `eps`, positions in the run's; `attacks`, each with `name`; `values`, for each eps a list of sources
        times targets, None if missing; `lows` and `highs`, the interval ends at the largest eps.
    """
    names = [one.defense for one in report.standings]
    reasons: dict[str, int] = {}

    def known(value: float, note: str) -> float | list[int] | None:
        if not math.isnan(value):
            return round(value, 2)
        return None if note == NOT_RUN.note else [reasons.setdefault(note, len(reasons))]

    attacks = []
    for attack, by_eps in affinities.items():
        flat = [[each for row in views.squares(pairs, names) for each in row] for pairs in by_eps.values()]
        attacks.append(
            {
                "name": attack,
                "values": [[known(each.value, each.note) for each in some] for some in flat],
                "lows": [known(each.low, each.note) for each in flat[-1]],
                "highs": [known(each.high, each.note) for each in flat[-1]],
            }
        )
    radii = [report.radii().index(eps) for eps in next(iter(affinities.values()), {})]
    return {"eps": radii, "attacks": attacks, "reasons": list(reasons)}


def _colour(affinity: Measured) -> str:
    """CSS class of a cell in the affinity table."""
    if affinity.missing:
        return "none"
    return f"a{min(COLOURS, max(0, math.floor(round(affinity.value, 2) * COLOURS + 0.5)))}"


def _figures(report: Report, strongest: str) -> dict[str, list[tuple[str, str]]]:
    """Figures of the page by topic, each with the name of its attack; with all defenses."""
    whole, most = charts.to_the_end(report), len(report.standings)
    few = whole if len(whole) <= FEW else [strongest if strongest in whole else whole[-1]]
    images = [*few, *charts.ood_images(report)] if len(report.histograms) else []
    kept = few if len(report.retention) else []
    several = len(report.attacks) > 1
    curves = [("all attacks", charts.security_curves(report, most=most))] if several else []
    curves += [(name, charts.security_curves(report, name, most)) for name in report.attacks]
    return {
        "security": [(name, draw_chart(chart)) for name, chart in curves],
        "retention_figures": [(name, draw_chart(charts.retention_curves(report, name, most))) for name in kept],
        "histograms": [(name, draw_histograms(charts.uncertainty_histograms(report, name, most))) for name in images],
    }


def _inlined(*scripts: str) -> dict[str, str]:
    """Style and scripts by name, and the security policy that allows only these."""
    texts, style = {name.partition(".")[0]: _asset(name) for name in scripts}, _asset("page.css")
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_digest, texts.values()))}; style-src {_digest(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return {**texts, "css": style, "policy": policy}


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "parts": parts,
        "eps": format_eps,
        "colour": _colour,
        "rounded": _rounded,
        "measured": Measured,
        "marked": _marked,
        "duration": duration,
        "median": statistics.median,
        "breaks": _breaks,
    }
    return environment.from_string(_asset(name))


@cache
def _asset(name: str) -> str:
    return (files("advbench.report") / "assets" / name).read_text("utf-8")


def _breaks(name: str) -> Markup:
    """An escaped name that may be broken after each underscore."""
    return Markup("_<wbr>").join(name.split("_"))


def _marked(text: str) -> Markup:
    """Escaped text with backquoted parts set as code."""
    pieces = map(escape, text.split("`"))
    return Markup().join(Markup("<code>{}</code>").format(each) if at % 2 else each for at, each in enumerate(pieces))


def _digest(text: str) -> str:
    """Hash of an inline script or style for a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(values: dict[str, Any]) -> str:
    """JSON that is safe inside an HTML script element."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")

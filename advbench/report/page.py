"""The leaderboard as one HTML file, which needs nothing else: no server, no network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2

from advbench.grid.spec import RunSpec
from advbench.report import details, drawing
from advbench.report.flags import FLAGS
from advbench.report.markdown import doubts, explanation, ranking
from advbench.report.markdown import title as title_of
from advbench.report.page_data import Board
from advbench.report.references import Reference
from advbench.report.tables import Report
from advbench.report.texts import format_eps

FEW = 3  # attacks whose every figure is drawn; of more, uncertainty is drawn under the strongest alone

Drawings = list[tuple[str, str]]


def render_page(
    report: Report,
    spec: RunSpec | None = None,
    references: Sequence[Reference] = (),
    title: str = "",
    name: str = "",
    beside: Sequence[str] = (),
    about: str = "",
) -> str:
    """The page: the leaderboard with what lies behind each number, figures, and the tables it rests on.

    The same text for the same input. It can be sorted, filtered and asked; without scripts
    it shows the tables at the largest eps, and all figures. Every text of the tables is escaped.

    Args:
        report: the tables.
        spec: of the run, if it lies beside the page as `spec.toml`, which the commands shown then name; without it
            they name every setting that the tables know.
        references: models judged elsewhere, shown where they were judged on the same data under the same norm.
        title: heading; by default data, nets and norm.
        name: of the board.
        beside: files that lie beside the page, which links to them.
        about: what else there is to say, in paragraphs; what stands between backquotes is set as code.
    """
    board = Board(report, spec)
    affinity = details.affinity_data(report, board.names)
    crossed = [attack["name"] for attack in affinity["attacks"]]
    alike, left_out = board.references(references)
    drawn = _figures(board)
    return _template().render(
        title=title or title_of(report),
        name=name,
        about=[part.split("`") for part in about.split("\n\n") if part.strip()],
        explanation=explanation(report),
        ranking=ranking(report),
        rows=board.rows(),
        names=board.names,
        attacks=board.attacks,
        radii=list(map(format_eps, board.radii)),
        strongest=_strongest(report),
        headline=format_eps(board.radii[-1]) if board.radii else "",
        meanings=FLAGS,
        failures=board.failures(),
        doubts=list(doubts(report.results)),
        references=alike,
        left_out=left_out,
        format_eps=format_eps,
        squares=details.affinity_squares(affinity, 0, len(board.names)) if crossed else [],
        crossed=crossed,
        crossed_radii=affinity["eps"],
        reasons=affinity["reasons"],
        files=beside,
        data=_json({**board.data(), "affinity": affinity}),
        **drawn,
        **_detailed(report),
        **_inlined(),
    )


def _detailed(report: Report) -> dict[str, Any]:
    """The tables below the main one."""
    return {
        "retention": details.retention_table(report),
        "calibration": details.calibration_table(report),
        "detection": details.detection_table(report),
    }


def _inlined() -> dict[str, str]:
    """Style and scripts, and the policy that allows these alone."""
    theme, script, style = map(_asset, ("theme.js", "page.js", "page.css"))
    policy = (
        f"default-src 'none'; script-src {_digest(theme)} {_digest(script)}; style-src {_digest(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return {"theme": theme, "script": script, "css": style, "policy": policy}


def _figures(board: Board) -> dict[str, Drawings]:
    """The page's figures, by what they show, each with the name of its attack."""
    report = board.report
    attacks = board.attacks
    if len(attacks) > FEW:
        strongest = _strongest(report)
        attacks = [strongest if strongest in attacks else attacks[-1]]
    drawn: dict[str, Drawings] = {
        "security": _drawn(report, board.attacks, drawing.security_curves),
        "retention_figures": [],
        "histograms": [],
    }
    if not report.retention.empty:
        drawn["retention_figures"] = _drawn(report, attacks, drawing.retention_curves)
    if not report.histograms.empty:
        drawn["histograms"] = _drawn(report, [*attacks, *drawing.ood_images(report)], drawing.uncertainty_histograms)
    return drawn


def _strongest(report: Report) -> str:
    """The attack that ranks the most robust defense; empty without one."""
    return next((str(name) for name in report.leaderboard.worst_attack if name), "")


def _drawn(report: Report, attacks: Sequence[str], draw: Callable[[Report, str], str]) -> Drawings:
    return [(attack, draw(report, attack)) for attack in attacks]


@cache
def _template() -> jinja2.Template:
    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(_asset("page.html.j2"))


@cache
def _asset(name: str) -> str:
    return (files("advbench.report") / "assets" / name).read_text("utf-8")


def _digest(text: str) -> str:
    """An inline script or style, as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(values: dict[str, Any]) -> str:
    """JSON that no HTML parser takes for the end of its element."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")

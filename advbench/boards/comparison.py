"""Comparison of a paper's numbers with those of a run: a verdict for each number, and one for the item."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
from scipy import stats

from advbench.boards.board import Board
from advbench.boards.studies import Cell, Published, Study
from advbench.report.leaderboard import Measured
from advbench.report.tables import as_rows, to_csv

COLUMNS = (
    "part dataset architecture method condition metric published deviation own own_low own_high verdict note".split()
)
INTERVALS = {  # columns of `results` with an interval, and the prefix of its columns
    "accuracy": "accuracy",
    "draw_accuracy_mean": "draw_accuracy",
}
ABSENT = Measured(note="not run")
Z = float(stats.norm.ppf(0.975))


class Order(NamedTuple):
    """Number of pairs of methods that a paper separates, and how many of them are in the paper's order."""

    kept: int
    pairs: int


@dataclass(frozen=True)
class Comparison:
    """Comparison of a study's numbers with the paper's.

    Attributes:
        study: the study.
        table: one row per published number and per claimed inequality.
        order: agreement of the order of methods.
    """

    study: Study
    table: pd.DataFrame
    order: Order

    @property
    def verdict(self) -> str:
        """`agrees`, `same order`, `differs`, `undecided` (by the intervals) or `incomplete` (a number is missing)."""
        found = set(self.table.verdict) - {"not compared"}
        if not found or "missing" in found:
            return "incomplete"
        claims = set(self.table.verdict[self.table.published.isna()])
        numbers = set(self.table.verdict[self.table.published.notna()]) - {"not compared"}
        if "differs" in claims:
            return "differs"
        if numbers == {"agrees"}:
            return "agrees"
        if numbers:
            return "same order" if self.order.pairs and self.order.kept == self.order.pairs else "differs"
        return "undecided" if "undecided" in claims else "agrees"

    def summary(self) -> str:
        """The verdict and its basis, in one line."""
        counts = self.table.verdict.value_counts()
        parts = [f"{counts[name]} {name}" for name in VERDICTS if name in counts]
        if self.order.pairs:
            parts.append(f"{self.order.kept} of {self.order.pairs} pairs of methods in the paper's order")
        return f"{self.study.item.title} at scale {self.study.scale}: {self.verdict} ({', '.join(parts)})"

    def files(self) -> dict[str, bytes]:
        """`comparison.csv` and `comparison.md`."""
        return {"comparison.csv": to_csv(self.table), "comparison.md": self._markdown().encode()}

    def _markdown(self) -> str:
        study = self.study
        lines = [f"# {study.item.title}: {study.title}", "", f"**{self.verdict}** at scale `{study.scale}`.", ""]
        lines += [self.summary().partition(" (")[2].removesuffix(")").capitalize() + ".", ""]
        for head, text in (
            ("The paper", study.shows),
            ("Settings", study.settings),
            ("Cuts", study.cuts),
            ("Conclusions not supported at this scale", study.forbids),
        ):
            if text:
                lines += [f"{head}: {text}", ""]
        headers = ["part", "method", "condition", "metric", "published", "own", "verdict"]
        lines += ["| " + " | ".join(headers) + " |", "|" + " --- |" * len(headers)]
        for row in as_rows(self.table):
            digits = _decimals(row["deviation"])
            published = "" if math.isnan(row["published"]) else f"{row['published']:g} ± {row['deviation']:g}"
            own = row["note"] if math.isnan(row["own"]) else f"{row['own']:.{digits}f}"
            if not math.isnan(row["own_low"]):
                own += f" [{row['own_low']:.{digits}f}, {row['own_high']:.{digits}f}]"
            cells = [*(row[name] for name in headers[:4]), published, own, row["verdict"]]
            lines.append("| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |")
        names = sorted(study.parts)
        boards = ", ".join(f"[{name}]({name}/README.md)" for name in names)
        lines += ["", f"The runs, as boards: {boards}.", "", LEGEND]
        return "\n".join(lines) + "\n"


VERDICTS = ("agrees", "differs", "undecided", "missing", "not compared")
LEGEND = (
    "A published number has the deviation that the paper prints, or half a unit of its last digit; an "
    "own number has its 95 % interval. They agree if the two ranges meet. A claim agrees if the interval of the "
    "difference, taken between opposite ends, is above 0, and differs if it is below. The item agrees if all numbers "
    "do; it has the same order if all pairs of methods that the paper's ranges separate are in the paper's order."
)


def _decimals(deviation: float) -> int:
    return 4 if math.isnan(deviation) else max(0, 1 - math.floor(math.log10(max(deviation, 1e-6))))


def compare(study: Study, boards: Mapping[str, Board]) -> Comparison:
    """Compare the published numbers of a study with those of its runs.

    Args:
        study: the study.
        boards: runs by part; a missing run has no numbers.
    """
    rows, own = [], {}
    for each in study.published:
        found = own[each] = _own(each.cell, study, boards, 100 if each.percent else 1)
        part = each.cell.part if each.cell else ""
        verdict, note = _verdict(each, found, study)
        numbers = (each.value, each.deviation, found.value, found.low, found.high)
        rows.append((part, *each.place, *numbers, verdict, note))
    for claim in study.claims:
        for above, below in claim.pairs():
            one, other = (_own(each, study, boards) for each in (above, below))
            low, high = one.low - other.high, one.high - other.low
            verdict = "missing" if math.isnan(one.value - other.value) else "undecided"
            if low > 0 or high < 0:
                verdict = "agrees" if low > 0 else "differs"
            if not {above.part, below.part} <= study.parts.keys():
                verdict = "not compared"
            spec = study.parts.get(above.part)
            where = (spec.dataset, spec.architecture) if spec else ("", "")
            name = f"{_named(above, below)} over {_named(below, above)}"
            numbers = (math.nan, math.nan, one.value - other.value, low, high)
            note = one.note or other.note
            rows.append((above.part, *where, name, claim.says, above.number, *numbers, verdict, note))
    return Comparison(study, pd.DataFrame(rows, columns=COLUMNS), _order(own))


def _named(cell: Cell, other: Cell) -> str:
    """Fields in which two cells differ, as text."""
    names = [str(mine) for mine, theirs in zip(cell[1:], other[1:], strict=True) if mine != theirs]
    return " ".join(names) or cell.defense


def _verdict(published: Published, own: Measured, study: Study) -> tuple[str, str]:
    """Verdict on whether the two ranges overlap, and a note."""
    if published.cell is None:
        return "not compared", published.reason
    if published.cell.part not in study.parts:
        return "not compared", f"not part of scale {study.scale}"
    if own.missing:
        return "missing", own.note
    low = own.value if math.isnan(own.low) else own.low
    high = own.value if math.isnan(own.high) else own.high
    slack = 1e-9 * max(1.0, abs(published.value))
    meets = (
        low - slack <= published.value + published.deviation and high + slack >= published.value - published.deviation
    )
    return "agrees" if meets else "differs", own.note


def _order(own: Mapping[Published, Measured]) -> Order:
    """Agreement of the order of methods, among numbers of the same kind."""
    groups: dict[tuple[object, ...], list[Published]] = {}
    for each, found in own.items():
        if each.cell is not None and not found.missing:
            groups.setdefault((*each.cell._replace(defense=""), each.percent), []).append(each)
    kept = pairs = 0
    for one, other in itertools.chain.from_iterable(itertools.combinations(each, 2) for each in groups.values()):
        apart = one.value - other.value
        if abs(apart) > one.deviation + other.deviation:
            pairs += 1
            kept += (own[one].value - own[other].value) * apart > 0
    return Order(kept, pairs)


def _own(cell: Cell | None, study: Study, boards: Mapping[str, Board], factor: int = 1) -> Measured:
    """The number of a cell: mean over seeds of values and of interval ends."""
    if cell is None or cell.part not in study.parts or cell.part not in boards:
        return ABSENT
    found = list(_by_seed(cell, boards[cell.part]))
    if len(found) < len(study.parts[cell.part].seeds):
        return ABSENT
    value, low, high = (factor * sum(each) / len(found) for each in zip(*found, strict=True))
    return Measured(value, low, high, note="" if math.isfinite(value) else "undefined")


def _by_seed(cell: Cell, board: Board) -> Iterator[tuple[float, float, float]]:
    """Value and interval of a cell's number for each seed; NaN for no interval."""
    report, number = board.report, cell.number
    source = cell.source or cell.defense
    at = {"defense": cell.defense, "attack": cell.attack, "source": source}
    if number in report.models:
        rows = report.models[report.models.defense == cell.defense]
        yield from ((value, math.nan, math.nan) for value in rows[number].dropna())
        return
    if number == "affinity":
        frame, at = report.affinity, {"target": cell.defense, "attack": cell.attack, "source": source}
        ends = ["affinity_low", "affinity_high"]
    elif number.startswith("retained_"):
        frame, number = report.retention, "accuracy"
        share = float(cell.number.removeprefix("retained_")) / 100
        frame = frame[(frame.measure == "total") & (frame.kept.sub(share).abs() < 1e-9)]
        ends = ["accuracy_low", "accuracy_high"]
    elif number in report.results:
        frame = report.results
        ends = [f"{INTERVALS[number]}_{end}" for end in ("low", "high")] if number in INTERVALS else []
    else:
        frame, ends = report.uncertainty, []
    for name, wanted in at.items():
        frame = frame[frame[name] == wanted]
    frame = frame[frame.eps.sub(cell.eps).abs() < 1e-9]
    for row in as_rows(frame.dropna(subset=[number])):
        value = float(row[number])
        if ends:
            yield value, float(row[ends[0]]), float(row[ends[1]])
        elif number.partition("_")[0] in ("auroc", "aupr"):
            yield value, *_area_interval(value, number, *_counts(cell, board))
        else:
            yield value, math.nan, math.nan


def _counts(cell: Cell, board: Board) -> tuple[int, int]:
    """Numbers of images in a detection: positives, and clean ones."""
    clean = min(board.spec.limit or board.identity.test_count, board.identity.test_count)
    shown = {f"ood:{each.label}": min(clean, each.images) for each in board.identity.foreign}
    return shown.get(cell.attack, clean), clean


def _area_interval(value: float, number: str, positives: int, negatives: int) -> tuple[float, float]:
    """95 % interval of an area under a curve, over images.

    For ROC curves by Hanley and McNeil (1982), which is conservative for most scores; for precision-recall curves on
    the logit scale by Boyd, Eng and Page (2013), with positives and negatives exchanged for the negated score.
    """
    if not 0 < value < 1:
        return value, value
    if number.startswith("auroc"):
        one, two = value / (2 - value), 2 * value**2 / (1 + value)
        spread = value * (1 - value) + (positives - 1) * (one - value**2) + (negatives - 1) * (two - value**2)
        half = Z * math.sqrt(spread / (positives * negatives))
        return max(0.0, value - half), min(1.0, value + half)
    count = negatives if number.startswith("aupr_negative") else positives
    centre, half = math.log(value / (1 - value)), Z / math.sqrt(count * value * (1 - value))
    return 1 / (1 + math.exp(half - centre)), 1 / (1 + math.exp(-half - centre))

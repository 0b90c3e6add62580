"""Comparison of a paper's numbers with those of a run: a verdict for each number, and one for the item."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from advbench.boards.board import Board
from advbench.boards.studies import Cell, Published, Study
from advbench.data.ood import ood_labels
from advbench.errors import InputError
from advbench.evaluation import auroc_interval, student_quantile
from advbench.evaluation.uncertainty import Detection, detection
from advbench.report.areas import paired_difference
from advbench.report.evaluations import evaluation_of
from advbench.report.leaderboard import Measured
from advbench.report.opened import open_run
from advbench.report.tables import as_rows, to_csv

COLUMNS = (
    "part dataset architecture method condition metric published deviation own own_low own_high verdict note "
    "own_dataset own_architecture".split()  # which may be others than the paper's
)
INTERVALS = {  # columns of `results` with an interval, and the prefix of its columns
    "accuracy": "accuracy",
    "draw_accuracy_mean": "draw_accuracy",
}
ABSENT = Measured(note="not run")
HISTORY = "history_"  # history_mean_error, history_oscillation_error: of the curves over a training
SPREAD = "draw_accuracy_range"  # highest minus lowest accuracy of a draw
FOOLED = "fooled_"  # of a number that is about those examples alone that fooled the classifier they were crafted on
MEASURED = "measured.csv"
Numbers = Mapping[tuple[Cell, int, str], tuple[float, float, float]]  # by cell, seed and key: value and interval
Z = float(stats.norm.ppf(0.975))


class Order(NamedTuple):
    """Pairs of methods that a paper separates: how many are in the paper's order, how many reversed, and all."""

    kept: int
    reversed: int
    pairs: int


@dataclass(frozen=True)
class Comparison:
    """Comparison of a study's numbers with the paper's.

    Attributes:
        study: the study.
        table: one row per published number and per claimed inequality.
        order: agreement of the order of methods.
        measured: numbers that are not in records, see `measure`.
        parts: names of the parts with results.
    """

    study: Study
    table: pd.DataFrame
    order: Order
    measured: Numbers
    parts: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """`agrees`, `same order`, `differs`, `undecided` (by the intervals) or `incomplete` (a number is missing)."""
        if "missing" in set(self.table.verdict):
            return "incomplete"
        claims = set(self.table.verdict[self.table.published.isna()]) - {"not compared"}
        numbers = set(self.table.verdict[self.table.published.notna()]) - {"not compared"}
        if "differs" in claims or self.order.reversed:
            return "differs"
        if numbers == {"agrees"} or (not numbers and not self.order.pairs and claims == {"agrees"}):
            return "agrees"
        if self.order.pairs:
            return "same order" if self.order.kept == self.order.pairs else "undecided"
        return "differs" if numbers else "undecided" if claims else "incomplete"

    def summary(self) -> str:
        """The verdict and its basis, in one line."""
        counts = self.table.verdict.value_counts()
        parts = [f"{counts[name]} {name}" for name in VERDICTS if name in counts]
        if self.order.pairs:
            parts.append(f"{self.order.kept} of {self.order.pairs} pairs of methods in the paper's order")
            parts += [f"{self.order.reversed} reversed"] if self.order.reversed else []
        return f"{self.study.item.title} at scale {self.study.scale}: {self.verdict} ({', '.join(parts)})"

    def files(self) -> dict[str, bytes]:
        """`comparison.csv` and `comparison.md`; also `measured.csv` if some numbers are not in records."""
        files = {"comparison.csv": to_csv(self.table), "comparison.md": self._markdown().encode()}
        rows = [(*cell, seed, key, *numbers) for (cell, seed, key), numbers in sorted(self.measured.items())]
        if rows:
            columns = [*Cell._fields, "seed", "key", "value", "low", "high"]
            files[MEASURED] = to_csv(pd.DataFrame(rows, columns=columns))
        return files

    def _markdown(self) -> str:
        study = self.study
        lines = [f"# {study.item.title}: {study.file.title}", "", f"**{self.verdict}** at scale `{study.scale}`.", ""]
        lines += [self.summary().partition(" (")[2].removesuffix(")").capitalize() + ".", ""]
        for head, text in (
            ("The paper", study.file.shows),
            ("Settings", study.file.settings),
            ("Cuts", study.file.cuts),
            ("Conclusions not supported at this scale", study.file.forbids),
        ):
            if text:
                lines += [f"{head}: {text}", ""]
        headers = ["part", "run on", "method", "condition", "metric", "published", "own", "verdict"]
        lines += ["| " + " | ".join(headers) + " |", "|" + " --- |" * len(headers)]
        unused = ~self.table.part.isin({"", *self.parts})
        for row in as_rows(self.table[~unused]):
            digits = _decimals(row["deviation"])
            published = "" if math.isnan(row["published"]) else f"{row['published']:g} ± {row['deviation']:g}"
            own = row["note"] if math.isnan(row["own"]) else f"{row['own']:.{digits}f}"
            if not math.isnan(row["own_low"]):
                own += f" [{row['own_low']:.{digits}f}, {row['own_high']:.{digits}f}]"
            run_on = ", ".join(filter(None, (row["own_dataset"], row["own_architecture"])))
            named = {**row, "run on": run_on, "published": published, "own": own}
            cells = [named[name] for name in headers]
            lines.append("| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |")
        if unused.any():
            lines += ["", f"comparison.csv has {unused.sum()} more rows, of parts that have no run at this scale."]
        boards = ", ".join(f"[{name}]({name}/README.md)" for name in self.parts)
        lines += ["", f"The runs, as boards: {boards}.", "", LEGEND]
        if self.measured:
            lines += ["", FROM_IMAGES]
        return "\n".join(lines) + "\n"


VERDICTS = ("agrees", "differs", "undecided", "missing", "not compared")
LEGEND = (
    "A published number has the deviation that the paper prints, or half a unit of its last digit; an own number has "
    "its 95 % interval. They agree if the two ranges meet; numbers of other data or another network are not compared. "
    "A claim agrees if the interval of the difference is above 0, or above the difference that it states, and differs "
    "if it is below; without intervals, the values decide. Two methods that the paper's ranges separate are in the "
    "paper's order, or reversed, if the interval of their difference leaves out 0; the item has the same order if all "
    "pairs are in the paper's."
)
FROM_IMAGES = (
    f"{MEASURED} has numbers from predictions per image, which are in the store but not in records: "
    "a check does not recompute them."
)


def _decimals(deviation: float) -> int:
    return 4 if math.isnan(deviation) else max(0, 1 - math.floor(math.log10(max(deviation, 1e-6))))


def compare(study: Study, boards: Mapping[str, Board], measured: Numbers) -> Comparison:
    """Compare the published numbers of a study with those of its runs.

    Args:
        study: the study.
        boards: runs by part; a missing run has no numbers.
        measured: numbers that are not in records, see `measure`.
    """
    rows, own = [], {}
    for each in study.published:
        found = own[each] = _own(each.cell, study, boards, measured, 100 if each.percent else 1)
        part = each.cell.part if each.cell else ""
        verdict, note = _verdict(each, found, study)
        numbers = (each.value, each.deviation, found.value, found.low, found.high)
        rows.append((part, *each.place, *numbers, verdict, note, *_own_place(part, study)))
    for claim in study.file.claims:
        for above, below in claim.pairs():
            one = _own(above, study, boards, measured)
            other = _own(below, study, boards, measured) if below else Measured(0.0)
            apart, low, high = (_paired(above, below, boards) if below else None) or _difference(one, other)
            verdict = "missing" if math.isnan(apart) else "undecided"
            ends = (apart, apart) if math.isnan(low) else (low, high)
            if ends[0] > claim.by or ends[1] < claim.by:
                verdict = "agrees" if ends[0] > claim.by else "differs"
            if not all(_is_part(cell, study) for cell in (above, below) if cell):
                verdict = "not compared"
            where = _own_place(above.part, study)
            name = _named(above, below) if below else f"{above.defense} over {claim.by:g}"
            numbers = (math.nan, math.nan, apart, low, high)
            note = one.note or other.note
            rows.append((above.part, *where, name, claim.says, above.number, *numbers, verdict, note, *where))
    return Comparison(study, pd.DataFrame(rows, columns=COLUMNS), _order(own, boards), measured, tuple(boards))


def measure(study: Study, boards: Mapping[str, Board], store: str, known: Numbers) -> Numbers:
    """Compute the numbers of a study that need predictions per image.

    Args:
        study: the study.
        boards: runs by part.
        store: URL of the store with the predictions.
        known: previous numbers, which are kept for unchanged cells.
    """
    cells = [each.cell for each in study.published if each.cell is not None]
    cells += [cell for claim in study.file.claims for pair in claim.pairs() for cell in pair if cell]
    found: dict[tuple[Cell, int, str], tuple[float, float, float]] = {}
    for cell in dict.fromkeys(cells):
        if _from_images(cell) and _is_part(cell, study) and cell.part in boards:
            board = boards[cell.part]
            for seed in board.spec.seeds:
                place = (cell, seed, _key(cell, board, seed))
                try:
                    found[place] = known[place] if place in known else _detected(cell, board, store, seed)
                except InputError:  # it is missing, or nothing fooled the classifier
                    continue
    return found


def read_measured(path: Path) -> Numbers:
    """Read the numbers of a `measured.csv`; empty if there is none.

    Raises:
        InputError: the file is damaged.
    """
    if not path.is_file():
        return {}
    found: dict[tuple[Cell, int, str], tuple[float, float, float]] = {}
    try:
        for row in pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records"):
            cell = Cell(*(row[name] for name in Cell._fields))._replace(eps=float(row["eps"]))
            numbers = (float(row["value"]), float(row["low"]), float(row["high"]))
            found[cell, int(row["seed"]), row["key"]] = numbers
    except (ValueError, KeyError) as error:
        raise InputError(f"file {path}", expected="numbers of a study", got=str(error)) from error
    return found


def needs_examples(study: Study) -> bool:
    """True if a number of a study is about the examples that fooled a classifier, which may be a single draw."""
    return any(each.cell is not None and each.cell.number.startswith(FOOLED) for each in study.published)


def _from_images(cell: Cell) -> bool:
    return cell.number.startswith(FOOLED) or cell.number.endswith("_least_confidence")


def _detected(cell: Cell, board: Board, store: str, seed: int) -> tuple[float, float, float]:
    """A measure of detection, with its interval."""
    number = cell.number.removeprefix(FOOLED)
    score, measure = next(
        (name, number.removeprefix(f"{name}_")) for name in Detection._fields if number.startswith(name)
    )
    source = cell.source or cell.defense
    at: dict[str, Any] = {} if cell.attack.startswith("ood:") else {"eps": cell.eps, "source": source}
    fooled = source if cell.number.startswith(FOOLED) else None
    run = open_run(board.folder, store)
    clean, shown = run.detection_scores(cell.defense, cell.attack, measure, fooled=fooled, seed=seed, **at)
    value = float(getattr(detection(clean, shown), score))
    if score == "auroc":
        return value, *auroc_interval(clean, shown)
    return value, *_area_interval(value, score, len(shown), len(clean))


def _key(cell: Cell, board: Board, seed: int) -> str:
    """Key of the evaluation of a cell; empty if there is none."""
    source = cell.source or cell.defense
    for ood in board.plan.ood:
        if (f"ood:{ood.name}", ood.defense.label, ood.seed, ood.attack) == (cell.attack, cell.defense, seed, None):
            return ood.key
    for each in board.plan.cells:
        attack = each.attack.label if each.attack else "none"
        here = (each.defense.label, each.source.label, attack, each.eps, each.seed)
        if here == (cell.defense, source, cell.attack, cell.eps, seed):
            return each.key
    return ""


def _difference(one: Measured, other: Measured) -> tuple[float, float, float]:
    """Difference of two numbers and its 95 % interval by squaring and adding (Newcombe 1998; Zou and Donner 2008).

    They are taken as independent; for accuracies on the same images see `_paired`. A number without an interval
    beside one with an interval is taken as exact; without any, the interval is NaN.
    """
    apart = one.value - other.value
    ends = [(each.value - each.low, each.high - each.value) for each in (one, other)]
    if all(math.isnan(below) for below, _ in ends):
        return apart, math.nan, math.nan
    (below, above), (other_below, other_above) = ((0.0, 0.0) if math.isnan(each[0]) else each for each in ends)
    return apart, apart - math.hypot(below, other_above), apart + math.hypot(above, other_below)


def _paired(one: Cell, other: Cell, boards: Mapping[str, Board]) -> tuple[float, float, float] | None:
    """Difference of two numbers of the same images and seeds and its 95 % interval; None for others.

    Accuracies are paired by image. Numbers without an interval of their own are paired by seed: Student's.
    """
    if one.part not in boards or other.part not in boards:
        return None
    cells = [(cell, boards[cell.part]) for cell in (one, other)]
    if len({(board.identity.sha256, board.spec.limit, board.spec.seeds) for _, board in cells}) > 1:
        return None
    seeds = boards[one.part].spec.seeds
    if one.number == other.number == "accuracy":
        sides = []
        for cell, board in cells:
            records = board.records.read_records([_key(cell, board, seed) for seed in seeds])
            sides.append([evaluation_of(record) for record in records if record is not None])
        found = paired_difference(*sides) if all(len(side) == len(seeds) for side in sides) else None
        return None if found is None else (found.value, found.low, found.high)
    if len(seeds) == 1 or _from_images(one) or _from_images(other):
        return None
    mine, theirs = ([*_by_seed(cell, board)] for cell, board in cells)
    if not len(mine) == len(theirs) == len(seeds) or not all(math.isnan(low) for _, low, _ in (*mine, *theirs)):
        return None
    apart = [here[0] - there[0] for here, there in zip(mine, theirs, strict=True)]
    centre, half = sum(apart) / len(apart), _half_width(apart)
    return centre, centre - half, centre + half


def _own_place(part: str, study: Study) -> tuple[str, str]:
    """Data set and network of a study's run; empty if it is not a part."""
    spec = study.parts.get(part)
    return (spec.dataset, spec.architecture) if spec else ("", "")


def _is_part(cell: Cell, study: Study) -> bool:
    """True if a study's run has a cell, which may be missing at a small scale."""
    spec = study.parts.get(cell.part)
    if spec is None:
        return False
    attacks = {"none", *spec.attacks, *(f"ood:{label}" for label in ood_labels(spec.ood))}
    eps = {0.0, *spec.eps}
    return (
        {cell.defense, cell.source or cell.defense} <= {*spec.defenses} and cell.attack in attacks and cell.eps in eps
    )


def _named(cell: Cell, other: Cell) -> str:
    """Fields in which two cells of a claim differ, as text, after the defense of both."""
    pairs = [pair for pair in zip(cell, other, strict=True) if pair[0] != pair[1]]
    sides = " over ".join(" ".join(str(each) for each in side if each) for side in zip(*pairs, strict=True))
    return sides if cell.defense != other.defense else f"{cell.defense}: {sides}"


def _verdict(published: Published, own: Measured, study: Study) -> tuple[str, str]:
    """Verdict on whether the two ranges overlap, and a note."""
    if published.cell is None:
        return "not compared", published.reason
    if not _is_part(published.cell, study):
        return "not compared", f"not part of scale {study.scale}"
    if own.missing:
        return "missing", own.note
    if published.cell.part in study.replaced:
        return "not compared", "other data or another network"
    low = own.value if math.isnan(own.low) else own.low
    high = own.value if math.isnan(own.high) else own.high
    slack = 1e-9 * max(1.0, abs(published.value))
    meets = (
        low - slack <= published.value + published.deviation and high + slack >= published.value - published.deviation
    )
    return "agrees" if meets else "differs", own.note


def _order(own: Mapping[Published, Measured], boards: Mapping[str, Board]) -> Order:
    """Agreement of the order of methods, among numbers of the same kind."""
    groups: dict[tuple[object, ...], list[Published]] = {}
    for each, found in own.items():
        if each.cell is not None and not found.missing:
            groups.setdefault((*each.cell._replace(defense=""), each.percent), []).append(each)
    kept = opposite = pairs = 0
    for one, other in itertools.chain.from_iterable(itertools.combinations(each, 2) for each in groups.values()):
        resolution = one.deviation + other.deviation
        lower, upper = sorted((one, other), key=lambda each: each.value)
        if upper.value - lower.value > resolution:
            pairs += 1
            apart, low, high = _difference(own[upper], own[lower])
            if upper.cell and lower.cell and (paired := _paired(upper.cell, lower.cell, boards)):
                apart, low, high = ((100 if upper.percent else 1) * each for each in paired)
            if math.isnan(low):  # without intervals, it must be visible in as many digits as the paper prints
                low, high = apart - resolution, apart + resolution
            kept += low > 0
            opposite += high < 0
    return Order(kept, opposite, pairs)


def _own(cell: Cell | None, study: Study, boards: Mapping[str, Board], measured: Numbers, factor: int = 1) -> Measured:
    """The number of a cell: mean over seeds of values and of interval ends."""
    if cell is None or not _is_part(cell, study) or cell.part not in boards:
        return ABSENT
    if _from_images(cell):
        found = [numbers for (place, _, _), numbers in measured.items() if place == cell]
    else:
        found = list(_by_seed(cell, boards[cell.part]))
    if len(found) < len(study.parts[cell.part].seeds):
        return ABSENT
    value, low, high = (factor * sum(each) / len(found) for each in zip(*found, strict=True))
    if math.isnan(low) and len(found) > 1:  # Student's over the seeds
        half = factor * _half_width([each[0] for each in found])
        low, high = value - half, value + half
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
    if number.startswith(HISTORY):
        yield from _of_histories(report.history[report.history.defense == cell.defense], number.removeprefix(HISTORY))
        return
    if number == "affinity":
        frame, at = report.affinity, {"target": cell.defense, "attack": cell.attack, "source": source}
        ends = ["affinity_low", "affinity_high"]
    elif number.startswith("retained_"):
        frame, number = report.retention, "accuracy"
        share = float(cell.number.removeprefix("retained_")) / 100
        frame = frame[(frame.measure == "total") & (frame.kept.sub(share).abs() < 1e-9)]
        ends = ["accuracy_low", "accuracy_high"]
    elif number in report.results or number == SPREAD:
        frame = report.results.assign(**{SPREAD: report.results.draw_accuracy_max - report.results.draw_accuracy_min})
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


def _of_histories(histories: pd.DataFrame, number: str) -> Iterator[tuple[float, float, float]]:
    """Mean or oscillation of a measure over the moments of each training.

    The oscillation is the mean absolute change from one moment to the next, less that of a curve that goes from the
    first value to the last without a turn.
    """
    how, _, measure = number.partition("_")
    for _, each in histories[histories.measure == measure].groupby("seed"):
        curve = each.sort_values("step").value.to_numpy(float)
        turns = (np.abs(np.diff(curve)).sum() - abs(curve[-1] - curve[0])) / max(1, len(curve) - 1)
        found = turns if how == "oscillation" else curve.mean()
        yield round(float(found), 12), math.nan, math.nan  # without a turn it is exactly 0


def _half_width(values: list[float]) -> float:
    """Half the width of Student's 95 % interval of the mean of several seeds' values."""
    return float(student_quantile(len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))


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

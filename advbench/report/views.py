"""Displayed tables as values: main table, accuracy against eps, affinity, retention, calibration."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from advbench.evaluation.summary import ENTROPIES
from advbench.report.flags import FLAGS, raised
from advbench.report.leaderboard import CLEAN, NOT_RUN, Measured, Standing, over_seeds, own_rows
from advbench.report.tables import CALIBRATION, KNOWLEDGE, SCORES, Report
from advbench.report.texts import Value, duration, format_eps, images_text

HEADINGS = {"auroc": "AUROC", "aupr_positive": "AUPR+", "aupr_negative": "AUPR-"}
EARLY = "stop_early"  # setting of an attack in `methods.csv`
RANGE = "possible ranks"
DETECTED_BY = ("total", "epistemic")
KEYS = ["defense", "attack", "eps"]
SMALL = 0.01  # negligible difference of accuracies, as in the criterion of convergence
ATTACKS_NOTE = (
    "Excess of each attack's accuracies over the lowest for the same defense, eps and seed, on the same "
    "images; the lowest attack is selected on the other half of the images, so equal attacks have no excess, "
    "and a difference may be negative. Largest: the largest mean over seeds, for one defense and eps. Passes are "
    "forward and backward passes per image."
)
CALIBRATION_NOTE = (
    "ECE: expected calibration error; NLL: negative log-likelihood in nats; Brier score in [0, 2]; mean entropy of the "
    "images in nats, total and its parts."
)
DETECTION_NOTE = (
    "Detection of adversarial or out-of-distribution images (positives) among clean ones by uncertainty; 0.5 AUROC is "
    "chance. Only the attacks `certain`, `ood` and `doubt` target the uncertainty."
)
UNDER_ATTACK_NOTE = (
    "Quality of total uncertainty: on unperturbed images, under attacks on accuracy only, and under attacks that "
    "also target the uncertainty; each is the worst over the run's attacks at the largest eps. The loss is the last "
    "difference: an evaluation without such an attack overstates the defense by it. Accepted errors are images "
    "that are wrong and less uncertain than 95 % of the clean ones."
)
CONVERGENCE_NOTE = (
    "Accuracies at the settings that the search began with and at those that it ended at, over draws that no other "
    "evaluation uses; accuracies elsewhere are those of the run's own draws. ≤ marks a search that reached its limit."
)
PERSISTENCE_NOTE = (
    "Fraction of images on which at least one of R answers is wrong, with its 95 % interval: the success of an "
    "adversary with R tries. A deterministic defense gives the same answer each time."
)


class Table(NamedTuple):
    """A table: column headings, and rows of values, of which the first is the row's heading."""

    headings: list[str]
    rows: list[list[Value]]


Pairs = dict[tuple[str, str], Measured]


def title(report: Report) -> str:
    """Title: data set, nets, norm."""
    first = report.results.iloc[0]
    return f"{first.dataset}, {' and '.join(report.results.architecture.unique())}, {first.norm}"


def papers(report: Report) -> list[tuple[str, str, str]]:
    """Label, citation and link of defenses and attacks with a paper."""
    rows = report.methods[report.methods.title != ""].to_dict("records")
    return [(row["label"], f"{row['authors']} ({row['year']}). {row['title']}.", row["link"]) for row in rows]


def scope(report: Report) -> str:
    """Numbers of images, draws and seeds."""
    images, draws, seeds = report.results.n_examples.max(), report.results.draws.max(), report.seeds
    counts = "no results"
    if pd.notna(images):
        counts = f"{images:.0f} images, {'1 draw' if draws == 1 else f'up to {draws:.0f} draws'}"
    return f"{counts}, {seeds} {'seed' if seeds == 1 else 'seeds'}"


def cost(report: Report) -> str:
    """Time for all trainings, attacks on the defense itself, and their evaluations; empty if none is known."""
    seconds = float(report.models.seconds.sum() + report.results[own_rows(report.results)].seconds.sum())
    device = {json.loads(text).get("device", "") for text in report.methods.versions.unique() if text}
    where = f" on {' and '.join(sorted(device))}" if all(device) and device else ""
    return f"{duration(seconds)} of trainings and attacks{where}" if seconds else ""


def explanation(report: Report) -> str:
    """Explanation of the numbers in the main table."""
    over = " (mean; sd: standard deviation)" if report.seeds > 1 else ""
    sizes = {one.architecture: one.parameters for one in report.standings}
    nets = [f"{name} has {size:,} weights" for name, size in sizes.items() if size is not None]
    return (
        f"{scope(report)}{over}. Accuracy of the ensemble with its 95 % interval; retention is the area under accuracy "
        "against the fraction of clean images kept, lowest uncertainty first; passes are forward passes per prediction."
        + (f" {'; '.join(nets)}." if nets else "")
    )


def stopped_early(report: Report) -> str:
    """Explanation of attacks without measures of uncertainty; empty if there are none."""
    methods = report.methods[report.methods.kind == "attack"]
    names = [
        label for label, params in zip(methods.label, methods.params, strict=True) if json.loads(params).get(EARLY)
    ]
    if not names:
        return ""
    return (
        f"Left out: {', '.join(names)}, which stop early for misclassified images. Such examples lie near the decision "
        "boundary, where a defense is least certain."
    )


def ranking(report: Report) -> str:
    """Explanation of the ranking, and defenses without a rank."""
    radii, found = report.radii(), report.standings
    if len(radii) > 1:
        by = (
            "the area under the lowest accuracies over the attacks on the defense itself at each eps, by the "
            f"trapezoidal rule over {', '.join(map(format_eps, radii))} and divided by their span: 1 is no error at "
            "any of them; clean images do not count"
        )
    else:
        over = "the lowest accuracy over the attacks on the defense itself"
        by = f"{over} at eps {format_eps(radii[0])}" if radii else "the clean accuracy"
    seeds = (
        "it covers other images and other trainings"
        if report.seeds > 1
        else "it covers other images but, with one seed, no other trainings"
    )
    parts = [
        f"Ranked by {by}. Two defenses are distinguishable if the 95 % interval of their difference on the same "
        f"images (differences.csv) excludes 0; {seeds}. A range gives the possible ranks of a defense on this basis; "
        "without one, all others are distinguishable. Pairs are compared separately, so about one in twenty pairs of "
        "equal defenses is distinguishable by chance."
    ]
    if below := [one.defense for one in found if one.misleads]:
        parts.append(f"Without a rank, below the others: {', '.join(below)}, because checks found misled attacks.")
    if lacking := [one.defense for one in found if one.area.missing and not one.misleads]:
        parts.append(f"Without a rank: {', '.join(lacking)}, because an accuracy is missing.")
    if any(one.area.bound for one in found):
        parts.append("≤ marks an upper bound: an attack on the defense did not converge.")
    if report.gradients_alone:
        parts.append(
            "All attacks of this run use the defense's gradient, so a misleading gradient would go unnoticed; add "
            "square or worst_case."
        )
    return " ".join(parts)


def rank_range(one: Standing) -> str:
    """Range of the possible ranks of a defense; empty if there is one."""
    return "" if one.rank_low == one.rank_high else f"{one.rank_low} to {one.rank_high}"


def main_table(report: Report) -> Table:
    """One row per defense: rank, clean accuracy, area, each attack at the main eps, the lowest of them, cost."""
    found = report.standings
    several_nets = len({one.architecture for one in found}) > 1
    flagged, tied = any(one.flags for one in found), any(map(rank_range, found))
    radii = report.radii()
    rows: list[dict[str, Value]] = []
    for one in found:
        row: dict[str, Value] = {"rank": one.rank}
        if tied:
            row[RANGE] = rank_range(one)
        row["defense"] = one.defense
        if several_nets:
            row |= {"net": one.architecture, "weights": one.parameters}
        row["clean"] = one.accuracies[CLEAN]
        if len(radii) > 1:
            row["area"] = one.area
        row |= {images_text(attack, radii[-1]): one.accuracy(attack, radii[-1]) for attack in report.attacks}
        if len(report.attacks) > 1:
            note = one.lowest_attack or one.lowest.note
            row["lowest"] = Measured(one.lowest.value, note=note, bound=one.lowest.bound)
        row |= {"retention": one.retention, "passes": one.draws}
        rows.append(row | ({"flags": ", ".join(one.flags)} if flagged else {}))
    return Table(list(rows[0]), [list(row.values()) for row in rows])


def convergence_table(report: Report) -> Table:
    """Accuracy at the start and at the end of each search for converged settings of an attack."""
    headings = ["defense", "attack", "eps", "seed", "settings", "accuracy", "settings found", "accuracy there"]
    rows: list[list[Value]] = []
    order = {one.defense: place for place, one in enumerate(report.standings)}
    for _, search in report.convergence.groupby([*KEYS, "seed", "key"], sort=False):
        ends = search[search.chosen == 1]
        if ends.empty:  # no table of a run
            continue
        first, last = search.iloc[0], ends.iloc[0]
        row: list[Value] = [first.defense, first.attack, format_eps(first.eps), int(first.seed)]
        for each in (first, last):
            settings = ", ".join(f"{name} {value}" for name, value in json.loads(each.settings).items())
            bound = each is last and bool(each.unconverged)
            row += [settings, Measured(each.accuracy, each.accuracy_low, each.accuracy_high, bound=bound)]
        rows.append(row)
    rows.sort(key=lambda row: (str(row[1]), order.get(str(row[0]), len(order))))
    return Table(headings, rows)


def worst_table(report: Report) -> Table:
    """Lowest accuracy of each defense at each eps, with the attack."""
    radii = report.radii()
    rows: list[list[Value]] = [
        [one.defense, one.accuracies[CLEAN], *(_worst(one, eps) for eps in radii)] for one in report.standings
    ]
    return Table(["defense", "clean", *map(format_eps, radii)], rows)


def _worst(one: Standing, eps: float) -> Measured:
    found = one.worst.get(eps)
    return found.accuracy._replace(note=found.attack or found.accuracy.note) if found else NOT_RUN


def eps_table(report: Report, attack: str) -> Table:
    """Accuracy of each defense at each eps."""
    places = [CLEAN, *((attack, eps) for eps in report.radii())]
    rows: list[list[Value]] = [[one.defense, *(one.accuracy(*place) for place in places)] for one in report.standings]
    return Table(["defense", *(format_eps(eps) for _, eps in places)], rows)


def attacks_table(report: Report) -> Table:
    """Strength of each attack, if there are several."""
    headings = ["attack", "kind", "cells", "mean excess", "largest excess", "where", "passes"]
    rows: list[list[Value]] = []
    for one in report.strengths[report.strengths.cells > 0].to_dict("records"):
        mean = Measured(*(one[f"above_mean{end}"] for end in ("", "_low", "_high")))
        where = f"{one['worst_defense']} {format_eps(one['worst_eps'])}" if one["worst_defense"] else ""
        numbers = [mean, Measured(one["above_worst"]), where, round(one["passes"])]
        rows.append([one["attack"], one["kind"], one["cells"], *numbers])
    return Table(headings, rows)


def attacks_reading(report: Report) -> str:
    """Recommended and weak attacks, as text; empty for a single attack."""
    table = report.strengths[report.strengths.cells > 0]
    if table.empty:
        return ""
    best = table.iloc[0]
    near = table[table.above_mean <= best.above_mean + SMALL]
    cheap = near.loc[near.passes.idxmin()]
    text = f"Lowest on average: {best.attack}, at {best.passes:,.0f} passes."
    if cheap.passes < best.passes:
        text += f" Within {SMALL} of it: {cheap.attack}, at {cheap.passes:,.0f}."
    certain = table.kind.str.endswith("certain errors")
    weak = table[(table.above_mean_low > SMALL) & ~certain]
    if len(weak):
        text += f" Weak, significantly more than {SMALL} above: {', '.join(weak.attack)}."
    if certain.any():
        text += f" {', '.join(table.attack[certain])}: for errors with low uncertainty, not for as many as possible."
    return text


def not_computed(report: Report) -> list[tuple[str, int]]:
    """Reasons of missing cells, with counts."""
    notes = report.results["flags"]
    counted = notes[notes.str.startswith(("failed", "missing"))].value_counts(sort=False)
    return [(str(reason), int(count)) for reason, count in counted.items()]


def raised_flags(report: Report) -> Iterator[tuple[str, str, list[str]]]:
    """Raised flags with meanings and cells."""
    results = report.results
    notes = {note: raised(note) for note in results["flags"].unique()}
    for flag, meaning in FLAGS.items():
        cells = results[results["flags"].isin([note for note, flags in notes.items() if flag in flags])]
        places = cells[["defense", "attack", "eps"]].drop_duplicates().itertuples(index=False, name=None)
        names = [f"{defense} under {attack} {format_eps(eps)}" for defense, attack, eps in places]
        if names:
            yield flag, meaning, list(dict.fromkeys(names))


def affinities(report: Report, eps: Sequence[float] = ()) -> dict[str, dict[float, Pairs]]:
    """Affinities by attack, eps, source and target, for attacks evaluated on other defenses.

    Args:
        report: the tables.
        eps: radii to include; by default all.
    """
    table = report.affinity[report.affinity.eps.isin(eps or report.radii())]
    table = table[table.attack.isin(table[table.source != table.target].attack.unique())]
    keys = ["attack", "eps", "source", "target"]
    means = over_seeds(table, keys, ["affinity", "affinity_low", "affinity_high"], report.seeds)
    why = table[table.affinity_low.isna()].drop_duplicates(keys).set_index(keys).reason.to_dict()
    found: dict[str, dict[float, Pairs]] = {}
    for key, numbers in zip(means.index, means.to_numpy(float).tolist(), strict=True):
        attack, radius, source, target = key
        value, low, high = numbers
        note = (why.get(key) or "unknown") if math.isnan(low) else ""
        found.setdefault(attack, {}).setdefault(radius, {})[source, target] = Measured(value, low, high, note=note)
    return {attack: dict(sorted(by_eps.items())) for attack, by_eps in found.items()}


def squares(pairs: Pairs, names: list[str]) -> list[list[Measured]]:
    """Affinities as a matrix with a row per source and a column per target."""
    return [[pairs.get((source, target), NOT_RUN) for target in names] for source in names]


def retention_table(report: Report) -> Table:
    """Accuracy on the most certain images by total uncertainty, clean and at the largest eps."""
    shown = _ends(report.retention[report.retention.measure == "total"])
    areas = over_seeds(shown.drop_duplicates([*KEYS, "seed"]), KEYS, ["area", "area_low", "area_high"], report.seeds)
    curves = over_seeds(shown, [*KEYS, "kept"], ["accuracy"], report.seeds).accuracy.unstack("kept")
    headings = ["images", *(f"{fraction:.0%} kept" for fraction in curves.columns), "area"]
    table = _in_order(report, headings, curves.reindex(areas.index).assign(area=areas.area))
    rows = zip(areas.index, areas.to_numpy(float).tolist(), strict=True)
    ends: dict[tuple[Value, Value], Value] = {(d, images_text(a, e)): Measured(*values) for (d, a, e), values in rows}
    return Table(table.headings, [[*row[:-1], ends[row[0], row[1]]] for row in table.rows])


def calibration_table(report: Report) -> Table:
    """Calibration and mean entropies, clean and at the largest eps."""
    shown = _ends(report.uncertainty)
    means = over_seeds(
        shown[(shown.images != "ood") & shown.ece.notna()], KEYS, [*CALIBRATION, *ENTROPIES], report.seeds
    )
    return _in_order(report, ["images", "ECE", "NLL", "Brier", *ENTROPIES], means)


def detection_table(report: Report) -> Table:
    """Detection of attacked and out-of-distribution images among clean ones by uncertainty."""
    shown = _ends(report.uncertainty)
    columns = [f"{score}_{measure}" for measure in DETECTED_BY for score in SCORES]
    means = over_seeds(shown[shown.images != "clean"], KEYS, columns, report.seeds)
    headings = [f"{HEADINGS[score]} {measure}" for measure in DETECTED_BY for score in SCORES]
    return _in_order(report, ["positives", *headings], means)


def detection_note(report: Report) -> str:
    """Explanation of the detection table, and the out-of-distribution images that were not attacked."""
    if not report.left_alone:
        return DETECTION_NOTE
    sets = ", ".join(report.left_alone)
    return f"{DETECTION_NOTE} Not attacked, because their scaled pixel values may leave [0, 1]: {sets}."


def under_attack_table(report: Report) -> Table:
    """Quality of total uncertainty on unperturbed images, and under attacks on accuracy and on uncertainty."""
    table = _ends(report.uncertainty)
    areas = report.retention[report.retention.measure == "total"].drop_duplicates([*KEYS, "seed"])
    table = table.merge(areas[[*KEYS, "seed", "area"]], on=[*KEYS, "seed"], how="left")
    errors, scores = "accepted_errors_total", {f"{score}_total": HEADINGS[score] for score in SCORES}
    means = over_seeds(table, [*KEYS, "images"], ["area", errors, *scores], report.seeds).reset_index()
    means[errors] *= -1  # so that a larger value is better in all columns
    means["name"] = means.attack.map(lambda attack: attack.partition(":")[2])  # of a set of out-of-distribution images
    worst = means.groupby(["defense", "images", "name"])[["area", errors, *scores]].min().T.to_dict()
    rows: list[list[Value]] = []

    def add(defense: str, what: str, column: str, *kinds: tuple[str, str]) -> None:
        sign = -1.0 if column == errors else 1.0
        known = [worst.get((defense, *kind), {}).get(column, math.nan) for kind in kinds]
        before = next((each for each in reversed(known[:-1]) if not math.isnan(each)), math.nan)
        shown = [Measured(sign * each, note="n/a" if math.isnan(each) else "") for each in known]
        rows.append([defense, what, *shown, Measured(before - known[-1])])

    sets = table[table.images == "ood"].attack.str.removeprefix("ood:").unique()
    for one in report.standings:
        if (one.defense, "certain", "") in worst:
            kinds = ("clean", ""), ("attacked", ""), ("certain", "")
            add(one.defense, "retention", "area", *kinds)
            add(one.defense, "accepted errors", errors, *kinds)
            for column, heading in scores.items():
                add(one.defense, f"{heading} of adversarial images", column, ("", ""), *kinds[1:])
        for name in sets:
            if (one.defense, "attacked_ood", name) in worst:
                for column, heading in scores.items():
                    add(one.defense, f"{heading} of {name}", column, ("ood", name), ("", ""), ("attacked_ood", name))
    return Table(["defense", "measure", "unperturbed", "accuracy attacked", "uncertainty attacked", "loss"], rows)


def persistence_table(report: Report) -> Table:
    """Fraction of images that an adversary with repeated tries breaks, clean and at the largest eps."""
    shown = _ends(report.persistence)
    names = ["broken", "broken_low", "broken_high"]
    means = over_seeds(shown, [*KEYS, "tries"], names, report.seeds)
    tries = sorted(shown.tries.unique())
    rows: dict[tuple[str, str, float], list[Value]] = {}
    for (defense, attack, eps, count), values in zip(means.index, means.to_numpy(float).tolist(), strict=True):
        head: list[Value] = [defense, images_text(attack, eps)]
        row = rows.setdefault((defense, attack, eps), [*head, *[NOT_RUN] * len(tries)])
        row[2 + tries.index(count)] = Measured(*values)
    return Table(["defense", "images", *(f"R = {count}" for count in tries)], _sorted(report, list(rows.values())))


def adversaries_note(report: Report) -> str:
    """Explanation of the table of adversaries."""
    known = set(_ends(report.adversaries).knows)
    of_draws = ""
    if "the_draw" in known:
        of_draws = "; of those who know the draw that answers, the mean over draws, and the lowest and highest draw"
    names = "; ".join(f"`{name}`: {meaning}" for name, meaning in KNOWLEDGE.items() if name in known)
    return (
        f"Lowest accuracy under attacks of adversaries with the same knowledge{of_draws}. "
        f"In adversaries.csv, they know {names}."
    )


def adversaries_table(report: Report) -> Table:
    """Lowest accuracy at the largest eps by the adversary's knowledge."""
    shown = _ends(report.adversaries)
    there = [name for name in KNOWLEDGE if name in set(shown.knows)]
    names = "accuracy accuracy_low accuracy_high draw_accuracy_min draw_accuracy_max".split()
    means = over_seeds(shown, ["defense", "knows"], names, report.seeds)
    found = dict(zip(means.index, means.to_numpy(float).tolist(), strict=True))
    extremes = ["lowest draw", "highest draw"] if "the_draw" in there else []
    rows: list[list[Value]] = []
    for one in report.standings:
        row: list[Value] = [one.defense]
        for name in there:
            *ends, least, most = found.get((one.defense, name), [math.nan] * len(names))
            row.append(NOT_RUN if math.isnan(ends[0]) else Measured(*ends))
            row += map(Measured, (least, most) if name == "the_draw" else ())
        rows.append(row)
    return Table(["defense", *(KNOWLEDGE[name] for name in there), *extremes], rows)


def _ends(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of eps 0 and of the largest eps."""
    kept: pd.DataFrame = table[(table.eps == 0) | (table.eps == table.eps.max())]
    return kept


def _in_order(report: Report, headings: list[str], means: pd.DataFrame) -> Table:
    """One row per defense and kind of images, in the order of the leaderboard."""
    rows: list[list[Value]] = [
        [defense, images_text(attack, eps), *map(Measured, values)]
        for (defense, attack, eps), values in zip(means.index, means.to_numpy(float).tolist(), strict=True)
    ]
    return Table(["defense", *headings], _sorted(report, rows))


def _sorted(report: Report, rows: list[list[Value]]) -> list[list[Value]]:
    """Rows in the order of the leaderboard."""
    place = {one.defense: index for index, one in enumerate(report.standings)}
    return sorted(rows, key=lambda row: place.get(str(row[0]), len(place)))

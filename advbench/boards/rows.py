"""Whether the rows of results can be true: of the plan, by one version, and plausible each by itself."""

from __future__ import annotations

import importlib.metadata
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from advbench.boards.board import LIBRARIES, release, stated_versions
from advbench.boards.compare import TOLERANCE, Place, Row
from advbench.boards.findings import Findings, row_name
from advbench.boards.intervals import implausible_intervals
from advbench.boards.plans import installed_version
from advbench.grid.plan import Cell, Plan
from advbench.report.flags import FLAGS, suspicious
from advbench.report.judgements import NUMBERS, Judgement
from advbench.report.tables import RESULT_COLUMNS, planned, records

PLACE = ("source", "defense", "attack", "eps", "seed")
GIVEN = ("dataset", "architecture", "defense_params", "attack_params", "norm")
OF_THE_ROW = ("one_draw", "vanished_gradients", "unconverged")
ABOVE_CHANCE = "above_chance_at_eps_1"
SHARES = tuple(name for name in NUMBERS if "accuracy" in name)
COSTS = ("forward_passes", "backward_passes", "seconds")


def place(row: Row) -> Place:
    """By what a row is found."""
    return tuple(row[name] for name in PLACE)


def place_of(cell: Cell) -> Place:
    """The same, of the cell that a row is about."""
    return cell.source.label, cell.defense.label, cell.attack.label if cell.attack else "none", cell.eps, cell.seed


def check_rows(
    results: pd.DataFrame, models: pd.DataFrame, plan: Plan, findings: Findings, classes: int | None = None
) -> None:
    """Note everything about rows of results that cannot be.

    Args:
        results: the rows.
        models: what was trained, which says whether a defense judged by one draw has more; may be empty.
        plan: what they should be of, with the keys of their version.
        findings: where it is noted.
        classes: of the data; None where nobody knows.
    """
    if list(results.columns) != RESULT_COLUMNS:
        findings.add("results.csv has other columns than advbench writes")
    rows = records(results)
    _check_places(rows, plan, findings)
    _check_versions(rows, findings)
    _check_plugins(rows, plan, findings)
    for row in rows:
        for problem in (*_implausible(row), *_out_of_spec(row, plan)):
            findings.add(problem, row_name(row))
    _check_draws(rows, findings)
    _check_costs(rows, plan, findings)
    _check_flags(rows, plan, findings, classes)
    _check_single_draws(rows, models, plan, findings)


def _check_places(rows: Sequence[Row], plan: Plan, findings: Findings) -> None:
    """A row for each cell of the plan and no other, with the plan's key and settings."""
    expected = {place(row): row for row in records(planned(plan))}
    _check_any_key(rows, expected, plan, findings)
    count = Counter(place(row) for row in rows)
    for row in rows:
        due = expected.get(place(row))
        if due is None:
            findings.add("a row that the spec does not lead to", row_name(row))
            continue
        for name in GIVEN:
            if row[name] != due[name]:
                findings.add(f"{name} is not what the spec says", row_name(row))
        if row["key"] != due["key"]:
            findings.add("the key is not that of the spec, data and version", row_name(row))
    for where, number in count.items():
        if number > 1:
            findings.add("a row is there more than once", row_name(dict(zip(PLACE, where, strict=True))))
    for where, row in expected.items():
        if not count[where]:
            findings.add("a row that the spec leads to is not there", row_name(row))
    if not findings and [place(row) for row in rows] != list(expected):
        findings.add("the rows are not in the plan's order")


def _check_any_key(rows: Sequence[Row], expected: Mapping[Place, Row], plan: Plan, findings: Findings) -> None:
    """Say why no key fits, where only the version, which is in all of them, or what no row shows can be why."""
    known = [(row, expected[place(row)]) for row in rows if place(row) in expected]
    stated = {release(stated_versions(row["versions"]).get("advbench", "")) for row in rows} - {""}
    alike = all(row[name] == due[name] for row, due in known for name in GIVEN)
    other = known and not any(row["key"] == due["key"] for row, due in known)
    if other and alike and stated == {release(installed_version())}:
        findings.add(
            "no key fits although the settings do: data or spec were edited, plugins have other versions, or the board "
            "was computed from a checkout; it is to be computed by a release"
        )


def _check_versions(rows: Sequence[Row], findings: Findings) -> None:
    """All results by the same versions, and by the installed advbench's release."""
    seen: dict[str, dict[str, Row]] = {name: {} for name in LIBRARIES}
    for row in rows:
        if math.isnan(row["accuracy"]):
            continue
        stated = stated_versions(row["versions"])
        for name in (*LIBRARIES, "device"):
            if not stated.get(name):
                findings.add(f"the version of {name} is not stated", row_name(row))
            elif name in seen:
                seen[name].setdefault(stated[name], row)
    for name, found in seen.items():
        if len(found) > 1:
            versions = ", ".join(f"{version} ({row_name(row)})" for version, row in found.items())
            findings.add(f"rows were made by several versions of {name}", versions)
    installed = release(installed_version())
    for version in seen["advbench"]:
        if release(version) != installed:
            findings.add(f"rows were made by advbench {version}, and {installed} is installed")


def _check_plugins(rows: Sequence[Row], plan: Plan, findings: Findings) -> None:
    """Whether the plugins that made the results, and what they are built on, are the installed ones."""
    chosen = {choice.label: choice for cell in plan.cells for choice in (cell.defense, cell.attack) if choice}.values()
    plugins = {choice.entry.distribution for choice in chosen}.union(*(choice.built_on for choice in chosen))
    for name in sorted(plugins - {"advbench"}):
        installed = release(importlib.metadata.version(name))
        stated = {stated_versions(text).get(name) for text in {row["versions"] for row in rows}}
        for version in sorted(release(found) for found in stated if found and release(found) != installed):
            findings.add(f"rows were made by {name} {version}, and {installed} is installed")


def _out_of_spec(row: Row, plan: Plan) -> Iterator[str]:
    if math.isnan(row["accuracy"]):
        return
    if plan.identity is not None:
        count = plan.identity.data.test_count
        images = min(plan.spec.limit or count, count)
        if row["n_examples"] != images:
            yield f"n_examples is not the spec's {images}"
    if row["draws"] not in (1, plan.spec.draws):
        yield f"draws is neither 1 nor the spec's {plan.spec.draws}"


def _implausible(row: Row) -> Iterator[str]:
    """What contradicts itself within one row."""
    notes = row["flags"]
    numbers = [row[name] for name in NUMBERS]
    if notes == "missing" or notes.startswith("failed: "):
        if not all(map(math.isnan, numbers)) or row["versions"]:
            yield "a cell without a result has numbers or versions"
        return
    names = notes.split(";") if notes else []
    if set(names) - set(FLAGS) or names != [flag for flag in FLAGS if flag in names]:
        yield "a flag that advbench does not raise, or flags in another order"
    if not all(map(math.isfinite, numbers)):
        yield "a number is missing or not finite"
        return
    if any(row[name] < 0 for name in COSTS):
        yield "a cost is negative"
    if row["attack"] == "none" and (row["forward_passes"] or row["backward_passes"]):
        yield "a clean row has passes of an attack"
    if not all(0 <= row[name] <= 1 for name in SHARES):
        yield "an accuracy is outside [0, 1]"
    elif row["n_examples"] < 1 or row["draws"] < 1:
        yield "no images or no draws"
    else:
        yield from _contradictions(row)


def _contradictions(row: Row) -> Iterator[str]:
    images, draws, outside = row["n_examples"], row["draws"], False
    for name in ("accuracy", "draw_accuracy_min", "draw_accuracy_max"):
        if not _whole(row[name] * images):
            yield f"{name} is not a whole number of images"
    if not _whole(row["draw_accuracy_mean"] * images * draws):
        yield "draw_accuracy_mean is not a whole number of images and draws"
    for middle, low, high in (
        ("accuracy", "accuracy_low", "accuracy_high"),
        ("draw_accuracy_mean", "draw_accuracy_low", "draw_accuracy_high"),
        ("draw_accuracy_mean", "draw_accuracy_min", "draw_accuracy_max"),
    ):
        if not row[low] - TOLERANCE <= row[middle] <= row[high] + TOLERANCE:
            outside = True
            yield f"{middle} is not between {low} and {high}"
    if outside:
        return
    yield from implausible_intervals(row)
    if draws == 1 and not all(_close(row[f"draw_accuracy_{name}"], row["accuracy"]) for name in ("mean", "min", "max")):
        yield "accuracies of one draw differ"


def _whole(value: float) -> bool:
    return abs(value - round(value)) < 1e-6


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE


def _check_draws(rows: Sequence[Row], findings: Findings) -> None:
    """A defense is random or it is not, and so is judged by as many draws everywhere."""
    seen: dict[tuple[str, int], float] = {}
    for row in rows:
        if (
            not math.isnan(row["draws"])
            and seen.setdefault((row["defense"], row["seed"]), row["draws"]) != row["draws"]
        ):
            findings.add("a defense is judged by other draws than in its first row", row_name(row))


def _check_costs(rows: Sequence[Row], plan: Plan, findings: Findings) -> None:
    """Examples were made once, so they cost the same wherever they are judged."""
    examples = {place_of(cell): plan.tasks[cell.key].inputs.to_json()["examples"] for cell in plan.cells}
    first: dict[str, Row] = {}
    for row in rows:
        made = examples.get(place(row))
        if made is None or math.isnan(row["accuracy"]):
            continue
        seen = first.setdefault(made, row)
        # Made again, as for another merge, they may cost a little more or less where an attack stops early.
        if not all(math.isclose(row[name], seen[name], rel_tol=0.05, abs_tol=0.05) for name in COSTS[:2]):
            findings.add("the same examples cost other passes than in their first row", row_name(row))


def _check_flags(rows: Sequence[Row], plan: Plan, findings: Findings, classes: int | None) -> None:
    """The flags that arise between rows are those that their intervals raise."""
    for row, flags in zip(rows, derived_flags(rows, plan, classes), strict=True):
        if flags is not None and row["flags"] != flags:
            findings.add("the flags are not those that the intervals raise", f"{row_name(row)}: {flags or 'none'}")


def _check_single_draws(rows: Sequence[Row], models: pd.DataFrame, plan: Plan, findings: Findings) -> None:
    """A random defense that was judged by one draw is flagged, and no other is."""
    kinds = zip(models.defense, models.seed, models.posterior, strict=True)
    random = {(defense, seed) for defense, seed, kind in kinds if kind not in ("", "point")}
    said: dict[tuple[str, int], bool] = {}
    for row in rows:
        if math.isnan(row["accuracy"]):
            continue
        which, flagged = (row["defense"], row["seed"]), "one_draw" in row["flags"].split(";")
        if flagged and (row["draws"] > 1 or plan.spec.draws > 1):
            findings.add("the flag one_draw is raised where draws are many, or none are to be made", row_name(row))
        elif row["draws"] == 1 and plan.spec.draws == 1 and not flagged and which in random:
            findings.add("a random defense was judged by one draw, and no flag says so", row_name(row))
        elif said.setdefault(which, flagged) != flagged:
            findings.add("one_draw is raised in some rows of a defense and not in others", row_name(row))


def derived_flags(rows: Sequence[Row], plan: Plan, classes: int | None = None) -> list[str | None]:
    """What `flags` should be in each row, as far as rows tell: how the row itself was computed is taken from it.

    Args:
        rows: of results.
        plan: of which they are.
        classes: of the data; where nobody knows, a row is believed that its accuracy is above chance.

    Returns:
        One for each row; None where the row has no result or no place in the plan.
    """
    cells = {place_of(cell): cell for cell in plan.cells}
    places = [index for index, row in enumerate(rows) if place(row) in cells]
    judged = [
        None if math.isnan(rows[index]["accuracy"]) else _judgement(rows[index], classes or 1) for index in places
    ]
    doubts = suspicious([cells[place(rows[index])] for index in places], judged, plan.spec.norm)
    believed = OF_THE_ROW if classes else (*OF_THE_ROW, ABOVE_CHANCE)
    found: list[str | None] = [None] * len(rows)
    for position, (index, judgement) in enumerate(zip(places, judged, strict=True)):
        if judgement is not None:
            own = [flag for flag in rows[index]["flags"].split(";") if flag in believed]
            raised = {*own, *(flag for flag in doubts.get(position, ()) if flag not in believed)}
            found[index] = ";".join(flag for flag in FLAGS if flag in raised)
    return found


def _judgement(row: Row, classes: int) -> Judgement:
    """A row's numbers as the flags read them."""
    return Judgement(array("d", (row[name] for name in NUMBERS)), classes, (), "", None, 0.0, None)

"""The order of defenses, and which of them are told apart: reports made of known verdicts on each image."""

from __future__ import annotations

import base64
import itertools
import math
from array import array
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reports import IMAGES, made_report

from advbench.evaluation.predictions import wilson
from advbench.report import Report
from advbench.report.areas import area_tables
from advbench.report.evaluations import Evaluation
from advbench.report.leaderboard import Standing
from advbench.report.markdown import render
from advbench.report.output import write_report
from advbench.report.tables import read_report

Verdicts = Mapping[str, np.ndarray]  # by defense, whether each image is right, (seeds, attacks, radii, N)


def report_of(
    verdicts: Verdicts, *, flags: Mapping[tuple[str, str], str] | None = None, draw_variance: float = 0.0
) -> Report:
    """Tables of defenses whose verdicts under attacks are these; each is right on all clean images.

    Args:
        verdicts: of all defenses.
        flags: by defense and attack; `missing` for a cell without a record.
        draw_variance: of each accuracy.
    """
    seeds, attacks, radii, count = next(iter(verdicts.values())).shape
    names = [f"attack{place}" for place in range(attacks)]
    report = made_report([*verdicts], names, [0.1 * (1 + place) for place in range(radii)], range(seeds))
    results = report.results[report.results.source == report.results.defense].reset_index(drop=True)
    results["flags"] = [(flags or {}).get((row.defense, row.attack), "") for row in results.itertuples()]
    evaluations: list[Evaluation | None] = []
    for row in results.itertuples():
        eps = round(row.eps * 10) - 1
        right = np.ones(count, bool)
        if row.attack != "none":
            right = verdicts[row.defense][row.seed, names.index(row.attack), eps]
        accuracy = math.nan if row.flags == "missing" else right.mean()
        interval = wilson(accuracy, count)
        results.loc[row.Index, ["accuracy", "accuracy_low", "accuracy_high"]] = [accuracy, *interval]
        numbers = array("d", [count, 20, accuracy, *interval, *[0.0] * 8])
        bits = base64.b64encode(np.packbits(right).tobytes())
        evaluations.append(None if row.flags == "missing" else Evaluation(numbers, 10, (), "", bits, draw_variance))
    areas, differences = area_tables(results, evaluations)
    return replace(report, results=results, areas=areas, differences=differences)


def first_right(*shares: float, count: int = IMAGES) -> np.ndarray:
    """The share of the images that is right at each radius, the first ones, (1, 1, radii, N)."""
    return (np.arange(count) < np.array(shares)[:, None] * count)[None, None]


def ranks(report: Report) -> dict[str, tuple[int | None, int | None, int | None]]:
    return {one.defense: (one.rank, one.rank_low, one.rank_high) for one in report.standings}


def standing(report: Report, name: str) -> Standing:
    return next(one for one in report.standings if one.defense == name)


def test_the_area_is_that_of_the_lowest_accuracies() -> None:
    strong, weak = first_right(0.8, 0.6, 0.1), first_right(0.7, 0.65, 0.2)
    found = standing(report_of({"a": np.concatenate([strong, weak], 1)}), "a")
    assert found.area.value == pytest.approx((0.7 / 2 + 0.6 + 0.1 / 2) / 2)
    assert found.area.low < found.area.value < found.area.high
    assert [each.attack for each in found.worst.values()] == ["attack1", "attack0", "attack0"]
    assert found.lowest.value == 0.1


def test_of_one_radius_the_area_is_the_accuracy_there() -> None:
    found = standing(report_of({"a": first_right(0.65)}), "a")
    assert found.area[:3] == pytest.approx((0.65, *wilson(0.65, IMAGES)), abs=1e-6)


def test_a_clear_difference_is_told_apart_and_equals_are_tied() -> None:
    report = report_of({"low": first_right(0.6, 0.2), "one": first_right(0.9, 0.5), "two": first_right(0.9, 0.5)})
    assert ranks(report) == {"one": (1, 1, 2), "two": (1, 1, 2), "low": (3, 3, 3)}
    board = report.leaderboard
    assert list(board["rank_high"]) == [2, 2, 3]
    assert "| 1 to 2 " in render(report)


def test_a_difference_is_one_on_the_same_images() -> None:
    """Accuracies of 0.60 and 0.65 have intervals that overlap; on the same images 10 of 200 differ, one way."""
    paired = report_of({"a": first_right(0.6), "b": first_right(0.65)})
    assert ranks(paired) == {"b": (1, 1, 1), "a": (2, 2, 2)}
    other = report_of({"a": first_right(0.6), "b": first_right(0.65)[..., ::-1]})
    assert ranks(other) == {"b": (1, 1, 2), "a": (2, 1, 2)}


def test_differences_are_known_at_each_radius() -> None:
    """The lowest accuracy of each at a radius, on the same images: level at 0.1, ten images apart at 0.2."""
    report = report_of({"a": first_right(0.9, 0.6), "b": first_right(0.9, 0.65)})
    of_area, level, apart = report.differences.itertuples()
    assert (math.isnan(of_area.eps), level.eps, apart.eps) == (True, 0.1, 0.2)
    assert [round(each.difference, 9) for each in (of_area, level, apart)] == [-0.025, 0, -0.05]
    assert level.difference_low < 0 < level.difference_high
    assert -0.1 < apart.difference_low < apart.difference_high < 0
    alone = report_of({"a": first_right(0.6), "b": first_right(0.65)}).differences
    assert alone.eps.isna().all()  # with one radius its difference is that of the areas
    assert len(alone) == 1
    pair = [report_of({name: first_right(share)}) for name, share in (("a", 0.6), ("b", 0.65))]
    assert alone.difference[0] == pytest.approx(pair[0].areas.area[0] - pair[1].areas.area[0])
    noisy = report_of({"a": first_right(0.9, 0.6), "b": first_right(0.9, 0.65)}, draw_variance=0.02**2).differences
    assert (noisy.difference_low < report.differences.difference_low).all()


def test_differences_are_those_of_defenses_with_all_their_accuracies() -> None:
    report = report_of({"a": first_right(0.9, 0.6), "b": first_right(0.9, 0.65), "c": first_right(0.8, 0.5)})
    lacking = report_of(
        {"a": first_right(0.9, 0.6), "b": first_right(0.9, 0.65), "c": first_right(0.8, 0.5)},
        flags={("b", "attack0"): "missing"},
    )
    assert len(report.differences) == 3 * 3
    assert set(map(tuple, lacking.differences[["defense", "other"]].to_numpy())) == {("a", "c")}
    assert len(lacking.differences) == 3


def test_the_choice_of_draws_and_other_trainings_count() -> None:
    verdicts = {"a": first_right(0.6), "b": first_right(0.65)}
    assert ranks(report_of(verdicts, draw_variance=0.02**2))["b"] == (1, 1, 2)
    seeds = [first_right(share) for share in (0.5, 0.6, 0.7)]
    assert ranks(report_of({"a": np.concatenate(seeds), "b": np.repeat(first_right(0.65), 3, 0)}))["b"] == (1, 1, 2)
    steady = [first_right(share) for share in (0.6, 0.605, 0.595)]
    assert ranks(report_of({"a": np.concatenate(steady), "b": np.repeat(first_right(0.65), 3, 0)}))["b"] == (1, 1, 1)


def test_the_order_does_not_depend_on_names() -> None:
    generator = np.random.default_rng(0)
    verdicts = [generator.random((2, 2, 2, IMAGES)) < share for share in (0.5, 0.55, 0.6, 0.62, 0.9)]
    expected = None
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 30):
        report = report_of({f"d{place}": verdicts[index] for place, index in enumerate(order)})
        found = sorted(
            (order[int(one.defense[1])], one.area, one.rank, one.rank_low, one.rank_high) for one in report.standings
        )
        expected = expected or found
        assert found == expected


def test_an_upper_bound_is_above_nothing_and_marked() -> None:
    verdicts = {"a": first_right(0.9, 0.8), "b": first_right(0.5, 0.4), "c": first_right(0.1, 0.0)}
    report = report_of(verdicts, flags={("a", "attack0"): "unconverged"})
    assert ranks(report) == {"a": (1, 1, 3), "b": (2, 1, 2), "c": (3, 2, 3)}
    assert report.leaderboard.set_index("defense").area_bound["a"]
    assert "| ≤ 0.850 [" in render(report)
    # What is at most so much may still be surely below another.
    report = report_of(verdicts, flags={("c", "attack0"): "unconverged"})
    assert ranks(report) == {"a": (1, 1, 1), "b": (2, 2, 2), "c": (3, 3, 3)}


def test_a_missing_cell_leaves_no_rank_and_says_so() -> None:
    verdicts = {name: np.repeat(first_right(share, 0.2), 2, 1) for name, share in (("a", 0.9), ("b", 0.5))}
    report = report_of(verdicts, flags={("a", "attack1"): "missing"})
    assert ranks(report) == {"b": (1, 1, 1), "a": (None, None, None)}
    assert standing(report, "a").area.missing
    assert "Without a rank: a, because an accuracy is missing." in render(report)


def test_misled_attacks_leave_the_ranks_of_others_alone() -> None:
    verdicts = {"a": first_right(0.9, 0.8), "b": first_right(0.5, 0.4), "c": first_right(0.1, 0.0)}
    report = report_of(verdicts, flags={("a", "attack0"): "misleads_attacks"})
    assert ranks(report) == {"b": (1, 1, 1), "c": (2, 2, 2), "a": (None, None, None)}


def test_equal_defenses_are_told_apart_about_once_in_twenty() -> None:
    generator = np.random.default_rng(0)
    parted = pairs = 0
    for _ in range(10):
        hardness = generator.random(IMAGES)
        verdicts = {f"d{k}": (hardness + generator.normal(0, 0.1, IMAGES) > 0.4)[None, None, None] for k in range(8)}
        table = report_of(verdicts).differences
        parted += int(((table.difference_low > 0) | (table.difference_high < 0)).sum())
        pairs += len(table)
    assert 0 < parted / pairs < 0.08


def test_ranks_follow_from_the_files(tmp_path: Path) -> None:
    verdicts = {"a": first_right(0.6, 0.5), "b": first_right(0.65, 0.5), "c": first_right(0.2, 0.1)}
    report = report_of(verdicts)
    write_report(report, tmp_path, ("csv",))
    pd.testing.assert_frame_equal(read_report(tmp_path).leaderboard, report.leaderboard)

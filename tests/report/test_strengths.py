"""How far attacks lie above the lowest known: tables made of known verdicts on each image."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from reports import made_report

from advbench.grid.inputs import Component
from advbench.grid.plan import Cell
from advbench.grid.spec import Choice
from advbench.report import views
from advbench.report.evaluations import Evaluation
from advbench.report.markdown import render
from advbench.report.strengths import attack_table

COUNT = 400
TRAITS = {"square": {"black_box"}, "auto": {"mixed"}, "certain": {"certain_error"}, "doubt": {"doubt"}}


def choice(label: str) -> Choice:
    return Choice(label, Component(label, "dist", "1", {}), 1.0, traits=frozenset(TRAITS.get(label, ())))


def table_of(
    verdicts: Mapping[tuple[str, str, float, int], np.ndarray], passes: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """`attacks.csv`, by attack, of verdicts by defense, attack, eps and seed."""
    cells, found = [], []
    for (defense, attack, eps, seed), right in verdicts.items():
        cells.append(Cell(choice(defense), choice(defense), choice(attack), eps, seed, ""))
        forward = (passes or {}).get(attack, 10.0)
        numbers = array("d", [len(right), 20, right.mean(), *[0.0] * 7, forward, forward, 0.0])
        bits = base64.b64encode(np.packbits(right).tobytes())
        found.append(Evaluation(numbers, 10, (), "", bits, 0.0))
    return attack_table(cells, found).set_index("attack")


def share(right: float, count: int = COUNT) -> np.ndarray:
    """That share of the images is right, always the easiest."""
    return np.random.default_rng(1).permutation(count) < right * count


def test_distances_from_the_lowest_are_those_of_the_accuracies() -> None:
    found = table_of(
        {
            ("a", "fgsm", 0.1, 0): share(0.8),
            ("a", "pgd", 0.1, 0): share(0.6),
            ("b", "fgsm", 0.1, 0): share(0.5),
            ("b", "pgd", 0.1, 0): share(0.4),
            ("b", "fgsm", 0.2, 0): share(0.5),
            ("b", "pgd", 0.2, 0): share(0.5),
        },
        {"fgsm": 1, "pgd": 20},
    )
    assert list(found.index) == ["pgd", "fgsm"]
    assert found.above_mean.to_dict() == pytest.approx({"fgsm": 0.1, "pgd": 0.0})
    assert (found.above_mean_low["fgsm"] > 0.05, found.above_mean_low["pgd"] < 0) == (True, True)
    worst = ["above_worst", "worst_defense", "worst_eps"]
    assert list(found.loc["fgsm", worst]) == [pytest.approx(0.2), "a", 0.1]
    assert list(found.loc["pgd", worst[:2]]) == [0, ""]
    assert found.passes.to_dict() == {"fgsm": 2, "pgd": 40}
    assert set(found.cells) == {3}


def test_the_lowest_of_noisy_verdicts_is_not_taken_for_the_lowest() -> None:
    """Five attacks of one strength on a random defense: each lies above the lowest accuracy, none above the lowest."""
    generator = np.random.default_rng(0)
    naive, covered, means = [], 0, []
    for _ in range(60):
        right = {("a", f"attack{k}", 0.1, 0): generator.random(COUNT) < 0.5 for k in range(5)}
        accuracies = np.array([each.mean() for each in right.values()])
        naive.append((accuracies - accuracies.min()).mean())
        found = table_of(right)
        means.append(found.above_mean.mean())
        covered += int(((found.above_mean_low <= 0) & (found.above_mean_high >= 0)).sum())
    assert np.mean(naive) > 0.02
    assert abs(np.mean(means)) < 3 * np.std(means) / np.sqrt(60)
    assert covered / 300 > 0.9


def test_an_attack_that_is_nowhere_the_lowest_lies_above_at_several_seeds() -> None:
    right = {(name, "fgsm", 0.1, seed): share(0.62 + 0.1 * seed) for name in "ab" for seed in range(3)}
    right |= {(name, "pgd", 0.1, seed): share(0.5 + 0.1 * seed) for name in "ab" for seed in range(3)}
    found = table_of(right)
    low, value, high = found.loc["fgsm", ["above_mean_low", "above_mean", "above_mean_high"]]
    assert 0 < low < value < high
    assert value == pytest.approx(0.12)


def test_what_has_nothing_beside_it_is_not_compared() -> None:
    found = table_of(
        {
            ("a", "fgsm", 0.1, 0): share(0.5),
            ("a", "pgd", 0.2, 0): share(0.5),
        }
    )
    assert set(found.cells) == {0}
    assert found.above_mean.isna().all()
    assert set(found.passes) == {20}


def test_attacks_say_what_they_need_and_those_after_doubt_are_left_out() -> None:
    found = table_of({("a", name, 0.1, 0): share(0.5) for name in ("pgd", "square", "auto", "certain", "doubt")})
    assert found.kind.to_dict() == {
        "pgd": "white box",
        "square": "black box",
        "auto": "mixed",
        "certain": "white box, certain errors",
    }


def test_the_order_of_attacks_has_no_say() -> None:
    generator = np.random.default_rng(0)
    right = {("a", name, 0.1, 0): generator.random(COUNT) < 0.5 for name in "abcd"}
    one, other = table_of(right), table_of(dict(reversed(right.items())))
    pd.testing.assert_frame_equal(one.sort_index(), other.sort_index())


def test_a_report_says_which_attack_to_use_and_which_is_weak() -> None:
    right = {("a", "fgsm", 0.1, 0): share(0.8), ("a", "pgd", 0.1, 0): share(0.505), ("a", "eot", 0.1, 0): share(0.5)}
    table = table_of(right, {"fgsm": 1, "pgd": 20, "eot": 200}).reset_index()
    text = render(replace(made_report(), strengths=table))
    assert "Lowest on average: eot, at 400 passes. Within 0.01 of it: pgd, at 40. Weak" in text
    assert "above: fgsm." in text
    alone = replace(made_report(), strengths=table_of({("a", "pgd", 0.1, 0): share(0.5)}).reset_index())
    assert views.attacks_reading(alone) == ""
    assert "## Attacks" not in render(alone)

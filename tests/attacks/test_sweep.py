"""Sweeps over radii, and budgets of passes."""

from __future__ import annotations

from typing import Any

import pandas
import pytest
import torch
from conftest import Cli
from torch import Tensor

import advbench
from advbench import InputError, PluginError, Threat
from advbench.attacks.base import Attack, Goal
from advbench.attacks.budget import within_budget
from advbench.attacks.craft import Earlier, craft
from advbench.models.classifier import Classifier
from advbench.models.posterior import GaussianPosterior
from advbench.testing import small_data, small_net

RADII = {"linf": (0.06, 0.1, 0.15), "l2": (0.3, 0.5, 0.8)}
ATTACKS: dict[str, dict[str, Any]] = {
    "none": {},
    "fgsm": {},
    "cw_one_step": {},
    "ifgsm": {},
    "pgd": {},
    "pgd@restarts": {"steps": 6, "restarts": 3},
    "eot_pgd": {"steps": 6, "samples": 4},
    "apgd": {"steps": 20, "samples": 3},
    "apgd@targeted": {"steps": 10, "samples": 2, "loss": "dlr_targeted", "restarts": 2},
    "square": {"queries": 60},
    "fmn": {"steps": 15, "samples": 3},
    "cw": {"steps": 15, "search_steps": 3, "samples": 3},
    "gray_box": {"params": {"steps": 6}},
    "transfer": {"params": {"steps": 6}},
    "worst_case": {"attacks": ["fgsm", "apgd", "square"], "params": {"apgd": {"steps": 10}, "square": {"queries": 30}}},
}
SMALL = ("none", "fgsm", "cw_one_step")


def attack_of(label: str) -> Attack:
    return advbench.get_attack(label.partition("@")[0], **ATTACKS[label])


def classifier(*, random: bool) -> Classifier:
    net = small_net().eval()
    return Classifier(net, GaussianPosterior(net, std=0.05) if random else None).requires_grad_(False)


def judged(clf: Classifier, count: int = 40) -> tuple[Tensor, Tensor]:
    x, _ = small_data(count).batch(slice(count))
    return x, clf.reseed(0)(x).argmax(1)


def swept(attack: Attack, clf: Classifier, x: Tensor, y: Tensor, norm: Any) -> list[Any]:
    """A sweep as a run makes it."""
    steps, earlier = [], Earlier(x, 0.0)
    for eps in RADII[norm]:
        steps.append(craft(attack, clf, x, y, Threat(norm, eps), earlier=earlier))
        earlier = Earlier(steps[-1].images, eps)
    return steps


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("label", [label for label in ATTACKS if label not in ("fmn", "cw")])
def test_a_sweep_breaks_as_much_and_costs_less(label: str, norm: str) -> None:
    clf = classifier(random=False)
    x, y = judged(clf)
    attack = attack_of(label)
    steps = swept(attack, clf, x, y, norm)
    right = torch.ones(len(x), dtype=torch.bool)
    left, cost, apart_cost, broken, apart_broken = [], 0.0, 0.0, 0, 0
    for eps, step in zip(RADII[norm], steps, strict=True):
        apart = craft(attack, clf, x, y, Threat(norm, eps))
        if label in ("fgsm", "cw_one_step", "ifgsm", "pgd", "eot_pgd", "apgd", "gray_box", "transfer"):
            share = int(right.sum()) / len(x)
            assert step.forward_passes <= 1 + share * (attack.cost(False) or 0) + 1e-9, "only what resisted is attacked"
        now = clf(step.images).argmax(1) == y
        assert not bool((now & ~right).any()), "what a smaller eps broke stays broken"
        if left:
            assert torch.equal(step.images[~right], steps[len(left) - 1].images[~right])
        right = now
        left.append(int(now.sum()))
        broken += int((~now).sum())
        apart_broken += int((clf(apart.images).argmax(1) != y).sum())
        cost, apart_cost = cost + step.forward_passes, apart_cost + apart.forward_passes
    chance = {"square": 6}.get(label, 1)  # of 120: random starts and squares differ
    assert broken >= apart_broken - chance
    assert cost <= apart_cost + 3, "a pass tells what is still to be attacked"
    if label != "none":
        assert left[-1] < 35


@pytest.mark.parametrize("label", ["pgd", "eot_pgd", "apgd"])
def test_a_sweep_changes_nothing_for_a_random_classifier(label: str) -> None:
    """One wrong draw is no proof, so no image is left alone."""
    clf = classifier(random=True)
    x, y = judged(clf, 12)
    for step, eps in zip(swept(attack_of(label), clf, x, y, "linf"), RADII["linf"], strict=True):
        assert torch.equal(step.images, craft(attack_of(label), clf, x, y, Threat("linf", eps)).images)


def test_a_targeted_sweep_goes_on_until_the_target() -> None:
    clf = classifier(random=False)
    x, y = judged(clf)
    targets = (y + 1) % 3
    found = craft(advbench.get_attack("pgd"), clf, x, y, Threat("linf", 0.05), targets=targets).images
    wide = Threat("linf", 0.3)
    step = craft(advbench.get_attack("pgd"), clf, x, y, wide, targets=targets, earlier=Earlier(found, 0.05))
    hits = [int((clf(images).argmax(1) == targets).sum()) for images in (found, step.images)]
    assert hits[0] < hits[1] == 40


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("label", ATTACKS)
def test_an_attack_makes_no_more_passes_than_it_says(label: str, random: bool) -> None:
    """On images that it does not break, where it makes the most."""
    clf = classifier(random=random)
    x, y = judged(clf, 8)
    attack = attack_of(label)
    norm: Any = "l2" if label == "cw" else "linf"
    made = craft(attack, clf, x, y, Threat(norm, 1e-4), nearest=True).forward_passes
    said = attack.cost(random)
    assert said is not None
    assert made <= said
    if label not in ("fmn", "cw", "worst_case", "pgd@restarts", "square", "apgd@targeted"):
        assert made == said


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("label", [label for label in ATTACKS if label not in SMALL])
def test_a_budget_is_kept_and_used(label: str, random: bool) -> None:
    clf = classifier(random=random)
    x, y = judged(clf, 8)
    attack = attack_of(label)
    said = attack.cost(random)
    assert said is not None
    norm: Any = "l2" if label == "cw" else "linf"
    for budget in (said, said - 1) + ((2 * said // 3,) if "@" not in label and label != "worst_case" else ()):
        cut = within_budget(attack, budget, random=random)
        assert cut.cost(random) <= budget
        made = craft(attack, clf, x, y, Threat(norm, 1e-4), nearest=True, budget=budget)
        assert made.forward_passes <= budget
    assert within_budget(attack, said, random=random) is attack or label in ("gray_box", "transfer")


def test_a_budget_is_used_up() -> None:
    cut = within_budget(advbench.get_attack("eot_pgd", samples=10), 95, random=True)
    assert (cut.params.steps, cut.cost(True)) == (9, 90)
    assert within_budget(advbench.get_attack("eot_pgd"), 95, random=False).params.steps == 20
    assert within_budget(advbench.get_attack("square"), 101, random=False).params.queries == 100
    for budget, random in ((700, False), (1000, True), (300, False)):
        shared = within_budget(advbench.get_attack("worst_case"), budget, random=random)
        assert 0.85 * budget < shared.cost(random) <= budget
    costly = {"pgd": {"steps": 1000}, "cw": {"search_steps": 100}}
    uneven = within_budget(advbench.get_attack("worst_case", attacks=["pgd", "cw"], params=costly), 200, random=False)
    assert uneven.cost(False) <= 200


def test_steps_of_a_given_length_stay_as_they_are_in_a_sweep() -> None:
    clf = classifier(random=False)
    x, y = judged(clf)
    attack = advbench.get_attack("pgd", step_size=1e-3, random_start=False)
    step = craft(attack, clf, x, y, Threat("linf", 0.15), earlier=Earlier(x, 0.0))
    assert float((step.images - x).abs().max()) <= 20 * 1e-3 * 0.15 + 1e-6


@pytest.mark.parametrize(
    ("label", "budget", "message"),
    [
        (
            "eot_pgd",
            3,
            "budget for attack EOTPGD: expected at least 4 passes per image, got 3; raise the budget, or lower",
        ),
        ("apgd", 2, "budget for attack APGD: expected at least 36 passes"),
        ("worst_case", 40, "budget for attack WorstCase: expected at least 313 passes per image, got 40"),
    ],
)
def test_a_budget_too_small_is_refused(label: str, budget: int, message: str) -> None:
    clf = classifier(random=True)
    x, y = judged(clf, 4)
    with pytest.raises(InputError, match=message):
        craft(attack_of(label), clf, x, y, Threat("linf", 0.1), budget=budget)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"earlier": Earlier(torch.zeros(4, 1, 6, 6), 0.3)}, "expected 0 to 0.1, got 0.3"),
        ({"earlier": Earlier(torch.zeros(3, 1, 6, 6), 0.05)}, r"expected torch.float32 \(4, 1, 6, 6\) on cpu, got"),
        ({"earlier": Earlier(torch.zeros(4, 1, 6, 6), 0.05)}, "expected in a ball of 0.05"),
        ({"budget": "5"}, "budget given to PGD: expected a whole number >= 1, got 5"),
        ({"budget": True}, "budget given to PGD: expected a whole number >= 1, got True"),
        ({"batch_size": 0}, "batch_size given to PGD: expected a whole number >= 1, got 0"),
    ],
)
def test_odd_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    clf = classifier(random=False)
    x, y = judged(clf, 4)
    with pytest.raises(InputError, match=message):
        craft(advbench.get_attack("pgd"), clf, x, y, Threat("linf", 0.1), **settings)


class Silent(Attack):
    """Says nothing of its cost."""

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        for _ in range(5):
            clf(x)
        return x


class Lying(Silent):
    """Says too little."""

    def cost(self, random: bool) -> int:
        return 2


def test_attacks_that_say_nothing_or_too_little_are_found_out() -> None:
    clf = classifier(random=False)
    x, y = judged(clf, 4)
    with pytest.raises(InputError, match="expected an attack with a known number of passes"):
        craft(Silent(), clf, x, y, Threat("linf", 0.1), budget=10)
    with pytest.raises(PluginError, match=r"attack Lying exceeded its budget: expected at most 3 .*, got 5"):
        craft(Lying(), clf, x, y, Threat("linf", 0.1), budget=3)


def test_a_run_with_sweep_and_budget(cli: Cli, tmp_path: Any) -> None:
    command = [
        "run", "--defense", "erm,bnn", "--attack", "pgd,fmn", "--eps", "0.05,0.1,0.15", "--limit", "100",
        "--set", "erm.stages=[3]", "--set", "bnn.stages=[3]", "--set", "fmn.steps=10", "--sweep", "--budget", "300",
    ]  # fmt: skip
    first = cli(*command)
    assert first.returncode == 0, first.stderr
    results = pandas.read_csv(tmp_path / "results" / "results.csv")
    own = results[(results.attack == "pgd") & (results.source == results.defense)]
    erm = own[own.defense == "erm"]
    assert erm.accuracy.is_monotonic_decreasing
    before = [1.0, *erm.accuracy[:-1]]  # of the images that are attacked, a pass shows which are misclassified
    # Of those a few steps break some, and what is left costs all of them that are not too short to count.
    bounds = zip(erm.forward_passes, before, erm.accuracy, strict=True)
    assert all(1 + 18 * left <= passes <= 1 + 18 * share for passes, share, left in list(bounds)[1:])
    assert set(own[own.defense == "bnn"].forward_passes) == {20.0}
    methods = pandas.read_csv(tmp_path / "results" / "methods.csv").set_index("label")
    assert '"budget": 300, ' in methods.params["pgd"]
    assert '"sweep": true' in methods.params["pgd"]
    assert "sweep" not in methods.params["fmn"]
    assert '"stop_early": true' in methods.params["pgd"]
    for name in ("retention", "uncertainty", "histograms"):  # examples at the boundary say nothing of uncertainty
        assert set(pandas.read_csv(tmp_path / "results" / f"{name}.csv").attack) == {"none", "fmn"}
    for name in ("leaderboard.md", "leaderboard.html"):
        assert "Left out: pgd, which stop early" in (tmp_path / "results" / name).read_text("utf-8")
    spec = (tmp_path / "results" / "spec.toml").read_text()
    assert "sweep = true" in spec
    assert "budget = 300" in spec
    again = cli("run", "--spec", "results/spec.toml")
    assert "nothing to do" in again.stdout
    command[2] = "erm,bnn,mc_dropout"
    more = cli(*command, "--set", "mc_dropout.stages=[3]")
    assert more.returncode == 0, more.stderr
    both = pandas.read_csv(tmp_path / "results" / "results.csv")
    merged = both.merge(results, on=["defense", "source", "attack", "eps"], suffixes=("", "_before"))
    assert len(merged) == len(results)
    assert (merged.accuracy == merged.accuracy_before).all()
    tight = cli(*command[:-1], "3")
    assert tight.returncode == 2
    assert "--budget for attack FMN: expected at least 20 passes per image" in tight.stderr
    single = cli("run", "--defense", "erm", "--attack", "fgsm", "--sweep", "--budget", "1")
    assert single.returncode == 2
    assert "attack FGSM: expected at least 2 passes per image, including one for the sweep, got 1" in single.stderr
    bent = cli("curve", "--defense", "erm", "--attack", "pgd", "--budget", "5")
    assert (bent.returncode, len(bent.stderr.splitlines())) == (2, 1)
    assert "--converge with --budget: expected one of them" in bent.stderr

"""Attacks run to convergence: the rule, the search, and how a run shows it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Cli
from torch import Tensor, nn

import advbench
from advbench import attacks
from advbench.attacks import Attack, Field, Goal, Threat
from advbench.grid.convergence import Converge, axes, converge, paired_fall, stronger
from advbench.grid.run import prepare
from advbench.grid.spec import make_spec, resolve
from advbench.grid.tasks import Runner, Runtime
from advbench.models import Classifier, GaussianPosterior
from advbench.progress import Progress

EPS = 0.1
TINY: dict[str, Any] = {"set": {"erm": {"stages": [2]}, "pgd": {"steps": 2}}}
COUNT = 1000
RULE = Converge()


@pytest.mark.parametrize("fall", [0.0, 0.01, 0.05, 0.3])
@pytest.mark.parametrize("rises", [0.0, 0.02])
@pytest.mark.parametrize("count", [100, 1000])
def test_the_upper_limit_of_a_fall_covers_the_truth(fall: float, rises: float, count: int) -> None:
    generator = np.random.default_rng(0)
    chance = generator.random((4000, count))
    after = np.where(chance < fall + rises, 0.0, np.where(chance > 1 - rises, 1.0, 0.5))
    highs = np.array([paired_fall(np.full(count, 0.5), each).high for each in after])
    assert (highs >= fall / 2 - 1e-12).mean() >= 0.94  # images fall or rise by one half
    assert paired_fall(np.ones(count), np.ones(count)).high == pytest.approx(2.33 / (count + 2), rel=0.01)


def test_a_fall_is_small_only_where_estimate_and_limit_are() -> None:
    before = np.ones(1000)
    for fallen, small in ((0, True), (5, True), (9, False), (11, False)):
        after = np.where(np.arange(1000) < fallen, 0.0, 1.0)
        found = paired_fall(before, after)
        assert found.value == pytest.approx(fallen / 1000)
        assert found.small(Converge(), 1000) == small
    few = paired_fall(before[:50], before[:50])
    assert few.small(Converge(), 50)
    assert not few.small(Converge(images=2), 50)


class Creeping(Attack):
    """Brightens images by a share of eps that grows with its steps, its samples and its restarts, as it is told to."""

    class Params(attacks.Params):
        steps: int = Field(default=2, ge=1, description="steps")
        samples: int = Field(default=3, ge=1, description="samples")
        restarts: int = Field(default=1, ge=1, description="restarts")
        rates: tuple[float, float, float] = Field(default=(1.0, 0.0, 0.0), description="how much each of them matters")
        noise: float = Field(default=0.0, description="of the share")

    effort = "steps"
    params: Any

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        params = self.params
        clf(x)
        powers = zip(params.rates, (params.steps / 2, params.samples / 3, params.restarts), strict=True)
        share = 1 - sum(rate / factor for rate, factor in powers)
        return (x + threat.eps * share).clamp(0, 1)


def brightness(*, random: bool = False) -> tuple[Classifier, Tensor, Tensor]:
    """A net that takes bright images for the other class, and images from eps below that to just below it."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight[0], net[1].weight[1] = -25.0, 25.0
        net[1].bias[0], net[1].bias[1] = 50.0, -50.0
    x = (0.5 - EPS * (torch.arange(COUNT) + 0.5) / COUNT).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    posterior = GaussianPosterior(net, std=0.01) if random else None
    return Classifier(net, posterior).requires_grad_(False), x, torch.zeros(COUNT, dtype=torch.int64)


def searched(*, random: bool = False, rule: Converge = RULE, checkpoint: Any = None, **params: Any) -> Any:
    clf, x, y = brightness(random=random)
    how: dict[str, Any] = {"checkpoint": checkpoint, "checkpoint_seconds": 0.0}
    return converge(Creeping(**params), clf, x, y, Threat("linf", EPS), rule, batch_size=COUNT, **how)


def settings(found: Any) -> list[tuple[int, ...]]:
    return [tuple(step["settings"].values()) for step in found.path]


def test_an_axis_is_doubled_until_the_fall_is_small_twice_and_goes_back_before_these() -> None:
    found = searched(rates=(0.1, 0.0, 0.0))
    assert settings(found) == [(2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (32, 2), (32, 4)]
    # The fall from 16 to 32 is .007, but its upper limit exceeds .01, and 16 times the start is the limit.
    assert [round(step["accuracy"], 4) for step in found.path[:5]] == [0.1, 0.05, 0.025, 0.013, 0.006]
    assert found.unconverged == ("steps",)
    small = searched(rates=(0.02, 0.0, 0.0))
    assert small.settings == {"steps": 4, "restarts": 1}
    assert settings(small) == [(2, 1), (4, 1), (8, 1), (16, 1), (4, 2), (4, 4)]
    assert small.unconverged == ()
    assert small.crafted.forward_passes == sum(step["forward_passes"] for step in small.path)
    clf, _, y = brightness()
    right = (clf(small.crafted.images).argmax(1) == y).double().mean()
    assert float(right) == small.path[1]["accuracy"]


def test_an_axis_without_a_fall_returns_to_where_it_was() -> None:
    found = searched(rates=(0.0, 0.0, 0.0))
    assert found.settings == {"steps": 2, "restarts": 1}
    assert settings(found) == [(2, 1), (4, 1), (8, 1), (2, 2), (2, 4)]


def test_a_random_classifier_is_given_more_samples_and_a_control() -> None:
    found = searched(random=True, rates=(0.0, 0.02, 0.0))
    assert found.settings == {"steps": 2, "samples": 6, "restarts": 1}
    assert found.control.value == pytest.approx(0.0, abs=1e-3)
    assert found.control.high < 0.01
    assert searched(rates=(0.0, 0.02, 0.0)).control is None


def test_a_search_ends_at_its_limits_and_says_along_what() -> None:
    rates = (0.3, 0.0, 0.3)
    found = searched(rates=rates, rule=Converge(limit=4, passes=8))
    assert found.unconverged == ("steps", "restarts")
    assert settings(found) == [(2, 1), (4, 1), (8, 1), (8, 2)]
    assert found.settings == {"steps": 8, "restarts": 2}
    control = searched(rates=(0.0, 0.0, 0.0), rule=Converge(limit=2))
    assert control.unconverged == ("steps", "restarts"), "one doubling shows too little"


class Memory:
    """A slot in memory, whose n-th save is the last thing that a search does."""

    def __init__(self, saves: int) -> None:
        self.left = saves
        self.saved: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.saved

    def save(self, tensors: Any, values: Any) -> None:
        self.saved = {name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(values))
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("saves", [1, 2, 3, 5])
def test_an_interrupted_search_goes_on_where_it_was(saves: int) -> None:
    rates = (0.02, 0.0, 0.0)
    slot = Memory(saves)
    with pytest.raises(KeyboardInterrupt):
        searched(rates=rates, random=True, checkpoint=slot)
    again, whole = searched(rates=rates, random=True, checkpoint=slot), searched(rates=rates, random=True)
    assert again.to_json() == whole.to_json()
    assert torch.equal(again.crafted.images, whole.crafted.images)
    assert again.crafted.forward_passes == whole.crafted.forward_passes


def test_progress_never_leaves_its_range() -> None:
    seen: list[Progress] = []
    clf, x, y = brightness(random=True)
    attack = Creeping(rates=(0.02, 0.0, 0.0))
    converge(attack, clf, x, y, Threat("linf", EPS), batch_size=COUNT // 2, report=seen.append)
    shares = [each.step / each.total for each in seen]
    assert all(0 < share <= 1 for share in shares)
    assert shares[-1] == 1
    assert sum(later < share for share, later in itertools.pairwise(shares)) <= 4, "at a fall alone"


def test_attacks_of_attacks_double_the_effort_of_all_parts() -> None:
    worst = advbench.get_attack("worst_case", attacks=["fgsm", "pgd", "square"])
    assert axes(worst) == ("effort",)
    parts = stronger(worst, {"effort": 4}).parts
    assert (parts["pgd"].params.steps, parts["square"].params.queries) == (80, 4000)
    assert stronger(advbench.get_attack("transfer"), {"effort": 2}).parts["pgd"].params.steps == 40
    assert axes(advbench.get_attack("worst_case", attacks=["fgsm"])) == axes(advbench.get_attack("fgsm")) == ()
    assert axes(advbench.get_attack("eot_pgd")) == ("steps", "samples", "restarts")
    assert axes(advbench.get_attack("square"), random=False) == ("queries",)
    clf, x, y = brightness()
    with pytest.raises(advbench.InputError, match="attack FGSM with --converge: expected an attack with a number"):
        converge(advbench.get_attack("fgsm"), clf, x, y, Threat("linf", EPS))


def test_a_bound_of_a_hyperparameter_is_a_limit_and_what_is_no_number_no_axis() -> None:
    class Bounded(Creeping):
        class Params(attacks.Params):
            steps: int = Field(default=2, ge=1, le=5, description="steps")
            samples: int | None = Field(default=None, description="samples")
            restarts: int = Field(default=1, ge=1, description="restarts")

        def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
            return (x + threat.eps * (1 - 1 / self.params.steps)).clamp(0, 1)

    assert axes(Bounded()) == ("steps", "restarts")
    clf, x, y = brightness()
    found = converge(Bounded(), clf, x, y, Threat("linf", EPS), batch_size=COUNT)
    assert settings(found)[:3] == [(2, 1), (4, 1), (4, 2)]
    assert found.unconverged == ("steps",)


def test_an_attack_whose_only_axis_is_the_number_of_samples_has_nothing_to_double_on_a_deterministic_net() -> None:
    clf, x, y = brightness()
    found = converge(advbench.get_attack("cw_one_step"), clf, x, y, Threat("linf", EPS), batch_size=COUNT)
    assert len(found.path) == 1
    assert (found.settings, found.unconverged) == ({}, ())


def test_the_key_holds_rule_and_start() -> None:
    from helpers import some_identity

    from advbench.grid.plan import make_plan

    def crafts(**more: Any) -> dict[tuple[str, float | None], Any]:
        spec = make_spec({"defenses": ["erm"], "attacks": ["fgsm", "pgd", "fmn"], "eps": [0.1, 0.2], **more})
        plan = make_plan(spec, *resolve(spec), some_identity(10), "1")
        return {(task.attack, task.eps): task.inputs for task in plan.tasks.values() if task.kind == "craft"}

    fixed, found = crafts(), crafts(converge=16)
    assert {where for where in fixed if fixed[where] == found.get(where)} == {("fgsm", 0.1), ("fgsm", 0.2)}
    assert ("fmn", None) in fixed
    assert {("fmn", 0.1), ("fmn", 0.2)} <= found.keys(), "it may converge at one eps and not at another"
    assert found["pgd", 0.1].to_json()["converge"] == {
        "limit": 16,
        "passes": 64,
        "fall": 0.01,
        "images": 8,
        "draws": 20,
    }
    assert found["pgd", 0.1].key != crafts(converge=8)["pgd", 0.1].key
    for other in ({"budget": 100}, {"sweep": True}):
        with pytest.raises(advbench.InputError, match="--converge with --"):
            make_spec({"defenses": ["erm"], "attacks": ["pgd"], "converge": 16, **other})


def test_a_killed_task_goes_on_from_its_last_setting(tmp_path: Path) -> None:
    """The state is the store's, as a training's is; it is dropped with the record."""
    spec = make_spec({"defenses": ["erm"], "attacks": ["pgd"], "eps": [0.1], "limit": 60, "converge": 2, **TINY})
    plan = prepare(spec)
    train, craft = (next(task for task in plan.tasks.values() if task.kind == kind) for kind in ("train", "craft"))
    records, passed = [], []
    for name in ("whole", "killed"):
        runner = Runner(Runtime(str(tmp_path / name), "digits", checkpoint_seconds=0.0))
        runner.run(train)
        if name == "killed":
            with pytest.raises(KeyboardInterrupt):
                runner.run(craft, after(2 * 60 + 1))
            assert runner.store.read_partial(craft.key) is not None
        seen: list[Progress] = []
        records.append(runner.run(craft, seen.append))
        passed.append(len(seen))
        assert runner.store.read_partial(craft.key) is None
    assert records[0]["result"] == records[1]["result"]
    assert records[0]["artifact"] == records[1]["artifact"]
    assert passed[1] < passed[0]


def after(done: int) -> Callable[[Progress], None]:
    """A watcher that is interrupted once so much is done."""

    def watch(progress: Progress) -> None:
        if progress.step > done:
            raise KeyboardInterrupt

    return watch


SMALL = "--defense erm --attack pgd,fgsm --eps 0.05,0.12 --limit 200 --set erm.stages=[8] --converge".split()
SHORT = ["--set", "pgd.step_size=0.02", "--set", "pgd.steps=5", "--converge-limit", "4"]


def test_a_run_to_convergence_shows_what_did_not_converge(cli: Cli, tmp_path: Path) -> None:
    done = cli("run", *SMALL, *SHORT)
    assert done.returncode == 0, done.stderr
    results = pd.read_csv(tmp_path / "results" / "results.csv")
    flags = results[results.eps == 0.12].set_index("attack")["flags"].fillna("")
    assert "unconverged" in flags["pgd"]
    assert "unconverged" not in flags["fgsm"]
    assert "≤ 0." in (tmp_path / "results" / "leaderboard.md").read_text("utf-8")
    assert "≤ 0." in (tmp_path / "results" / "leaderboard.html").read_text("utf-8")
    assert "converge = 4" in (tmp_path / "results" / "spec.toml").read_text()
    searches = pd.read_csv(tmp_path / "results" / "convergence.csv")
    assert searches.groupby("key").chosen.sum().min() >= 1
    readme = (tmp_path / "results" / "leaderboard.md").read_text("utf-8")
    section = readme.partition("## Convergence")[2].partition("\n## ")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines()]
    found = {tuple(row[:3]): row[4:] for row in lines if row[:1] == ["erm"]}
    assert found.keys() == {("erm", "pgd", "0.05"), ("erm", "pgd", "0.12")}
    before, first, after, last = found["erm", "pgd", "0.12"]
    assert before == "restarts 1, steps 5"
    assert after.endswith("steps 20")
    assert float(first.split()[0]) > float(last.split()[1])
    assert last.startswith("≤ ")
    assert '"converge": 4' in pd.read_csv(tmp_path / "results" / "methods.csv").set_index("label").params["pgd"]
    again = cli("run", "--spec", "results/spec.toml")
    assert "nothing to do" in again.stdout
    curve = cli("curve", "--spec", "results/spec.toml", "--out", "curve")
    assert curve.returncode == 0, curve.stderr
    assert "craft" not in curve.stderr, "the run's own records"
    line = next(line for line in curve.stdout.splitlines() if "erm under pgd 0.12" in line)
    assert "unconverged along steps" in line
    table = pd.read_csv(tmp_path / "curve" / "curve.csv")
    pd.testing.assert_frame_equal(table, searches)
    assert table[(table.eps == 0.12) & (table.axis == "steps")].value.tolist() == [5, 10, 20]
    picture = matplotlib.image.imread(tmp_path / "curve" / "curve.png")
    assert min(picture.shape[:2]) > 300


def test_what_cannot_be_made_stronger_has_no_curve(cli: Cli) -> None:
    done = cli("curve", "--defense", "erm", "--attack", "fgsm", "--converge-limit", "2")
    assert done.returncode == 2
    assert "attacks of a curve: expected an attack with a number of steps, samples or restarts, got fgsm" in done.stderr
    alone = cli("run", "--defense", "erm", "--attack", "pgd", "--converge-limit", "4")
    assert alone.returncode == 2
    assert "--converge-limit: expected --converge as well" in alone.stderr

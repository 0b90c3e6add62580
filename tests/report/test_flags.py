"""Each flag has a model that raises it alone, and one that must not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import Cli
from torch import Tensor, nn

import advbench
from advbench.attacks.base import Threat
from advbench.attacks.craft import craft
from advbench.evaluation.evaluate import evaluate
from advbench.evaluation.summary import summary
from advbench.grid.inputs import Component
from advbench.grid.plan import Cell
from advbench.grid.spec import Choice
from advbench.grid.tasks import VANISHED
from advbench.report.evaluations import evaluation_of
from advbench.report.flags import FLAGS, suspicious

COUNT = 200


def images() -> tuple[Tensor, Tensor]:
    """Two pixels an image; the first says the class: dark or bright."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(COUNT) % 2
    x = torch.rand((COUNT, 1, 1, 2), generator=generator)
    x[:, 0, 0, 0] = torch.where(y == 1, 0.75, 0.25) + 0.2 * (x[:, 0, 0, 0] - 0.5)
    return x, y


class Threshold(nn.Module):
    """A function of the first pixel's distance from grey as the logit of class 1."""

    def __init__(self, scale: float = 10.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def rise(self, gap: Tensor) -> Tensor:
        return self.scale * gap

    def forward(self, x: Tensor) -> Tensor:
        rise = self.rise(x[:, 0, 0, 0] - 0.5)
        return torch.stack([-rise, rise], 1)


class Confident(Threshold):
    """So sure that the softmax's gradient is 0 in float32; as easily fooled as any."""

    def __init__(self) -> None:
        super().__init__(1000.0)


class Shattered(Threshold):
    """A wave so short and steep that the gradient's sign says nothing of where the boundary is."""

    def rise(self, gap: Tensor) -> Tensor:
        return self.scale * gap + 0.1 * torch.sin(5000 * gap)


class Walled(Threshold):
    """A wall in front of the boundary: short steps turn back at it, one long step lands behind it."""

    def rise(self, gap: Tensor) -> Tensor:
        near = gap.abs()
        wall = torch.where((near > 0.05) & (near < 0.12), 4 * (0.12 - near), 0.0)
        return self.scale * (gap + gap.sign() * wall)


class Folded(Threshold):
    """Right again far beyond the boundary, where one step of full length ends."""

    def rise(self, gap: Tensor) -> Tensor:
        return torch.where(gap.abs() > 0.45, -1.0, 1.0) * self.scale * gap


def cells(
    model: nn.Module,
    attacks: dict[str, dict[str, object]],
    radii: list[float],
    *,
    black_box: frozenset[str] = frozenset(),
) -> tuple[dict[str, dict[str, object]], list[Cell]]:
    """Records and cells of a run of those attacks on a model."""
    x, y = images()
    component = Component("a", "dist", "1", {})
    target = Choice("model", component, 1.0)
    records, found = {}, []
    for name, params in attacks.items():
        attack = advbench.get_attack(name.partition("@")[0], **params)
        traits = frozenset() if attack.gradients else frozenset({"black_box"})
        choice = Choice(name, component, attack.cost(True), None, traits)
        for eps in radii:
            crafted = craft(attack, model, x, y, Threat("linf", eps))
            key = f"{name} {eps}"
            records[key] = {
                "result": {
                    **summary(evaluate(model, crafted.images, y, 2)),
                    "attack": {"forward_passes": 0.0, "backward_passes": 0.0, "seconds": 0.0},
                    "share": crafted.vanished_gradients,
                },
                "seconds": 0.0,
                "versions": {},
            }
            found.append(Cell(target, target, choice, eps, 0, key))
    return records, found


def flags(model: nn.Module, attacks: dict[str, dict[str, object]], radii: list[float]) -> set[str]:
    """All flags of a run."""
    records, found = cells(model, attacks, radii)
    results = [evaluation_of(records[cell.key]) for cell in found]
    raised = {flag for some in suspicious(found, results, "linf").values() for flag in some}
    vanished = any(record["result"]["share"] > VANISHED for record in records.values())  # type: ignore[index]
    return raised | ({"vanished_gradients"} if vanished else set())


SHORT_STEPS = {"random_start": False, "steps": 100}
RAISED = [
    ("vanished_gradients", Confident(), {"pgd": {}}, [0.4]),
    ("single_step_stronger", Walled(), {"fgsm": {}, "pgd": SHORT_STEPS}, [0.4]),
    ("black_box_stronger", Shattered(), {"pgd": {"random_start": False}, "square": {"queries": 100}}, [0.4]),
    ("rises_with_eps", Folded(), {"fgsm": {}}, [0.4, 0.8]),
    ("above_chance_at_eps_1", Walled(), {"pgd": SHORT_STEPS}, [1.0]),
]


@pytest.mark.parametrize(("flag", "model", "attacks", "radii"), RAISED, ids=[case[0] for case in RAISED])
def test_each_flag_has_a_model_that_raises_it_alone_and_one_that_does_not(
    flag: str, model: nn.Module, attacks: dict[str, dict[str, object]], radii: list[float]
) -> None:
    assert flags(model, attacks, radii) == {flag}
    assert flags(Threshold(), attacks, radii) == set()


class Constant(Threshold):
    """Class 1, whatever the image, as after a training that diverged."""

    def rise(self, gap: Tensor) -> Tensor:
        return self.scale + 0 * gap


def test_a_classifier_at_chance_on_clean_images_is_flagged_there_alone() -> None:
    x, y = images()
    for model, known in ((Constant(), {0: ["at_chance"]}), (Threshold(), {})):
        records, found = cells(model, {"fgsm": {}}, [0.4])
        clean = found[0]._replace(attack=None, eps=0.0, key="clean")
        none = {"forward_passes": 0.0, "backward_passes": 0.0, "seconds": 0.0}
        result = {**summary(evaluate(model, x, y, 2)), "attack": none}
        records["clean"] = {"result": result, "seconds": 0.0, "versions": {}}
        every = [clean, *found]
        raised = suspicious(every, [evaluation_of(records[cell.key]) for cell in every], "linf")
        assert raised == known


def test_noise_raises_no_flag() -> None:
    """A model that is right with probability 0.7 whatever the input, under many attacks and radii."""

    class Coin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            truth = x[:, 0, 0, 0] > 0.5
            said = truth ^ (torch.rand(len(x)) > 0.7)
            rise = torch.where(said, 1.0, -1.0) + self.scale * 1e-3 * (x[:, 0, 0, 0] - 0.5)
            return torch.stack([-rise, rise], 1)

    radii = [0.02, 0.04, 0.06, 0.08]
    assert flags(Coin(), {"fgsm": {}, "pgd": {"steps": 3}, "square": {"queries": 5}}, radii) == set()


def test_flags_of_a_run_are_in_its_files(cli: Cli, tmp_path: Path) -> None:
    """A net evaluated under one step of many times the radius that a step of PGD covers: the board flags it."""
    options = "--defense erm --attack fgsm,pgd --eps 0.15 --limit 200 --set erm.stages=[8] --set pgd.step_size=1e-6"
    done = cli("run", *options.split(), "--set", "pgd.random_start=false")
    assert done.returncode == 0, done.stderr
    assert "1 cells are flagged as unreliable" in done.stderr
    frame = pd.read_csv(tmp_path / "results" / "results.csv").set_index("attack")
    assert frame.loc["pgd", "flags"] == "single_step_stronger"
    assert FLAGS["single_step_stronger"] in (tmp_path / "results" / "leaderboard.md").read_text()


def test_worst_case_counts_as_neither_kind() -> None:
    """It contains Square: that it is strong says nothing of gradients, and does not hide what Square says."""
    records, found = cells(Shattered(), {"pgd": {"random_start": False}, "square": {"queries": 100}}, [0.4])
    (pgd, square) = found
    assert pgd.attack is not None
    worst = Cell(*pgd[:2], pgd.attack._replace(label="worst_case", traits=frozenset({"mixed"})), *pgd[3:5], square.key)
    every = [pgd, square, worst]
    raised = suspicious(every, [evaluation_of(records[cell.key]) for cell in every], "linf")
    assert raised == {0: ["black_box_stronger"]}

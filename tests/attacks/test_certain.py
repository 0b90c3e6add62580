"""Attacks on the uncertainty: gradients against finite differences, and models whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import advbench
from advbench.attacks import Goal, Measure, Threat, craft, predictive_uncertainty
from advbench.attacks.craft import Earlier
from advbench.attacks.losses import entropy
from advbench.models import Classifier, GaussianPosterior, SamplePosterior
from advbench.models.posterior import FlatLayout
from advbench.testing import small_data, small_net

ENTROPY_ATTACKS = ["certain", "doubt", "ood"]


def random_classifier(kind: str) -> Classifier:
    net = small_net().eval().double()
    if kind == "gaussian":
        return Classifier(net, GaussianPosterior(net, std=0.2)).requires_grad_(False)
    samples = torch.randn((3, FlatLayout(net).size), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Classifier(net, SamplePosterior(net, 0.5 * samples)).requires_grad_(False)


@pytest.mark.parametrize("kind", ["gaussian", "members"])
@pytest.mark.parametrize("measure", ["total", "epistemic"])
@pytest.mark.parametrize("samples", [1, 4])
def test_the_gradient_is_that_of_finite_differences(kind: str, measure: Measure, samples: int) -> None:
    clf, (x, y) = random_classifier(kind), small_data().batch(slice(3))
    x = x.double()

    def objective(log_probs: Tensor, rows: Tensor) -> Tensor:
        return predictive_uncertainty(log_probs, measure) + Goal(rows).margin(log_probs.logsumexp(0)).clamp_max(0)

    found, logits = clf.reseed(5).joint_gradient(x, y, objective, samples)
    clf.reseed(5)
    draws = [clf.draw(seed) for seed in clf.fresh_seeds(samples)]
    assert len(draws) == len(logits) == (3 if kind == "members" and samples == 4 else samples)

    def value(at: Tensor) -> Tensor:
        return objective(torch.stack([clf.at(draw, at) for draw in draws]).log_softmax(-1), y)

    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    numeric = (value(x + 1e-5 * direction) - value(x - 1e-5 * direction)) / 2e-5
    assert numeric.tolist() == pytest.approx((found * direction).flatten(1).sum(1).tolist(), rel=1e-5, abs=1e-9)


def test_the_gradient_does_not_depend_on_chunks() -> None:
    clf, (x, y) = random_classifier("gaussian"), small_data().batch(slice(7))

    def objective(log_probs: Tensor, rows: Tensor) -> Tensor:
        return predictive_uncertainty(log_probs, "total")

    whole = clf.reseed(1).joint_gradient(x.double(), y, objective, 3).value
    clf.chunk = 2
    assert torch.allclose(clf.reseed(1).joint_gradient(x.double(), y, objective, 3).value, whole, atol=1e-12)


def test_uncertainty_of_draws_by_hand() -> None:
    probs = torch.tensor([[[1 - 1e-12, 1e-12], [0.5, 0.5], [0.9, 0.1]], [[1e-12, 1 - 1e-12], [0.5, 0.5], [0.7, 0.3]]])

    def binary(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    total = [math.log(2), math.log(2), binary(0.8)]
    aleatoric = [0.0, math.log(2), (binary(0.9) + binary(0.7)) / 2]
    assert predictive_uncertainty(probs.log(), "total").tolist() == pytest.approx(total, abs=1e-6)
    found = predictive_uncertainty(probs.log(), "epistemic").tolist()
    assert found == pytest.approx(np.subtract(total, aleatoric).tolist(), abs=1e-6)


def test_the_gradient_of_the_entropy_holds_where_the_softmax_is_rounded_to_one() -> None:
    """Against the same in double precision: half of it is lost to cancellation in the usual form."""
    logits = torch.tensor([[30.0, 5.0, -4.0]])
    slopes = []
    for dtype in (torch.float32, torch.float64):
        leaf = logits.to(dtype).requires_grad_()
        slopes.append(torch.autograd.grad(entropy(leaf.log_softmax(-1)).sum(), leaf)[0])
    assert slopes[0].tolist()[0] == pytest.approx(slopes[1].tolist()[0], rel=1e-4)


class _Plane(nn.Module):
    """Two classes; the second leads by w . (x - (1/2, 0)) with w ~ N((6, 0), diag(STD)^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([6.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        rise = (x.flatten(1) - torch.tensor([0.5, 0.0])) @ self.weight
        return torch.stack([torch.zeros_like(rise), rise], 1)


STD = np.array([0.05, 4.0])


def linear() -> Classifier:
    net = _Plane()
    posterior = GaussianPosterior(net)
    with torch.no_grad():
        posterior.log_std.copy_(torch.tensor(STD).log())
    return Classifier(net, posterior).requires_grad_(False)


def probability(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean softmax of class 1 at `(points, 2)`, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    mean, std = 6 * (x[:, 0] - 0.5), np.hypot(STD[0] * (x[:, 0] - 0.5), STD[1] * x[:, 1])
    values: NDArray[np.float64] = 1 / (1 + np.exp(-(mean[:, None] + std[:, None] * nodes)))
    return values @ weights / weights.sum()


def best(x: NDArray[np.float64], threat: Threat) -> NDArray[np.float64]:
    """The point of the ball at which a wrong class 1 is likeliest, and so least uncertain, by search."""
    steps = np.linspace(-threat.eps, threat.eps, 201)
    moves = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    if threat.norm == "l2":
        moves = moves[np.hypot(*moves.T) <= threat.eps]
    points = np.clip(x + moves, 0, 1)
    found: NDArray[np.float64] = points[probability(points).argmax()]
    return found


@pytest.mark.parametrize("threat", [Threat("linf", 0.2), Threat("l2", 0.3)], ids=lambda each: each.norm)
def test_on_a_linear_model_certainty_comes_of_less_variance_as_well(threat: Threat) -> None:
    """The first pixel decides the class, the second only how far draws disagree: PGD's mean loss likes that."""
    clf, x = linear(), np.array([0.45, 0.5])
    image = torch.tensor(x, dtype=torch.float32).view(1, 1, 1, 2)
    images, y = image.expand(16, -1, -1, -1), torch.zeros(16, dtype=torch.int64)
    wanted = best(x, threat)
    found = advbench.get_attack("certain", samples=40)(clf, images, y, threat).flatten(1).double().numpy()
    by_pgd = advbench.get_attack("eot_pgd", samples=40)(clf, images, y, threat).flatten(1).double().numpy()
    assert wanted[1] < x[1] < by_pgd[:, 1].min()  # who descends the mean loss's worst draw goes the other way
    assert probability(found).mean() == pytest.approx(float(probability(wanted[None])[0]), abs=0.02)
    assert probability(found).min() > probability(by_pgd).max()


def accuracy_and_entropy(clf: Classifier, x: Tensor, y: Tensor) -> tuple[float, float, float]:
    found = advbench.evaluate(clf, x, y, 20)
    measures = advbench.evaluation.uncertainty(found)
    return found.accuracy, float(measures.total.mean()), float(measures.epistemic.mean())


@pytest.mark.parametrize("name", ["doubt", "ood"])
@pytest.mark.parametrize("measure", ["total", "epistemic"])
def test_uncertainty_moves_as_wanted(name: str, measure: str) -> None:
    net = small_net().eval()
    with torch.no_grad():
        net[-1].weight *= 10
    clf = Classifier(net, GaussianPosterior(net, std=0.1)).requires_grad_(False)
    x, y = small_data().batch(slice(24))
    found = advbench.get_attack(name, measure=measure, steps=20)(clf, x, y, Threat("linf", 0.15))
    before, after = accuracy_and_entropy(clf, x, y), accuracy_and_entropy(clf, found, y)
    column = 1 if measure == "total" else 2
    assert (after[column] > before[column] + 0.02) == (name == "doubt")
    assert (after[column] < before[column] - 0.02) == (name == "ood")
    assert name == "ood" or after[0] == pytest.approx(before[0], abs=0.1)


def test_a_targeted_attack_is_certain_of_the_target() -> None:
    clf = Classifier(small_net().eval()).requires_grad_(False)
    x, y = small_data().batch(slice(12))
    found = advbench.get_attack("certain")(clf, x, y, Threat("linf", 0.6), targets=(y + 1) % 3)
    assert float((clf(found).argmax(1) == (y + 1) % 3).float().mean()) > 0.9


@pytest.mark.parametrize("name", ENTROPY_ATTACKS)
@pytest.mark.parametrize("random", [False, True])
def test_cost_is_an_upper_bound_that_is_reached(name: str, random: bool) -> None:
    net = small_net().eval()
    clf = Classifier(net, GaussianPosterior(net, std=0.1) if random else None).requires_grad_(False)
    x, y = small_data().batch(slice(6))
    attack = advbench.get_attack(name, steps=3, samples=4)
    made = craft(attack, clf, x, y, Threat("linf", 0.1)).forward_passes
    bound = attack.cost(random)
    assert bound is not None
    assert bound - (10 if random else 1) <= made <= bound


def test_what_a_smaller_radius_broke_is_attacked_again() -> None:
    """In a sweep an error is not the end of it: a wider ball may hold a more certain one."""
    clf = Classifier(small_net().eval()).requires_grad_(False)
    x, y = small_data().batch(slice(12))
    attack: Any = advbench.get_attack("certain", steps=10)
    small = attack(clf, x, y, Threat("linf", 0.3))
    threat = Threat("linf", 0.5)
    again = craft(attack, clf, x, y, threat, earlier=Earlier(small, 0.3)).images
    assert torch.equal(again, craft(attack, clf, x, y, threat).images)

"""Every attack on nets whose gradient is zero somewhere, whose logits tie, or that compute in half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_conformance import CHEAP_ATTACKS, usable
from torch import Tensor, nn

from advbench.attacks import Kept, Threat, craft, distances, shortened
from advbench.attacks.base import Goal
from advbench.evaluation import Predictions
from advbench.models import Classifier, DropoutNoise, GaussianPosterior
from advbench.registry import registry

Y = torch.tensor([0, 0, 0, 1])
OTHERS = ("autoattack", "known_draw")  # of the bridges, and on draws alone


class Flat(nn.Module):
    """Constant logits; dark images have a gradient if `partly`."""

    def __init__(self, *, partly: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.2), nn.Linear(8, 3))
        self.partly = partly

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        constant = logits.new_tensor([5.0, 0.0, 0.0]) + 0 * logits
        dark = x.flatten(1).mean(1, keepdim=True) < 0.5
        return torch.where(dark, logits, constant) if self.partly else constant


def images() -> Tensor:
    """Two dark ones and two light ones, whose pixels and means are exact in binary, one of them labelled wrong."""
    return torch.stack([torch.full((1, 4, 4), level) for level in (0.25, 0.375, 0.75, 0.875)])


def attacks() -> list[Any]:
    names = [entry.name for entry in usable("attack") if not entry.is_family]
    cases = [(name, params) for name in names for params in CHEAP_ATTACKS.get(name, [{}])]
    return [pytest.param(*case, id="-".join(map(str, case))) for case in cases if case[0] not in OTHERS]


@pytest.mark.filterwarnings("ignore::advbench.errors.ModelWarning")
@pytest.mark.parametrize("partly", [False, True])
@pytest.mark.parametrize(("name", "params"), attacks())
def test_images_without_a_gradient_are_no_obstacle(name: str, params: dict[str, Any], partly: bool) -> None:
    attack = registry().load("attack", name)(**params)
    for norm, eps in (("linf", 0.1), ("l2", 0.5)):
        if norm not in attack.norms:
            continue
        for kind in ("deterministic", "gaussian", "noise"):
            net = Flat(partly=partly).eval()
            posterior = GaussianPosterior(net, std=0.01) if kind == "gaussian" else None
            noise = DropoutNoise(0.2) if kind == "noise" else None
            clf = Classifier(net, posterior, noise=noise).requires_grad_(False)
            found = craft(attack, clf, images(), Y, Threat(norm, eps)).images
            assert float(distances(found, images(), Threat(norm, eps)).max()) <= eps + 1e-6


def test_an_example_that_fools_nobody_replaces_none() -> None:
    net = Flat(partly=True).eval()
    clf = Classifier(net, GaussianPosterior(net, std=0.01)).requires_grad_(False)
    rows = torch.tensor([0, 2])
    kept, x = Kept(clf, Goal.of(Y)), images()[rows]
    points, fools = shortened(kept, x, x + 0.01, rows=rows)
    assert fools.tolist() == (kept.margins_of(points, rows) > 0).tolist()
    assert not fools[1]
    assert torch.equal(points[1], x[1] + 0.01)


class Tied(nn.Module):
    """Logits of which the largest three are equal in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 5).half()
        with torch.no_grad():
            self.linear.weight[:3], self.linear.bias[:3] = 0.0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1).half())
        return logits


@pytest.mark.filterwarnings("ignore::advbench.errors.ModelWarning")
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("pgd", {"loss": "dlr"}),
        ("apgd", {"loss": "dlr"}),
        ("apgd", {"loss": "dlr_targeted", "steps": 5}),
        ("alma", {"steps": 10}),
        ("worst_case", {"params": {"square": {"queries": 20}, "fab": {"steps": 3}, "alma": {"steps": 5}}}),
    ],
)
def test_tied_logits_in_half_precision_are_no_obstacle(name: str, params: dict[str, Any]) -> None:
    attack = registry().load("attack", name)(**params)
    found = craft(attack, Classifier(Tied()).requires_grad_(False), images(), Y, Threat("l2", 0.5)).images
    assert bool(found.isfinite().all())


class Clipped(nn.Module):
    """Logits clipped at 1, that of class 1 everywhere: others can tie with it, never lead."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x[..., :2].flatten(1).mean(1), x[..., 2:].flatten(1).mean(1)
        one = torch.ones_like(left)
        return torch.stack([10 * left - 1, one, 15 * right - 1, -3 * one], 1).clamp(max=1.0)


@pytest.mark.parametrize(("name", "params"), [("worst_case", {}), ("apgd", {"loss": "dlr_targeted"})])
def test_a_tie_that_argmax_decides_against_the_label_is_found(name: str, params: dict[str, Any]) -> None:
    # Either of classes 0 and 2 ties with class 1 inside the ball, not both; class 2 is closer, and loses its ties.
    x, y = torch.full((8, 1, 4, 4), 0.05), torch.ones(8, dtype=torch.int64)
    clf = Classifier(Clipped()).requires_grad_(False)
    found = craft(registry().load("attack", name)(**params), clf, x, y, Threat("l2", 0.46)).images
    assert clf(found).argmax(1).tolist() == [0] * 8


@given(
    draws=st.integers(1, 4),
    steps=st.sampled_from([1.0, 40.0, 3e-8, 1e-3]),
    targeted=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 2**16),
)
def test_a_goal_is_reached_by_a_margin_exactly_where_an_evaluation_says_so(
    draws: int, steps: float, targeted: bool, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = steps * torch.randint(-2, 3, (draws, 64, 4), generator=generator).to(dtype)
    logits[..., 0] += 1e-3 * steps * torch.randn(draws, 64, generator=generator).to(dtype)
    y = torch.randint(0, 4, (64,), generator=generator)
    goal = Goal.of(y, (y + 1) % 4 if targeted else None)
    predictions = Predictions.from_probs(logits.float().softmax(2).numpy(), y.numpy())
    wrong = predictions.mean_probs.argmax(1) == ((y + 1) % 4).numpy() if targeted else ~predictions.ensemble_correct
    assert (goal.mean_margin(logits) > 0).tolist() == wrong.tolist()
    assert goal.mean_success(logits).tolist() == wrong.tolist()


class Faint(nn.Module):
    """Logits whose softmax hardly differs from uniform in float32, so that probabilities tie where logits do not."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(16, 2), scale
        with torch.no_grad():
            self.linear.weight[:] = torch.tensor([[1.0], [-1.0]]) * torch.arange(1, 17) / 16
            self.linear.bias[:] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.scale * self.linear(x.flatten(1) - 0.49)
        return logits


@pytest.mark.filterwarnings("ignore::advbench.errors.ModelWarning")
@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("scale", [1e-8, 3e-8, 1e-6, 1.0])
@pytest.mark.parametrize(
    ("name", "params"), [("square", {"queries": 300}), ("apgd", {}), ("pgd", {}), ("worst_case", {})]
)
def test_margins_lead_attacks_across_ties(name: str, params: dict[str, Any], scale: float, stop_early: bool) -> None:
    x, y = torch.full((8, 1, 4, 4), 0.5), torch.zeros(8, dtype=torch.int64)
    clf = Classifier(Faint(scale)).requires_grad_(False)
    attack = registry().load("attack", name)(**params)
    found = craft(attack, clf, x, y, Threat("linf", 0.1), stop_early=stop_early).images
    reached = Goal.of(y).mean_margin(clf(found)[None])
    strongest = Goal.of(y).mean_margin(clf(x - 0.1)[None])
    assert torch.equal(reached > 0, strongest > 0)

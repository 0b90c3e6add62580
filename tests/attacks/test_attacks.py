"""Attacks against models whose worst case is known in closed form."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from advbench_attacks.worst_case import _broken
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import optimize
from scipy.special import expit
from torch import Tensor, nn

import advbench
from advbench import attacks
from advbench.attacks.ball import distances
from advbench.attacks.base import Threat
from advbench.attacks.budget import within_budget
from advbench.attacks.craft import craft
from advbench.data.base import Data
from advbench.errors import ModelWarning, PluginError
from advbench.models.classifier import Classifier
from advbench.models.posterior import GaussianPosterior, SamplePosterior
from advbench.testing import small_data, small_net

GRADIENT_ATTACKS = [("fgsm", {}), ("pgd", {}), ("pgd", {"loss": "margin", "restarts": 2}), ("eot_pgd", {})]


def images(count: int, pixels: int = 16, seed: int = 1) -> Tensor:
    """Images far enough inside the box that a small ball does not meet it."""
    side = int(pixels**0.5)
    return 0.4 + 0.2 * torch.rand((count, 1, side, side), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "params"), GRADIENT_ATTACKS)
@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_two_class_linear_model_is_moved_along_its_normal(
    name: str, params: dict[str, Any], count: int, norm: Any, linear: Callable[..., nn.Module]
) -> None:
    model = linear(classes=2)
    x = images(count)
    y = torch.arange(count) % 2
    threat = Threat(norm, 0.05 if norm == "linf" else 0.2)
    x_adv = advbench.get_attack(name, **params)(model, x, y, threat)
    normal = (model.weight[1 - y] - model.weight[y]).detach().view_as(x)
    if norm == "linf":
        expected = x + threat.eps * normal.sign()
    else:
        expected = x + threat.eps * normal / normal.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(x_adv, expected, atol=2e-4 if norm == "l2" else 2e-6, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_pgd_succeeds_exactly_beyond_the_distance_of_the_decision_boundary(
    norm: Any, classes: int, linear: Callable[..., nn.Module]
) -> None:
    model = linear(classes=classes)
    x = images(8)
    y = model(x).argmax(1)
    weight, logits = model.weight.detach(), model(x).detach()
    gaps = logits.gather(1, y[:, None]) - logits
    normals = weight[y][:, None] - weight[None]
    length = normals.abs().sum(2) if norm == "linf" else normals.norm(dim=2)
    distance = torch.where(gaps > 0, gaps / length, torch.inf).amin(1)
    attack = advbench.get_attack("pgd", steps=40, restarts=3, loss="margin")
    for i in range(len(x)):
        for factor, fooled in ((0.97, False), (1.03, True)):
            threat = Threat(norm, float(distance[i] * factor))
            x_adv = attack(model, x[i : i + 1], y[i : i + 1], threat)
            assert bool(model(x_adv).argmax(1) != y[i]) == fooled


def test_l2_pgd_finds_the_worst_point_of_a_quadratic() -> None:
    class Bowl(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            rise = self.scale * (x.flatten(1) - 0.5).square().sum(1)
            return torch.stack([-rise, rise], 1)

    x = images(6)
    y = torch.zeros(6, dtype=torch.int64)
    x_adv = advbench.get_attack("pgd")(Bowl(), x, y, Threat("l2", 0.1))
    away = (x - 0.5) / (x - 0.5).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(x_adv, x + 0.1 * away, atol=1e-3, rtol=0)


@settings(deadline=None, max_examples=60)
@given(
    x=npst.arrays("float32", (3, 1, 4, 4), elements=st.floats(0, 1, width=32)),
    eps=st.floats(0, 1, width=32),
    norm=st.sampled_from(["linf", "l2"]),
    name=st.sampled_from(["fgsm", "pgd", "eot_pgd"]),
    seed=st.integers(0, 2**31),
)
def test_examples_stay_in_ball_and_box_for_any_images(x: Any, eps: float, norm: Any, name: str, seed: int) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    clf = Classifier(net, GaussianPosterior(net, std=0.5)).requires_grad_(False)
    clean, threat = torch.from_numpy(x), Threat(norm, eps)
    params = {} if name == "fgsm" else {"steps": 3}
    x_adv = advbench.get_attack(name, **params)(clf, clean, torch.tensor([0, 1, 2]), threat, seed=seed)
    assert float(distances(x_adv, clean, threat).max()) <= eps + 1e-6
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1


@pytest.mark.parametrize("eps", [3.0, 8.0, 50.0])
@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_l2_balls_of_large_images_are_not_left_by_rounding(name: str, eps: float) -> None:
    x = torch.rand((2, 3, 224, 224), generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 3)).requires_grad_(False)
    x_adv = advbench.get_attack(name)(net, x, torch.tensor([0, 1]), Threat("l2", eps))
    assert float(distances(x_adv, x, Threat("l2", eps)).max()) <= eps + 1e-6


@settings(deadline=None, max_examples=60)
@given(
    gradient=npst.arrays("float32", (2, 1, 3, 3), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    scale=st.sampled_from([1e-30, 1e-10, 1.0]),
)
def test_steepest_direction_has_norm_one_or_zero_whatever_the_scale(gradient: Any, scale: float) -> None:
    g = torch.from_numpy(gradient) * scale
    step = attacks.steepest(g, Threat("l2", 1.0)).flatten(1).norm(dim=1)
    zero = (g == 0).flatten(1).all(1)
    normal = g.abs().flatten(1).amax(1) >= torch.finfo(torch.float32).tiny
    assert bool((step[zero] == 0).all())
    torch.testing.assert_close(step[normal], torch.ones_like(step[normal]), atol=1e-4, rtol=0)


def test_random_start_fills_the_ball_uniformly() -> None:
    x = torch.full((4000, 1, 2, 2), 0.5)
    generator = torch.Generator().manual_seed(0)
    start = attacks.random_start(x, Threat("l2", 0.4), generator)
    radius = (start - x).flatten(1).norm(dim=1) / 0.4
    # Uniform in a 4-ball: P(radius < r) = r^4.
    for r in (0.5, 0.7, 0.9):
        assert abs(float((radius < r).float().mean()) - r**4) < 0.03


def test_losses_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0]])
    y = torch.tensor([0])
    assert float(attacks.margin(logits, y)) == pytest.approx(-2.0)
    assert float(attacks.dlr(logits, y)) == pytest.approx(-2.0 / 3.0)
    assert float(attacks.dlr(logits[:, :2], y)) == pytest.approx(-2.0)
    assert float(attacks.cross_entropy(logits, y)) == pytest.approx(float(-logits.log_softmax(1)[0, 0]))


def test_best_iterate_is_kept_where_the_last_is_worse() -> None:
    class Ridge(nn.Module):
        """Fooled only near one point on the way; the ascent overshoots it."""

        def forward(self, x: Tensor) -> Tensor:
            distance = (x.flatten(1).mean(1) - 0.605).abs()
            return torch.stack([distance * 20, 1 - distance * 20], 1)

    x = torch.full((4, 1, 2, 2), 0.5)
    y = torch.zeros(4, dtype=torch.int64)
    attack = advbench.get_attack("pgd", steps=6, step_size=0.25, random_start=False)
    x_adv = attack(Ridge(), x, y, Threat("linf", 0.4))
    assert bool((Ridge()(x_adv).argmax(1) != y).all())


def test_eot_averages_the_draws_gradients_and_costs_their_passes() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    clf = Classifier(net, GaussianPosterior(net, std=0.3)).requires_grad_(False)
    x, y = images(5), torch.tensor([0, 1, 2, 0, 1])
    gradient = clf.reseed(3).input_gradient(x, y, attacks.cross_entropy, samples=7)
    draws = [clf.draw(seed) for seed in clf.reseed(3).fresh_seeds(7)]
    parts = [clf.input_gradient(x, y, attacks.cross_entropy, draws=[draw]).value for draw in draws]
    torch.testing.assert_close(gradient.value, torch.stack(parts).mean(0))
    assert gradient.logits.shape == (7, 5, 3)
    crafted = craft(advbench.get_attack("eot_pgd", steps=4, samples=6), clf, x, y, Threat("linf", 0.1))
    assert (crafted.forward_passes, crafted.backward_passes) == (24, 24)


def test_all_chains_fgsm_of_bal_is_one_step_of_eot_pgd() -> None:
    """The sign of the gradient's mean over all members, each once."""
    clf, x, y = members()
    x_adv = advbench.get_attack("eot_pgd", steps=1, step_size=1.0, random_start=False, samples=5)(
        clf, x, y, Threat("linf", 0.1)
    )
    mean = torch.stack([input_gradient(clf, k, x, lambda z: attacks.cross_entropy(z, y)) for k in range(5)]).mean(0)
    torch.testing.assert_close(x_adv, (x + 0.1 * mean.sign()).clamp(0, 1))


def test_the_released_one_step_attack_of_bal_takes_the_raw_gradient_over_the_root_of_two() -> None:
    clf, x, y = members()
    attack = advbench.get_attack("cw_one_step", released=True, samples=5)
    x_adv = attack(clf, x, y, Threat("l2", 6.0))
    rows = torch.arange(len(x))

    def lead(logits: Tensor) -> Tensor:
        others = torch.ones_like(logits)
        others[rows, y] = -1
        return (logits * others).sum(1)

    mean = torch.stack([input_gradient(clf, k, x, lead) for k in range(5)]).mean(0)
    torch.testing.assert_close(x_adv, (x + mean / 2**0.5).clamp(0, 1))
    assert attack.cost(random=True) == 5
    assert float((attack(clf, x, y, Threat("l2", 0.01)) - x).flatten(1).norm(dim=1).max()) <= 0.01 + 1e-6


def members() -> tuple[Classifier, Tensor, Tensor]:
    """A posterior of five members, and images."""
    net = small_net().eval()
    flat = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
    noise = torch.randn((5, len(flat)), generator=torch.Generator().manual_seed(0))
    clf = Classifier(net, SamplePosterior(net, flat + 0.1 * noise)).requires_grad_(False)
    return clf, *small_data().batch(slice(8))


def input_gradient(clf: Classifier, member: int, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(loss(clf.at(clf.member(member), x)).sum(), x)[0]


def test_passes_of_a_deterministic_model_are_counted_and_not_repeated() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x, y = images(5), torch.tensor([0, 1, 2, 0, 1])
    crafted = craft(advbench.get_attack("eot_pgd", steps=4, samples=6), Classifier(net), x, y, Threat("linf", 0.1))
    assert (crafted.forward_passes, crafted.backward_passes) == (4, 4)


def test_restarts_are_chosen_by_draws_of_the_attack_alone() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    clf = Classifier(net, GaussianPosterior(net, std=0.3)).requires_grad_(False)
    x, y = images(5), torch.tensor([0, 1, 2, 0, 1])
    before = advbench.evaluate(clf, x, y, draws=5)
    one = advbench.get_attack("pgd", restarts=3)(clf, x, y, Threat("linf", 0.1))
    assert torch.equal(one, advbench.get_attack("pgd", restarts=3)(clf, x, y, Threat("linf", 0.1)))
    after = advbench.evaluate(clf, x, y, draws=5)
    assert (before.mean_probs == after.mean_probs).all()


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A net that is neither robust nor hopeless at eps 0.1, and images of which it gets some wrong."""
    data = small_data(300)
    noisy = (data.images + 0.3 * torch.randn(data.images.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)
    net = advbench.get_defense("erm", stages=(5,), batch_size=32).fit(small_net(), Data(noisy, data.labels, 3)).module
    return net, noisy, data.labels


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [0.02, 0.05, 0.1])
def test_early_stop_costs_less_and_breaks_no_fewer(norm: Any, eps: float) -> None:
    net, x, y = trained()
    threat = Threat(norm, eps if norm == "linf" else 4 * eps)
    clf = Classifier(net)
    full = craft(advbench.get_attack("pgd"), clf, x, y, threat)
    early = craft(advbench.get_attack("pgd"), clf, x, y, threat, batch_size=64, stop_early=True)
    robust = advbench.evaluate(clf, early.images, y).accuracy
    assert robust <= advbench.evaluate(clf, full.images, y).accuracy
    assert 18 * robust <= early.backward_passes <= 18 * robust + 8 * (1 - robust)
    assert robust < advbench.evaluate(clf, x, y).accuracy < 1


def test_early_stop_passes_only_what_is_left() -> None:
    net, x, y = trained()
    sizes: list[int] = []
    handle = net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    attack, threat = advbench.get_attack("pgd"), Threat("linf", 0.1)
    whole = craft(attack, Classifier(net), x[:64], y[:64], threat, stop_early=True)
    handle.remove()
    passed = sizes[2:]  # two passes of a few images come first, to look at the model
    assert passed[0] == 64
    assert passed == sorted(passed, reverse=True)
    assert sum(passed) == pytest.approx(64 * whole.forward_passes)
    both = craft(attack, Classifier(net), x, y, threat, batch_size=64, stop_early=True).images
    torch.testing.assert_close(both[:64], whole.images)


@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("draws", [5, 10, 20])
def test_an_image_is_certain_as_seldom_as_the_level_says(margin: float, draws: int) -> None:
    """Of images whose two classes are equally likely on average one in a thousand passes; of plain ones nearly all."""
    generator = torch.Generator().manual_seed(0)
    gap = margin + torch.randn((draws, 40_000), generator=generator)
    logits = torch.stack([torch.zeros_like(gap), gap], -1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    clf = Classifier(net, GaussianPosterior(net, std=0.3))
    labels = torch.zeros(40_000, dtype=torch.int64)
    share = float(attacks.certainly_reached(clf, attacks.Goal.of(labels), logits).float().mean())
    aimed = attacks.Goal.of(labels, 1 - labels)
    assert float(attacks.certainly_reached(clf, aimed, logits).float().mean()) == pytest.approx(share)
    if margin == 0:
        assert share < 0.002
    elif margin == 2:
        assert share > {5: 0.3, 10: 0.95, 20: 0.999}[draws]
    assert not attacks.certainly_reached(clf, attacks.Goal.of(labels), logits[:4]).any()


def test_a_mirrored_pair_is_one_value() -> None:
    """Where the two of each pair agree, as where what counts is even in the noise, five pairs are five values."""
    gap = torch.randn((5, 40_000), generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 0)
    logits = torch.stack([torch.zeros_like(gap), gap], -1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    clf, goal = (
        Classifier(net, GaussianPosterior(net, std=0.3)),
        attacks.Goal.of(torch.zeros(40_000, dtype=torch.int64)),
    )
    shares = [
        float(attacks.certainly_reached(clf, goal, logits, 0.01, paired=paired).float().mean())
        for paired in (True, False)
    ]
    assert shares[0] < 0.015
    assert shares[1] > 0.03


def noisy_line(slope: float) -> tuple[Classifier, Tensor, Tensor]:
    """A random net whose two logits differ by a multiple of the brightness above one half, and noise."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[1].weight[0], net[1].weight[1] = -slope / 16, slope / 16
        net[1].bias[0], net[1].bias[1] = slope / 2, -slope / 2
    x = 0.5 - 0.2 * torch.rand((400, 1, 1, 1), generator=torch.Generator().manual_seed(0)).expand(-1, 1, 4, 4)
    return Classifier(net, GaussianPosterior(net, std=0.3)), x.contiguous(), torch.zeros(400, dtype=torch.int64)


@pytest.mark.parametrize(("name", "params"), [("eot_pgd", {"restarts": 2}), ("apgd", {"steps": 20, "restarts": 2})])
def test_a_random_net_is_left_alone_where_it_certainly_fails(name: str, params: dict[str, Any]) -> None:
    clf, x, y = noisy_line(10.0)
    attack, threat = advbench.get_attack(name, **params), Threat("linf", 0.1)
    full = craft(attack, clf, x, y, threat)
    early = craft(attack, clf, x, y, threat, stop_early=True)
    assert early.forward_passes < 0.9 * full.forward_passes <= 0.9 * (attack.cost(True) or 0)
    accuracies = [advbench.evaluate(clf, found.images, y, draws=200).accuracy for found in (full, early)]
    assert 0.3 < accuracies[0] < 0.7
    assert accuracies[1] <= accuracies[0] + 0.005
    few = advbench.get_attack("eot_pgd", samples=4)  # on which nothing is certain
    assert craft(few, clf, x, y, threat, stop_early=True).forward_passes == few.cost(True)


def test_the_draws_that_find_an_image_broken_do_not_confirm_it() -> None:
    clf, x, y = noisy_line(10.0)
    rows, broken = torch.arange(len(x)), torch.stack([torch.zeros(10, len(x)), torch.ones(10, len(x))], -1)
    broken += 0.1 * torch.randn(broken.shape, generator=torch.Generator().manual_seed(0))
    certain = attacks.Certain(clf, attacks.Goal.of(y))
    assert not certain.look(broken, rows).any()
    assert not certain.look(-broken[:, :200], rows[:200]).any()
    assert not certain.look(broken[:, :200], rows[:200]).any(), "one look right after another, not any two"
    assert bool(certain.look(broken, rows).all())
    members = Classifier(clf.module, SamplePosterior(clf.module, torch.randn(3, 34)))
    assert bool(attacks.Certain(members, attacks.Goal.of(y)).look(broken[:3], rows).all()), "all members are proof"


# Defects of other libraries that must not be ours


@pytest.mark.parametrize(("params", "passes"), [({}, 100), ({"loss": "dlr"}, 100), ({"steps": 20, "restarts": 3}, 60)])
def test_auto_pgd_makes_all_its_steps(params: dict[str, Any], passes: int) -> None:
    """On images that no step breaks: one library's version makes a tenth of them."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    with torch.no_grad():
        net[1].bias[0] += 1000.0
    x, y = images(5), torch.zeros(5, dtype=torch.int64)
    crafted = craft(advbench.get_attack("apgd", **params), Classifier(net), x, y, Threat("linf", 0.01))
    assert crafted.backward_passes == passes


def test_auto_pgd_leaves_alone_what_is_wrong_from_the_start() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    x = images(6)
    wrong = (net(x).argmax(1) + 1) % 4
    crafted = craft(advbench.get_attack("apgd"), Classifier(net), x, wrong, Threat("linf", 0.1))
    assert (crafted.forward_passes, crafted.backward_passes) == (1, 0)
    assert torch.equal(crafted.images, x)


def test_the_memory_of_eot_is_that_of_one_draw() -> None:
    """Activations of one draw are let go before the next is made, whatever the number of samples."""
    alive = peak = 0

    class Held(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            nonlocal alive, peak
            alive += 1
            peak = max(peak, alive)
            ctx.token = weakref.finalize(ctx, freed)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient

    def freed() -> None:
        nonlocal alive
        alive -= 1

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(Held.apply(x.flatten(1)))

    net = Counting(16, 3)
    clf = Classifier(net, GaussianPosterior(net, std=0.1))
    x, y = images(3), torch.tensor([0, 1, 2])
    peaks = []
    for samples in (1, 2, 30):
        gc.collect()
        peak = alive
        advbench.get_attack("eot_pgd", steps=2, samples=samples)(clf, x, y, Threat("linf", 0.1))
        peaks.append(peak)
    assert len(set(peaks)) == 1


def test_a_model_with_one_class_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    with pytest.raises(advbench.InputError, match="classes of the model under attack: expected at least 2, got 1"):
        advbench.get_attack("pgd")(net, images(2), torch.zeros(2, dtype=torch.int64), Threat("linf", 0.1))


@pytest.mark.parametrize("gap", [20.0, 60.0])
def test_confidence_does_not_mask_the_gradient(gap: float) -> None:
    """Where softmax rounds to 1, its cross-entropy no longer says where the label's logit falls."""
    weight = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, -1.0]])
    logits = torch.tensor([[gap, 0.0, -1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(attacks.cross_entropy(logits, torch.tensor([0])).sum(), logits)
    direction = gradient @ weight
    assert float(gradient[0, 0]) < 0
    assert float(direction[0, 0]) < 0
    torch.testing.assert_close(gradient.double()[0, 0], -torch.exp(torch.tensor(-gap).double()) * (1 + math.exp(-1)))
    torch.testing.assert_close(
        attacks.cross_entropy.slope(logits.detach(), torch.tensor([0])), gradient, atol=0, rtol=1e-5
    )


@pytest.mark.parametrize("loss", [attacks.cross_entropy, attacks.targeted_cross_entropy])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_slopes_are_autograds(loss: Any, dtype: torch.dtype) -> None:
    logits = (5 * torch.randn((50, 7), generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()
    y = torch.stack([torch.arange(50) % 7, (torch.arange(50) + 1) % 7], 1)
    rows = y if loss is attacks.targeted_cross_entropy else y[:, 0]
    (expected,) = torch.autograd.grad(loss(logits.double(), rows).sum(), logits)
    torch.testing.assert_close(loss.slope(logits.detach(), rows), expected)


def test_cross_entropy_is_torchs() -> None:
    logits = 3 * torch.randn((50, 7), generator=torch.Generator().manual_seed(0))
    y = torch.arange(50) % 7
    torch.testing.assert_close(
        attacks.cross_entropy(logits, y), nn.functional.cross_entropy(logits, y, reduction="none")
    )


def test_targeted_losses_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.5, -1.0]])
    rows = torch.tensor([[0, 1]])
    assert float(attacks.targeted_margin(logits, rows)) == pytest.approx(1.0 - 3.0)
    assert float(attacks.targeted_dlr(logits, rows)) == pytest.approx((1.0 - 3.0) / (3.0 - (0.5 - 1.0) / 2))
    assert float(attacks.targeted_dlr(logits[:, :3], rows)) == pytest.approx((1.0 - 3.0) / (3.0 - 0.5))
    assert float(attacks.targeted_dlr(logits[:, :2], rows)) == pytest.approx(1.0 - 3.0)
    assert float(attacks.targeted_cross_entropy(logits, rows)) == pytest.approx(float(logits.log_softmax(1)[0, 1]))


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd"])
@pytest.mark.parametrize("eps", [0.1, 0.5, 3.0])
def test_the_l2_ball_of_alike_pixels_is_not_left(name: str, eps: float) -> None:
    """Where each pixel's change is rounded the same way, and 150,000 of them add up."""

    class Sum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            total = x.flatten(1).mean(1, keepdim=True)
            return torch.cat([-total, total], 1)

    x = torch.full((2, 3, 224, 224), 0.7)
    x[1] = torch.rand((3, 224, 224), generator=torch.Generator().manual_seed(0))
    attack = advbench.get_attack(name, **({} if name == "fgsm" else {"steps": 4}))
    found = attack(Classifier(Sum()), x, torch.ones(2, dtype=torch.int64), Threat("l2", eps))
    distance = (found.double() - x.double()).flatten(1).norm(dim=1)
    assert float(distance.max()) <= eps + 1e-6
    assert float(distance[0]) >= eps - 1e-3 * eps - 3e-5


def test_the_worst_case_of_one_attack_twice_needs_labels() -> None:
    with pytest.raises(advbench.InputError, match=r"attacks of the worst case: expected each name once; .*, got pgd"):
        advbench.get_attack("worst_case", attacks=["pgd", "pgd"])
    assert len(advbench.get_attack("worst_case", attacks=["pgd", "pgd@margin"]).parts) == 2


# Random models whose best perturbation is known


@pytest.mark.parametrize("name", ["eot_pgd", "apgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_gaussian_over_a_linear_net_is_moved_along_the_normal_of_its_mean(
    name: str, norm: Any, linear: Callable[..., nn.Module]
) -> None:
    """Its expected margin is that of the mean weights."""
    model, x = linear(classes=2), images(8)
    clf = Classifier(model, GaussianPosterior(model, std=0.1)).requires_grad_(False)
    y, threat = torch.arange(8) % 2, Threat(norm, 0.05 if norm == "linf" else 0.2)
    normal = (model.weight[1 - y] - model.weight[y]).detach()
    gain = threat.eps * (normal.abs().sum(1) if norm == "linf" else normal.norm(dim=1))
    x_adv = advbench.get_attack(name, loss="margin", samples=40, steps=50)(clf, x, y, threat)
    reached = ((x_adv - x).flatten(1) * normal).sum(1)
    assert bool((reached >= (1 - 0.002) * gain).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("name", "params"), [("eot_pgd", {"steps": 60, "restarts": 3}), ("apgd", {"restarts": 3})])
def test_the_enumerated_mean_of_three_linear_nets_reaches_its_optimum(
    name: str, params: dict[str, Any], norm: Any, linear: Callable[..., nn.Module]
) -> None:
    model, x, y = linear(classes=2), images(6), torch.arange(6) % 2
    samples = torch.stack([torch.cat([p.flatten() for p in linear(classes=2, seed=k).parameters()]) for k in range(3)])
    clf = Classifier(model, SamplePosterior(model, 3 * samples.detach())).requires_grad_(False)
    threat = Threat(norm, 0.1 if norm == "linf" else 0.4)
    weight = 3 * torch.stack([linear(classes=2, seed=k).weight for k in range(3)]).detach().double().numpy()
    bias = 3 * torch.stack([linear(classes=2, seed=k).bias for k in range(3)]).detach().double().numpy()

    def best(image: Tensor, label: int) -> float:
        """Lowest mean probability of the label in the ball, from many starts of a solver."""
        flat, rng = image.flatten().double().numpy(), np.random.default_rng(0)
        gap = weight[:, 1 - label] - weight[:, label], bias[:, 1 - label] - bias[:, label]

        def loss(delta: Any) -> Any:
            return expit(-(gap[0] @ (flat + delta) + gap[1])).mean()

        def slope(delta: Any) -> Any:
            p = expit(-(gap[0] @ (flat + delta) + gap[1]))
            return -(p * (1 - p)) @ gap[0] / 3

        box = optimize.Bounds(-threat.eps * np.ones(16), threat.eps * np.ones(16))
        ball = {"type": "ineq", "fun": lambda d: threat.eps**2 - d @ d, "jac": lambda d: -2 * d}
        rules = {"bounds": box} if norm == "linf" else {"constraints": [ball], "method": "SLSQP"}
        starts = [rng.uniform(-1, 1, 16) * threat.eps / (1 if norm == "linf" else 4) for _ in range(20)]
        return min(float(optimize.minimize(loss, start, jac=slope, **rules).fun) for start in starts)

    attack = advbench.get_attack(name, objective="loss_of_mean", **params)
    x_adv = attack(clf, x, y, threat)
    found = advbench.evaluate(clf, x_adv, y).mean_probs[np.arange(6), y.numpy()]
    optimum = np.array([best(x[i], int(y[i])) for i in range(6)])
    np.testing.assert_allclose(found, optimum, atol=0.002)


# The worst of several attacks


@pytest.mark.parametrize(("random", "passes"), [(False, 7800), (True, 4000)])
def test_the_worst_case_costs_no_more_by_default_than_it_says(random: bool, passes: int) -> None:
    attack = advbench.get_attack("worst_case")
    assert 0.9 * passes <= attack.cost(random) <= passes
    assert f"{passes:,}" in type(attack).__doc__
    cut = within_budget(attack, passes // 4, random=random)
    assert passes // 8 <= cut.cost(random) <= passes // 4


class Rounded(nn.Module):
    """Brightness in steps: no gradient comes through."""

    def forward(self, x: Tensor) -> Tensor:
        rise = torch.round(20 * x.detach().flatten(1).mean(1)) - 9.5
        return torch.stack([-rise, rise], 1)


def test_what_needs_a_gradient_is_left_out_of_the_worst_case_with_a_warning() -> None:
    x, y = torch.full((3, 1, 4, 4), 0.5), torch.ones(3, dtype=torch.int64)
    threat = Threat("linf", 0.2)
    attack = advbench.get_attack("worst_case", attacks=["pgd", "square"], params={"square": {"queries": 200}})
    with pytest.warns(ModelWarning, match="worst_case skipped PGD: the classifier has no gradient"):
        found = attack(Classifier(Rounded()), x, y, threat)
    assert bool((Rounded()(found).argmax(1) == 0).all())
    gradients = advbench.get_attack("worst_case", attacks=["pgd", "fgsm"])
    with pytest.warns(ModelWarning), pytest.raises(PluginError, match="no gradient"):
        gradients(Classifier(Rounded()), x, y, threat)


class Doubt(nn.Module):
    """Says the class that brightness shows by odds that noise moves: a share of the draws is wrong at any point."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, x: Tensor) -> Tensor:
        rise = 0.1 * x.flatten(1).mean(1) + self.offset + 3 * torch.randn(len(x))
        return torch.stack([-rise, rise], 1)


@pytest.mark.parametrize(("offset", "most", "least"), [(0.0, 8, 0), (0.3, 8, 0), (-6.0, 40, 40)])
def test_only_confirmed_images_of_a_random_classifier_are_left_alone(offset: float, most: int, least: int) -> None:
    """Of forty images whose mean softmax is undecided or right, hardly any is; of those surely wrong, each."""
    clf = Classifier(Doubt(offset), noise=True)
    x, y = torch.full((40, 1, 4, 4), 0.5), torch.ones(40, dtype=torch.int64)
    params = {"fgsm": {}, "square": {"queries": 2}}
    attack = advbench.get_attack("worst_case", attacks=["fgsm", "square"], params=params)
    crafted = craft(attack, clf, x, y, Threat("linf", 0.1))
    if least == 40:
        assert crafted.forward_passes == 50 + 20  # the draws that choose, and those that confirm
    else:
        never_left_alone = 50 + 1 + 50 + 4 + 50  # and confirmations, which only images get that look broken
        assert crafted.forward_passes >= never_left_alone * (1 - most / 40)


def test_few_members_are_confirmed_by_all_of_them_whatever_the_draws_of_the_selection() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    weights = torch.zeros(15, 10)
    weights[:, 8] = torch.where(torch.arange(15) < 8, 1.0, -1.0)  # eight of fifteen are right, whatever the image
    clf = Classifier(net, SamplePosterior(net, weights)).requires_grad_(False)
    x, y = torch.rand((200, 1, 2, 2), generator=torch.Generator().manual_seed(0)), torch.zeros(200, dtype=torch.int64)
    kept = attacks.Kept(clf.reseed(3), attacks.Goal.of(y), 5)
    kept.offer(x)
    for seed in range(20):
        kept.margins = torch.ones(200)  # by chance, the draws of the selection were fooled
        assert not _broken(clf.reseed(seed), kept, torch.arange(200), attacks.Goal.of(y)).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_goes_on_beyond_the_boundary_unless_it_may_stop(norm: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval().requires_grad_(False)
    x = torch.rand((30, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    attack, threat = advbench.get_attack("square", queries=200), Threat(norm, 0.3 if norm == "linf" else 1.0)
    margins = []
    for early in (True, False):
        found = craft(attack, Classifier(net), x, y, threat, stop_early=early)
        margins.append(attacks.Goal.of(y).margin(net(found.images)))
        assert (found.forward_passes == 201) is not early
    broken = [found > 0 for found in margins]
    assert int(broken[1].sum()) >= int(broken[0].sum()) - 3 > 0, "other random squares"
    assert float(margins[1][broken[1]].median()) > 1.5 * float(margins[0][broken[0]].median())


def test_an_enumerated_classifier_needs_no_confirmation(linear: Callable[..., nn.Module]) -> None:
    model, x = linear(classes=2), images(4)
    samples = torch.stack([torch.cat([p.flatten() for p in linear(classes=2, seed=k).parameters()]) for k in range(3)])
    clf = Classifier(model, SamplePosterior(model, samples.detach())).requires_grad_(False)
    wrong = 1 - torch.stack([clf.at(clf.member(k), x) for k in range(3)]).softmax(-1).mean(0).argmax(1)
    crafted = craft(advbench.get_attack("worst_case"), clf, x, wrong, Threat("linf", 0.1))
    assert (crafted.forward_passes, crafted.backward_passes) == (3, 0)


@pytest.mark.parametrize("inner", ["fgsm", "pgd"])
def test_a_gray_box_at_several_radii_keeps_the_first_example_that_fools_the_draw(inner: str) -> None:
    net = small_net().eval()
    clf = Classifier(net, GaussianPosterior(net, std=0.05)).requires_grad_(False)
    params = {"attack": inner, "params": {"steps": 5, "random_start": False} if inner == "pgd" else {}}
    once = advbench.get_attack("gray_box", **params)
    nearest = advbench.get_attack("gray_box", **params, radii=10)
    draw = once.attacked(clf)
    x, _ = small_data(40).batch(slice(40))
    y = draw(x).argmax(1)
    y[:3] = (y[:3] + 1) % 3  # wrong already
    found = craft(nearest, clf, x, y, Threat("linf", 0.3))
    expected = x.clone()
    for place in range(1, 11):
        left = draw(expected).argmax(1) == y
        expected[left] = craft(once, clf, x[left], y[left], Threat("linf", 0.3 * place / 10)).images
    assert torch.equal(found.images, expected)
    assert torch.equal(found.images[:3], x[:3])
    fooled = draw(found.images).argmax(1) != y
    assert fooled.sum() > 10
    assert len((found.images - x).abs().amax((1, 2, 3)).mul(100).round().unique()) > 3
    assert found.forward_passes < nearest.cost(True)

"""Adaptive Langevin dynamics in closed form, and BAL's Gibbs iteration by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advbench
from advbench.data.base import Data
from advbench.models.classifier import Classifier
from advbench.models.posterior import FlatLayout, SamplePosterior
from advbench.testing import same_weights, small_data, small_net
from advbench.training.base import TrainContext
from advbench.training.chains import sgadald_step
from advbench.training.loop import TrainState

COUNT = 20_000
PRECISIONS = torch.tensor([0.5, 1.0, 4.0])[:, None]
MEANS = torch.tensor([-1.0, 0.0, 2.0])[:, None]
EXACT: dict[str, Any] = {"image_temperature": 0.0, "temperature": 0.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bank(clf: Classifier) -> Tensor:
    assert isinstance(clf.posterior, SamplePosterior)
    return clf.posterior.samples


def blank(count: int = 8) -> Data:
    """Images that say nothing of the weights of a linear net without bias: the prior's gradient is all there is."""
    return Data(torch.zeros(count, 1, 4, 4), torch.arange(count) % 2, 2)


def linear_net(bias: bool = False) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=bias))


def flat(net: nn.Module) -> Tensor:
    return FlatLayout(net).flatten(dict(net.named_parameters())).detach()


def bright(count: int = 12) -> Data:
    """Images in the middle of [0, 1], so that small moves are never clipped."""
    return Data(0.4 + 0.2 * torch.rand((count, 1, 4, 4), generator=generator()), torch.arange(count) % 2, 2)


# SGAdaLD on a quadratic loss, with V held


def settled(second_moment: Tensor, spread: float, steps: int = 400, **options: Any) -> Tensor:
    """Where chains end whose gradient has Gaussian noise of deviation `spread`, V being held at `second_moment`."""
    random = generator()
    theta = MEANS.expand(3, COUNT).clone()
    square = second_moment.expand(3, COUNT).clone()
    held = {"count": 10**15, "window": 1e12}
    for _ in range(steps):
        gradient = PRECISIONS * (theta - MEANS) + spread * torch.randn(theta.shape, generator=random)
        sgadald_step(theta, gradient, square, generator=random, **held, **options)
    torch.testing.assert_close(square, second_moment.expand(3, COUNT), rtol=1e-4, atol=0)
    return theta


def check_gaussian(theta: Tensor, variance: Tensor) -> None:
    """Mean and variance of each row within 5 standard errors, plus float32's rounding where a variance is tiny."""
    found = theta.var(1, keepdim=True)
    assert bool(((found / variance - 1).abs() < 5 * math.sqrt(2 / COUNT)).all())
    assert bool(((theta.mean(1, keepdim=True) - MEANS).abs() < 5 * (variance / COUNT).sqrt() + 1e-6).all())


@pytest.mark.parametrize("spread", [0.0, 1.5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sgadald_is_exact_whatever_a_minibatchs_noise_where_v_is_the_gradients_second_moment(
    temperature: float, spread: float
) -> None:
    """With d = lr^2 / V^1/2, a gradient of variance v about its mean and s^2 the chain's variance:

    s^2 = (1 - d precision)^2 s^2 + d^2 v + 2 d T - lr^4. V = precision^2 s^2 + v turns d^2 V into lr^4, which
    leaves s^2 = T / precision.
    """
    second_moment = PRECISIONS * temperature + spread**2
    theta = settled(second_moment, spread, lr=0.5, temperature=temperature, friction=None, damping=1e-7)
    check_gaussian(theta, temperature / PRECISIONS)


@pytest.mark.parametrize("spread", [0.0, 1.5])
@pytest.mark.parametrize(
    ("temperature", "friction", "damping"), [(1.0, 4.0, 0.1), (0.6, 4.0, 1e-6), (1.0, None, 0.5), (1e-5, None, 0.1)]
)
def test_sgadald_has_the_linear_recursions_variance_at_any_v_friction_and_damping(
    temperature: float, friction: float | None, damping: float, spread: float
) -> None:
    """At T = 1e-5 eq. 10's variance is negative: nothing is added, and only the minibatch's noise is left."""
    lr = 0.5
    second_moment = torch.tensor([1.0, 3.0, 6.0])[:, None]
    root = second_moment.sqrt() + damping
    drift = lr**2 / root
    injected = 2 * (root / lr if friction is None else friction) * lr**3 * temperature / root**2 - lr**4
    variance = injected.clamp_min(0) + (drift * spread) ** 2
    stationary = variance / (2 * drift * PRECISIONS - (drift * PRECISIONS) ** 2)
    theta = settled(second_moment, spread, lr=lr, temperature=temperature, friction=friction, damping=damping)
    if float(stationary.max()) == 0:
        torch.testing.assert_close(theta, MEANS.expand(3, COUNT))
    else:
        check_gaussian(theta, stationary)


@pytest.mark.parametrize("gradient", [1e-3, 1.0, 1e3])
def test_under_a_constant_gradient_every_step_is_lr_squared_from_the_first_on(gradient: float) -> None:
    """V is freed from its start at 0: its root is the gradient's size at once, and stays so."""
    theta, square = torch.zeros(2), torch.zeros(2)
    constant = gradient * torch.tensor([1.0, -1.0])
    for count in range(1, 31):
        sgadald_step(
            theta,
            constant,
            square,
            count=count,
            lr=0.1,
            temperature=0.0,
            friction=None,
            window=20.0,
            damping=1e-9,
            generator=generator(),
        )
        torch.testing.assert_close(theta, count * 0.01 * torch.tensor([-1.0, 1.0]), rtol=1e-4, atol=0)


# chains as a training method, at temperature 0 on images that say nothing


def test_the_stages_rate_is_sglds_step_length() -> None:
    """theta <- (1 - lr rate weight_decay / 2) theta, exactly."""
    defense = advbench.get_defense(
        "sgld",
        stages=(3, 2, 4),
        batch_size=8,
        lr=0.4,
        weight_decay=0.5,
        temperature=0.0,
        burn_in=8,
        interval=1,
        samples=1,
    )
    found = bank(defense.fit(linear_net(), blank()))
    shrunk = 0.9**3 * 0.99**2 * 0.999**4
    torch.testing.assert_close(found[0], flat(linear_net()) * shrunk)


@pytest.mark.parametrize("name", ["bnn_sgadald", "bal"])
def test_the_stages_rate_is_sgadalds_step_length_and_v_goes_on(name: str) -> None:
    lr, decay, window, damping = 0.3, 0.5, 10.0, 0.05
    options = {"lr": lr, "weight_decay": decay, "window": window, "damping": damping, "temperature": 0.0}
    defense = advbench.get_defense(name, stages=(3, 2), batch_size=8, jitter=0.0, chains=2, samples=2, **options)
    # Images drawn by chance would bring a gradient of their own.
    still: dict[str, Any] = {"image_temperature": 0.0, "image_lr": 1e-30, "init_from": ""} if name == "bal" else {}
    found = bank(type(defense)(**defense._given, **still).fit(linear_net(), blank()))
    theta, mean = flat(linear_net()), torch.zeros(32)
    for step in range(1, 6):
        gradient = decay * theta
        mean = (1 - 1 / window) * mean + gradient.square() / window
        root = (mean / (1 - (1 - 1 / window) ** step)).sqrt() + damping
        theta = theta - lr**2 * (1 if step <= 3 else 0.1) / root * gradient
    torch.testing.assert_close(found, theta.expand(2, -1))


@pytest.mark.parametrize(("temperature", "same"), [(1 / 48, True), (2 / 48, False)])
def test_adaptive_chains_without_a_temperature_are_at_the_posteriors(temperature: float, same: bool) -> None:
    params = {"stages": (2,), "batch_size": 16, "lr": 0.05}
    default = advbench.get_defense("bnn_sgadald", temperature=None, **params).fit(small_net(), small_data())
    given = advbench.get_defense("bnn_sgadald", temperature=temperature, **params).fit(small_net(), small_data())
    assert same_weights(default, given) == same


@pytest.mark.parametrize("name", ["sgld", "bnn_sgadald", "bal"])
def test_equal_seeds_give_equal_banks_and_others_do_not(name: str) -> None:
    defense = advbench.get_defense(name, stages=(2,), batch_size=16, chains=3, burn_in=2, interval=2, samples=6)
    first, again, other = (bank(defense.fit(small_net(), small_data(), TrainContext(seed=s))) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert all(not torch.equal(row, another) for row, another in zip(first, other, strict=True))


@pytest.mark.parametrize("name", ["bnn_sgadald", "bal"])
def test_without_noise_the_jitter_alone_tells_chains_apart(name: str) -> None:
    still: dict[str, Any] = EXACT if name == "bal" else {"temperature": 0.0}
    params = {"stages": (5,), "batch_size": 4, "chains": 3, "samples": 3, **still}
    alike = bank(advbench.get_defense(name, jitter=0.0, **params).fit(linear_net(), bright()))
    assert torch.equal(alike, alike[:1].expand(3, -1))
    apart = bank(advbench.get_defense(name, jitter=0.05, **params).fit(linear_net(), bright()))
    assert all(float((one - other).abs().max()) > 0.01 for one, other in itertools.combinations(apart, 2))


@pytest.mark.parametrize("name", ["sgld", "bnn_sgadald"])
def test_each_chain_has_noise_of_its_own(name: str) -> None:
    """Chains that start alike, after one step without a gradient: noise alone, and uncorrelated."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 500, bias=False))
    data = Data(torch.zeros(8, 1, 4, 4), torch.arange(8), 500)
    options = {"stages": (1,), "batch_size": 8, "jitter": 0.0, "burn_in": 0, "interval": 1, "weight_decay": 0.0}
    defense = advbench.get_defense(name, chains=3, samples=3, temperature=1.0, lr=0.1, **options)
    correlation = torch.corrcoef(bank(defense.fit(net, data)) - flat(net))
    assert float((correlation - torch.eye(3)).abs().max()) < 5 / math.sqrt(8000)


# BAL


class Surely(nn.Module):
    """Two linear logits, the second so much larger that the loss of label 0 is linear in the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.1, -0.2, 0.0, 0.3], [0.3, 0.1, 0.0, -0.1]]))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + torch.tensor([0.0, 60.0])


def test_images_ascend_the_sum_of_the_losses_of_chains_that_differ() -> None:
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    defense: Any = advbench.get_defense(
        "bal", chains=4, jitter=0.5, image_steps=1, image_lr=0.01, image_temperature=0.0, alpha=3.0
    )
    state = defense.begin(Surely(), 9, 100, TrainContext())
    weights = state.tensors["chains"].view(4, 2, 4)
    slopes = weights[:, 1] - weights[:, 0]
    moved = defense.perturb(state, x, y, generator())
    torch.testing.assert_close(moved, x + 0.01 * slopes.sum(0).view(1, 1, 2, 2))
    assert float((slopes.sum(0) - 4 * slopes[0]).abs().max()) > 0.1


def test_at_temperature_0_images_converge_to_the_energys_top() -> None:
    """sum_s g_s (x~ - x) - alpha |x~ - x|^2 is largest at x + sum_s g_s / (2 alpha)."""
    x, y = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    defense: Any = advbench.get_defense(
        "bal", chains=3, jitter=0.0, image_steps=200, image_lr=0.02, image_temperature=0.0, alpha=3.0, samples=3
    )
    moved = defense.perturb(defense.begin(Surely(), 9, 100, TrainContext()), x, y, generator())
    slope = (Surely().weight[1] - Surely().weight[0]).detach()
    torch.testing.assert_close(moved.flatten() - 0.5, 3 * slope / 6)


def test_inside_the_sum_the_price_counts_once_for_each_chain() -> None:
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    common: dict[str, Any] = {"chains": 4, "image_steps": 20, "image_lr": 0.01, "image_temperature": 0.0}
    moved = []
    for params in ({"alpha": 0.5, "price_inside": True}, {"alpha": 2.0}):
        defense: Any = advbench.get_defense("bal", **common, **params)
        moved.append(defense.perturb(defense.begin(Surely(), 9, 100, TrainContext()), x, y, generator()))
    torch.testing.assert_close(*moved)


@pytest.mark.parametrize("clean_weight", [0.0, 0.5, 1.0])
def test_a_gibbs_iteration_by_hand(clean_weight: float) -> None:
    """One step of the images on the clean loss, then one of the weights on the losses' mean."""
    data, lr, image_lr, damping = bright(), 0.5, 0.05, 1.0
    defense = advbench.get_defense(
        "bal",
        stages=(1,),
        batch_size=12,
        chains=2,
        samples=2,
        jitter=0.0,
        lr=lr,
        damping=damping,
        image_steps=1,
        image_lr=image_lr,
        clean_weight=clean_weight,
        init_from="",
        **EXACT,
    )
    found = bank(defense.fit(linear_net(), data))
    weight = flat(linear_net()).requires_grad_(True)
    x = data.images.flatten(1).clone().requires_grad_(True)

    def logits(images: Tensor) -> Tensor:
        return images @ weight.view(2, 16).T

    (slope,) = torch.autograd.grad(F.cross_entropy(logits(x), data.labels, reduction="sum"), x)
    moved = (x + image_lr * 2 * slope).detach()
    attacked, clean = (F.cross_entropy(logits(images), data.labels) for images in (moved, x.detach()))
    (gradient,) = torch.autograd.grad((1 - clean_weight) * attacked + clean_weight * clean, weight)
    expected = weight.detach() - lr**2 * gradient / (gradient.abs() + damping)
    torch.testing.assert_close(found, expected.expand(2, -1))


@pytest.mark.parametrize(("clean_weight", "halves"), [(0.0, 1), (0.5, 2)])
def test_images_are_drawn_in_eval_mode_and_weights_moved_in_train_mode(clean_weight: float, halves: int) -> None:
    """So dropout and batch norm serve the weights alone; the passes are those that the method announces."""
    seen: list[tuple[bool, int]] = []

    class Noting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, len(x)))
            return super().forward(x.flatten(1))

    defense = advbench.get_defense(
        "bal",
        stages=(1,),
        batch_size=6,
        chains=2,
        samples=2,
        image_steps=3,
        image_chains=2,
        weight_steps=4,
        clean_weight=clean_weight,
        init_from="",
    )
    defense.fit(Noting(16, 2), bright(12))
    iteration = [(False, 12)] * (2 * 3) + [(True, 12 * halves)] * (2 * 4)
    steps = [(training, images) for training, images in seen if images in (12, 24)]  # the others check the classifier
    assert steps == iteration * 2
    assert sum(images for _, images in steps) == 12 * defense.passes_per_image()  # type: ignore[attr-defined]


def test_clean_images_follow_the_moved_ones_each_beside_its_own() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Spy(type(advbench.get_defense("bal"))):  # type: ignore[misc]
        def advance(self, state: TrainState, x: Tensor, y: Tensor, *rest: Any) -> Any:
            seen.append((x, y))
            return super().advance(state, x, y, *rest)

    options = {"image_chains": 3, "image_lr": 1e-4, "image_temperature": 1e-4, "init_from": ""}
    data = bright()
    Spy(stages=(1,), batch_size=12, clean_weight=0.5, **options).fit(linear_net(), data)
    x, y = seen[0]
    moved, clean = x.chunk(2)
    assert torch.equal(clean, clean[:12].repeat(3, 1, 1, 1))
    assert torch.equal(clean[:12].flatten(1).sort(0).values, data.images.flatten(1).sort(0).values)
    assert torch.equal(y, y[:12].repeat(6))
    assert not torch.equal(moved, clean)
    torch.testing.assert_close(moved, clean, atol=0.01, rtol=0)


@pytest.mark.parametrize("preset", ["digits", "mnist", "cifar10", "gtsrb", "paper"])
@pytest.mark.parametrize("name", ["bal", "bnn_sgadald"])
def test_every_preset_injects_noise(name: str, preset: str) -> None:
    """At a low temperature long steps leave no variance for it, and the chain is an optimiser."""
    defense = advbench.get_defense(name)
    if preset not in defense.presets:
        pytest.skip("no such preset")
    params = {"preset": preset, "stages": (3,), "batch_size": 16, "init_from": None, "augment": False}
    seen: list[float] = []
    context = TrainContext(progress=lambda progress: seen.append(progress.values["weights with noise"]))
    advbench.get_defense(name, **params).fit(small_net(), small_data(), context)
    assert seen[-1] > 0.05


def test_the_images_noise_differs_from_step_to_step() -> None:
    defense: Any = advbench.get_defense("bal", image_temperature=1.0, image_steps=1, image_lr=0.01)
    context = TrainContext()
    one, other = (context.generator("images", step) for step in (0, 1))
    net = small_net().eval()
    state = defense.begin(net, 4, 48, context)
    x, y = small_data().batch(slice(8))
    assert not torch.equal(defense.perturb(state, x, y, one), defense.perturb(state, x, y, other))
    labels: list[tuple[object, ...]] = []

    class Watched(TrainContext):
        def generator(self, *label: object) -> torch.Generator:
            labels.append(label)
            return super().generator(*label)

    for step in (0, 1):
        state.step = step
        defense.update(state, x, y, 48, Watched())
    assert ("images", 0) in labels
    assert ("images", 1) in labels

"""Samplers against Gaussians and grids, chains and their bank, and BAL's images and weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advbench
from advbench.data.base import Data
from advbench.errors import InputError
from advbench.models.classifier import Classifier
from advbench.models.posterior import FlatLayout, SamplePosterior
from advbench.testing import same_weights, small_data, small_net
from advbench.training.base import TrainContext
from advbench.training.chains import sgadald_step, sgld_step
from advbench.training.loop import TrainState

SHORT = {"stages": (2, 2), "batch_size": 16}  # 12 steps
PRECISIONS = torch.tensor([0.5, 1.0, 4.0])[:, None]
MEANS = torch.tensor([-1.0, 0.0, 2.0])[:, None]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bank(clf: Classifier) -> Tensor:
    assert isinstance(clf.posterior, SamplePosterior)
    return clf.posterior.samples


# the steps on a quadratic loss: precision / 2 * (theta - mean)^2, many coordinates at once


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_sgld_recovers_mean_and_variance_of_a_gaussian_at_any_temperature(temperature: float) -> None:
    """theta' - m = (1 - a)(theta - m) + noise with a = lr precision / 2 has the variance T / precision / (1 - a/2)."""
    count, lr, random = 40_000, 0.1, generator()
    theta = MEANS.expand(3, count).clone()
    for _ in range(400):
        sgld_step(theta, PRECISIONS * (theta - MEANS), lr=lr, temperature=temperature, generator=random)
    exact = temperature / PRECISIONS / (1 - lr * PRECISIONS / 4)
    found = theta.var(1, keepdim=True)
    assert bool(((found / exact - 1).abs() < 5 * math.sqrt(2 / count)).all())
    assert bool(((theta.mean(1, keepdim=True) - MEANS).abs() < 5 * (exact / count).sqrt()).all())
    assert bool(((found / (temperature / PRECISIONS) - 1).abs() < 0.15).all())


def test_a_minibatchs_noise_adds_to_sgld_what_the_theory_says() -> None:
    count, lr, spread, random = 40_000, 0.2, 3.0, generator()
    theta = torch.zeros(count)
    for _ in range(200):
        gradient = theta + spread * torch.randn(count, generator=random)
        sgld_step(theta, gradient, lr=lr, temperature=1.0, generator=random)
    a = lr / 2
    exact = (lr + a**2 * spread**2) / (2 * a - a**2)
    assert abs(float(theta.var()) / exact - 1) < 5 * math.sqrt(2 / count)


def test_at_temperature_0_sgld_is_gradient_descent() -> None:
    theta, gradient = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    sgld_step(theta, gradient, lr=0.1, temperature=0.0, generator=generator())
    torch.testing.assert_close(theta, torch.tensor([1.0 - 0.025, -2.0 - 0.15]))


ADAPTIVE: dict[str, Any] = {"lr": 0.2, "friction": None, "window": 2000.0, "damping": 1e-6}


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_sgadald_recovers_mean_and_variance_of_a_gaussian_at_any_temperature(temperature: float) -> None:
    """Where V has settled at the gradient's second moment, eq. 10's subtracted term makes the variance exact."""
    count, random = 2000, generator()
    theta = MEANS + torch.randn((3, count), generator=random) * (temperature / PRECISIONS).sqrt()
    square, squares, sums, taken = torch.zeros_like(theta), torch.zeros(3, 1), torch.zeros(3, 1), 0
    for step in range(1, 9001):
        gradient = PRECISIONS * (theta - MEANS)
        sgadald_step(theta, gradient, square, count=step, temperature=temperature, generator=random, **ADAPTIVE)
        if step > 5000 and step % 100 == 0:
            sums += (theta - MEANS).mean(1, keepdim=True)
            squares += (theta - MEANS).square().mean(1, keepdim=True)
            taken += 1
    torch.testing.assert_close(squares / taken, temperature / PRECISIONS, rtol=0.05, atol=0)
    # The 40 passes are correlated: as if they were a handful.
    assert bool(((sums / taken).abs() < 5 * (temperature / PRECISIONS / count / 4).sqrt()).all())
    torch.testing.assert_close(square.mean(1, keepdim=True), temperature * PRECISIONS, rtol=0.1, atol=0)


def test_sgadald_with_a_given_friction_is_eq_10() -> None:
    lr, friction, window, damping, temperature = 0.3, 2.0, 10.0, 1e-3, 0.7
    theta, square = torch.tensor([1.0, -2.0, 0.5]), torch.zeros(3)
    first, second = torch.tensor([0.5, 3.0, 40.0]), torch.tensor([-1.0, 0.1, 40.0])
    random, expected = generator(), theta.clone()
    mean = torch.zeros(3)
    for count, gradient in enumerate((first, second), start=1):
        mean = 0.9 * mean + 0.1 * gradient.square()
        root = (mean / (1 - 0.9**count)).sqrt() + damping
        variance = (2 * friction * lr**3 * temperature / root**2 - lr**4).clamp_min(0)
        noise = torch.empty(3).normal_(generator=random)
        expected = expected - lr**2 / root * gradient + variance.sqrt() * noise
    random = generator()
    for count, gradient in enumerate((first, second), start=1):
        sgadald_step(
            theta,
            gradient,
            square,
            count=count,
            lr=lr,
            temperature=temperature,
            friction=friction,
            window=window,
            damping=damping,
            generator=random,
        )
    torch.testing.assert_close(theta, expected)
    torch.testing.assert_close(square, mean)
    assert float(variance[2]) == 0  # the minibatch's own noise is already more than eq. 10 asks for


def test_weights_without_gradient_do_not_run_away() -> None:
    theta, square = torch.zeros(1000), torch.zeros(1000)
    options = {**ADAPTIVE, "lr": 0.03, "damping": 1e-3}
    sgadald_step(theta, torch.zeros(1000), square, count=1, temperature=1e-5, generator=generator(), **options)
    expected = math.sqrt(2 * 0.03**2 / 1e-3 * 1e-5 - 0.03**4)
    assert float(theta.std()) == pytest.approx(expected, rel=5 / math.sqrt(2000))


# chains as a training method


class OneWeight(nn.Module):
    """Logits (0, w x) of images of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        score = self.w * x.flatten(1)
        return torch.cat([torch.zeros_like(score), score], 1)


def test_sgld_finds_the_posterior_of_a_logistic_regression() -> None:
    x = torch.linspace(0.2, 1, 24).view(-1, 1, 1, 1)
    y = (torch.arange(24) % 4 != 0).long()
    defense = advbench.get_defense(
        "sgld",
        stages=(3500,),
        batch_size=24,
        lr=0.6,
        weight_decay=0.05,
        burn_in=300,
        interval=20,
        samples=640,
        chains=4,
    )
    samples = bank(defense.fit(OneWeight(), Data(x, y, 2)))
    grid = torch.linspace(-5, 9, 2001)
    scores = grid[:, None] * x.flatten()
    losses = F.cross_entropy(torch.stack([torch.zeros_like(scores), scores], 1), y.expand(2001, 24), reduction="none")
    density = torch.softmax(-(losses.sum(1) + 24 * 0.05 / 2 * grid.square()).double(), 0)
    mean = float((density * grid).sum())
    std = float((density * (grid - mean).square()).sum().sqrt())
    assert len(samples) == 640
    assert float(samples.mean()) == pytest.approx(mean, abs=5 * std / math.sqrt(200))
    assert float(samples.std()) == pytest.approx(std, rel=5 / math.sqrt(400))


def test_weight_decay_is_a_gaussian_prior_of_precision_n_times_itself() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    data = Data(torch.zeros(8, 1, 4, 4), torch.arange(8) % 2, 2)
    defense = advbench.get_defense(
        "sgld", stages=(2400,), batch_size=8, lr=0.2, weight_decay=1.0, burn_in=100, interval=46, chains=2, samples=100
    )
    samples = bank(defense.fit(net, data))
    exact = 1 / 8 / (1 - 0.2 / 4)
    assert samples.shape == (100, 32)
    assert float(samples.square().mean()) == pytest.approx(exact, rel=5 * math.sqrt(2 / 3200))


def test_the_default_temperature_is_the_posteriors() -> None:
    params = {**SHORT, "burn_in": 2, "interval": 2}
    default = advbench.get_defense("sgld", **params).fit(small_net(), small_data())
    given = advbench.get_defense("sgld", temperature=1 / 48, **params).fit(small_net(), small_data())
    assert same_weights(default, given)


class Trace:
    """The chains after every step of a training, and the steps at which they were kept."""

    def __init__(self, name: str, **params: Any) -> None:
        self.chains: list[Tensor] = []
        self.rates: list[float] = []
        trace = self

        class Spy(type(advbench.get_defense(name))):  # type: ignore[misc]
            def collect(self, state: TrainState) -> None:
                super().collect(state)
                trace.chains.append(state.tensors["chains"].clone())
                trace.rates.append(state.rate)

        self.clf = Spy(**{**SHORT, **params}).fit(small_net(), small_data())


@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize(("burn_in", "interval", "kept"), [(0, 1, 12), (3, 2, 99), (2, 5, 6), (11, 1, 3), (4, 3, 1)])
def test_the_bank_holds_the_newest_samples_every_interval_after_burn_in(
    chains: int, burn_in: int, interval: int, kept: int
) -> None:
    trace = Trace("sgld", chains=chains, burn_in=burn_in, interval=interval, samples=kept * chains)
    due = [step for step in range(1, 13) if step > burn_in and (step - burn_in) % interval == 0]
    expected = torch.cat([trace.chains[step - 1] for step in due[-kept:]])
    found = bank(trace.clf)
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))


def test_chains_start_apart_by_the_jitter_and_stay_apart() -> None:
    trace = Trace("bnn_sgadald", chains=3, jitter=0.05, samples=3)
    layout = FlatLayout(small_net())
    defense: Any = advbench.get_defense("bnn_sgadald", chains=200, jitter=0.05, samples=200)
    state = defense.begin(small_net(), 12, 48, TrainContext())
    start = layout.flatten(dict(small_net().named_parameters()))
    assert float((state.tensors["chains"] - start).detach().std()) == pytest.approx(0.05, rel=0.02)
    found = bank(trace.clf)
    assert all(not torch.equal(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_stages_lower_the_chains_rate_tenfold() -> None:
    assert Trace("sgld", burn_in=0, interval=1).rates == pytest.approx([1.0] * 6 + [0.1] * 6)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        (
            "sgld",
            {"burn_in": 10, "interval": 3},
            r"steps of the chain: expected at least burn_in \+ interval = 13, got 12",
        ),
        (
            "sgld",
            {"burn_in": 0, "interval": 1, "chains": 4, "samples": 3},
            "number of samples: expected at least one for each of 4 chains, got 3",
        ),
        ("bal", {"chains": 6}, "number of samples: expected at least one for each of 6 chains, got 5"),
    ],
)
def test_too_few_steps_or_samples_are_refused_in_one_line(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        advbench.get_defense(name, **SHORT, **params).fit(small_net(), small_data())
    assert "\n" not in str(caught.value)


# BAL


class Wrong(nn.Module):
    """Two linear logits, the second so much larger that the loss of label 0 is linear in the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.1, -0.2, 0.0, 0.3], [0.3, 0.1, 0.0, -0.1]]))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + torch.tensor([0.0, 60.0])


def images_of(net: nn.Module, x: Tensor, y: Tensor, **params: Any) -> Tensor:
    defense: Any = advbench.get_defense("bal", **{"jitter": 0.0, "samples": 9, **params})
    state = defense.begin(net, 9, 100, TrainContext())
    moved: Tensor = defense.perturb(state, x, y, generator())
    return moved


@pytest.mark.parametrize("chains", [1, 3])
def test_images_have_the_energys_stationary_distribution_on_a_linear_loss(chains: int) -> None:
    """exp((s g x~ - alpha |x~ - x|^2) / T) is N(x + s g / 2 alpha, T / 2 alpha), s chains, g the loss's gradient."""
    count, alpha, temperature, lr = 4000, 3.0, 1e-2, 0.02
    x, y = torch.full((count, 1, 2, 2), 0.5), torch.zeros(count, dtype=torch.int64)
    moved = images_of(
        Wrong(), x, y, chains=chains, alpha=alpha, image_temperature=temperature, image_lr=lr, image_steps=60
    )
    change = (moved - x).flatten(1)
    slope = (Wrong().weight[1] - Wrong().weight[0]).detach()
    variance = temperature / (2 * alpha) / (1 - lr * alpha)
    assert bool(((change.var(0) / variance - 1).abs() < 5 * math.sqrt(2 / count)).all())
    mean = chains * slope / (2 * alpha)
    assert bool(((change.mean(0) - mean).abs() < 5 * math.sqrt(variance / count)).all())


def test_one_step_of_the_images_ascends_the_sum_over_chains_and_pays_for_the_distance() -> None:
    x, y = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    slope = (Wrong().weight[1] - Wrong().weight[0]).detach().view_as(x)
    options = {"image_lr": 0.01, "image_temperature": 0.0, "alpha": 3.0}
    torch.testing.assert_close(images_of(Wrong(), x, y, chains=5, image_steps=1, **options), x + 0.01 * 5 * slope)
    first = 0.01 * 5 * slope
    second = first + 0.01 * (5 * slope - 2 * 3.0 * first)
    torch.testing.assert_close(images_of(Wrong(), x, y, chains=5, image_steps=2, **options), x + second)


def test_images_stay_in_the_box() -> None:
    x, y = small_data().batch(slice(None))
    moved = images_of(small_net(), x, y, chains=2, alpha=0.0, image_lr=5.0, image_temperature=0.1, image_steps=5)
    assert float(moved.min()) == 0
    assert float(moved.max()) == 1


@pytest.mark.parametrize("chains", [1, 3])
def test_with_images_that_cannot_move_bal_is_bnn_sgadald_bit_for_bit(chains: int) -> None:
    params = {**SHORT, "chains": chains, "samples": chains}
    still = {"image_lr": 1e-30, "image_temperature": 0.0, "alpha": 1e6, "image_steps": 2}
    bal = advbench.get_defense("bal", **params, **still).fit(small_net(), small_data())
    bnn = advbench.get_defense("bnn_sgadald", **params).fit(small_net(), small_data())
    assert same_weights(bal, bnn)


def test_every_image_has_chains_of_its_own() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Spy(type(advbench.get_defense("bal"))):  # type: ignore[misc]
        def advance(self, state: Any, x: Tensor, y: Tensor, *rest: Any) -> Any:
            seen.append((x, y))
            return super().advance(state, x, y, *rest)

    Spy(**SHORT, image_chains=3, image_steps=2, image_temperature=1e-2).fit(small_net(), small_data())
    x, y = seen[0]
    assert x.shape == (48, 1, 6, 6)
    first, second, third = x.chunk(3)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert torch.equal(y, y[:16].repeat(3))


def test_clean_weight_mixes_the_losses_of_moved_and_clean_images() -> None:
    defense: Any = advbench.get_defense("bal", clean_weight=0.25)
    clf = Classifier(small_net().eval())
    moved, y = small_data().batch(slice(8))
    clean = moved.flip(0)
    loss, logits = defense.loss(clf, clf.draw(), torch.cat([moved, clean]), y.repeat(2))
    expected = 0.75 * F.cross_entropy(clf(moved), y) + 0.25 * F.cross_entropy(clf(clean), y)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, clf(moved))


@pytest.mark.parametrize("steps", [1, 4])
def test_each_minibatch_moves_the_weights_as_often_as_told_and_v_persists(steps: int) -> None:
    states: list[TrainState] = []

    class Spy(type(advbench.get_defense("bal"))):  # type: ignore[misc]
        def finish(self, state: TrainState) -> Classifier:
            states.append(state)
            clf: Classifier = super().finish(state)
            return clf

    Spy(**SHORT, weight_steps=steps, image_steps=1, chains=2).fit(small_net(), small_data())
    assert states[0].tensors["moves"].tolist() == [12 * steps] * 2
    assert bool((states[0].tensors["square"] >= 0).all())
    assert float(states[0].tensors["square"].max()) > 0


def test_chains_start_at_the_trained_weights() -> None:
    base = advbench.get_defense("erm", **SHORT).fit(small_net(), small_data())
    defense = advbench.get_defense(
        "bal", **SHORT, init_from="erm", lr=1e-9, jitter=0.0, temperature=0.0, image_steps=1, chains=2, samples=2
    )
    clf = defense.fit(small_net(), small_data(), TrainContext(init=base))
    trained = FlatLayout(base.module).flatten(dict(base.module.named_parameters()))
    torch.testing.assert_close(bank(clf), trained.expand(2, -1), atol=1e-6, rtol=0)

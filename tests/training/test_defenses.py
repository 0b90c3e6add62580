"""Training methods against answers that are known; those by chains, by noise and by a GAN have files of their own."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advbench
from advbench.attacks.ball import distances
from advbench.attacks.base import Threat
from advbench.attacks.losses import cross_entropy
from advbench.data.base import Data
from advbench.data.datasets import limited, load_dataset
from advbench.errors import InputError
from advbench.models.classifier import Classifier, Draw
from advbench.models.nets import build
from advbench.models.posterior import GaussianPosterior
from advbench.testing import same_weights, small_data, small_net
from advbench.training.base import CheckpointSlot, Defense, Resources, TrainContext
from advbench.training.gradient import gaussian
from advbench.training.loop import crop_and_flip

SHORT = {"stages": (1, 1), "batch_size": 16}
DEFENSES = [
    entry
    for entry in advbench.registry.registry().entries("defense")
    if not entry.is_family and entry.name != "pretrained"
]


def bayesian(std: float = 0.1) -> Classifier:
    net = small_net().eval()
    return Classifier(net, GaussianPosterior(net, std)).reseed(5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Quadratic(nn.Module):
    """Two logits whose cross-entropy at label 0 rises with the sum of squares of w - 1: softplus is monotone."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        loss = (self.w - 1).square().sum().expand(len(x))
        return torch.stack([-loss, torch.zeros_like(loss)], 1)


# hierarchical_vi


def test_hierarchical_vi_weighs_the_enhanced_regulariser_by_kl_weight_over_n() -> None:
    clf = bayesian()
    x, y = small_data().batch(slice(8))
    terms, logits = advbench.get_defense("hierarchical_vi", kl_weight=0.1).loss(clf, x, y, 500)  # type: ignore[attr-defined]
    posterior = gaussian(clf)
    q = torch.distributions.Normal(posterior.mean, posterior.log_std.exp())
    matched = torch.distributions.Normal(torch.zeros(()), (q.mean.square() + q.variance).sqrt())
    divergence = torch.distributions.kl_divergence(q, matched).sum()
    torch.testing.assert_close(terms["kl"], divergence * 0.1 / 500)
    torch.testing.assert_close(terms["loss"], F.cross_entropy(logits, y))


def test_without_data_term_hierarchical_vi_forgets_its_means_and_keeps_its_noise() -> None:
    """R is zero wherever the mean is, whatever sigma; nothing pulls sigma down."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    data = Data(torch.zeros(8, 1, 2, 2), torch.arange(8) % 2, 2)
    defense = advbench.get_defense(
        "hierarchical_vi", stages=(1500, 500), lr=0.02, batch_size=8, init_std=0.1, kl_weight=8.0, steps=1, eps=0.0
    )
    posterior = gaussian(defense.fit(net, data))
    torch.testing.assert_close(posterior.mean, torch.zeros(8), atol=5e-3, rtol=0)
    assert bool((posterior.log_std.exp() >= 0.1).all())


# adversarial_sampling


def test_on_a_quadratic_loss_the_adversarial_noise_is_the_hand_computed_one() -> None:
    clf = Classifier(Quadratic(), GaussianPosterior(Quadratic(), std=0.5)).reseed(3)
    posterior = gaussian(clf)
    noise = torch.empty(4).normal_(generator=generator(advbench.keys.derive(3, "draw", 0)))
    x, y = torch.zeros(6, 1, 1, 1), torch.zeros(6, dtype=torch.int64)
    for steps in (1, 2, 5):
        defense: Any = advbench.get_defense("adversarial_sampling", alpha=0.3, steps=steps)
        worst = defense.adversarial_draw(clf.reseed(3), x, y)
        expected = noise.clone()
        for _ in range(steps):
            expected += 0.3 * (0.5 * expected - 1).sign()  # d/d noise of (mean + std noise - 1)^2, mean 0
        torch.testing.assert_close(worst.weights["w"], posterior.mean + 0.5 * expected)


def test_each_step_of_the_noise_follows_a_fresh_gradient() -> None:
    """Across the minimum of a quadratic the sign turns; a gradient that adds up would not turn with it."""
    clf = Classifier(Quadratic(), GaussianPosterior(Quadratic(), std=1.0)).reseed(0)
    seen: list[Tensor] = []
    original = clf.at

    def spy(draw: Draw, x: Tensor, offset: int = 0) -> Tensor:
        seen.append(draw.weights["w"].detach().clone())
        return original(draw, x, offset)

    clf.at = spy  # type: ignore[method-assign]
    defense: Any = advbench.get_defense("adversarial_sampling", alpha=0.7, steps=4)
    worst = defense.adversarial_draw(clf, torch.zeros(2, 1, 1, 1), torch.zeros(2, dtype=torch.int64))
    steps = [after - before for before, after in zip(seen, [*seen[1:], worst.weights["w"].detach()], strict=True)]
    for before, step in zip(seen, steps, strict=True):
        torch.testing.assert_close(step, 0.7 * (before - 1).sign())


def test_eq_11_mixes_the_two_losses_and_keeps_the_regulariser_whole() -> None:
    clf = bayesian()
    x, y = small_data().batch(slice(8))
    defense: Any = advbench.get_defense("adversarial_sampling", adversarial_weight=0.8, kl_weight=0.5)
    terms, logits = defense.loss(clf, x, y, 100)
    clf.reseed(5).next_seed()  # the first seed is the clean draw's
    worst = defense.adversarial_draw(clf, x, y)
    torch.testing.assert_close(terms["loss"], 0.2 * F.cross_entropy(logits, y))
    torch.testing.assert_close(terms["adversarial loss"], 0.8 * F.cross_entropy(clf.at(worst, x), y))
    torch.testing.assert_close(terms["kl"], gaussian(clf).kl(0.15) * 0.5 / 100)
    with torch.no_grad():
        unmoved = clf.posterior.sample(generator(worst.seed))
        assert F.cross_entropy(clf.at(worst, x), y) > F.cross_entropy(clf.at(Draw(unmoved, 0), x), y)


def test_gradients_reach_mean_and_sigma_at_the_final_noise_alone() -> None:
    clf = bayesian()
    x, y = small_data().batch(slice(8))
    defense: Any = advbench.get_defense("adversarial_sampling", adversarial_weight=1.0, kl_weight=0.0)
    terms, _ = defense.loss(clf, x, y, 100)
    terms["adversarial loss"].backward()
    posterior = gaussian(clf)
    clf.reseed(5).next_seed()
    worst = defense.adversarial_draw(clf, x, y)
    noise = (posterior.layout.flatten(worst.weights) - posterior.mean).detach() / posterior.log_std.detach().exp()
    weights = (posterior.mean + posterior.log_std.exp() * noise).detach().requires_grad_(True)
    loss = F.cross_entropy(clf.at(Draw(posterior.layout.views(weights), 0), x), y)
    (g,) = torch.autograd.grad(loss, weights)
    torch.testing.assert_close(posterior.mean.grad, g)
    torch.testing.assert_close(posterior.log_std.grad, g * noise * posterior.log_std.detach().exp())


def test_lambda_0_is_bnn_bit_for_bit() -> None:
    settings = {**SHORT, "kl_weight": 0.02}
    own = advbench.get_defense("adversarial_sampling", adversarial_weight=0.0, **settings)
    bnn = advbench.get_defense("bnn", **settings).fit(small_net(), small_data())
    assert same_weights(own.fit(small_net(), small_data()), bnn)


# adversarial training of other kinds


def linear_pair() -> tuple[Classifier, Tensor, Tensor, Tensor]:
    """A two-class linear net, images away from the box's faces, and the direction that raises each one's loss."""
    x, y = small_data(classes=2).batch(slice(None))
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    middle = 0.3 + 0.4 * x
    normal = (net[1].weight[1 - y] - net[1].weight[y]).detach().view_as(x)
    return Classifier(net), middle, y, normal


@pytest.mark.parametrize("name", ["fgsm_at", "ifgsm_at"])
def test_on_a_linear_net_signed_steps_reach_the_corner_of_the_ball(name: str) -> None:
    clf, x, y, normal = linear_pair()
    defense: Any = advbench.get_defense(name, eps=0.05)
    torch.testing.assert_close(defense.perturb(clf, x, y, generator()), x + 0.05 * normal.sign())


def test_iterated_fgsm_starts_at_the_image_and_uses_no_random_number() -> None:
    defense: Any = advbench.get_defense("ifgsm_at", eps=0.05, steps=1, step_size=0.5)
    clf, x, y, normal = linear_pair()
    torch.testing.assert_close(defense.perturb(clf, x, y, generator()), x + 0.025 * normal.sign())
    assert defense.params.steps == 1
    assert advbench.get_defense("ifgsm_at").params.steps == 15


@pytest.mark.parametrize("clean_weight", [0.0, 0.3])
@pytest.mark.parametrize("name", ["fgsm_at", "ifgsm_at", "pgd_at", "wrm"])
def test_adversarial_baselines_of_bal_train_on_the_clean_loss_as_well(name: str, clean_weight: float) -> None:
    """One step of SGD by hand."""
    x, y = small_data(classes=2).batch(slice(None))
    data = Data(x, y, 2)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    params: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.5, "clean_weight": clean_weight}
    params |= {"random_start": False} if name == "pgd_at" else {}
    defense: Any = advbench.get_defense(name, stages=(1,), batch_size=len(x), **params)
    images = defense.perturb(Classifier(net), x, y, generator())
    moved = images[:, 0] if clean_weight else images
    weight = net[1].weight.detach().clone().requires_grad_(True)

    def loss(images: Tensor) -> Tensor:
        return cross_entropy(images.flatten(1) @ weight.T + net[1].bias.detach(), y).mean()

    total = (1 - clean_weight) * loss(moved) + clean_weight * loss(x)
    (gradient,) = torch.autograd.grad(total, weight)
    trained = defense.fit(net, data).posterior.export()["value.1.weight"]
    torch.testing.assert_close(trained, weight.detach() - 0.5 * gradient, atol=1e-6, rtol=1e-4)
    assert defense.passes_per_image() == (1 if clean_weight == 0 else 2) + (
        1 if name == "fgsm_at" else defense.params.steps
    )


def test_wrm_finds_the_maximum_of_the_penalised_loss() -> None:
    """At the maximum the loss's gradient equals that of the price: grad loss = 2 gamma (x' - x)."""
    clf, x, y, _ = linear_pair()
    defense: Any = advbench.get_defense("wrm", gamma=1.0, steps=200)
    moved = defense.perturb(clf, x, y, generator())
    gradient = clf.input_gradient(moved, y, cross_entropy).value
    torch.testing.assert_close(gradient, 2 * (moved - x), atol=1e-5, rtol=1e-4)
    assert float((moved - x).flatten(1).norm(dim=1).min()) > 0.01


def test_wrm_steps_are_one_over_the_root_of_t_plus_2_and_stay_in_the_box() -> None:
    clf, x, y, _ = linear_pair()
    defense: Any = advbench.get_defense("wrm", gamma=0.5, steps=1)
    first = x + clf.input_gradient(x, y, cross_entropy).value / 2**0.5
    torch.testing.assert_close(defense.perturb(clf, x, y, generator()), first.clamp(0, 1))
    cheap: Any = advbench.get_defense("wrm", gamma=1e-6, steps=15)
    with torch.no_grad():
        clf.module[1].weight.mul_(100)  # type: ignore[index, union-attr]
    moved = cheap.perturb(clf, x, y, generator())
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1


# statistics of the posterior


def test_statistics_report_each_weight_tensors_mean_sigma_and_divergence() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3))
    clf = Classifier(net, GaussianPosterior(net, 0.1))
    with torch.no_grad():
        gaussian(clf).mean.fill_(0.2)
    for name, expected in (
        ("adv_bnn", torch.tensor(0.15 / 0.1).log() + (0.1**2 + 0.2**2) / (2 * 0.15**2) - 0.5),
        ("hierarchical_vi", 0.5 * torch.log(torch.tensor(1 + 0.2**2 / 0.1**2))),
    ):
        found = advbench.get_defense(name).statistics(clf)
        assert [(row["name"], row["weights"]) for row in found["tensors"]] == [
            ("1.weight", 36 * 5),
            ("3.weight", 5 * 3),
        ]
        for row in (*found["tensors"], found):
            assert (row["mean"], row["std"], row["kld"]) == pytest.approx((0.2, 0.1, float(expected)), rel=1e-5)


def test_sigma_is_averaged_over_weights_and_the_divergence_over_tensors() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Linear(5, 3))
    clf = Classifier(net, GaussianPosterior(net, 0.1))
    with torch.no_grad():
        gaussian(clf).mean.fill_(0.0)
        gaussian(clf).layout.views(gaussian(clf).log_std)["2.weight"].fill_(0.0)
    found = advbench.get_defense("bnn").statistics(clf)
    assert found["std"] == pytest.approx((0.1 * 36 * 5 + 1.0 * 5 * 3) / (36 * 5 + 5 * 3))
    assert found["kld"] == pytest.approx(sum(row["kld"] for row in found["tensors"]) / 2)


@pytest.mark.parametrize(("name", "kld"), [("hierarchical_vi", 1.130), ("adv_bnn", 24.10)])
def test_statistics_of_an_untrained_vgg16_are_those_of_the_papers_tables(name: str, kld: float) -> None:
    data = Data(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 9]), 10)
    net = build("vgg16", data, 0)
    params = {"prior_std": 0.1} if name == "adv_bnn" else {}
    found = advbench.get_defense(name, **params).statistics(Classifier(net, GaussianPosterior(net, 0.1)))
    assert len(found["tensors"]) == 13 + 13 + 1
    assert (found["mean"], found["kld"]) == (pytest.approx(0.0003, abs=5e-5), pytest.approx(kld, abs=6e-3))


def test_a_method_without_statistics_reports_none() -> None:
    assert advbench.get_defense("erm").statistics(Classifier(small_net())) == {}


# init_from


def trained(name: str = "erm", seed: int = 0, **params: Any) -> Classifier:
    return advbench.get_defense(name, **SHORT, **params).fit(small_net(), small_data(), TrainContext(seed=seed))


def test_a_method_starts_from_the_net_that_it_is_given() -> None:
    base = trained()
    start = advbench.get_defense("adversarial_sampling", init_from="erm", lr=1e-12, **SHORT)
    clf = start.fit(small_net(), small_data(), TrainContext(init=base))
    own = gaussian(clf).layout.views(gaussian(clf).mean)
    assert all(torch.allclose(own[name], p, atol=1e-9) for name, p in base.module.named_parameters())


def test_running_statistics_come_with_the_weights() -> None:
    base = trained()
    begun: list[Tensor] = []

    class Spy(type(advbench.get_defense("pgd_at"))):  # type: ignore[misc]
        def begin(self, module: nn.Module, *rest: Any) -> Any:
            begun.append(module.get_buffer("1.running_mean").clone())
            return super().begin(module, *rest)

    Spy(init_from="erm", **SHORT).fit(small_net(), small_data(), TrainContext(init=base))
    assert torch.equal(begun[0], base.module.get_buffer("1.running_mean"))


def test_without_one_given_the_start_is_trained_by_its_own_defaults_and_seed() -> None:
    context = TrainContext(seed=3)
    base = advbench.get_defense("erm").fit(small_net(), small_data(), context)
    defense = advbench.get_defense("pgd_at", init_from="erm", **SHORT)
    given = defense.fit(small_net(), small_data(), dataclasses.replace(context, init=base))
    assert same_weights(defense.fit(small_net(), small_data(), context), given)


def test_after_a_kill_the_start_is_not_trained_again() -> None:
    class Slot(CheckpointSlot):
        saved: Any = None

        def load(self) -> Any:
            return self.saved

        def save(self, tensors: Any, values: Any) -> None:
            self.saved = {n: t.clone() for n, t in tensors.items()}, dict(values)

    slot = Slot()
    defense = advbench.get_defense("pgd_at", init_from="erm", **SHORT)
    base = trained()
    whole = defense.fit(small_net(), small_data(), TrainContext(init=base))
    context = TrainContext(init=base, checkpoint=slot, checkpoint_seconds=0.0)
    defense.fit(small_net(), small_data(), context)
    assert slot.saved[1]["step"] == 6
    resumed = defense.fit(small_net(), small_data(), dataclasses.replace(context, init=None))
    assert same_weights(whole, resumed)


@pytest.mark.parametrize("base", ["bnn", "mc_dropout", "sgld"])
def test_a_random_start_is_refused(base: str) -> None:
    params = {"burn_in": 0, "interval": 1} if base == "sgld" else {}
    defense = advbench.get_defense("adv_bnn", init_from=base, **SHORT)
    with pytest.raises(InputError, match="init_from: expected a deterministic defense, such as 'erm'"):
        defense.fit(small_net(), small_data(), TrainContext(init=trained(base, **params)))


def test_a_start_of_another_architecture_is_refused() -> None:
    other = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
    with pytest.raises(InputError, match="init_from: weights of another architecture"):
        advbench.get_defense("pgd_at", init_from="erm").fit(small_net(), small_data(), TrainContext(init=other))


# trades


def test_the_ascent_of_trades_raises_the_divergence_and_stays_in_the_ball() -> None:
    clf = trained()
    x, y = small_data().batch(slice(8))
    for norm, eps in (("linf", 0.1), ("l2", 0.5)):
        divergences = []
        for steps in (1, 2, 10):
            defense: Any = advbench.get_defense("trades", norm=norm, eps=eps, steps=steps)
            clean, moved = defense.perturb(clf, x, y, generator()).unbind(1)
            assert torch.equal(clean, x)
            assert bool((distances(moved, x, Threat(norm, eps)) <= eps + 1e-6).all())
            p, q = clf(x).softmax(1), clf(moved).softmax(1)
            divergences.append((p * (p / q).log()).sum(1))
        assert bool((divergences[0] > 0).all())
        assert float(divergences[0].mean()) < float(divergences[1].mean()) < float(divergences[2].mean())
        random = x + torch.empty_like(x).uniform_(-1, 1, generator=generator()) * (0.1 if norm == "linf" else 0.14)
        q = clf(random.clamp(0, 1)).softmax(1)
        assert bool((divergences[2] > (p * (p / q).log()).sum(1)).all())


def test_trades_adds_beta_times_the_divergence_and_trains_both_of_its_sides() -> None:
    clf = trained().requires_grad_(True)
    x, y = small_data().batch(slice(8))
    defense: Any = advbench.get_defense("trades", beta=3.0, eps=0.1, steps=3)
    pairs = defense.perturb(clf, x, y, generator())
    terms, logits = defense.loss(clf, pairs, y, 500)
    clean, moved = (clf(each) for each in pairs.unbind(1))
    torch.testing.assert_close(logits, clean)
    divergence = (clean.softmax(1) * (clean.log_softmax(1) - moved.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(terms["divergence"], 3.0 * divergence)
    torch.testing.assert_close(terms["loss"], F.cross_entropy(clean, y))
    weights = list(clf.module.parameters())
    found = torch.autograd.grad(sum(terms.values()), weights)
    expected = torch.autograd.grad(F.cross_entropy(clean, y) + 3.0 * divergence, weights)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True))


def test_trades_without_a_price_is_plain_training() -> None:
    plain = trained()
    assert same_weights(plain, trained("trades", beta=0.0))
    assert advbench.get_defense("trades", beta=0.0).passes_per_image() == 50
    assert not same_weights(plain, trained("trades"))


def test_trades_is_trained_in_chunks_where_memory_runs_out() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    whole, cut = (
        advbench.get_defense("trades", **SHORT).fit(net, small_data(), TrainContext(resources=Resources(chunk=chunk)))
        for chunk in (None, 5)
    )
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_on_digits_trades_is_robust_where_plain_training_is_not() -> None:
    dataset = load_dataset("digits")
    data, (x, y) = limited(dataset.train, 600), dataset.test.batch(slice(150))
    pgd = advbench.get_attack("pgd", steps=20)
    robust = {}
    for name, params in (("erm", {}), ("trades", {"steps": 4})):
        clf = advbench.get_defense(name, stages=(20,), **params).fit(build("small_cnn", data, 0), data)
        assert advbench.evaluate(clf, x, y).accuracy > 0.93
        robust[name] = advbench.evaluate(clf, pgd(clf, x, y, Threat("linf", 0.15)), y).accuracy
    assert robust["trades"] > robust["erm"] + 0.4


# every method


OWN_NETS = {
    "tied": lambda: Tied(),  # noqa: PLW0108 - defined below
    "grouped": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten(), nn.Linear(64, 3)),
}


class Tied(nn.Module):
    """A net of the user's own, a layer of which serves twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(36, 12)
        self.again = nn.Linear(12, 12)
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.again(self.again(self.first(x.flatten(1)).tanh()).tanh()).tanh()
        logits: Tensor = self.last(hidden)
        return logits


OWN = [
    pytest.param(entry.name, net, marks=[] if net == "tied" or entry.name in ("adv_bnn", "sgld") else pytest.mark.slow)
    for entry in DEFENSES
    for net in OWN_NETS
]


@pytest.mark.parametrize(("name", "net"), OWN)
def test_every_method_learns_with_a_net_of_the_users_own(name: str, net: str) -> None:
    params: dict[str, Any] = {"stages": (60,), "batch_size": 16, "lr": 0.02}
    if name in ("sgld", "apd", "sgld_mixture"):
        params |= {"lr": 0.3, "burn_in": 120, "interval": 2, "temperature": 1e-6}
    if name == "sgld_mixture":
        params |= {"components": 1, "draws": 20}
    if name == "apd":
        params |= {"hidden": (16, 16), "gan_steps": 5, "gan_batch_size": 16}
    if name in ("bal", "bnn_sgadald"):
        params |= {"lr": 0.1, "init_from": None}
    if name == "trades":
        params |= {"lr": 0.01, "eps": 0.05, "beta": 1.0}
    if name == "deep_ensemble":
        params = {"members": 2, "params": params}
    if name == "active":
        params = {"method": "erm", "rounds": 2, "draws": 1, "params": params}
    module = OWN_NETS[net]()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape) * 0.3
    data = small_data()
    clf = advbench.get_defense(name, **params).fit(module, data)
    x, y = data.batch(slice(None))
    assert advbench.evaluate(clf, x, y, draws=20).accuracy > 0.8
    assert advbench.get_attack("eot_pgd", steps=2, samples=2)(clf, x, y, Threat("linf", 0.05)).shape == x.shape


def test_every_method_has_defaults_for_the_data_sets_and_the_papers_own() -> None:
    for entry in DEFENSES:
        cls: type[Defense] = advbench.registry.registry().load("defense", entry.name)
        if entry.distribution == "advbench" and "stages" in cls.Params.model_fields:
            assert {"digits", "mnist", "cifar10", "paper"} <= cls.presets.keys(), entry.name


def test_every_value_of_the_preset_paper_has_a_source() -> None:
    for entry in DEFENSES:
        cls: type[Defense] = advbench.registry.registry().load("defense", entry.name)
        named = sorted(name for names in cls.sources.values() for name in names.split())
        if entry.distribution == "advbench":
            assert named == sorted(cls.presets.get("paper", {})), entry.name


def test_images_are_flipped_without_a_crop() -> None:
    x = torch.arange(48.0).view(8, 1, 2, 3)
    moved = crop_and_flip(x, torch.Generator().manual_seed(0), padding=0)
    flipped = [bool((one != other).any()) for one, other in zip(x, moved, strict=True)]
    assert 0 < sum(flipped) < 8
    assert torch.equal(torch.where(torch.tensor(flipped).view(8, 1, 1, 1), x.flip(3), x), moved)
    params = {"stages": (1,), "batch_size": 16}
    data, trained = small_data(), {}
    for augment in (False, True, "flip"):
        clf = advbench.get_defense("erm", augment=augment, **params).fit(small_net(), data)
        trained[augment] = torch.cat([each.flatten() for each in clf.module.parameters()])
    assert not torch.equal(trained["flip"], trained[True])
    assert not torch.equal(trained["flip"], trained[False])
    with pytest.raises(InputError, match="augment"):
        advbench.get_defense("erm", augment="crop")


def test_every_gaussian_posterior_has_statistics_whatever_trained_it() -> None:
    net = small_net()
    gaussian = Classifier(net, GaussianPosterior(net, 0.1))
    for name in ("erm", "bnn", "rse"):
        assert advbench.get_defense(name).statistics(gaussian)["std"] == pytest.approx(0.1, rel=1e-5)
    assert "kld" not in advbench.get_defense("erm").statistics(gaussian)
    assert advbench.get_defense("bnn").statistics(Classifier(net)) == {}

"""Distributions over weights against closed forms, quadrature and the samples themselves."""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq, minimize_scalar
from scipy.special import digamma, polygamma
from scipy.stats import chisquare, invgamma
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from advbench.errors import InputError
from advbench.keys import isolated_rng
from advbench.models.classifier import Classifier
from advbench.models.posterior import (
    FlatLayout,
    GaussianPosterior,
    GeneratorPosterior,
    PointPosterior,
    Posterior,
    SamplePosterior,
    Weights,
    gaussian_statistics,
    matched_divergence,
    prior_divergence,
)
from advbench.models.saving import export_classifier, load_classifier
from advbench.registry import Registrar, Registry, hooks
from advbench.testing import small_data, small_net


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.empty(shape).normal_(generator=generator(seed))


def stored(clf: Classifier, module: nn.Module) -> Classifier:
    """The classifier that comes back from bytes, on a module of other weights."""
    tensors, values = export_classifier(clf)
    raw = safetensors.torch.save({name: tensor.contiguous().clone() for name, tensor in tensors.items()})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return load_classifier(module, safetensors.torch.load(raw), json.loads(json.dumps(values)))


def assert_same_draws(one: Classifier, other: Classifier) -> None:
    x, _ = small_data().batch(slice(5))
    draws = one.reseed(1).draws(x, 4)
    assert torch.equal(draws, other.reseed(1).draws(x, 4))
    assert not all(torch.equal(draws[0], draw) for draw in draws[1:])


def generating(net: nn.Module, latent: int, hidden: tuple[int, ...]) -> GeneratorPosterior:
    with isolated_rng(0, "cpu"):
        return GeneratorPosterior(net, latent, hidden)


# the flat layout

SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=5)


def holding(shapes: list[tuple[int, ...]]) -> nn.Module:
    module = nn.Module()
    for index, shape in enumerate(shapes):
        module.register_parameter(f"p{index}", nn.Parameter(normal(*shape, seed=index)))
    return module


@settings(max_examples=60, deadline=None)
@given(shapes=SHAPES, lead=st.lists(st.integers(1, 3), max_size=2).map(tuple))
def test_views_and_flatten_are_inverse(shapes: list[tuple[int, ...]], lead: tuple[int, ...]) -> None:
    module = holding(shapes)
    layout = FlatLayout(module)
    assert layout.size == sum(math.prod(shape) for shape in shapes)
    assert list(layout) == [f"p{index}" for index in range(len(shapes))]
    flat = normal(*lead, layout.size)
    views = layout.views(flat)
    assert [view.shape for view in views.values()] == [(*lead, *shape) for shape in shapes]
    assert torch.equal(layout.flatten(views), flat)
    assert torch.equal(layout.flatten({f"mean.{name}": view for name, view in views.items()}, "mean."), flat)
    own = dict(module.named_parameters())
    again = layout.views(layout.flatten(own))
    assert all(torch.equal(again[name], own[name]) for name in own)


def test_views_share_memory_with_the_flat_vector() -> None:
    layout = FlatLayout(holding([(2, 3), (4,)]))
    flat = torch.zeros(10)
    layout.views(flat)["p1"].fill_(1)
    assert flat.tolist() == [0] * 6 + [1] * 4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(36, 36), nn.Linear(36, 36)
        self.second.weight = self.first.weight
        self.last = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.second(self.first(x.flatten(1)).tanh()))
        return logits


def test_tied_parameters_lie_in_the_flat_vector_once() -> None:
    net = Tied()
    layout = FlatLayout(net)
    assert list(layout) == ["first.weight", "first.bias", "second.bias", "last.weight", "last.bias"]
    assert layout.size == 36 * 36 + 2 * 36 + 36 * 3 + 3
    bank = normal(3, layout.size)
    clf = Classifier(net, SamplePosterior(net, bank))
    draw = clf.draw(0)
    w, x = draw.weights, small_data().batch(slice(4))[0]
    hidden = F.linear(x.flatten(1), w["first.weight"], w["first.bias"]).tanh()
    hidden = F.linear(hidden, w["first.weight"], w["second.bias"])
    torch.testing.assert_close(clf.at(draw, x), F.linear(hidden, w["last.weight"], w["last.bias"]))


POSTERIORS: list[Callable[[nn.Module], Posterior]] = [
    GaussianPosterior,
    lambda net: SamplePosterior(net, normal(3, FlatLayout(net).size)),
    lambda net: generating(net, 2, (3,)),
]


@pytest.mark.parametrize("posterior", POSTERIORS, ids=["gaussian", "samples", "generator"])
def test_what_is_stored_in_another_size_is_refused(posterior: Callable[[nn.Module], Posterior]) -> None:
    net = small_net()
    tensors, values = export_classifier(Classifier(net, posterior(net)))
    with pytest.raises(InputError, match=r"^stored classifier does not fit the module: ") as caught:
        load_classifier(small_net(classes=4), tensors, values)
    if not isinstance(posterior(net), GeneratorPosterior):
        assert "size mismatch for 5.weight: " in str(caught.value)
    with pytest.raises(InputError, match="does not fit the module"):
        load_classifier(small_net(), {}, values)


# a bank of samples


def test_draws_are_the_samples_and_each_is_as_likely_as_any_other() -> None:
    net = nn.Linear(2, 2)
    bank = normal(7, 6)
    posterior = SamplePosterior(net, bank)
    draws = generator()
    flat = torch.stack([posterior.layout.flatten(posterior.sample(draws)) for _ in range(3500)])
    hits = (flat[:, None] == bank).all(2)
    assert bool((hits.sum(1) == 1).all())
    counts = hits.sum(0)
    assert float(chisquare(counts).pvalue) > 1e-6
    assert float((counts - 500).abs().max()) < 5 * math.sqrt(3500 / 7 * 6 / 7)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_any_number_of_samples_is_restored(count: int) -> None:
    net = small_net()
    bank = normal(count, FlatLayout(net).size)
    one = SamplePosterior(net, bank)
    two = SamplePosterior(small_net(), normal(4, FlatLayout(net).size, seed=1))
    two.restore(one.export())
    assert torch.equal(two.samples, bank)
    assert one.export()["samples.0.weight"].shape == (count, 4, 1, 3, 3)


def test_without_samples_the_bank_is_the_modules_weights() -> None:
    net = small_net()
    weights = SamplePosterior(net).sample(generator())
    assert all(torch.equal(weights[name], parameter) for name, parameter in net.named_parameters())
    assert SamplePosterior(net).trainable() == []


def test_a_bank_and_the_modules_buffers_come_back_from_bytes() -> None:
    net = small_net()
    net(small_data().images)
    net.eval()
    clf = Classifier(net, SamplePosterior(net, normal(5, FlatLayout(net).size)))
    again = stored(clf, small_net())
    assert_same_draws(clf, again)
    assert torch.equal(again.module.get_buffer("1.running_mean"), net.get_buffer("1.running_mean"))
    assert bool(net.get_buffer("1.running_mean").any())


# a generator


def test_draws_of_a_generator_are_its_outputs_at_the_seeded_z() -> None:
    net = small_net()
    posterior = generating(net, 3, (5, 4))
    state = posterior.generator.state_dict()
    z = torch.empty((1, 3)).normal_(generator=generator(9))
    hidden = F.linear(z, state["0.weight"], state["0.bias"]).clamp_min(0)
    hidden = F.linear(hidden, state["2.weight"], state["2.bias"]).clamp_min(0)
    expected = F.linear(hidden, state["4.weight"], state["4.bias"])[0]
    weights = posterior.sample(generator(9))
    torch.testing.assert_close(posterior.layout.flatten(weights), expected)
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: p.shape for n, p in net.named_parameters()}


def test_gradients_reach_the_generator_and_not_the_module() -> None:
    net = small_net().eval()
    clf = Classifier(net, generating(net, 8, (32, 32)))
    x, y = small_data().batch(slice(12))
    F.cross_entropy(clf(x), y).backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in clf.posterior.trainable()]
    assert len(gradients) == 6
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    assert all(bool(gradient.any()) for gradient in gradients if gradient is not None)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(("latent", "hidden"), [(32, (100, 100, 100)), (3, (5,)), (1, (6, 9, 7, 8))])
def test_a_generator_of_any_widths_comes_back_from_bytes(latent: int, hidden: tuple[int, ...]) -> None:
    net = small_net().eval()
    clf = Classifier(net, generating(net, latent, hidden))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = stored(clf, small_net())
    assert torch.equal(state, torch.get_rng_state())
    assert isinstance(again.posterior, GeneratorPosterior)
    assert again.posterior.latent == latent
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert_same_draws(clf, again)


# divergences


@pytest.mark.parametrize("seed", range(3))
def test_divergences_are_those_of_torch_distributions(seed: int) -> None:
    mean, log_std = normal(500, seed=seed).double(), normal(500, seed=seed + 10).double() - 2
    q = Normal(mean, log_std.exp())
    matched = Normal(torch.zeros(()).double(), (mean.square() + q.variance).sqrt())
    torch.testing.assert_close(matched_divergence(mean, log_std), kl_divergence(q, matched))
    for prior_std in (0.05, 0.15, 2.0):
        torch.testing.assert_close(prior_divergence(mean, log_std, prior_std), kl_divergence(q, Normal(0.0, prior_std)))


@settings(max_examples=200, deadline=None)
@given(mean=st.floats(-1e3, 1e3, width=32), log_std=st.floats(-30, 30, width=32))
def test_the_matched_divergence_never_pulls_a_deviation_down(mean: float, log_std: float) -> None:
    m, s = torch.tensor(mean, requires_grad=True), torch.tensor(log_std, requires_grad=True)
    value = matched_divergence(m, s)
    pull_mean, pull_std = torch.autograd.grad(value, (m, s))
    assert bool(torch.stack([value.detach(), pull_mean, pull_std]).isfinite().all())
    assert float(value.detach()) >= 0
    assert -1.00001 <= float(pull_std) <= 0
    assert float(pull_mean) * mean >= 0


def test_the_matched_divergence_is_zero_and_flat_at_mean_zero() -> None:
    mean, log_std = torch.zeros(7, requires_grad=True), torch.linspace(-30, 30, 7, requires_grad=True)
    value = matched_divergence(mean, log_std)
    assert not value.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(value.sum(), (mean, log_std)))


# the hierarchical KL of which the matched divergence is the limit


def hierarchical(nu: float, psi: float, mu: float, s: float, inverse_scale: float) -> float:
    """E_IG(nu, psi) KL(N(mu, s^2) || N(0, v / inverse_scale)) + KL(IG(nu, psi) || IG(nu, 1)), by quadrature over v."""
    q, p = invgamma(nu, scale=psi), invgamma(nu, scale=1)
    own = Normal(torch.tensor(mu).double(), torch.tensor(s).double())

    def integrand(v: float) -> float:
        weights = kl_divergence(own, Normal(0.0, torch.tensor(v / inverse_scale).double().sqrt()))
        return float(q.pdf(v) * (float(weights) + q.logpdf(v) - p.logpdf(v)))

    peak = psi / (nu + 1)
    value, _ = quad(integrand, q.ppf(1e-15), q.isf(1e-15), points=[peak, 2 * peak], limit=200, epsabs=1e-9)
    return float(value)


WEIGHTS = [(0.3, 0.1), (-1.4, 0.02), (0.001, 0.5)]


def at_best_scale(nu: float, psi: float, mu: float, s: float) -> float:
    return hierarchical(nu, psi, mu, s, psi / (nu * (mu**2 + s**2)))


def regulariser(mu: float, s: float) -> float:
    return float(matched_divergence(torch.tensor(mu).double(), torch.tensor(s).double().log()))


@pytest.mark.parametrize(("mu", "s"), WEIGHTS)
def test_the_hierarchical_kl_is_least_at_the_papers_lambda_and_at_psi_1(mu: float, s: float) -> None:
    nu, best = 10.0, 1.3 / (10 * (mu**2 + s**2))
    scale = minimize_scalar(lambda log: hierarchical(nu, 1.3, mu, s, best * math.exp(log)), bounds=(-2, 2))
    assert scale.x == pytest.approx(0, abs=1e-3)
    psi = minimize_scalar(lambda psi: at_best_scale(nu, psi, mu, s), bounds=(0.4, 3))
    assert psi.x == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("mu", "s"), WEIGHTS)
def test_the_hierarchical_kl_tends_to_the_matched_divergence_like_one_over_nu(mu: float, s: float) -> None:
    rests = []
    for nu in (10.0, 100.0, 1000.0):
        rest = at_best_scale(nu, 1.0, mu, s) - regulariser(mu, s)
        assert rest == pytest.approx((math.log(nu) - digamma(nu)) / 2, abs=1e-7)
        rests.append(rest)
    assert rests[0] / rests[1] == pytest.approx(10, rel=0.05)
    assert rests[1] / rests[2] == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("nu", [10.0, 100.0])
def test_the_papers_rest_belongs_to_the_psi_at_which_nu_is_stationary(nu: float) -> None:
    """Eq. 8's H(nu) = 1/2 [nu G'(nu) - G(nu) + log nu - 1] is twice the rest at psi = 1, for large nu."""
    mu, s = WEIGHTS[0]
    slope = (polygamma(1, nu) - 1 / nu) / 2
    psi = brentq(lambda psi: math.log(psi) + 1 / psi - 1 - slope, 1.0, 2.0)
    best = psi / (nu * (mu**2 + s**2))
    step = nu / 1000
    higher, lower = (hierarchical(nu + d, psi, mu, s, best) for d in (step, -step))
    assert (higher - lower) / (2 * step) == pytest.approx(0, abs=1e-6)
    rest = (nu * polygamma(1, nu) - digamma(nu) + math.log(nu) - 1) / 2
    assert at_best_scale(nu, psi, mu, s) - regulariser(mu, s) == pytest.approx(rest, abs=1e-7)
    assert rest / ((math.log(nu) - digamma(nu)) / 2) == pytest.approx(2, rel=1 / nu)


# a third party's


class Shifted(Posterior):
    """The module's weights plus one number, the same for all."""

    kind = "shifted"

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.layout = FlatLayout(module)
        self.mean = nn.Parameter(self.layout.flatten(dict(module.named_parameters())).detach())

    def sample(self, generator: torch.Generator) -> Weights:
        return self.layout.views(self.mean + torch.randn((), generator=generator))

    def trainable(self) -> list[nn.Parameter]:
        return [self.mean]

    def export(self) -> dict[str, Tensor]:
        return {f"mean.{name}": tensor for name, tensor in self.layout.views(self.mean.detach()).items()}

    def restore(self, tensors: Weights) -> None:
        self.mean.copy_(self.layout.flatten(tensors, "mean."))


def test_a_third_partys_posterior_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin:
        @hooks.hookimpl
        def advbench_register(self, register: Registrar) -> None:
            register.posterior("shifted", f"{__name__}:Shifted", "one number for all weights")

    found = Registry()
    found._load(Plugin(), "shifted", importlib.metadata.distribution("advbench"))
    net = small_net().eval()
    clf = Classifier(net, Shifted(net))
    with pytest.raises(InputError, match="unknown posterior 'shifted'"):
        stored(clf, small_net())
    monkeypatch.setattr("advbench.models.saving.registry", lambda: found)
    again: Any = stored(clf, small_net())
    assert isinstance(again.posterior, Shifted)
    assert_same_draws(clf, again)


def test_a_gaussian_takes_standard_deviations_by_parameter_name() -> None:
    net = small_net().eval()
    std = {"5.weight": torch.full_like(net[5].weight, 0.3), "5.bias": torch.zeros(3)}
    posterior = GaussianPosterior(net, std)
    assert torch.equal(posterior.mean, torch.cat([each.detach().flatten() for each in net.parameters()]))
    one, other = (posterior.sample(torch.Generator().manual_seed(seed)) for seed in (0, 1))
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    assert differing == ["5.weight"]
    drawn = torch.stack([posterior.draw(seed)["5.weight"] for seed in range(200)])
    assert float(drawn.detach().std(0).mean()) == pytest.approx(0.3, rel=0.05)
    weights = sum(each.numel() for name, each in net.named_parameters() if "bias" not in name)
    assert gaussian_statistics(posterior)["std"] == pytest.approx(0.3 * net[5].weight.numel() / weights, rel=1e-5)
    for bad, message in (
        ({"5.weigth": std["5.weight"]}, "unknown parameter of the module '5.weigth'.*did you mean '5.weight'"),
        ({"5.bias": torch.zeros(4)}, r"deviation of 5.bias: expected finite numbers >= 0 of shape \(3,\), got \(4,\)"),
        ({"5.bias": -torch.ones(3)}, "deviation of 5.bias: expected finite numbers >= 0"),
    ):
        with pytest.raises(InputError, match=message):
            GaussianPosterior(net, bad)


def test_samples_are_taken_by_parameter_name() -> None:
    nets = [small_net().eval() for _ in range(2)]
    with torch.no_grad():
        nets[1][5].bias += 1.0
    posterior = SamplePosterior(nets[0], [dict(net.named_parameters()) for net in nets])
    assert posterior.members == 2
    assert posterior.stochastic
    x, _ = small_data().batch(slice(4))
    for k, net in enumerate(nets):
        assert torch.equal(torch.func.functional_call(nets[0], dict(posterior.member(k)), x), net(x))


def test_every_posterior_has_a_device() -> None:
    net = small_net()
    for posterior in (PointPosterior(net), PointPosterior(net, dict(net.named_parameters())), SamplePosterior(net)):
        assert posterior.device == torch.device("cpu")

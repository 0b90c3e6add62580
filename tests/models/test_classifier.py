"""Classifier: fresh and frozen draws, chunks, counts, and randomness that survives `.eval()`."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import advbench
from advbench.attacks import Goal, loss_gradient
from advbench.attacks.losses import cross_entropy
from advbench.errors import InputError, ModelWarning, PluginError
from advbench.models.classifier import Classifier
from advbench.models.guard import opened
from advbench.models.posterior import FlatLayout, GaussianPosterior, SamplePosterior
from advbench.models.saving import export_classifier, load_classifier
from advbench.testing import small_data, small_net


def gaussian(std: float = 0.1) -> Classifier:
    net = small_net().eval()
    return Classifier(net, GaussianPosterior(net, std)).requires_grad_(False)


def torchattacks_style(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """What attack libraries do: `.eval()`, a loop of autograd steps, and no thought of submodules."""
    model.eval()
    x_adv = x.clone()
    for _ in range(3):
        x_adv.requires_grad_(True)
        loss = nn.functional.cross_entropy(model(x_adv), y)
        (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = (x_adv + 0.02 * gradient.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1).detach()
    return x_adv


def test_a_library_that_calls_eval_silences_nothing() -> None:
    clf = gaussian()
    x, y = small_data().batch(slice(6))
    torchattacks_style(clf, x, y)
    assert not torch.equal(clf(x), clf(x))
    noisy = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Dropout(0.5)).train(), noise=True)
    torchattacks_style(noisy, x, y)
    assert not torch.equal(noisy(x), noisy(x))
    assert noisy.module[2].training


def test_eval_and_train_leave_batch_norm_alone() -> None:
    clf = gaussian()
    x, _ = small_data().batch(slice(6))
    expected = clf.reseed(1)(x)
    before = copy.deepcopy(clf.module.state_dict())
    clf.train()
    assert torch.equal(clf.reseed(1)(x), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in clf.module.state_dict().items())


def test_draws_are_shared_by_the_batch_and_reproducible() -> None:
    clf = gaussian()
    x, _ = small_data().batch(slice(6))
    draws = clf.reseed(4).draws(x, 3)
    assert torch.equal(draws, clf.reseed(4).draws(x, 3))
    assert not torch.equal(draws[0], draws[1])
    twice = torch.cat([x[:1], x[:1]])
    logits = clf(twice)
    torch.testing.assert_close(logits[0], logits[1])


def test_draws_have_the_posteriors_mean_and_deviation() -> None:
    net = nn.Linear(2, 2)
    posterior = GaussianPosterior(net, std=0.3)
    with torch.no_grad():
        posterior.log_std[0] = math.log(2.0)
    generator = torch.Generator().manual_seed(0)
    samples = torch.stack([posterior.sample(generator)["weight"].flatten() for _ in range(4000)])
    torch.testing.assert_close(samples.mean(0), net.weight.detach().flatten(), atol=0.12, rtol=0)
    torch.testing.assert_close(samples.std(0), torch.tensor([2.0, 0.3, 0.3, 0.3]), atol=0, rtol=0.05)


@pytest.mark.parametrize("prior_std", [0.05, 0.15, 1.0])
def test_kl_is_that_of_torch_distributions(prior_std: float) -> None:
    net = small_net()
    posterior = GaussianPosterior(net, std=0.1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        posterior.log_std.normal_(-2, 1, generator=generator)
    q = Normal(posterior.mean, posterior.log_std.exp())
    expected = kl_divergence(q, Normal(0.0, prior_std)).sum()
    torch.testing.assert_close(posterior.kl(prior_std), expected)
    some = posterior.kl(prior_std, ["5.weight"]) + posterior.kl(
        prior_std, [name for name, _ in net.named_parameters() if name != "5.weight"]
    )
    torch.testing.assert_close(some, expected)


def test_frozen_is_the_draw_of_its_seed() -> None:
    clf = gaussian()
    x, _ = small_data().batch(slice(6))
    frozen = clf.frozen(11)
    assert not frozen.stochastic
    torch.testing.assert_close(frozen(x), clf.at(clf.draw(11), x))
    assert torch.equal(frozen(x), frozen.frozen(99)(x))


def test_frozen_noise_is_held() -> None:
    noisy = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Dropout(0.5)).train(), noise=True)
    x, _ = small_data().batch(slice(6))
    frozen = noisy.frozen(1)
    assert torch.equal(frozen(x), frozen(x))
    assert not torch.equal(frozen(x), noisy.frozen(2)(x))
    assert torch.equal(frozen.frozen(5)(x), frozen(x))


@pytest.mark.parametrize("chunk", [1, 4, 5, 100])
def test_chunks_keep_the_draws(chunk: int) -> None:
    clf = gaussian()
    x, y = small_data().batch(slice(10))
    logits = clf.reseed(1)(x)
    gradient = clf.reseed(1).input_gradient(x, y, cross_entropy, samples=3).value
    x.requires_grad_(True)
    (plain,) = torch.autograd.grad(cross_entropy(clf.reseed(1)(x), y).sum(), x)
    clf.chunk = chunk
    torch.testing.assert_close(clf.reseed(1)(x).detach(), logits)
    torch.testing.assert_close(clf.reseed(1).input_gradient(x, y, cross_entropy, samples=3).value, gradient)
    (chunked,) = torch.autograd.grad(cross_entropy(clf.reseed(1)(x), y).sum(), x)
    torch.testing.assert_close(chunked, plain)


def test_passes_are_counted_per_image_forward_and_backward() -> None:
    clf = gaussian()
    x, y = small_data().batch(slice(10))
    clf.draws(x, 3)
    assert (clf.passes.forward, clf.passes.backward) == (30, 0)
    clf.input_gradient(x, y, cross_entropy, samples=2)
    assert (clf.passes.forward, clf.passes.backward) == (50, 20)
    x.requires_grad_(True)
    torch.autograd.grad(cross_entropy(clf(x), y).sum(), x)
    assert (clf.passes.forward, clf.passes.backward) == (60, 30)


def test_attacks_of_a_library_get_gradients_and_touch_no_parameter() -> None:
    clf = gaussian()
    x, y = small_data().batch(slice(10))
    x_adv = torchattacks_style(clf, x, y)
    assert not torch.equal(x_adv, x)
    assert all(parameter.grad is None for parameter in clf.parameters())


def test_a_plain_module_counts_as_random_unless_a_probe_says_otherwise() -> None:
    x, _ = small_data().batch(slice(6))
    assert opened(small_net().eval(), x).clf.stochastic
    assert not opened(small_net().eval(), x, probe=True).clf.stochastic
    with pytest.warns(ModelWarning, match="batch norm"):
        assert opened(small_net().train(), x, probe=True).clf.stochastic


def test_what_is_no_module_or_gives_no_logits_is_refused_in_one_line() -> None:
    x, y = small_data().batch(slice(4))
    with pytest.raises(InputError, match=r"model: expected an nn\.Module, got str"):
        advbench.evaluate("resnet", x, y)  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=r"logits of shape \(4, classes\) on cpu, got torch.float32 \(4, 1, 6, 6\)"):
        advbench.evaluate(nn.Identity(), x, y)


def test_a_stored_classifier_that_does_not_fit_is_refused() -> None:
    tensors, values = export_classifier(gaussian())
    with pytest.raises(InputError, match="does not fit the module"):
        load_classifier(nn.Linear(36, 3), tensors, values)
    with pytest.raises(InputError, match="unknown posterior 'pickle': expected one of gaussian, generator"):
        load_classifier(small_net(), tensors, {"posterior": "pickle"})


@pytest.mark.parametrize(
    ("stored", "module"),
    [
        (nn.Linear(1, 3), nn.Linear(4, 3)),
        (nn.Conv2d(1, 4, 3), nn.Conv2d(3, 4, 3)),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(1)), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(4))),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 3))),
    ],
)
def test_weights_of_another_architecture_are_neither_broadcast_nor_cut(stored: nn.Module, module: nn.Module) -> None:
    tensors, values = export_classifier(Classifier(stored))
    with pytest.raises(InputError, match="stored classifier does not fit the module"):
        load_classifier(module, tensors, values)


def test_gradients_of_several_vectors_at_once_go_through_the_watch() -> None:
    """As torch.func and `is_grads_batched` take them; they are counted, and their values are right."""
    clf = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3))).requires_grad_(False)
    x = torch.rand((2, 1, 2, 2), generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = clf.module[1].weight
    with clf.isolated() as passes:
        logits = clf(x)
        vectors = torch.eye(3)[:, None].expand(3, 2, 3)
        (batched,) = torch.autograd.grad(logits, x, vectors, is_grads_batched=True)
        torch.testing.assert_close(batched.flatten(2), weight[:, None].expand(3, 2, 4))
        assert passes.backward == 2
        jacobian = torch.func.jacrev(lambda z: clf(z).sum(0))(x.detach())
        torch.testing.assert_close(jacobian.flatten(2), weight[:, None].expand(3, 2, 4))
        assert passes.finite


def test_passes_of_an_attack_inside_an_attack_count_for_both() -> None:
    class Outer(advbench.Attack):
        """Calls another attack as anybody would."""

        def run(self, clf: Any, x: Any, goal: Any, threat: Any, generator: Any) -> Any:
            clf(x)
            return advbench.get_attack("pgd", steps=7)(clf, x, goal.labels, threat)

    clf = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3))).requires_grad_(False)
    x = torch.rand((5, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    crafted = advbench.craft(Outer(), clf, x, torch.zeros(5, dtype=torch.int64), advbench.Threat("linf", 0.1))
    assert crafted.backward_passes == 7
    assert crafted.forward_passes == 1 + 7
    assert clf.passes.forward == 0


def test_gradients_that_a_caller_holds_survive_an_attack_that_zeroes_them() -> None:
    class Zeroing(advbench.Attack):
        """Zeroes gradients in place, as optimisers' users do."""

        def run(self, clf: Any, x: Any, goal: Any, threat: Any, generator: Any) -> Any:
            clf.zero_grad(set_to_none=False)
            return x

    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand((5, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    net(x).sum().backward()
    before = net[1].weight.grad.clone()
    Zeroing()(net, x, torch.zeros(5, dtype=torch.int64), advbench.Threat("linf", 0.1))
    assert torch.equal(net[1].weight.grad, before)
    assert float(before.abs().sum()) > 0


def bank(members: int) -> Classifier:
    net = small_net().eval()
    samples = torch.randn((members, FlatLayout(net).size), generator=torch.Generator().manual_seed(members))
    return Classifier(net, SamplePosterior(net, samples)).requires_grad_(False)


@pytest.mark.parametrize("members", [2, 5, 40])
def test_fresh_draws_cycle_through_few_members(members: int) -> None:
    clf = bank(members)
    x, _ = small_data().batch(slice(2))
    each = torch.stack([clf.at(clf.member(k), x) for k in range(members)])
    orders = []
    for _ in range(3):
        drawn = clf.draws(x, members)
        which = [next(k for k in range(members) if torch.equal(each[k], one)) for one in drawn]
        assert sorted(which) == list(range(members))
        orders.append(which)
    assert orders[0] != orders[1] or orders[1] != orders[2]
    seed = clf.next_seed()
    assert torch.equal(clf.at(clf.draw(seed), x), clf.at(clf.draw(seed), x))
    assert torch.equal(clf.frozen(seed)(x), clf.at(clf.draw(seed), x))
    assert torch.equal(clf.reseed(3).draws(x, 2 * members), clf.reseed(3).draws(x, 2 * members))


def test_draws_from_many_members_are_independent() -> None:
    clf = bank(41)
    x, _ = small_data().batch(slice(1))
    assert len({float(one.sum()) for one in clf.reseed(0).draws(x, 41)}) < 41


@pytest.mark.parametrize("samples", [4, 5, 10])
def test_a_step_of_as_many_samples_as_members_has_the_exact_gradient_at_once_each(samples: int) -> None:
    clf = bank(4)
    x, y = small_data().batch(slice(3))
    clf.next_seed()  # wherever the cycle stands
    with clf.isolated() as passes:
        gradient, logits = clf.input_gradient(x, y, cross_entropy, samples)
    parts = [clf.input_gradient(x, y, cross_entropy, draws=[clf.member(k)]).value for k in range(4)]
    torch.testing.assert_close(gradient, torch.stack(parts).mean(0))
    assert (len(logits), passes.forward, passes.backward) == (4, 12, 12)


def test_only_a_finite_posterior_without_noise_has_members() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Dropout(0.5)).train()
    samples = torch.zeros((3, FlatLayout(net).size))
    assert bank(3).members == 3
    assert Classifier(net).members == 1
    assert gaussian().members is None
    assert Classifier(net, SamplePosterior(net, samples), noise=True).members is None


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_gradient_of_the_loss_of_the_mean_is_autograds(scale: float, targeted: bool) -> None:
    """Also where each draw's probability at the label underflows."""
    clf, (x, y) = bank(5), small_data().batch(slice(6))
    goal = Goal.of(y, (y + 1) % 3 if targeted else None)
    clf.posterior.samples[:, -3:] *= scale  # the last layer's bias
    for name in ("ce", "margin", "dlr"):
        leaf = x.double().requires_grad_()
        exact = copy.deepcopy(clf).double()
        mean = torch.stack([exact.at(exact.member(k), leaf) for k in range(5)]).log_softmax(-1).logsumexp(0)
        expected = torch.autograd.grad(goal.loss(name)(mean, goal.rows).sum(), leaf)[0].float()
        found = loss_gradient(clf, x, goal, name, 5, "loss_of_mean")
        torch.testing.assert_close(found.gradient, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
        value = goal.loss(name)(mean - math.log(5), goal.rows).detach().float()
        torch.testing.assert_close(found.value, value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("loss", "passes"), [("ce", 5), ("margin", 10)])
def test_the_loss_of_the_mean_costs_a_second_pass_where_it_depends_on_the_runner_up(loss: Any, passes: int) -> None:
    clf, (x, y) = gaussian(), small_data().batch(slice(6))
    with clf.isolated() as counted:
        whole = loss_gradient(clf.reseed(0), x, Goal.of(y), loss, 5, "loss_of_mean").gradient
    assert (counted.forward, counted.backward) == (6 * passes, 30)
    clf.chunk = 2
    torch.testing.assert_close(loss_gradient(clf.reseed(0), x, Goal.of(y), loss, 5, "loss_of_mean").gradient, whole)


# mirrored draws


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_an_attacks_gaussian_draws_come_in_mirrored_pairs(samples: int) -> None:
    net = small_net()
    posterior = GaussianPosterior(net, std=0.3)
    clf = Classifier(net, posterior).requires_grad_(False).reseed(1)
    seeds = clf.fresh_seeds(samples)
    assert len(set(seeds)) == samples
    assert [abs(seed) for seed in seeds[1::2]] == seeds[0::2][: samples // 2]
    for one, other in zip(seeds[0::2], seeds[1::2], strict=False):
        first, second = (posterior.layout.flatten(clf.draw(seed).weights) for seed in (one, other))
        torch.testing.assert_close((first + second) / 2, posterior.mean.detach())
        assert float((first - second).abs().mean()) > 0.3
    assert clf.next_seed() not in map(abs, seeds)


def test_of_a_pair_what_is_odd_in_the_noise_cancels() -> None:
    """The gradient of a linear net's logit is linear in the weights: of a pair it is that at the mean."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    clf = Classifier(net, GaussianPosterior(net, std=0.3)).requires_grad_(False)
    x, y = small_data().batch(slice(4))
    at_mean = net[1].weight[0].detach().view(1, 1, 6, 6).expand_as(x)
    for samples, exact in ((2, True), (4, True), (3, False)):
        gradient = clf.input_gradient(x, y, lambda logits, _: logits[:, 0], samples).value
        assert torch.allclose(gradient, at_mean, atol=1e-6) == exact


def test_draws_of_evaluation_and_of_calls_are_no_pairs() -> None:
    net = small_net()
    clf = Classifier(net, GaussianPosterior(net, std=0.3)).requires_grad_(False).reseed(1)
    assert all(clf.next_seed() > 0 for _ in range(8))
    bank = Classifier(small_net(), SamplePosterior(small_net(), torch.randn(50, clf.posterior.mean.numel())))
    assert all(seed > 0 for seed in bank.fresh_seeds(8))


def test_draws_are_the_same_whether_the_posterior_is_fixed_and_never_stale() -> None:
    net = small_net()
    posterior = GaussianPosterior(net, std=0.3).requires_grad_(False)
    clf = Classifier(net, posterior)

    def drawn() -> list[Tensor]:
        return [posterior.layout.flatten(clf.draw(seed).weights) for seed in (5, -5, 6, 5)]

    loose = drawn()
    for _ in range(2):
        with posterior.fixed():
            with posterior.fixed():
                drawn()
            assert all(map(torch.equal, drawn(), loose))
        posterior.log_std.data.add_(1.0)
        loose = drawn()
    assert float((loose[0] - posterior.mean).std()) == pytest.approx(0.3 * math.exp(2), rel=0.2)


def test_a_fixed_posterior_in_training_keeps_its_gradients() -> None:
    posterior = GaussianPosterior(small_net(), std=0.3)
    with posterior.fixed():
        sum(tensor.sum() for tensor in posterior.draw(3).values()).backward()
    assert posterior.log_std.grad is not None
    assert bool(posterior.log_std.grad.any())

"""Adversarial posterior distillation: the GAN on a known mixture, its losses, both modes, resumption."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from advbench_defenses.apd import APD, LOSSES, gradient_penalty
from torch import Tensor, nn

import advbench
from advbench.errors import InputError
from advbench.keys import isolated_rng
from advbench.models.classifier import Classifier
from advbench.models.posterior import GeneratorPosterior
from advbench.testing import _InterruptingSlot, _InterruptionError, same_weights, small_data, small_net
from advbench.training.base import TrainContext
from advbench.training.loop import TrainState

CONTEXT = TrainContext(seed=3)
CHAIN = {"stages": (2, 2), "batch_size": 16, "burn_in": 2, "interval": 2, "samples": 4}  # 12 steps of the chain
GAN = {"hidden": (8, 6), "latent": 3, "gan_steps": 3, "critic_steps": 2, "gan_batch_size": 5}
SMALL = {**CHAIN, **GAN}
ONLINE = {**SMALL, "mode": "online", "chains": 2, "round_steps": 4, "round_gan_steps": 2}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posterior(state: TrainState | Classifier) -> GeneratorPosterior:
    found = (state if isinstance(state, Classifier) else state.clf).posterior
    assert isinstance(found, GeneratorPosterior)
    return found


def begun(bank: Tensor, seed: int = 0, **params: Any) -> tuple[APD, TrainState, TrainContext]:
    """A training on a linear layer of three weights whose bank holds these samples."""
    defense = APD(**{"burn_in": 0, "interval": 1, "samples": len(bank), "gan_steps": 1, **params})
    context = TrainContext(seed=seed)
    with isolated_rng(seed, "cpu"):
        state = defense.begin(nn.Linear(2, 1), len(bank) + 1, 100, context)
    state.tensors["bank"].copy_(bank)
    return defense, state, context


# the GAN alone


@pytest.mark.slow
def test_wgan_gp_learns_a_mixture_of_two_gaussians() -> None:
    """At a constant learning rate the game turns about its solution; as the rate falls it settles there."""
    centres = torch.tensor([[-1.0, 0.5, 0.0], [1.0, -0.5, 1.0]])
    shares, stds = torch.tensor([0.3, 0.7]), torch.tensor([0.3, 0.2])
    mean = shares @ centres
    spread = (centres - mean).T @ (shares[:, None] * (centres - mean))
    covariance = spread + (shares * stds.square()).sum() * torch.eye(3)
    draws = generator()
    which = (torch.rand(2000, generator=draws) < 0.7).long()
    bank = centres[which] + stds[which][:, None] * torch.randn((2000, 3), generator=draws)

    defense, state, context = begun(bank, hidden=(32, 32, 32), gan_lr=1e-3, critic_steps=15)
    for state.step in range(0, 800, 20):
        defense.distil(state, 2000, 20, first=state.step == 0, context=context, rate=1 - state.step / 800)
    with torch.no_grad():
        generated = posterior(state).generate(5000, generator(1))
    assert float((generated.mean(0) - mean).norm() / covariance.trace().sqrt()) < 0.15
    assert float((generated.T.cov() - covariance).norm() / covariance.norm()) < 0.3
    nearest = torch.cdist(generated, centres).argmin(1)
    for component, std in enumerate(stds):
        own = generated[nearest == component]
        assert len(own) / 5000 == pytest.approx(float(shares[component]), abs=0.1)
        assert float((own.mean(0) - centres[component]).norm()) < float(std)


def test_the_critic_mirrors_the_generator_and_both_have_the_papers_adam() -> None:
    _, state, _ = begun(torch.zeros(4, 3), hidden=(7, 5), latent=2)
    for net, widths in ((posterior(state).generator, [2, 7, 5, 3]), (state.modules["critic"], [3, 5, 7, 1])):
        layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
        assert [layers[0].in_features, *(layer.out_features for layer in layers)] == widths
    for name, net in (("generator", posterior(state)), ("critic", state.modules["critic"])):
        (group,) = state.optimizers[name].param_groups
        assert (group["lr"], group["betas"]) == (1e-4, (0.5, 0.9))
        assert {id(p) for p in group["params"]} == {id(p) for p in net.parameters()}


def test_the_penalty_of_a_linear_critic_is_its_slopes_distance_from_one() -> None:
    critic = nn.Linear(5, 1)
    real, fake = torch.randn((6, 5), generator=generator(1)), torch.randn((6, 5), generator=generator(2))
    penalty = gradient_penalty(critic, real, fake, generator())
    torch.testing.assert_close(penalty, (critic.weight.norm() - 1).square())
    (gradient,) = torch.autograd.grad(penalty, critic.weight)
    slope = critic.weight.detach().norm()
    torch.testing.assert_close(gradient, 2 * (slope - 1) * critic.weight.detach() / slope)


def test_the_penalty_is_taken_between_the_pairs() -> None:
    class Parabola(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum(1, keepdim=True) / 2

    real, fake = torch.randn((6, 5), generator=generator(1)), torch.randn((6, 5), generator=generator(2))
    share = torch.rand((6, 1), generator=generator())
    expected = ((share * real + (1 - share) * fake).norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(gradient_penalty(Parabola(), real, fake, generator()), expected)


def test_losses_are_those_of_the_formulas() -> None:
    real, fake = torch.tensor([[2.0], [-1.0]]), torch.tensor([[0.5], [3.0]])
    for name in ("wgan_gp", "wgan"):
        critic, own = LOSSES[name]  # type: ignore[index]
        assert (float(critic(real, fake)), float(own(fake))) == (1.75 - 0.5, -1.75)
    critic, own = LOSSES["gan"]
    expected = -(torch.log(real.sigmoid()) + torch.log(1 - fake.sigmoid())).mean()
    torch.testing.assert_close(critic(real, fake), expected)
    torch.testing.assert_close(own(fake), -torch.log(fake.sigmoid()).mean())


@pytest.mark.parametrize("gan", ["wgan_gp", "wgan", "gan"])
def test_a_step_descends_the_critics_loss_then_the_generators(gan: str) -> None:
    bank = torch.randn((40, 3), generator=generator(1))
    params = {"gan": gan, "critic_steps": 1, "gan_batch_size": 8, "gradient_penalty": 3.0, "gan_lr": 0.05}
    defense, state, context = begun(bank, hidden=(6,), center=False, **params)
    before, own = copy.deepcopy(state.modules["critic"]), copy.deepcopy(posterior(state))
    watched = defense.distil(state, 40, 1, first=True, context=context)
    random = context.generator("gan", 0, 0)
    real = bank[torch.randint(40, (8,), generator=random)]
    fake = own.generate(8, random).detach()
    on_real, on_fake = before(real), before(fake)
    critic_loss, generator_loss = LOSSES[gan]  # type: ignore[index]
    loss = critic_loss(on_real, on_fake)
    if gan == "wgan_gp":
        loss = loss + 3 * gradient_penalty(before, real, fake, random)
    torch.testing.assert_close(watched["critic loss"], loss.detach())
    torch.testing.assert_close(watched["critic's gap"], (on_real.mean() - on_fake.mean()).detach())
    after = state.modules["critic"]
    fooled = generator_loss(after(own.generate(8, random)))
    torch.testing.assert_close(watched["generator loss"], fooled.detach())
    for net, moved, value in ((before, after, loss), (own, posterior(state), fooled)):
        for gradient, old, new in zip(
            torch.autograd.grad(value, list(net.parameters()), allow_unused=True),
            net.parameters(),
            moved.parameters(),
            strict=True,
        ):
            large = torch.zeros_like(old).bool() if gradient is None else gradient.abs() > 1e-3
            step = old - 0.05 * (0 if gradient is None else gradient.sign())  # Adam's first is the learning rate
            expected = step.clamp(-0.01, 0.01) if gan == "wgan" and net is before else step
            torch.testing.assert_close(new[large], expected[large], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("gan", "clipped"), [("wgan", True), ("wgan_gp", False), ("gan", False)])
def test_wgan_alone_clips_every_weight_of_the_critic(gan: str, clipped: bool) -> None:
    params = {"gan": gan, "gan_lr": 0.05, "clip": 0.02, "hidden": (16, 16)}
    defense, state, context = begun(torch.randn((40, 3), generator=generator(1)), **params)
    defense.distil(state, 40, 3, first=True, context=context)
    largest = [float(parameter.detach().abs().max()) for parameter in state.modules["critic"].parameters()]
    assert all(bound <= 0.02 + 1e-9 for bound in largest) == clipped
    assert max(largest) >= 0.02 - 1e-9


# the two modes


class Spy(APD):
    """Notes what every distillation starts from and what every restart leaves."""

    def fit(self, module: nn.Module, data: Any, context: TrainContext | None = None) -> Classifier:
        type(self).calls = []
        type(self).taken = []
        return super().fit(module, data, context)

    def collect(self, state: TrainState) -> None:
        before = state.tensors["bank"].clone()
        super().collect(state)
        if not torch.equal(before, state.tensors["bank"]):
            self.taken.extend(state.tensors["chains"].clone())

    def distil(self, state: TrainState, chain_steps: int, *args: Any, **options: Any) -> dict[str, Tensor]:
        filled = state.tensors["bank"][: self.filled(state, chain_steps)].clone()
        call = {"step": state.step, "bank": filled, "taken": list(self.taken), "biases": []}
        self.calls.append(call | options)
        return super().distil(state, chain_steps, *args, **options)

    def _gan_step(self, state: TrainState, samples: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        self.calls[-1]["biases"].append(posterior(state).generator[-1].bias.detach().clone())
        return super()._gan_step(state, samples, generator)

    def restart(self, state: TrainState, context: TrainContext) -> None:
        super().restart(state, context)
        chains = state.tensors["chains"]
        with torch.no_grad():
            expected = posterior(state).generate(len(chains), context.generator("restart", state.step))
        self.calls[-1]["restarted"] = torch.equal(chains, expected)


@pytest.mark.parametrize("params", [{}, {"chains": 2}, {"chains": 3, "samples": 8, "jitter": 0.1}])
def test_offline_the_generator_is_trained_on_sglds_samples_bit_for_bit(params: dict[str, Any]) -> None:
    clf = Spy(**{**SMALL, **params}).fit(small_net(), small_data(), CONTEXT)
    sgld = advbench.get_defense("sgld", **{**CHAIN, **params}).fit(small_net(), small_data(), CONTEXT)
    assert [call["step"] for call in Spy.calls] == [12, 13, 14]
    assert all(torch.equal(call["bank"], sgld.posterior.samples) for call in Spy.calls)
    assert len(sgld.posterior.samples) in (4, 6)
    buffers = dict(sgld.module.named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in clf.module.named_buffers())


@pytest.mark.parametrize("params", [{}, {"burn_in": 5}, {"samples": 100}, {"chains": 1, "interval": 1, "samples": 3}])
def test_online_the_buffer_holds_the_newest_samples(params: dict[str, Any]) -> None:
    own = {**ONLINE, **params}
    Spy(**own).fit(small_net(), small_data(), CONTEXT)
    for call in Spy.calls:
        due = max(call["step"] + 1 - own["burn_in"], 0) // own["interval"] * own["chains"]
        assert len(call["taken"]) == due
        newest = call["taken"][-own["samples"] :]
        assert sorted(map(tuple, call["bank"].tolist())) == sorted(tuple(row.tolist()) for row in newest)


@pytest.mark.parametrize(
    ("params", "rounds"),
    [
        ({}, [3, 7, 11]),
        ({"round_steps": 5, "burn_in": 0}, [4, 9, 11]),
        ({"round_steps": 99}, [11]),
        ({"burn_in": 4}, [7, 11]),
        ({"burn_in": 10}, [11]),
    ],
)
def test_online_chains_go_on_from_the_generator_after_each_round(params: dict[str, Any], rounds: list[int]) -> None:
    Spy(**{**ONLINE, **params}).fit(small_net(), small_data(), CONTEXT)
    assert [call["step"] for call in Spy.calls] == rounds
    assert [call["first"] for call in Spy.calls] == [True] + [False] * (len(rounds) - 1)
    assert all(call["restarted"] for call in Spy.calls)
    assert all(len(call["biases"]) == 2 for call in Spy.calls)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SMALL, [1, 2 / 3, 1 / 3]),
        (ONLINE, [9 / 12, 5 / 12, 1 / 12]),
        ({**SMALL, "gan_decay": False}, [1, 1, 1]),
        ({**ONLINE, "gan_decay": False}, [1, 1, 1]),
    ],
)
def test_the_gans_learning_rate_falls_linearly_unless_told_not_to(
    params: dict[str, Any], expected: list[float]
) -> None:
    Spy(**params).fit(small_net(), small_data(), CONTEXT)
    assert [call["rate"] for call in Spy.calls] == pytest.approx(expected)


@pytest.mark.parametrize("params", [SMALL, ONLINE])
def test_the_last_bias_starts_at_the_samples_mean_once(params: dict[str, Any]) -> None:
    Spy(**params).fit(small_net(), small_data(), CONTEXT)
    first, second = Spy.calls[0], Spy.calls[1]
    assert torch.equal(first["biases"][0], first["bank"].mean(0))
    assert not torch.equal(second["biases"][0], second["bank"].mean(0))
    assert float((second["biases"][0] - first["biases"][-1]).abs().max()) < 1e-3  # one step of Adam away
    Spy(**params, center=False).fit(small_net(), small_data(), CONTEXT)
    assert float(Spy.calls[0]["biases"][0].abs().max()) <= 6**-0.5  # as a linear layer starts


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"burn_in": 11}, r"steps of the chain: expected at least burn_in \+ interval = 13, got 12"),
        ({"mode": "online", "burn_in": 11}, r"expected at least burn_in \+ interval = 13, got 12"),
        ({"chains": 5}, "number of samples: expected at least one for each of 5 chains, got 4"),
    ],
)
def test_too_few_steps_or_samples_are_refused_in_one_line(params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        APD(**{**SMALL, **params}).fit(small_net(), small_data())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "saves"), [*((SMALL, n) for n in (12, 13, 14)), *((ONLINE, n) for n in (3, 4, 5, 8))]
)
@pytest.mark.parametrize("gan", ["wgan_gp", "wgan"])
def test_it_resumes_bit_for_bit(params: dict[str, Any], saves: int, gan: str) -> None:
    defense = APD(**params, gan=gan)
    whole = defense.fit(small_net(), small_data(), CONTEXT)
    slot = _InterruptingSlot(saves)
    context = TrainContext(seed=3, checkpoint=slot, checkpoint_seconds=0.0)
    with pytest.raises(_InterruptionError):
        defense.fit(small_net(), small_data(), context)
    saved = slot.load()
    assert saved is not None
    assert saved[1]["step"] == saves
    slot.left = -1
    assert same_weights(whole, defense.fit(small_net(), small_data(), context))

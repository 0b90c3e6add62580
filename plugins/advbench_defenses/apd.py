"""Adversarial posterior distillation: a generator of weights trained on the samples of a chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advbench.models import Classifier, GeneratorPosterior, perceptron
from advbench.training import Adam, Field, LangevinChains, Optimizer, Paper, SGLDParams, TrainContext, TrainState

GanName = Literal["wgan_gp", "wgan", "gan"]


class APD(LangevinChains):
    """Distillation of SGLD samples of the weights into a generator by a Wasserstein GAN.

    Wang et al. 2018, "Adversarial Distillation of Bayesian Neural Network Posteriors". Offline (Algorithm 1): the
    latest `samples` of a chain are kept, then G is trained on them for `gan_steps`. Online (Algorithm 2): parallel
    chains fill a buffer of the latest `samples`; after every `round_steps` of the chains, G is trained for
    `round_gan_steps`, and the chains continue from samples of G. A draw of the classifier is G(z), z ~ N(0, 1); the
    critic has the hidden layers of G. The loss is that of WGAN-GP (eq. 6), or one of Figure 7: WGAN with weight
    clipping, or the original GAN.

    Departures. The last bias of G starts at the mean of the samples (`center`), which saves G thousands of steps.
    Images are normalised by the mean and standard deviation of each channel inside the module, not to [-1, 1]. The
    numbers of samples and of GAN steps are not stated in the paper. Algorithm 2 starts its chains once, from an
    untrained G; here the first chains start at the module's weights, and chains restart from G in each round after the
    first.
    """

    version = "1"
    paper = Paper(
        title="Adversarial Distillation of Bayesian Neural Network Posteriors",
        authors="Wang, Vicol, Lucas, Gu, Grosse, Zemel",
        year=2018,
        link="https://arxiv.org/abs/1806.10317",
    )

    class Params(SGLDParams):
        """Hyperparameters of adversarial posterior distillation."""

        mode: Literal["offline", "online"] = Field(
            default="offline",
            description="offline (Algorithm 1): distil after the chain; online (Algorithm 2): while chains run",
        )
        gan: GanName = Field(default="wgan_gp", description="loss of the GAN (Figure 7)")
        latent: int = Field(default=32, ge=1, description="dimension of z; released code: 32")
        hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
            default=(100, 100, 100),
            min_length=1,
            description="widths of the hidden ReLU layers of G and critic; APD section 5.2: three of 100",
        )
        center: bool = Field(
            default=True, description="initialisation of G's last bias at the mean of the samples; not in the paper"
        )
        gan_steps: int = Field(default=2000, ge=1, description="number of steps of G in offline mode; not in the paper")
        gan_batch_size: int = Field(default=100, ge=1, description="number of weight samples per GAN step; APD: 100")
        gan_lr: float = Field(
            default=1e-4, gt=0, description="learning rate of Adam for G and critic, with betas (0.5, 0.9)"
        )
        gan_decay: bool = Field(
            default=True,
            description="linear decay of gan_lr to 0 (WGAN-GP, CIFAR-10); not in APD, where the last G is a point of "
            "an oscillation",
        )
        critic_steps: int = Field(default=5, ge=1, description="number of critic steps per step of G (WGAN-GP: 5)")
        gradient_penalty: float = Field(
            default=10.0, ge=0, description="weight lambda of the gradient penalty in eq. 6 (WGAN-GP: 10)"
        )
        clip: float = Field(
            default=0.01, gt=0, description="bound on the critic's weights with gan='wgan' (WGAN: 0.01)"
        )
        round_steps: int = Field(
            default=500, ge=1, description="online: number T_m of chain steps per round; the last may be shorter"
        )
        round_gan_steps: int = Field(default=100, ge=1, description="online: number T_g of steps of G per round")

    presets = {
        "digits": {"stages": (100,), "batch_size": 64, "gan_steps": 300, "gan_batch_size": 32},
        "mnist": {"stages": (20,), "burn_in": 5000, "gan_steps": 500},
        "cifar10": {"stages": (60,), "augment": True, "burn_in": 10_000},
        "paper": {
            "stages": (371,),
            "lr": 0.05,
            "weight_decay": 0.001,
            "batch_size": 100,
            "burn_in": 500,
            "interval": 20,
            "samples": 10_000,
            "gan": "wgan_gp",
            "latent": 32,
            "hidden": (100, 100, 100),
            "center": False,
            "gan_steps": 100_000,
            "gan_batch_size": 100,
            "gan_lr": 1e-4,
            "gan_decay": False,
            "critic_steps": 5,
            "gradient_penalty": 10.0,
        },
    }
    sources = {
        "section 5.2.1": "lr weight_decay batch_size burn_in interval hidden",
        "eq. 6 and WGAN-GP": "gan critic_steps gradient_penalty",
        "released code": "stages samples latent center gan_steps gan_batch_size gan_lr gan_decay",
    }
    params: Params

    def steps(self, per_epoch: int) -> int:
        """Total number of steps; offline, those of G follow those of the chain."""
        return super().steps(per_epoch) + (self.params.gan_steps if self.params.mode == "offline" else 0)

    def begin(self, module: nn.Module, steps: int, count: int, context: TrainContext) -> TrainState:
        """Chains and samples, a generator and its critic."""
        params = self.params
        chain_steps = steps - (params.gan_steps if params.mode == "offline" else 0)
        chain = super().begin(module, chain_steps, count, context)
        clf = Classifier(module, GeneratorPosterior(module, params.latent, params.hidden))
        critic = perceptron((chain.layout.size, *reversed(params.hidden), 1)).to(clf.posterior.device)
        return TrainState(
            clf,
            steps,
            optimizers={"generator": self._adam(clf.posterior), "critic": self._adam(critic)},
            modules={"critic": critic},
            tensors=chain.tensors,
        )

    def finish(self, state: TrainState) -> Classifier:
        """The classifier of G's samples."""
        return state.clf

    def _adam(self, net: nn.Module) -> Optimizer:
        return Adam([{"params": list(net.parameters())}], lr=self.params.gan_lr, betas=(0.5, 0.9))

    def update(self, state: TrainState, x: Tensor, y: Tensor, count: int, context: TrainContext) -> dict[str, Tensor]:
        """Take a step of the chains, or offline of G after the last one; online, train G at the end of a round."""
        params = self.params
        if params.mode == "offline":
            chain_steps = state.steps - params.gan_steps
            if state.step < chain_steps:
                return super().update(state, x, y, count, context)
            first, rate = state.step == chain_steps, self.rate(state, params.gan_steps)
            return self.distil(state, chain_steps, 1, first=first, context=context, rate=rate)
        watched = super().update(state, x, y, count, context)
        done = state.step + 1
        if done % params.round_steps == 0 or done == state.steps:
            first = not self.filled(state, state.step // params.round_steps * params.round_steps)
            if self.filled(state, done):
                rate = self.rate(state, state.steps)
                watched |= self.distil(state, done, params.round_gan_steps, first=first, context=context, rate=rate)
                self.restart(state, context)
        return watched

    def rate(self, state: TrainState, span: int) -> float:
        """Factor on the GAN's learning rate: with `gan_decay`, the remaining fraction of `span` steps, otherwise 1."""
        return (state.steps - state.step) / span if self.params.gan_decay else 1.0

    @torch.no_grad()
    def restart(self, state: TrainState, context: TrainContext) -> None:
        """Restart the chains from samples of G."""
        chains = state.tensors["chains"]
        chains.copy_(_generator(state).generate(len(chains), context.generator("restart", state.step)))

    def distil(
        self,
        state: TrainState,
        chain_steps: int,
        gan_steps: int,
        *,
        first: bool,
        context: TrainContext,
        rate: float = 1.0,
    ) -> dict[str, Tensor]:
        """Train G on the stored samples; the first time, centre its outputs at their mean.

        Args:
            state: state of the training.
            chain_steps: number of chain steps so far.
            gan_steps: number of steps of G, each after `critic_steps` of the critic.
            first: True if G has not been trained yet.
            context: seed and device.
            rate: factor on the learning rate.

        Returns:
            The last losses of critic and generator, and the difference of the critic's scores of samples and of G's
            outputs.
        """
        samples = state.tensors["bank"][: self.filled(state, chain_steps)]
        if first and self.params.center:
            with torch.no_grad():
                last: nn.Linear = _generator(state).generator[-1]  # type: ignore[assignment]
                last.bias.copy_(samples.mean(0))
        for optimizer in state.optimizers.values():
            optimizer.param_groups[0]["lr"] = self.params.gan_lr * rate
        for step in range(gan_steps):
            watched = self._gan_step(state, samples, context.generator("gan", state.step, step))
        return watched

    def _gan_step(self, state: TrainState, samples: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        params = self.params
        critic, distribution = state.modules["critic"], _generator(state)
        critic_loss, generator_loss = LOSSES[params.gan]
        size = params.gan_batch_size
        for _ in range(params.critic_steps):
            rows = torch.randint(len(samples), (size,), generator=generator, device=samples.device)
            real = samples[rows]
            with torch.no_grad():
                fake = distribution.generate(size, generator)
            on_real, on_fake = critic(torch.cat([real, fake])).chunk(2)
            loss = critic_loss(on_real, on_fake)
            if params.gan == "wgan_gp":
                loss = loss + params.gradient_penalty * gradient_penalty(critic, real, fake, generator)
            _descend(state.optimizers["critic"], loss)
            if params.gan == "wgan":
                with torch.no_grad():
                    for parameter in critic.parameters():
                        parameter.clamp_(-params.clip, params.clip)
        fooled = generator_loss(critic(distribution.generate(size, generator)))
        _descend(state.optimizers["generator"], fooled)
        gap = (on_real.mean() - on_fake.mean()).detach()
        return {"critic loss": loss.detach(), "generator loss": fooled.detach(), "critic's gap": gap}


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator) -> Tensor:
    """Mean of (||grad D(mix)||_2 - 1)^2 at random points between pairs `(batch, size)` (APD eq. 6, last term)."""
    share = torch.rand((len(real), 1), generator=generator, device=real.device)
    mix = (share * real + (1 - share) * fake).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(mix).sum(), mix, create_graph=True)
    penalty: Tensor = (gradient.norm(dim=1) - 1).square().mean()
    return penalty


def _wasserstein(on_real: Tensor, on_fake: Tensor) -> Tensor:
    return on_fake.mean() - on_real.mean()


def _cross_entropy(on_real: Tensor, on_fake: Tensor) -> Tensor:
    return F.softplus(-on_real).mean() + F.softplus(on_fake).mean()


def _raise_score(on_fake: Tensor) -> Tensor:
    return -on_fake.mean()


def _raise_log_probability(on_fake: Tensor) -> Tensor:
    return F.softplus(-on_fake).mean()


# Losses of the critic (eq. 6 without penalty; eq. 5 negated) and of the generator (non-saturating for the original
# GAN).
LOSSES: dict[GanName, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "wgan_gp": (_wasserstein, _raise_score),
    "wgan": (_wasserstein, _raise_score),
    "gan": (_cross_entropy, _raise_log_probability),
}


def _generator(state: TrainState) -> GeneratorPosterior:
    posterior = state.clf.posterior
    assert isinstance(posterior, GeneratorPosterior), "created by begin"
    return posterior


def _descend(optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()

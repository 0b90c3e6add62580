"""Stochastic-gradient MCMC: the samplers' steps, and the training that runs chains of them.

A chain targets the density proportional to exp(-U / T) of the mean loss U (with its L2 penalty) at the
temperature T. The posterior of N images is T = 1 / N.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advbench.errors import InputError
from advbench.models.classifier import Classifier, Draw
from advbench.models.posterior import FlatLayout, SamplePosterior
from advbench.registry.params import Field
from advbench.training.base import TrainContext
from advbench.training.loop import LoopDefense, LoopParams, TrainState, autocast


def sgld_step(theta: Tensor, gradient: Tensor, *, lr: float, temperature: float, generator: torch.Generator) -> None:
    """One step of stochastic-gradient Langevin dynamics, in place (Welling and Teh 2011; APD eq. 4).

    theta <- theta - lr/2 * gradient + N(0, lr * temperature). At temperature 1 / N the step size of APD's
    eq. 4 is lr / N, for the log posterior is -N times the mean loss.

    Args:
        theta: the chain, of any shape.
        gradient: of the mean loss with its penalty, shaped as `theta`.
        lr: learning rate.
        temperature: T.
        generator: of the noise.
    """
    noise = torch.empty_like(theta).normal_(generator=generator)
    theta.sub_(gradient, alpha=lr / 2).add_(noise, alpha=math.sqrt(lr * temperature))


def sgadald_step(
    theta: Tensor,
    gradient: Tensor,
    square: Tensor,
    *,
    count: int,
    lr: float,
    temperature: float,
    friction: float | None,
    window: float,
    damping: float,
    generator: torch.Generator,
) -> Tensor:
    """One step of stochastic-gradient adaptive Langevin dynamics, in place (BAL eq. 10).

    theta <- theta - lr^2 V^-1/2 gradient + N(0, 2 C lr^3 V^-1 temperature - lr^4), a negative variance being 0.
    V is a running mean of squared gradients over about `window` steps, freed from its start at 0. The
    last term of the variance stands for the noise that a minibatch's gradient has already put into the step.

    The paper gives no value of the friction C. Dropping the momentum, as it does, is exact where friction stops
    it within a step: C = V^1/2 / lr. There, and with V the gradient's own variance, the stationary variance on a
    quadratic loss is the target's; `friction=None` takes that C, weight by weight.

    Args:
        theta: the chain, of any shape.
        gradient: of the mean loss with its penalty, shaped as `theta`.
        square: running mean of squared gradients, updated in place; 0 before the first step.
        count: steps of the chain so far, this one included.
        lr: step size eta.
        temperature: T; 1 gives eq. 10 as printed.
        friction: C, or None for V^1/2 / lr.
        window: tau, in steps.
        damping: added to V^1/2, so that a weight without gradient does not run away.
        generator: of the noise.

    Returns:
        The share of weights that got noise. Where it is 0, as with eta^2 > 2 T / V^1/2 everywhere, the chain is no
        sampler but an optimiser.
    """
    keep = 1 - 1 / window
    square.mul_(keep).addcmul_(gradient, gradient, value=1 / window)
    root = (square / (1 - keep**count)).sqrt_().add_(damping)
    drift = lr**2 / root
    spread = drift * 2 if friction is None else 2 * friction * lr**3 / root.square()
    std = (spread * temperature).sub_(lr**4).clamp_min_(0).sqrt_()
    noise = torch.empty_like(theta).normal_(generator=generator)
    theta.addcmul_(drift, gradient, value=-1).addcmul_(std, noise)
    return (std > 0).float().mean()


class ChainParams(LoopParams):
    """Hyperparameters of running Markov chains over the weights."""

    chains: int = Field(default=1, ge=1, description="chains that run in parallel")
    jitter: float = Field(
        default=0.0,
        ge=0,
        description="standard deviation of the Gaussian noise by which each chain's start differs from the module's "
        "weights",
    )
    burn_in: int = Field(default=500, ge=0, description="steps before the first sample; APD section 5.2: 500")
    interval: int = Field(default=20, ge=1, description="steps from one sample to the next; APD section 5.2: 20")
    samples: int = Field(default=200, ge=1, description="samples kept of all chains together, the newest")
    temperature: float | None = Field(
        default=None,
        ge=0,
        description="T of the density exp(-mean loss / T); by default 1 / N, which is the posterior's",
    )


class ChainDefense(LoopDefense):
    """A posterior by stochastic-gradient MCMC. Samplers give `move`.

    The state holds `chains` `(chains, size)` and the `bank` of samples `(samples, size)` among its tensors.

    Batch norm's running statistics are the module's, shared by all chains.
    """

    params: ChainParams
    accuracy: ClassVar[str] = "train accuracy"

    @abstractmethod
    def move(
        self, state: TrainState, chain: int, gradient: Tensor, temperature: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """One step of a chain, in place on `state.tensors`. Returns scalars to watch."""

    def passes_per_image(self) -> float:
        """One pass an epoch, chain and image."""
        return float(self.params.chains * sum(self.params.stages))

    def begin(self, module: nn.Module, steps: int, count: int, context: TrainContext) -> TrainState:
        """Chains around the module's weights, and an empty bank of samples."""
        params = self.params
        if steps < params.burn_in + params.interval:
            raise InputError(
                "steps of the chain",
                expected=f"at least burn_in + interval = {params.burn_in + params.interval}",
                got=f"{steps} (from stages and batch_size)",
                remedy="raise stages, or lower burn_in",
            )
        layout = FlatLayout(module)
        start = layout.flatten(dict(module.named_parameters())).detach()
        jitter = torch.empty((params.chains, layout.size), device=start.device)
        jitter.normal_(generator=context.generator("jitter"))
        chains = start + params.jitter * jitter
        bank = torch.zeros((self._kept(steps), layout.size), device=start.device)
        return TrainState(Classifier(module), steps, tensors={"chains": chains, "bank": bank})

    def update(self, state: TrainState, x: Tensor, y: Tensor, count: int, context: TrainContext) -> dict[str, Tensor]:
        """A step of each chain, and a sample of each where one is due."""
        state.clf.module.train()
        watched = self.advance(state, x, y, count, context, ("step", state.step, 0))
        self.collect(state)
        return watched

    def advance(
        self, state: TrainState, x: Tensor, y: Tensor, count: int, context: TrainContext, label: tuple[object, ...]
    ) -> dict[str, Tensor]:
        """Move each chain by one step on these images; `label` is the address of its noise."""
        temperature = 1 / count if self.params.temperature is None else self.params.temperature
        rows: list[dict[str, Tensor]] = []
        for chain in range(self.params.chains):
            theta = state.tensors["chains"][chain].detach().requires_grad_(True)
            draw = Draw(state.layout.views(theta), chain)
            with autocast(context):
                loss, logits = self.loss(state.clf, draw, x, y)
            (gradient,) = torch.autograd.grad(loss, theta)
            if self.params.weight_decay:
                gradient = gradient.add(theta.detach(), alpha=self.params.weight_decay)
            watched = self.move(state, chain, gradient, temperature, context.generator(*label, chain))
            accuracy = (logits.argmax(1) == y[: len(logits)]).float().mean()
            rows.append({"loss": loss.detach(), self.accuracy: accuracy, **watched})
        return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}

    def loss(self, clf: Classifier, draw: Draw, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss at a chain's weights, by default mean cross-entropy in nats; logits of the first images."""
        logits = clf.at(draw, x)
        return F.cross_entropy(logits.float(), y), logits

    def collect(self, state: TrainState) -> None:
        """Keep the chains as samples where they are due, in place of the oldest."""
        done = state.step + 1 - self.params.burn_in
        if done <= 0 or done % self.params.interval:
            return
        chains, bank = state.tensors["chains"], state.tensors["bank"]
        first = (done // self.params.interval - 1) * len(chains)
        rows = torch.arange(first, first + len(chains), device=bank.device) % len(bank)
        bank.index_copy_(0, rows, chains)

    def finish(self, state: TrainState) -> Classifier:
        """The classifier over the samples kept; before the first of them over the chains as they are."""
        kept = self.filled(state, state.step)
        samples = state.tensors["bank"][:kept] if kept else state.tensors["chains"]
        return Classifier(state.clf.module, SamplePosterior(state.clf.module, samples))

    def filled(self, state: TrainState, steps: int) -> int:
        """How many rows of the bank hold samples after so many steps of the chains."""
        taken = max(steps - self.params.burn_in, 0) // self.params.interval * self.params.chains
        return min(taken, len(state.tensors["bank"]))

    def _kept(self, steps: int) -> int:
        """How many samples there will be in the end: as many as were taken, at most `samples`."""
        params = self.params
        taken = params.chains * ((steps - params.burn_in) // params.interval)
        if params.samples < params.chains:
            raise InputError(
                "samples kept", expected=f"at least one a chain, of which there are {params.chains}", got=params.samples
            )
        return min(taken, params.samples - params.samples % params.chains)


class SGLDParams(ChainParams):
    """Hyperparameters of stochastic-gradient Langevin dynamics."""

    lr: float = Field(default=0.05, gt=0, description="learning rate of the first stage; APD section 5.2: 0.05")
    weight_decay: float = Field(
        default=0.001,
        ge=0,
        description="precision of the Gaussian prior over N: adds weight_decay * w to the gradient of the mean loss; "
        "APD section 5.2: 0.001",
    )
    batch_size: int = Field(default=100, ge=1, description="images a step; APD section 5.2: 100")


class LangevinChains(ChainDefense):
    """Chains of stochastic-gradient Langevin dynamics."""

    params: SGLDParams

    def move(
        self, state: TrainState, chain: int, gradient: Tensor, temperature: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """APD eq. 4."""
        lr = self.params.lr * state.rate
        sgld_step(state.tensors["chains"][chain], gradient, lr=lr, temperature=temperature, generator=generator)
        return {}


class SGAdaLDParams(ChainParams):
    """Hyperparameters of stochastic-gradient adaptive Langevin dynamics."""

    chains: int = Field(default=5, ge=1, description="chains S_theta that run in parallel; BAL section 5: 5")
    jitter: float = Field(
        default=0.01,
        ge=0,
        description="standard deviation of the Gaussian noise by which each chain's start differs from the module's "
        "weights; not in BAL, whose chains would start alike",
    )
    burn_in: int = Field(default=0, ge=0, description="steps before the first sample; BAL: 0")
    interval: int = Field(default=1, ge=1, description="steps from one sample to the next")
    samples: int = Field(
        default=5, ge=1, description="samples kept of all chains together, the newest; BAL: the chains' end points"
    )
    temperature: float | None = Field(
        default=1e-5,
        ge=0,
        description="T of the density exp(-mean loss / T), None for the posterior's 1 / N; BAL section 5: 1e-5 (MNIST)",
    )
    lr: float = Field(default=0.03, gt=0, description="step size eta of BAL eq. 10; the paper gives none")
    friction: float | None = Field(
        default=None,
        gt=0,
        description="C of BAL eq. 10; the paper gives none. By default V^1/2 / lr, where momentum vanishes and the "
        "stationary variance is the posterior's",
    )
    window: float = Field(
        default=100.0, gt=1, description="tau of BAL eq. 10, in steps: how long squared gradients are averaged"
    )
    damping: float = Field(
        default=1e-3,
        gt=0,
        description="added to V^1/2, in units of a gradient; not in BAL, whose weights without gradient run away",
    )


class AdaptiveChains(ChainDefense):
    """Chains of stochastic-gradient adaptive Langevin dynamics."""

    params: SGAdaLDParams

    def begin(self, module: nn.Module, steps: int, count: int, context: TrainContext) -> TrainState:
        """Chains, an empty bank, and each chain's mean of squared gradients, which persists."""
        state = super().begin(module, steps, count, context)
        chains = state.tensors["chains"]
        state.tensors["square"] = torch.zeros_like(chains)
        state.tensors["moves"] = torch.zeros(len(chains), dtype=torch.int64)
        return state

    def move(
        self, state: TrainState, chain: int, gradient: Tensor, temperature: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """BAL eq. 10; watches the share of weights that got noise."""
        params = self.params
        state.tensors["moves"][chain] += 1
        noisy = sgadald_step(
            state.tensors["chains"][chain],
            gradient,
            state.tensors["square"][chain],
            count=int(state.tensors["moves"][chain]),
            lr=params.lr * state.rate**0.5,
            temperature=temperature,
            friction=params.friction,
            window=params.window,
            damping=params.damping,
            generator=generator,
        )
        return {"weights with noise": noisy}

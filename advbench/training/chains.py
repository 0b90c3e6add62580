"""Stochastic-gradient MCMC: steps of the samplers, and training methods that run chains.

A chain targets the density proportional to exp(-U / T), with mean loss U (including the L2 penalty) and temperature T.
The posterior given N images has T = 1 / N.
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
from advbench.registry.params import Field, Params
from advbench.training.base import TrainContext
from advbench.training.loop import LoopDefense, LoopParams, TrainState, autocast
from advbench.training.returned import checked_chain_loss, checked_scalars, constant_loss


def sgld_step(theta: Tensor, gradient: Tensor, *, lr: float, temperature: float, generator: torch.Generator) -> None:
    """One step of stochastic-gradient Langevin dynamics, in place (Welling and Teh 2011; APD eq. 4).

    theta <- theta - lr/2 * gradient + N(0, lr * temperature). At temperature 1 / N the step size of APD's eq. 4 is lr /
    N, because the log posterior is -N times the mean loss.

    Args:
        theta: state of the chain, of any shape.
        gradient: gradient of the mean loss with its penalty, shaped as `theta`.
        lr: learning rate.
        temperature: temperature T.
        generator: random generator of the noise.
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

    theta <- theta - lr^2 V^-1/2 gradient + N(0, 2 C lr^3 V^-1 temperature - lr^4), with a negative variance replaced by
    0. V is a running mean of squared gradients over about `window` steps, corrected for its start at 0. The last term
    of the variance accounts for the noise of the minibatch gradient.

    The paper gives no value of the friction C. Dropping the momentum, as the paper does, is exact if friction damps it
    within one step: C = V^1/2 / lr. Then, with V equal to the variance of the gradient, the stationary variance on a
    quadratic loss is that of the target; `friction=None` uses this C for each weight.

    Args:
        theta: state of the chain, of any shape.
        gradient: gradient of the mean loss with its penalty, shaped as `theta`.
        square: running mean of squared gradients, updated in place; 0 before the first step.
        count: number of steps of the chain so far, including this one.
        lr: step size eta.
        temperature: temperature T; 1 gives eq. 10 as printed.
        friction: friction C, or None for V^1/2 / lr.
        window: averaging window tau, in steps.
        damping: constant added to V^1/2, so that weights with zero gradient do not diverge.
        generator: random generator of the noise.

    Returns:
        Fraction of the weights with noise of positive variance. At 0, as with eta^2 > 2 T / V^1/2 everywhere, the chain
        is an optimiser and not a sampler.
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
    """Hyperparameters of Markov chains over the weights."""

    chains: int = Field(default=1, ge=1, description="number of parallel chains")
    jitter: float = Field(
        default=0.0,
        ge=0,
        description="standard deviation of the Gaussian noise added to the module's weights at the start of each chain",
    )
    burn_in: int = Field(
        default=500, ge=0, description="burn-in before the first sample, in steps; APD section 5.2: 500"
    )
    interval: int = Field(default=20, ge=1, description="thinning interval in steps; APD section 5.2: 20")
    samples: int = Field(default=200, ge=1, description="number of samples kept, the latest of all chains")
    temperature: float | None = Field(
        default=None,
        ge=0,
        description="temperature T of the density exp(-mean loss / T); None for the posterior's 1 / N",
    )


class ChainDefense(LoopDefense):
    """Posterior samples by stochastic-gradient MCMC. Samplers implement `move`.

    The tensors of the state include `chains` `(chains, size)` and the samples `bank` `(samples, size)`. Running
    statistics of batch norm belong to the module and are shared by all chains.
    """

    Params: ClassVar[type[Params]] = ChainParams
    params: ChainParams
    accuracy: ClassVar[str] = "train accuracy"

    @abstractmethod
    def move(
        self, state: TrainState, chain: int, gradient: Tensor, temperature: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Take one step of a chain, in place on `state.tensors`; return scalars to monitor."""

    def passes_per_image(self) -> float:
        """One pass per epoch, chain and image."""
        return float(self.params.chains * sum(self.params.stages))

    def begin(self, module: nn.Module, steps: int, count: int, context: TrainContext) -> TrainState:
        """Chains started around the module's weights, and an empty set of samples."""
        params = self.params
        if steps < params.burn_in + params.interval:
            raise InputError(
                "number of steps of the chain",
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
        """Take a step of each chain, and a sample of each at the end of an interval."""
        state.clf.module.train()
        watched = self.advance(state, x, y, count, context, ("step", state.step, 0))
        self.collect(state)
        return watched

    def advance(
        self, state: TrainState, x: Tensor, y: Tensor, count: int, context: TrainContext, label: tuple[object, ...]
    ) -> dict[str, Tensor]:
        """Take one step of each chain on these images; `label` seeds its noise."""
        temperature = 1 / count if self.params.temperature is None else self.params.temperature
        rows: list[dict[str, Tensor]] = []
        for chain in range(self.params.chains):
            theta = state.tensors["chains"][chain].detach().requires_grad_(True)
            draw = Draw(state.layout.views(theta), chain)
            with autocast(context):
                loss, logits = checked_chain_loss(self, self.loss(state.clf, draw, x, y))
            (gradient,) = torch.autograd.grad(loss, theta, allow_unused=True)
            if gradient is None:
                raise constant_loss(self)
            if self.params.weight_decay:
                gradient = gradient.add(theta.detach(), alpha=self.params.weight_decay)
            moved = self.move(state, chain, gradient, temperature, context.generator(*label, chain))
            accuracy = (logits.argmax(1) == y[: len(logits)]).float().mean()
            rows.append({"loss": loss.detach(), self.accuracy: accuracy, **checked_scalars(self, "move", moved)})
        return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}

    def loss(self, clf: Classifier, draw: Draw, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss at a chain's weights, by default cross-entropy in nats, and the logits of the images."""
        logits = clf.at(draw, x)
        return F.cross_entropy(logits.float(), y), logits

    def collect(self, state: TrainState) -> None:
        """Store the chains as samples at the end of an interval, replacing the oldest."""
        done = state.step + 1 - self.params.burn_in
        if done <= 0 or done % self.params.interval:
            return
        chains, bank = state.tensors["chains"], state.tensors["bank"]
        first = (done // self.params.interval - 1) * len(chains)
        rows = torch.arange(first, first + len(chains), device=bank.device) % len(bank)
        bank.index_copy_(0, rows, chains)

    def finish(self, state: TrainState) -> Classifier:
        """The classifier of the stored samples; before the first sample, of the chains' present weights."""
        kept = self.filled(state, state.step)
        samples = state.tensors["bank"][:kept] if kept else state.tensors["chains"]
        return Classifier(state.clf.module, SamplePosterior(state.clf.module, samples))

    def filled(self, state: TrainState, steps: int) -> int:
        """Number of rows of the bank that hold samples after so many steps of the chains."""
        taken = max(steps - self.params.burn_in, 0) // self.params.interval * self.params.chains
        return min(taken, len(state.tensors["bank"]))

    def _kept(self, steps: int) -> int:
        """Final number of samples: all that were taken, at most `samples`."""
        params = self.params
        taken = params.chains * ((steps - params.burn_in) // params.interval)
        if params.samples < params.chains:
            raise InputError(
                "number of samples",
                expected=f"at least one for each of {params.chains} chains",
                got=params.samples,
            )
        return min(taken, params.samples - params.samples % params.chains)


class SGLDParams(ChainParams):
    """Hyperparameters of stochastic-gradient Langevin dynamics."""

    lr: float = Field(default=0.05, gt=0, description="learning rate of the first stage; APD section 5.2: 0.05")
    weight_decay: float = Field(
        default=0.001,
        ge=0,
        description="L2 penalty, the precision of the Gaussian prior / N: adds weight_decay * w to the mean gradient; "
        "APD section 5.2: 0.001",
    )
    batch_size: int = Field(default=100, ge=1, description="number of images per step; APD section 5.2: 100")


class LangevinChains(ChainDefense):
    """Chains of stochastic-gradient Langevin dynamics."""

    Params: ClassVar[type[Params]] = SGLDParams
    params: SGLDParams

    def move(
        self, state: TrainState, chain: int, gradient: Tensor, temperature: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Langevin step (APD eq. 4)."""
        lr = self.params.lr * state.rate
        sgld_step(state.tensors["chains"][chain], gradient, lr=lr, temperature=temperature, generator=generator)
        return {}


class SGAdaLDParams(ChainParams):
    """Hyperparameters of stochastic-gradient adaptive Langevin dynamics."""

    chains: int = Field(default=5, ge=1, description="number of parallel chains S_theta; BAL section 5: 5")
    jitter: float = Field(
        default=0.01,
        ge=0,
        description="standard deviation of the Gaussian noise added to the module's weights at the start of each "
        "chain; not in BAL, whose chains would start at the same point",
    )
    burn_in: int = Field(default=0, ge=0, description="burn-in before the first sample, in steps; BAL: 0")
    interval: int = Field(default=1, ge=1, description="thinning interval in steps")
    samples: int = Field(
        default=5, ge=1, description="number of samples kept, the latest of all chains; BAL: the end points"
    )
    temperature: float | None = Field(
        default=1e-5,
        ge=0,
        description="temperature T of the density exp(-mean loss / T), None for 1 / N; BAL section 5: 1e-5 (MNIST)",
    )
    lr: float = Field(default=0.03, gt=0, description="step size eta of BAL eq. 10; not stated in the paper")
    friction: float | None = Field(
        default=None,
        gt=0,
        description="friction C of BAL eq. 10, not stated in the paper; None for V^1/2 / lr, where momentum vanishes "
        "and the stationary variance is that of the posterior",
    )
    window: float = Field(
        default=100.0, gt=1, description="averaging window tau of squared gradients in BAL eq. 10, in steps"
    )
    damping: float = Field(
        default=1e-3,
        gt=0,
        description="constant added to V^1/2, in units of the gradient; not in BAL, where weights with zero gradient "
        "diverge",
    )


class AdaptiveChains(ChainDefense):
    """Chains of stochastic-gradient adaptive Langevin dynamics."""

    Params: ClassVar[type[Params]] = SGAdaLDParams
    params: SGAdaLDParams

    def begin(self, module: nn.Module, steps: int, count: int, context: TrainContext) -> TrainState:
        """Chains, an empty set of samples, and a running mean of squared gradients for each chain."""
        state = super().begin(module, steps, count, context)
        chains = state.tensors["chains"]
        state.tensors["square"] = torch.zeros_like(chains)
        state.tensors["moves"] = torch.zeros(len(chains), dtype=torch.int64)
        return state

    def move(
        self, state: TrainState, chain: int, gradient: Tensor, temperature: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Adaptive Langevin step (BAL eq. 10); monitors the fraction of weights with noise."""
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

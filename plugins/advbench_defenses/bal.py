"""BAL: Bayesian adversarial learning."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advbench.attacks import cross_entropy
from advbench.models import Classifier, Draw
from advbench.training import AdaptiveChains, Field, Paper, SGAdaLDParams, TrainContext, TrainState, autocast


class BAL(AdaptiveChains):
    """Gibbs sampling of adversarial images and of weights trained on them.

    Ye and Zhu 2018, "Bayesian Adversarial Learning", Algorithm 1. For each minibatch, images are drawn from
    exp(sum_s loss(x~; theta_s) - alpha ||x~ - x||^2) (eq. 6) by `image_steps` steps of SGLD from the images
    themselves; then each chain of weights takes `weight_steps` steps of SGAdaLD (eq. 10) on them. A draw of the
    classifier is the end point of one of the chains.

    Errata. Eq. 8 has the wrong sign of the loss: images ascend it, by eta1 grad [sum_s loss(x~; theta_s) - alpha ||x~ -
    x||^2] + sqrt(2 eta1 T) n. Eq. 9 descends the loss, with the noise of eq. 10. Departures: images are clipped to [0,
    1] after each step; chains start at jittered copies of the initial weights, because equal chains would differ by
    their noise only. The paper states neither alpha nor the step sizes. The released code trains on the mean of clean
    and adversarial loss: `clean_weight` 0.5.
    """

    version = "1"
    paper = Paper(
        title="Bayesian Adversarial Learning",
        authors="Ye, Zhu",
        year=2018,
        link="https://nips.cc/Conferences/2018/Schedule?showEvent=11664",
    )

    class Params(SGAdaLDParams):
        """Hyperparameters of BAL."""

        alpha: float = Field(
            default=0.5,
            ge=0,
            description="penalty alpha on the perturbation, in nats per squared pixel (eq. 6); not in the paper",
        )
        price_inside: bool = Field(
            default=False,
            description="penalty inside the sum over the chains of weights, as in eq. 8 and the released "
            "code, so that it grows with their number",
        )
        image_steps: int = Field(
            default=15, ge=1, description="number M of SGLD steps of the images; BAL section 5: 15"
        )
        image_lr: float = Field(
            default=0.1,
            gt=0,
            description="step size eta1 of the images, in squared pixels per nat (eq. 8); not in the paper",
        )
        image_temperature: float = Field(
            default=1e-5, ge=0, description="temperature of the images' chains; BAL section 5: 1e-5"
        )
        image_chains: int = Field(
            default=1, ge=1, description="number S_x of chains per image; BAL: 1 (MNIST) or 5 (GTSRB)"
        )
        weight_steps: int = Field(
            default=1, ge=1, description="number of SGAdaLD steps of the weights per minibatch; BAL Algorithm 1: M, 15"
        )
        clean_weight: float = Field(
            default=0.0,
            ge=0,
            le=1,
            description="weight of the loss on clean images; BAL: 0, released code: 0.5",
        )

    accuracy = "robust train accuracy"
    # More steps per minibatch require a smaller step size: with 15 steps of 0.03, clean accuracy drops.
    presets = {
        "digits": {"stages": (8, 2), "batch_size": 64, "alpha": 5.0, "init_from": "erm"},
        "mnist": {"stages": (2,), "init_from": "erm"},
        "cifar10": {"stages": (10,), "augment": True, "init_from": "erm"},
        # At that temperature, longer steps leave no positive variance for noise (eq. 10).
        "gtsrb": {"stages": (2,), "init_from": "erm", "image_chains": 5, "temperature": 1e-7, "lr": 0.003},
        # The released code moves images by 300 gradients of the mean loss of 256, and a quarter as far at each of the
        # next 14 steps: 100 / 256 in total, like 15 steps of 0.026 here. Its penalty is 1e-4 relative to that mean. It
        # scales the noise of the weights by the temperature itself, which leaves hardly any; friction has its default.
        "paper": {
            "stages": (2,),
            "batch_size": 256,
            "init_from": "erm",
            "lr": 0.015,
            "window": 2.0,
            "damping": 0.0022,
            "chains": 5,
            "samples": 5,
            "temperature": 1e-5,
            "alpha": 0.0256,
            "price_inside": True,
            "image_steps": 15,
            "image_lr": 0.026,
            "image_temperature": 1e-5,
            "image_chains": 1,
            "weight_steps": 15,
            "clean_weight": 0.5,
        },
    }
    sources = {
        "section 5, MNIST": "stages init_from chains samples temperature image_steps image_temperature image_chains "
        "weight_steps",
        "eq. 8": "price_inside",
        "released code": "batch_size lr window damping alpha image_lr clean_weight",
    }
    params: Params

    def passes_per_image(self) -> float:
        """Per epoch, one pass per image chain and weight chain, at each step of both."""
        params = self.params
        steps = params.image_steps + params.weight_steps * (2 if params.clean_weight else 1)
        return super().passes_per_image() * params.image_chains * steps

    def update(self, state: TrainState, x: Tensor, y: Tensor, count: int, context: TrainContext) -> dict[str, Tensor]:
        """Take one Gibbs iteration: sample the images, then the weights."""
        params = self.params
        x, y = x.repeat(params.image_chains, 1, 1, 1), y.repeat(params.image_chains)
        state.clf.module.eval()
        with autocast(context):
            moved = self.perturb(state, x, y, context.generator("images", state.step))
        if params.clean_weight:
            moved, y = torch.cat([moved, x]), y.repeat(2)
        state.clf.module.train()
        for step in range(params.weight_steps):
            watched = self.advance(state, moved, y, count, context, ("step", state.step, step))
        self.collect(state)
        return watched

    def perturb(self, state: TrainState, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Sample images from the energy of eq. 6, given all chains of weights: SGLD from `x` (eq. 8, corrected)."""
        params = self.params
        draws = [Draw(state.layout.views(theta), chain) for chain, theta in enumerate(state.tensors["chains"])]
        std = math.sqrt(2 * params.image_lr * params.image_temperature)
        moved = x
        price = params.alpha * (len(draws) if params.price_inside else 1)
        for _ in range(params.image_steps):
            mean_gradient = state.clf.input_gradient(moved, y, cross_entropy, draws=draws).value
            ascent = len(draws) * mean_gradient - 2 * price * (moved - x)
            noise = torch.empty_like(x).normal_(generator=generator)
            moved = (moved + params.image_lr * ascent + std * noise).clamp_(0, 1)
        return moved

    def loss(self, clf: Classifier, draw: Draw, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy on perturbed images; with `clean_weight`, the second half of `x` are the clean images."""
        share = self.params.clean_weight
        if not share:
            return super().loss(clf, draw, x, y)
        logits = clf.at(draw, x)
        moved, clean = cross_entropy(logits.float(), y).chunk(2)
        return (1 - share) * moved.mean() + share * clean.mean(), logits[: len(moved)]

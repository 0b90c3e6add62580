"""WRM: Wasserstein robust training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advbench import attacks
from advbench.models import Classifier
from advbench.training import Field, MixedLoss, MixedParams, Paper


class WRM(MixedLoss):
    """Distributionally robust training: descend the loss at argmax of loss(x) - gamma ||x - x0||^2.

    Sinha et al. 2018, Algorithm 1; "WRM" in BAL Figure 1. The inner maximisation takes `steps` ascent steps of size 1 /
    sqrt(t + 2), t = 0, 1, ..., each clipped to the box [0, 1]. If gamma exceeds half the smoothness constant of the
    loss, the inner problem is concave and the maximum is unique.
    """

    version = "1"
    paper = Paper(
        title="Certifying Some Distributional Robustness with Principled Adversarial Training",
        authors="Sinha, Namkoong, Duchi",
        year=2018,
        link="https://arxiv.org/abs/1710.10571",
    )

    class Params(MixedParams):
        """Hyperparameters of WRM."""

        gamma: float = Field(
            default=0.4,
            gt=0,
            description="penalty gamma on the perturbation, in nats per squared pixel; not stated in BAL",
        )
        steps: int = Field(default=15, ge=1, description="number of ascent steps in training; BAL section 5: 15")

    accuracy = "robust train accuracy"
    presets = {
        "digits": {"stages": (40, 10), "batch_size": 64, "gamma": 2.0},
        "mnist": {"stages": (4, 1)},
        "cifar10": {"stages": (40, 20), "augment": True},
        "paper": {"stages": (2,), "batch_size": 256, "steps": 15, "init_from": "erm", "clean_weight": 0.5},
    }
    sources = {"BAL section 5": "stages steps init_from", "BAL's released code": "batch_size clean_weight"}
    params: Params

    def passes_per_image(self) -> float:
        """Per epoch, one pass per image for each ascent step, in addition to those of training."""
        return super().passes_per_image() + self.params.steps * sum(self.params.stages)

    def perturb(self, clf: Classifier, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Images that maximise the penalised loss."""
        moved = x
        for step in range(self.params.steps):
            gradient = clf.input_gradient(moved, y, attacks.cross_entropy).value
            gradient = gradient - 2 * self.params.gamma * (moved - x)
            moved = (moved + gradient / math.sqrt(step + 2)).clamp(0, 1)
        return self.beside(x, moved)

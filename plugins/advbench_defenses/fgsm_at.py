"""Adversarial training on FGSM examples."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import Threat
from advbench.models import Classifier
from advbench.training import BallParams, MixedLoss, MixedParams, Paper


class FGSMAT(MixedLoss):
    """Adversarial training on FGSM examples: a single signed step of length eps.

    Goodfellow et al. 2015; "FGSM" in BAL Figure 1. The inner maximisation is exact for a linear model. Long training
    can end in catastrophic overfitting: near-perfect on FGSM, broken by PGD.
    """

    version = "1"
    paper = Paper(
        title="Explaining and Harnessing Adversarial Examples",
        authors="Goodfellow, Shlens, Szegedy",
        year=2015,
        link="https://arxiv.org/abs/1412.6572",
    )

    class Params(BallParams, MixedParams):
        """Hyperparameters of FGSM training."""

    accuracy = "robust train accuracy"
    presets = {
        "digits": {"stages": (40, 10), "batch_size": 64, "eps": 0.15},
        "mnist": {"stages": (4, 1), "eps": 0.3},
        "cifar10": {"stages": (40, 20), "augment": True, "eps": 8 / 256},
        "paper": {"stages": (2,), "batch_size": 256, "eps": 0.02, "init_from": "erm", "clean_weight": 0.5},
    }
    sources = {"BAL section 5, MNIST": "stages init_from", "BAL's released code": "batch_size eps clean_weight"}
    params: Params

    def passes_per_image(self) -> float:
        """Per epoch, one pass per image to craft, in addition to those of training."""
        return super().passes_per_image() + sum(self.params.stages)

    def perturb(self, clf: Classifier, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """FGSM examples of `x`."""
        threat = Threat(self.params.norm, self.params.eps)
        return self.beside(x, attacks.ascend(clf, x, attacks.Goal(y), threat, steps=1, step_size=threat.eps, start=x))

"""Adversarial training on PGD examples."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.models import Classifier
from advbench.training import AdversarialParams, MixedLoss, MixedParams, Paper, PgdPerturbation


class PGDAT(PgdPerturbation, MixedLoss):
    """Adversarial training: minimise the cross-entropy on PGD examples for the current weights.

    Madry et al. 2018, eq. 2.1; Adv-BNN eq. 4. The inner maximisation is PGD with a random start.
    """

    version = "1"
    paper = Paper(
        title="Towards Deep Learning Models Resistant to Adversarial Attacks",
        authors="Madry, Makelov, Schmidt, Tsipras, Vladu",
        year=2018,
        link="https://arxiv.org/abs/1706.06083",
    )

    class Params(AdversarialParams, MixedParams):
        """Hyperparameters of adversarial training."""

    presets = {
        "digits": {"stages": (40, 10), "batch_size": 64, "eps": 0.15},
        "mnist": {"stages": (4, 1), "eps": 0.3},
        "cifar10": {"stages": (40, 20), "augment": True, "eps": 8 / 256},
        "paper": {
            "stages": (80, 60, 40, 20),
            "batch_size": 128,
            "lr": 0.01,
            "optimizer": "sgd",
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "augment": True,
            "eps": 8 / 256,
            "steps": 10,
            "step_size": 0.224,
            "random_start": False,
        },
    }
    sources = {
        "Adv-BNN Table 2": "eps steps",
        "Adv-BNN's released code, CIFAR-10; its step is 0.007 long": "stages batch_size lr optimizer momentum "
        "weight_decay augment step_size random_start",
    }
    params: Params

    def perturb(self, clf: Classifier, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """PGD examples of `x`, together with `x` itself if clean images have a weight."""
        return self.beside(x, super().perturb(clf, x, y, generator))

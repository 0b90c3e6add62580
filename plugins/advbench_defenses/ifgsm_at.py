"""Adversarial training on iterated FGSM examples."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.models import Classifier
from advbench.training import AdversarialParams, Field, MixedLoss, MixedParams, Paper, PgdPerturbation


class IFGSMAT(PgdPerturbation, MixedLoss):
    """Adversarial training on iterated FGSM: signed steps from the image itself, without random start.

    Kurakin et al. 2017; "IFGSM" in BAL Figure 1, with the 15 steps of BAL's chains. BAL's released code takes 15 steps
    of 0.02 without projection: eps 0.3 with `step_size` 1/15. With norm l2, one step and `step_size` 1 it is what that
    code means by PGD, which loses the sign of the gradient by squaring it.
    """

    version = "1"
    paper = Paper(
        title="Adversarial Machine Learning at Scale",
        authors="Kurakin, Goodfellow, Bengio",
        year=2017,
        link="https://arxiv.org/abs/1611.01236",
    )

    class Params(AdversarialParams, MixedParams):
        """Hyperparameters of iterated FGSM training."""

        steps: int = Field(default=15, ge=1, description="number of signed steps in training; BAL section 5: 15")
        random_start: bool = Field(default=False, description="random start in the ball; IFGSM: false")

    presets = {
        "digits": {"stages": (40, 10), "batch_size": 64, "eps": 0.15},
        "mnist": {"stages": (4, 1), "eps": 0.3},
        "cifar10": {"stages": (40, 20), "augment": True, "eps": 8 / 256},
        # The released code takes 15 steps of 0.0014 without projection.
        "paper": {
            "stages": (2,),
            "batch_size": 256,
            "eps": 0.021,
            "steps": 15,
            "step_size": 1 / 15,
            "init_from": "erm",
            "clean_weight": 0.5,
        },
    }
    sources = {
        "BAL section 5, MNIST": "stages steps init_from",
        "BAL's released code": "batch_size eps step_size clean_weight",
    }
    params: Params

    def perturb(self, clf: Classifier, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """PGD examples of `x`, together with `x` itself if clean images have a weight."""
        return self.beside(x, super().perturb(clf, x, y, generator))

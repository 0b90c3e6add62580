"""The fast gradient sign method."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import Attack, Field, Goal, Paper, Threat
from advbench.models import Classifier


class FGSM(Attack):
    """A single step of length eps in the steepest direction of the loss, from the clean image.

    Goodfellow et al. 2015, "Explaining and harnessing adversarial examples": x + eps sign(grad_x loss). In l2 the sign
    is replaced by the normalised gradient. A random classifier is attacked at one draw.
    """

    version = "1"
    paper = Paper(
        title="Explaining and Harnessing Adversarial Examples",
        authors="Goodfellow, Shlens, Szegedy",
        year=2015,
        link="https://arxiv.org/abs/1412.6572",
    )

    class Params(attacks.Params):
        """Hyperparameters of FGSM."""

        loss: attacks.LossName = Field(
            default="ce", description="loss to ascend: ce (cross-entropy), margin or dlr; Goodfellow 2015: ce"
        )

    targeted = True
    params: Params

    def cost(self, random: bool) -> int:
        """Return 1: a single pass."""
        return 1

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Take the step."""
        return attacks.ascend(clf, x, goal, threat, steps=1, step_size=threat.eps, start=x, loss=self.params.loss)

"""One-step version of the attack of Carlini and Wagner, as in BAL."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks import Attack, Goal, Threat, project, steepest
from advbench.models import Classifier


class CWOneStep(Attack):
    """A single gradient step of length eps on the difference of probabilities, from the clean image.

    Ye and Zhu 2018, "Bayesian Adversarial Learning", section 5.1: gradient ascent on the largest other probability
    minus the label's, with a squared-norm penalty on the perturbation. The gradient of the penalty is zero at the clean
    image, so it does not affect a single step. The paper does not state the length of the step; here it is eps.
    """

    version = "1"

    targeted = True

    def cost(self, random: bool) -> int:
        """Return 1: a single pass."""
        return 1

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Take the step."""
        gradient = clf.input_gradient(x, goal.rows, lambda logits, rows: Goal(rows).margin(logits.softmax(1))).value
        return project(x + threat.eps * steepest(gradient, threat), x, threat)

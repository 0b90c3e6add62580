"""BAL's one-step version of the attack of Carlini and Wagner."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks import Attack, Goal, Threat, project, steepest
from advbench.models import Classifier


class CWOneStep(Attack):
    """One gradient step on the difference of probabilities, from the clean image, as long as the ball is wide.

    Ye and Zhu 2018, "Bayesian Adversarial Learning", section 5.1: gradient ascent on the largest other
    probability minus the label's, with a squared-norm penalty of the change. At the clean image the penalty has no
    slope, so in a single step it has no part. The paper does not give the step's length; here the step ends on
    the sphere, so that eps says how strong the attack was.
    """

    version = "1"

    targeted = True

    def cost(self, random: bool) -> int:
        """One pass."""
        return 1

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Take the step."""
        gradient = clf.input_gradient(x, goal.rows, lambda logits, rows: Goal(rows).margin(logits.softmax(1))).value
        return project(x + threat.eps * steepest(gradient, threat), x, threat)

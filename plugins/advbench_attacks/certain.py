"""Errors with low uncertainty."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks import Goal
from advbench_attacks._uncertainty import KAPPA, UncertaintyAttack, UncertaintyParams


class Certain(UncertaintyAttack):
    """Misclassified point of the ball with the lowest uncertainty.

    An attack on defenses that rely on uncertainty: rejection of the least certain images, retention curves, detection
    of adversarial images. After Feng et al. 2024, "Attacking Bayes", whose settings were not available. Let m be the
    log mean softmax of the most likely wrong class minus that of the label. Each of three runs ascends m up to a small
    lead, and beyond it descends the uncertainty: one from a random point; one from the images, which only descends the
    uncertainty in the first half of its steps; and one, again from a random point, that ascends the cross-entropy of
    the mean softmax in place of m. If an image has no misclassified point, the point of largest m is returned.

    """

    version = "1"

    class Params(UncertaintyParams):
        """Hyperparameters of the attack."""

    aim = "certain_error"
    runs = 3
    targeted = True
    params: Params

    def objective(self, goal: Goal, log_probs: Tensor, run: int, *, early: bool) -> Tensor:
        """Margin or cross-entropy where the margin is below the required lead, otherwise the certainty."""
        certainty, mean = -self.uncertainty(log_probs), log_probs.logsumexp(0)
        if run == 1 and early:
            return certainty
        margin = goal.margin(mean)
        return torch.where(margin < KAPPA, goal.loss("ce")(mean, goal.rows) if run == 2 else margin, certainty)

    def score(self, goal: Goal, log_probs: Tensor) -> Tensor:
        """Certainty of misclassified points; for others the margin, which is not positive."""
        margin = goal.margin(log_probs.logsumexp(0))
        certainty = self.certainty(log_probs)
        least = torch.finfo(certainty.dtype).tiny  # a misclassified point is better than any other
        return torch.where(goal.mean_success(log_probs), certainty.clamp_min(least), margin.clamp_max(0.0))

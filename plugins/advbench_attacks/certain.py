"""Wrong, and certain of it."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks import Goal
from advbench_attacks._uncertainty import KAPPA, UncertaintyAttack, UncertaintyParams


class Certain(UncertaintyAttack):
    """Among the points of the ball that are wrong, the one of lowest uncertainty.

    Against defenses that promise to know when they do not know: rejection of the least certain images, retention
    curves, detection of adversarial images. After Feng et al. 2024, "Attacking Bayes", whose settings could not be
    read. With m the logarithm of the mean softmax at the likeliest wrong class less that at the label, each of three
    runs ascends m up to a small lead, and wherever that is reached descends the uncertainty: one from a random point;
    one from the images, which for the first half of its steps descends the uncertainty alone; and one, again from a
    random point, that ascends the cross-entropy of the mean in place of m. Of an image that no point makes wrong the
    largest m counts.
    It stands in for what a classifier is asked for: a prediction that it is not told to distrust.
    """

    version = "1"

    class Params(UncertaintyParams):
        """Hyperparameters of the attack."""

    aim = "certain_error"
    runs = 3
    targeted = True
    params: Params

    def objective(self, goal: Goal, log_probs: Tensor, run: int, *, early: bool) -> Tensor:
        """What leads to an error where the margin is below the lead, else the certainty."""
        certainty, mean = -self.uncertainty(log_probs), log_probs.logsumexp(0)
        if run == 1 and early:
            return certainty
        margin = goal.margin(mean)
        return torch.where(margin < KAPPA, goal.loss("ce")(mean, goal.rows) if run == 2 else margin, certainty)

    def score(self, goal: Goal, log_probs: Tensor) -> Tensor:
        """The certainty of what is wrong; of all else the margin, which is not positive."""
        margin = goal.margin(log_probs.logsumexp(0))
        return torch.where(margin > 0, self.certainty(log_probs), margin.clamp_max(0.0))

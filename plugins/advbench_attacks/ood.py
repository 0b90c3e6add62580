"""Out-of-distribution images that look certain."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks import Goal
from advbench.models import Classifier
from advbench_attacks._uncertainty import UncertaintyAttack, UncertaintyParams


class Ood(UncertaintyAttack):
    """The point of the ball of lowest uncertainty, whatever the predicted class.

    In a run it attacks the images of the sets that `--ood` names, so that uncertainty takes them for ordinary ones.
    After Feng et al. 2024, "Attacking Bayes", whose settings could not be read. Labels have no part. A set whose pixel
    values are scaled is left alone: no ball inside [0, 1] holds its images.
    """

    version = "1"

    class Params(UncertaintyParams):
        """Hyperparameters of the attack."""

    aim = "certainty"
    params: Params

    def aimed(self, clf: Classifier, x: Tensor, goal: Goal) -> Goal:
        """No class."""
        return Goal(torch.full_like(goal.labels, -1))

    def objective(self, goal: Goal, log_probs: Tensor, run: int, *, early: bool) -> Tensor:
        """The certainty."""
        return -self.uncertainty(log_probs)

    def score(self, goal: Goal, log_probs: Tensor) -> Tensor:
        """The certainty."""
        return self.certainty(log_probs)

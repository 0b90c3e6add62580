"""Out-of-distribution images with low uncertainty."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks import Goal
from advbench.models import Classifier
from advbench_attacks._uncertainty import UncertaintyAttack, UncertaintyParams


class Ood(UncertaintyAttack):
    """Point of the ball with the lowest uncertainty, whatever the predicted class.

    In a run, it attacks the out-of-distribution images of `--ood`, so that their uncertainty is that of ordinary
    images. After Feng et al. 2024, "Attacking Bayes", whose settings were not available. Labels are not used. Data sets
    with scaled pixel values are not attacked: their images lie outside [0, 1].
    """

    version = "1"

    class Params(UncertaintyParams):
        """Hyperparameters of the attack."""

    aim = "certainty"
    params: Params

    def aimed(self, clf: Classifier, x: Tensor, goal: Goal) -> Goal:
        """A goal without classes."""
        return Goal(torch.full_like(goal.labels, -1))

    def objective(self, goal: Goal, log_probs: Tensor, run: int, *, early: bool) -> Tensor:
        """The certainty."""
        return -self.uncertainty(log_probs)

    def score(self, goal: Goal, log_probs: Tensor) -> Tensor:
        """The certainty."""
        return self.certainty(log_probs)

"""Unchanged predictions with high uncertainty."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks import SELECTION_DRAWS, Goal
from advbench.models import Classifier
from advbench_attacks._uncertainty import KAPPA, UncertaintyAttack, UncertaintyParams


class Doubt(UncertaintyAttack):
    """Point of the ball with unchanged predicted class and the highest uncertainty.

    It causes false alarms: a defense that rejects uncertain images rejects correctly classified ones. After Feng et al.
    2024, "Attacking Bayes", whose settings were not available. Labels are not used: the class to keep is the prediction
    on the clean image, with the attack's own draws.
    """

    version = "1"

    class Params(UncertaintyParams):
        """Hyperparameters of the attack."""

    aim = "doubt"
    params: Params

    @torch.no_grad()
    def aimed(self, clf: Classifier, x: Tensor, goal: Goal) -> Goal:
        """The predicted classes."""
        logits = torch.stack([clf.at(draw, x) for draw in map(clf.draw, clf.fresh_seeds(SELECTION_DRAWS))])
        return Goal(logits.log_softmax(-1).logsumexp(0).argmax(1))

    def objective(self, goal: Goal, log_probs: Tensor, run: int, *, early: bool) -> Tensor:
        """The uncertainty, or the lead of the class where that is small."""
        lead = -goal.margin(log_probs.logsumexp(0))
        return torch.where(lead < KAPPA, lead, self.uncertainty(log_probs))

    def score(self, goal: Goal, log_probs: Tensor) -> Tensor:
        """Uncertainty of points that keep their class; for others the lead, which is not positive."""
        lead = -goal.margin(log_probs.logsumexp(0))
        return torch.where(lead > 0, self.uncertainty(log_probs).clamp_min(0.0), lead.clamp_max(0.0))

"""Right as before, and no longer certain of it."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks import SELECTION_DRAWS, Goal
from advbench.models import Classifier
from advbench_attacks._uncertainty import KAPPA, UncertaintyAttack, UncertaintyParams


class Doubt(UncertaintyAttack):
    """Among the points of the ball where the predicted class is the image's own, the one of highest uncertainty.

    What it makes of clean images is a false alarm: a defense that rejects what it is unsure of rejects them. After Feng
    et al. 2024, "Attacking Bayes", whose settings could not be read. Labels have no part: the class that is kept is
    the one that the classifier predicts on the image, by draws of the attack's own.
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
        """The uncertainty, or where the class hardly leads any more, its lead."""
        lead = -goal.margin(log_probs.logsumexp(0))
        return torch.where(lead < KAPPA, lead, self.uncertainty(log_probs))

    def score(self, goal: Goal, log_probs: Tensor) -> Tensor:
        """The uncertainty of what keeps its class; of all else the lead, which is not positive."""
        lead = -goal.margin(log_probs.logsumexp(0))
        return torch.where(lead > 0, self.uncertainty(log_probs).clamp_min(0.0), lead.clamp_max(0.0))

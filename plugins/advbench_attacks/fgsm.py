"""The fast gradient sign method."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import Attack, Field, Threat
from advbench.models import Classifier


class FGSM(Attack):
    """One step of length eps along the steepest direction of the loss, from the clean image.

    Goodfellow et al. 2015, "Explaining and harnessing adversarial examples": x + eps sign(grad_x loss). In
    l2 the sign becomes the gradient divided by its length. A random classifier is attacked at one draw.
    """

    class Params(attacks.Params):
        """Hyperparameters of FGSM."""

        loss: attacks.LossName = Field(
            default="ce", description="loss to ascend: ce (cross-entropy), margin or dlr; Goodfellow 2015: ce"
        )

    targeted = True
    params: Params

    def passes_per_image(self) -> float:
        """One."""
        return 1.0

    def queries(self, *, random: bool) -> int:
        """One."""
        return 1

    def run(
        self,
        clf: Classifier,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        generator: torch.Generator,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Take the step."""
        goal = attacks.Goal.of(y, targets)
        return attacks.ascend(clf, x, goal, threat, steps=1, step_size=threat.eps, start=x, loss=self.params.loss)

"""One-line description of this attack."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import Attack, Field, Goal, Threat, project
from advbench.models import Classifier


class MyAttack(Attack):
    """Steps along the sign of the gradient from the clean image.

    Describe your attack, its source, and departures from it; `advbench show` prints this text.
    """

    # Each is set by --set MyAttack.NAME=VALUE, validated, and part of the keys of results.
    class Params(attacks.Params):
        """Hyperparameters of the attack."""

        steps: int = Field(default=10, ge=1, description="number of gradient steps")

    params: Params
    # Capabilities of `run`. Others:
    #
    # - minimal_norm = True: it looks for the nearest adversarial example and ignores eps
    # - targeted = True: it takes goals with targets
    # - gradients = False: black box
    norms = frozenset({"linf"})
    effort = "steps"  # the hyperparameter that --budget reduces

    # The harness verifies the result: shape, ball, box and finite values. Draw random numbers from the generator only.
    # Each call of clf(x) and of clf.input_gradient draws fresh weights.
    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Ascend the cross-entropy."""
        x_adv = x
        for _ in range(self.params.steps):
            gradient = clf.input_gradient(x_adv, goal.rows, goal.loss("ce")).value
            x_adv = project(x_adv + 2.5 * threat.eps / self.params.steps * gradient.sign(), x, threat)
        return x_adv

    def cost(self, random: bool) -> int:
        """Most forward passes per image; `random` is True for a random classifier."""
        return self.params.steps

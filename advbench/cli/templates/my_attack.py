"""Write in one line what this attack is."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import Attack, Field, Goal, Threat, project
from advbench.models import Classifier


class MyAttack(Attack):
    """Steps along the sign of the gradient from the clean image.

    Write here what your attack does, where it is from, and where you depart from that: `advbench show` prints it.
    """

    # Each is set by --set MyAttack.NAME=VALUE, checked, and part of the key of what is computed.
    class Params(attacks.Params):
        """Hyperparameters of the attack."""

        steps: int = Field(default=10, ge=1, description="gradient steps")

    params: Params
    # What `run` understands. Others: minimal_norm = True (the nearest adversarial example, whatever eps is),
    # targeted = True (goals with targets), gradients = False (a black box).
    norms = frozenset({"linf"})
    effort = "steps"  # the hyperparameter that --budget cuts

    # The harness checks what comes back: shape, ball, box and finite numbers. Draw random numbers from the generator
    # alone. Each call of clf(x) and of clf.input_gradient draws fresh weights.
    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Ascend the cross-entropy."""
        x_adv = x
        for _ in range(self.params.steps):
            gradient = clf.input_gradient(x_adv, goal.rows, goal.loss("ce")).value
            x_adv = project(x_adv + 2.5 * threat.eps / self.params.steps * gradient.sign(), x, threat)
        return x_adv

    def cost(self, random: bool) -> int:
        """Forward passes of an image."""
        return self.params.steps

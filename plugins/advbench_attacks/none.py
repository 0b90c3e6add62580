"""No attack, for the clean accuracy."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks import Attack, Goal, Threat
from advbench.models import Classifier


class NoAttack(Attack):
    """The unchanged images, for the clean rows of tables."""

    version = "1"

    def cost(self, random: bool) -> int:
        """Return 0: no passes."""
        return 0

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Return `x`."""
        return x

"""No attack: the row that every other row is read against."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks import Attack, Goal, Threat
from advbench.models import Classifier


class NoAttack(Attack):
    """The images as they are. Gives the clean row."""

    version = "1"

    def cost(self, random: bool) -> int:
        """No pass."""
        return 0

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Return `x`."""
        return x

"""No attack: the row that every other row is read against."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks import Attack, Threat
from advbench.models import Classifier


class NoAttack(Attack):
    """The images as they are. Gives the clean row."""

    def passes_per_image(self) -> float:
        """None."""
        return 0.0

    def queries(self, *, random: bool) -> int:
        """None."""
        return 0

    def run(self, clf: Classifier, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Return `x`."""
        return x

"""An attack that looks at no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import Attack, Field, Goal, Threat
from advbench.models import Classifier


class Corner(Attack):
    """Move each pixel by eps to a random side; the strength to expect of noise."""

    class Params(attacks.Params):
        """Hyperparameters of the corner attack."""

        share: float = Field(default=1.0, ge=0, le=1, description="share of pixels to move, a fraction")

    params: Params
    norms = frozenset({"linf"})
    gradients = False

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Move the pixels."""
        moved = torch.rand(x.shape, generator=generator, device=x.device) < self.params.share
        side = torch.randint(0, 2, x.shape, generator=generator, device=x.device) * 2 - 1
        return (x + threat.eps * side * moved).clamp(0, 1)

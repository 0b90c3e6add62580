"""An attack by an adversary who holds one posterior sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import advbench
from advbench import api
from advbench.api import Attack, Field, Threat
from advbench.ascent import within
from advbench.classifier import Classifier
from advbench.seeds import derive


class GrayBox(Attack):
    """Any attack on one frozen draw of a random classifier; the whole posterior is judged.

    Wang et al. 2018, "Adversarial Distillation of Bayesian Neural Network Posteriors", section 5.4: the adversary
    knows the architecture and a single sample of the weights. The draw is the same for all images and is none of
    those that judge. On a deterministic classifier it is the attack itself.
    """

    class Params(api.Params):
        """Hyperparameters of the gray-box attack."""

        attack: str = Field(default="pgd", description="name of the attack on the frozen draw; APD 5.4: fgsm, pgd")
        params: dict[str, Any] = Field(default={}, description="hyperparameters of that attack, where not its defaults")
        draw: int = Field(default=0, ge=0, description="number of the draw that the adversary holds")

    targeted = True
    params: Params

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.inner = advbench.get_attack(self.params.attack, **self.params.params)

    def passes_per_image(self) -> float | None:
        """Those of the attack on the frozen draw."""
        return self.inner.passes_per_image()

    def run(
        self,
        clf: Classifier,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        generator: torch.Generator,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Attack the one draw."""
        frozen = clf.frozen(derive(self.params.draw, "gray box")) if clf.stochastic else clf
        found = self.inner.search(frozen, x, y, threat, generator, targets)
        return within(found, x, threat) if self.inner.minimal_norm else found

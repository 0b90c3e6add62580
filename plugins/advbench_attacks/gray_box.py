"""An attack by an adversary who holds one posterior sample."""

from __future__ import annotations

from typing import Self

from advbench.api import Field
from advbench.classifier import Classifier
from advbench.seeds import derive
from advbench_attacks._inner import InnerAttack, InnerParams


class GrayBox(InnerAttack):
    """Any attack on one frozen draw of a random classifier; the whole posterior is judged.

    Wang et al. 2018, "Adversarial Distillation of Bayesian Neural Network Posteriors", section 5.4: the adversary
    knows the architecture and a single sample of the weights. The draw is the same for all images and is none of
    those that judge. On a deterministic classifier it is the attack itself.
    """

    class Params(InnerParams):
        """Hyperparameters of the gray-box attack."""

        draw: int = Field(default=0, ge=0, description="number of the draw that the adversary holds")

    params: Params

    def queries(self, *, random: bool) -> int | None:
        """Those of the inner attack on a classifier that is not random."""
        del random
        return super().queries(random=False)

    def least_queries(self, *, random: bool) -> int | None:
        """Those of the inner attack on a classifier that is not random."""
        del random
        return super().least_queries(random=False)

    def within_budget(self, budget: int, *, random: bool) -> Self:
        """With the inner attack cut."""
        del random
        return super().within_budget(budget, random=False)

    def attacked(self, clf: Classifier) -> Classifier:
        """The one draw."""
        return clf.frozen(derive(self.params.draw, "gray box")) if clf.stochastic else clf

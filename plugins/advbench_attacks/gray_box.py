"""Attack by an adversary who knows one posterior sample."""

from __future__ import annotations

from advbench.attacks import Field, Paper, derive
from advbench.models import Classifier
from advbench_attacks._inner import InnerAttack, InnerParams


class GrayBox(InnerAttack):
    """Any attack on one frozen draw of a random classifier; the whole posterior is evaluated.

    Wang et al. 2018, "Adversarial Distillation of Bayesian Neural Network Posteriors", section 5.4: the adversary
    knows the architecture and a single sample of the weights. The draw is the same for all images and independent of
    those of the evaluation. On a deterministic classifier it equals the inner attack.
    """

    version = "1"
    paper = Paper(
        title="Adversarial Distillation of Bayesian Neural Network Posteriors",
        authors="Wang, Vicol, Lucas, Gu, Grosse, Zemel",
        year=2018,
        link="https://arxiv.org/abs/1806.10317",
    )

    class Params(InnerParams):
        """Hyperparameters of the gray-box attack."""

        draw: int = Field(default=0, ge=0, description="index of the draw that the adversary knows")

    knows = "a_draw"
    params: Params

    def sees_random(self, random: bool) -> bool:
        """Return False: a frozen draw is deterministic."""
        return False

    def attacked(self, clf: Classifier) -> Classifier:
        """The frozen draw."""
        return clf.frozen(derive(self.params.draw, "gray box")) if clf.stochastic else clf

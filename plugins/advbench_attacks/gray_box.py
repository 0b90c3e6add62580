"""Attack by an adversary who knows one posterior sample."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks import Field, Goal, Paper, Threat, derive
from advbench.models import Classifier
from advbench_attacks._inner import InnerAttack, InnerParams


class GrayBox(InnerAttack):
    """Any attack on one frozen draw of a random classifier; the whole posterior is evaluated.

    Wang et al. 2018, "Adversarial Distillation of Bayesian Neural Network Posteriors", section 5.4: the adversary
    knows the architecture and a single sample of the weights. The draw is the same for all images and independent of
    those of the evaluation. On a deterministic classifier it equals the inner attack.

    The released code scores the nearest example that fools the draw (foolbox 1 returns it), whatever its distance. With
    `radii` > 1 the inner attack runs at so many radii up to eps, evenly spaced, until the draw is fooled.
    """

    version = "2"
    paper = Paper(
        title="Adversarial Distillation of Bayesian Neural Network Posteriors",
        authors="Wang, Vicol, Lucas, Gu, Grosse, Zemel",
        year=2018,
        link="https://arxiv.org/abs/1806.10317",
    )

    class Params(InnerParams):
        """Hyperparameters of the gray-box attack."""

        draw: int = Field(default=0, ge=0, description="index of the draw that the adversary knows")
        radii: int = Field(
            default=1,
            ge=1,
            description="number of radii at which the inner attack runs; an image keeps the first example that "
            "fools the draw. No effect on minimal-norm attacks",
        )

    knows = "a_draw"
    params: Params

    def sees_random(self, random: bool) -> bool:
        """Return False: a frozen draw is deterministic."""
        return False

    def attacked(self, clf: Classifier) -> Classifier:
        """The frozen draw."""
        return clf.frozen(derive(self.params.draw, "gray box")) if clf.stochastic else clf

    def cost(self, random: bool) -> int | None:
        """Cost of the inner attack at each radius, and a pass to check its examples."""
        each = super().cost(random)
        return each if each is None or self._at_once else self.params.radii * (each + 1)

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Run the inner attack at each radius on the images that have not fooled the draw."""
        if self._at_once:
            return super().run(clf, x, goal, threat, generator)
        draw, radii, found = self.attacked(clf), self.params.radii, x.clone()
        left = torch.arange(len(x), device=x.device)
        for place in range(1, radii + 1):
            with torch.no_grad():
                left = left[~goal[left].success(draw(found[left]))]
            if len(left) == 0:
                break
            smaller = Threat(threat.norm, threat.eps * place / radii)
            found[left] = super().run(draw, x[left], goal[left], smaller, generator)
        return found

    @property
    def _at_once(self) -> bool:
        return self.params.radii == 1 or self.inner.minimal_norm

"""Projected gradient descent."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench import api, ascent
from advbench.api import Attack, Field, Threat
from advbench.classifier import Classifier

SELECTION_DRAWS = 10


class PGD(Attack):
    """Projected gradient ascent on the loss from random starts, in linf or l2.

    Madry et al. 2018. On a random classifier each step draws fresh weights (Adv-BNN eq. 3) and the last
    iterate counts; on a deterministic one the iterate of largest margin does. Of several restarts each image
    keeps the one of largest mean margin over draws of the attack's own, never those that judge.
    """

    class Params(api.Params):
        """Hyperparameters of PGD."""

        steps: int = Field(default=20, ge=1, description="gradient steps; Adv-BNN Table 2: 20 in attack")
        step_size: float | None = Field(
            default=None,
            gt=0,
            description="length of a step in eps, by default 2.5 / steps (linf, Madry 2018) or 10 / steps (l2)",
        )
        random_start: bool = Field(
            default=True, description="start from a point drawn uniformly from the ball; Madry 2018"
        )
        restarts: int = Field(default=1, ge=1, description="runs from different starts, the best kept")
        loss: ascent.LossName = Field(
            default="ce", description="loss to ascend: ce (cross-entropy), margin or dlr; Madry 2018: ce"
        )

    params: Params

    @property
    def samples(self) -> int:
        """Draws of the weights averaged in one gradient."""
        return 1

    def passes_per_image(self) -> float:
        """Steps times draws times restarts."""
        return float(self.params.steps * self.samples * self.params.restarts)

    def run(self, clf: Classifier, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Ascend from each start; keep per image what fools best."""
        best = self._ascend(clf, x, y, threat, generator)
        if self.params.restarts == 1:
            return best
        best_margin = self._mean_margin(clf, best, y)
        for _ in range(1, self.params.restarts):
            candidate = self._ascend(clf, x, y, threat, generator)
            candidate_margin = self._mean_margin(clf, candidate, y)
            improved = candidate_margin > best_margin
            best = torch.where(ascent.per_image(improved, x), candidate, best)
            best_margin = torch.maximum(candidate_margin, best_margin)
        return best

    def _ascend(self, clf: Classifier, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        params = self.params
        return ascent.ascend(
            clf,
            x,
            y,
            threat,
            steps=params.steps,
            step_size=ascent.step_length(threat, params.steps, params.step_size),
            start=ascent.random_start(x, threat, generator) if params.random_start else x,
            loss=ascent.LOSSES[params.loss],
            samples=self.samples,
            keep_best=not clf.stochastic,
        )

    @torch.no_grad()
    def _mean_margin(self, clf: Classifier, x: Tensor, y: Tensor) -> Tensor:
        """Margin of the mean softmax `(batch,)`, over draws of the attack's own."""
        draws = clf.draws(x, SELECTION_DRAWS if clf.stochastic else 1)
        return ascent.margin(draws.softmax(-1).mean(0), y)

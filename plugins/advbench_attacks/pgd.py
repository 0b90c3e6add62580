"""Projected gradient descent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import SELECTION_DRAWS, Attack, Field, Goal, Paper, Threat
from advbench.models import Classifier

SHORTEST = 0.05  # smallest step of the cosine schedule, as a fraction of eps


class PGD(Attack):
    """Projected gradient ascent on the loss from random starts, in linf or l2.

    Madry et al. 2018. On a random classifier each step draws fresh weights (Adv-BNN eq. 3) and the last iterate is the
    result; on a deterministic one it is the misclassified iterate of largest margin, if any. Of several restarts, each
    image keeps the example of largest mean margin over the attack's own draws, independent of those of the evaluation.

    With early stopping, an image stops once it certainly fools the classifier. On a deterministic one this is its first
    misclassified iterate; the first run then starts from the image itself, and the step size decays from eps along a
    cosine (unless `step_size` is given) to a twentieth of eps: long first steps break easy images at once, and short
    last steps converge where constant ones oscillate. On a random one, a t test at level 0.01 must find the goal
    reached at two consecutive gradients, each with fresh draws, which needs at least 5 samples per gradient; start and
    step sizes are unchanged.
    """

    version = "2"
    paper = Paper(
        title="Towards Deep Learning Models Resistant to Adversarial Attacks",
        authors="Madry, Makelov, Schmidt, Tsipras, Vladu",
        year=2018,
        link="https://arxiv.org/abs/1706.06083",
    )

    class Params(attacks.Params):
        """Hyperparameters of PGD."""

        steps: int = Field(default=20, ge=1, description="number of gradient steps; Adv-BNN Table 2: 20 in attack")
        step_size: float | None = Field(
            default=None,
            gt=0,
            description="step size as a fraction of eps; None for 2.5 / steps (linf, Madry et al. 2018) or 10 "
            "/ steps (l2)",
        )
        random_start: bool = Field(default=True, description="uniform random start in the ball (Madry et al. 2018)")
        restarts: int = Field(
            default=1, ge=1, description="number of runs from different starts, of which the best is kept"
        )
        loss: attacks.LossName = Field(
            default="ce", description="loss to ascend: ce (cross-entropy), margin or dlr; Madry et al. 2018: ce"
        )

    targeted = True
    stops_early = True
    effort = "steps"
    params: Params

    @property
    def samples(self) -> int:
        """Number of draws of the weights per gradient."""
        return 1

    @property
    def objective(self) -> attacks.Objective:
        """Objective over the draws of one gradient."""
        return "mean_loss"

    def step_length(self, threat: Threat) -> float:
        """Step size in the threat's norm."""
        return attacks.step_length(threat, self.params.steps, self.params.step_size)

    def cost(self, random: bool) -> int:
        """Steps times draws times restarts, plus passes for selection among restarts."""
        params = self.params
        choices = params.restarts * (SELECTION_DRAWS if random else 1) if params.restarts > 1 else 0
        passes = 1
        if random:
            passes = self.samples * (2 if self.objective == "loss_of_mean" and params.loss != "ce" else 1)
        return params.steps * params.restarts * passes + choices

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Ascend from each start; keep the example of largest margin of each image."""
        if goal.stop_early and self.stops_early:
            return self._until_reached(clf, x, goal, threat, generator)
        if self.params.restarts == 1:
            return self._ascend(clf, x, goal, threat, generator)
        kept = attacks.Kept(clf, goal)
        for _ in range(self.params.restarts):
            kept.offer(self._ascend(clf, x, goal, threat, generator))
        return kept.images

    def _until_reached(
        self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator
    ) -> Tensor:
        """Run from each start on the remaining images; keep the example of largest margin of each image."""
        params = self.params
        kept = attacks.Kept(clf, goal) if params.restarts > 1 else None
        rows = torch.arange(len(x), device=x.device)
        for restart in range(params.restarts):
            itself = not params.random_start or (restart == 0 and not clf.stochastic)
            start = x if itself else attacks.random_start(x, threat, generator)
            found, reached = attacks.ascend_until_reached(
                clf,
                x[rows],
                goal[rows],
                threat,
                lengths=self._lengths(clf, threat),
                start=start[rows],
                loss=params.loss,
                samples=self.samples,
                objective=self.objective,
            )
            if kept is None:
                return found
            kept.offer(found, rows)
            rows = rows[~reached] if clf.stochastic else kept.remaining()
            if len(rows) == 0:
                break
        assert kept is not None, "there is at least one run"
        return kept.images

    def _lengths(self, clf: Classifier, threat: Threat) -> list[float]:
        """Step sizes of a run with early stopping."""
        steps = self.params.steps
        if clf.stochastic or self.params.step_size is not None:
            return [self.step_length(threat)] * steps
        shares = [(1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
        return [threat.eps * share for share in shares if share >= SHORTEST]

    def _ascend(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        params = self.params
        return attacks.ascend(
            clf,
            x,
            goal,
            threat,
            steps=params.steps,
            step_size=self.step_length(threat),
            start=attacks.random_start(x, threat, generator) if params.random_start else x,
            loss=params.loss,
            samples=self.samples,
            objective=self.objective,
            keep_best=not clf.stochastic,
        )

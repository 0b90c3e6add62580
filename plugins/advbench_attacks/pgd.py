"""Projected gradient descent."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import SELECTION_DRAWS, Attack, Field, Goal, Threat, derive
from advbench.models import Classifier

SHORTEST = 0.05  # share of eps below which a step that falls along the cosine moves nothing that counts
WIDENING = 0.35  # share of the steps that a wider ball takes in a sweep


class PGD(Attack):
    """Projected gradient ascent on the loss from random starts, in linf or l2.

    Madry et al. 2018. On a random classifier each step draws fresh weights (Adv-BNN eq. 3) and the last
    iterate counts; on a deterministic one the misclassified iterate of largest margin does, where there is one.
    Of several restarts each image keeps the one of largest mean margin over draws of the attack's own, never
    those that judge.
    """

    class Params(attacks.Params):
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
        loss: attacks.LossName = Field(
            default="ce", description="loss to ascend: ce (cross-entropy), margin or dlr; Madry 2018: ce"
        )

        early_stop: bool = Field(
            default=False,
            description="on a deterministic classifier, leave an image alone once it is misclassified; steps then fall "
            "from eps along a cosine, and the last of them, shorter than a twentieth of eps, are not taken. For robust "
            "accuracy alone: such examples transfer less",
        )

    targeted = True
    effort = "steps"
    params: Params

    @property
    def samples(self) -> int:
        """Draws of the weights averaged in one gradient."""
        return 1

    def step_length(self, threat: Threat) -> float:
        """Length of a step in the threat's norm."""
        return attacks.step_length(threat, self.params.steps, self.params.step_size)

    def passes_per_image(self) -> float:
        """Steps times draws times restarts."""
        return float(self.params.steps * self.samples * self.params.restarts)

    def queries(self, *, random: bool) -> int:
        """Steps times draws times restarts, and the passes that choose among restarts."""
        params = self.params
        choices = params.restarts * (SELECTION_DRAWS if random else 1) if params.restarts > 1 else 0
        return params.steps * params.restarts * (self.samples if random else 1) + choices

    def run(
        self,
        clf: Classifier,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        generator: torch.Generator,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Ascend from each start; keep per image what fools best."""
        goal = Goal.of(y, targets)
        if self.pools and not clf.stochastic:
            return self._until_reached(clf, x, goal, threat, generator, x, self.params.steps)
        if self.params.restarts == 1:
            return self._ascend(clf, x, goal, threat, generator)
        kept = attacks.Kept(clf, goal)
        for _ in range(self.params.restarts):
            kept.offer(self._ascend(clf, x, goal, threat, generator))
        return kept.images

    @property
    def pools(self) -> bool:
        """With early stop, the places of images that are done go to others."""
        return self.params.early_stop

    def widen(
        self,
        clf: Classifier,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        generator: torch.Generator,
        found: Tensor,
        before: Threat,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Early stop, from what was found at the smaller eps, stretched to the larger one.

        That lies in a good direction already, so fewer steps lead as far as all of them from a new start. Steps of a
        length that was given stay as they are, and start anew.
        """
        if self.params.step_size is not None:
            return super().widen(clf, x, y, threat, generator, found, before, targets)
        steps = self.params.steps if before.eps == 0 else math.ceil(WIDENING * self.params.steps)
        start = attacks.within(found, x, threat, outward=True) if before.eps else x
        return self._until_reached(clf, x, Goal.of(y, targets), threat, generator, start, steps)

    def _until_reached(
        self,
        clf: Classifier,
        x: Tensor,
        goal: Goal,
        threat: Threat,
        generator: torch.Generator,
        start: Tensor,
        steps: int,
    ) -> Tensor:
        """From where it is told to start, then from random points with what is left.

        Long first steps break what is easy at once, and later ones end where constant ones only circle.
        """
        found, rows = x.clone(), torch.arange(len(x), device=x.device)
        for restart in range(self.params.restarts):
            if restart:
                start = self._starts(x, threat, generator, restart, clf.batch_size)[rows]
                steps = self.params.steps
            shares = [(1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
            lengths = [threat.eps * share for share in shares if share >= SHORTEST]
            ascended = attacks.ascend_until_reached(
                clf, x[rows], goal[rows], threat, lengths=lengths, start=start, loss=self.params.loss
            )
            found[rows] = ascended
            if restart + 1 < self.params.restarts:
                kept = attacks.Kept(clf, goal[rows])
                kept.offer(ascended)
                rows = rows[kept.remaining()]
        return found

    @staticmethod
    def _starts(x: Tensor, threat: Threat, generator: torch.Generator, restart: int, size: int) -> Tensor:
        """Random points, of which a part of `size` images does not depend on how many there are behind it."""
        parts = []
        for first in range(0, len(x), size):
            seed = derive(generator.initial_seed(), "start", restart, first)
            own = torch.Generator(x.device).manual_seed(seed)
            parts.append(attacks.random_start(x[first : first + size], threat, own))
        return torch.cat(parts)

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
            keep_best=not clf.stochastic,
        )

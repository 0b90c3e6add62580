"""Base class of attacks on the uncertainty of a classifier."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import SELECTION_DRAWS, Attack, Field, Goal, Kept, Measure, Threat, per_image
from advbench.models import Classifier

KAPPA = 0.1  # log-ratio by which a class must lead while the uncertainty is changed


class UncertaintyParams(attacks.Params):
    """Hyperparameters of attacks on the uncertainty."""

    steps: int = Field(default=40, ge=2, description="number of gradient steps per run")
    step_size: float | None = Field(
        default=None,
        gt=0,
        description="mean step size as a fraction of eps, None for 2.5 / steps (linf) or 10 / steps (l2); cosine decay "
        "from twice the mean",
    )
    samples: int = Field(default=10, ge=1, description="number of draws of the weights per gradient, two passes each")
    measure: Measure = Field(
        default="total",
        description="uncertainty to attack: total (entropy of the mean softmax) or epistemic (total minus the "
        "mean entropy of the draws), which is zero for a deterministic classifier",
    )


class UncertaintyAttack(Attack):
    """Steepest ascent of a joint objective of all draws of a step, in several runs; the best candidate is kept.

    Uncertainty is a function of the mean softmax, so the gradient of a draw is known only after all draws have passed:
    each draw passes twice. Candidates, including the images themselves, are scored with the attack's own draws; on a
    deterministic classifier the candidate of a run is its best iterate.
    """

    effort = "steps"
    runs: ClassVar[int] = 2
    params: UncertaintyParams

    @abstractmethod
    def objective(self, goal: Goal, log_probs: Tensor, run: int, *, early: bool) -> Tensor:
        """Objective of a gradient step, `(batch,)`.

        Args:
            goal: labels of the images, and targets if any.
            log_probs: log-softmax of the step's draws, `(draws, batch, classes)`.
            run: number of the run; run 1 starts from the images, others from random points.
            early: True in the first half of the steps.
        """

    @abstractmethod
    def score(self, goal: Goal, log_probs: Tensor) -> Tensor:
        """Score of candidates, `(batch,)`, larger is better; arguments as in `objective`."""

    def aimed(self, clf: Classifier, x: Tensor, goal: Goal) -> Goal:
        """Goal for objective and score."""
        del clf, x
        return goal

    def uncertainty(self, log_probs: Tensor) -> Tensor:
        """The attacked measure of uncertainty, `(batch,)`, in nats."""
        return attacks.predictive_uncertainty(log_probs, self.params.measure)

    def certainty(self, log_probs: Tensor) -> Tensor:
        """Largest possible uncertainty minus the uncertainty, `(batch,)`, in nats, >= 0."""
        return (math.log(log_probs.shape[-1]) - self.uncertainty(log_probs)).clamp_min(0.0)

    def cost(self, random: bool) -> int:
        """Twice steps times draws per run, plus the passes for selection."""
        params = self.params
        passes, choosing = (params.samples * (1 if params.samples == 1 else 2), SELECTION_DRAWS) if random else (1, 1)
        candidates = 1 + self.runs * (1 if random else 2)
        return self.runs * params.steps * passes + (candidates + 1) * choosing

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Ascend from random points and from the images; keep the best-scoring point of each image."""
        goal = self.aimed(clf, x, goal)
        kept = Kept(clf, goal, score=lambda goal, logits: self.score(goal, logits.log_softmax(-1)))
        kept.offer(x)
        for run in range(self.runs):
            start = x if run == 1 else attacks.random_start(x, threat, generator)
            for found in self._ascend(clf, x, goal, threat, start, run):
                kept.offer(found)
        return kept.images

    def _ascend(
        self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, start: Tensor, run: int
    ) -> Iterator[Tensor]:
        """The last iterate, or on a deterministic classifier the best; the best of noisy scores is chance."""
        params, x_adv = self.params, start
        mean_length = attacks.step_length(threat, params.steps, params.step_size)
        best, highest = start, x.new_full((len(x),), -torch.inf)
        for step in range(params.steps):
            early = 2 * step < params.steps

            def objective(log_probs: Tensor, rows: Tensor, early: bool = early) -> Tensor:
                return self.objective(Goal(rows), log_probs, run, early=early)

            gradient, logits = clf.joint_gradient(x_adv, goal.rows, objective, params.samples)
            if not clf.stochastic:
                score = self.score(goal, logits.log_softmax(-1))
                best = torch.where(per_image(score > highest, x), x_adv, best)
                highest = torch.maximum(score, highest)
            length = mean_length * (1 + math.cos(math.pi * step / params.steps))
            x_adv = attacks.project(x_adv + length * attacks.steepest(gradient, threat), x, threat)
        yield x_adv
        if not clf.stochastic:
            yield best

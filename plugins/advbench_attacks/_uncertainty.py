"""What attacks on a classifier's uncertainty share."""

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

KAPPA = 0.1  # log-ratio by which a class has to lead while the uncertainty is moved


class UncertaintyParams(attacks.Params):
    """Hyperparameters of an attack on the uncertainty."""

    steps: int = Field(default=40, ge=2, description="gradient steps of each run")
    step_size: float | None = Field(
        default=None,
        gt=0,
        description="mean length of a step in eps, by default 2.5 / steps (linf) or 10 / steps (l2); steps fall from "
        "twice that along a cosine",
    )
    samples: int = Field(default=10, ge=1, description="draws of the weights per gradient, each passed twice")
    measure: Measure = Field(
        default="total",
        description="uncertainty that is attacked: total (entropy of the mean softmax) or epistemic (that less the "
        "mean of the draws' entropies), which a deterministic classifier does not have",
    )


class UncertaintyAttack(Attack):
    """Steepest ascent of an objective of all draws of a step together, in several runs; what scores best is kept.

    Uncertainty belongs to the mean softmax, so all draws of a step have to pass before the gradient of any is known:
    each draw passes twice. Candidates are scored by draws of the attack's own, the images themselves among them; on a
    deterministic classifier a run's best iterate is one.
    """

    effort = "steps"
    runs: ClassVar[int] = 2
    params: UncertaintyParams

    @abstractmethod
    def objective(self, goal: Goal, log_probs: Tensor, run: int, *, early: bool) -> Tensor:
        """What a step ascends, `(batch,)`.

        Args:
            goal: the classes that the images are, or have to be, taken for.
            log_probs: log-softmax of the step's draws, `(draws, batch, classes)`.
            run: its number; 1 is from the images, others are from random points.
            early: whether this is in the first half of its steps.
        """

    @abstractmethod
    def score(self, goal: Goal, log_probs: Tensor) -> Tensor:
        """By what candidates are chosen, `(batch,)`, larger for better; arguments as those of `objective`."""

    def aimed(self, clf: Classifier, x: Tensor, goal: Goal) -> Goal:
        """The goal that objective and score are about."""
        del clf, x
        return goal

    def uncertainty(self, log_probs: Tensor) -> Tensor:
        """The measure that is attacked, `(batch,)`, nats."""
        return attacks.predictive_uncertainty(log_probs, self.params.measure)

    def certainty(self, log_probs: Tensor) -> Tensor:
        """How far that is below the largest uncertainty there is, `(batch,)`, nats, >= 0."""
        return (math.log(log_probs.shape[-1]) - self.uncertainty(log_probs)).clamp_min(0.0)

    def cost(self, random: bool) -> int:
        """Steps times draws, twice, in each run; and the passes that choose."""
        params = self.params
        passes, choosing = (params.samples * (1 if params.samples == 1 else 2), SELECTION_DRAWS) if random else (1, 1)
        candidates = 1 + self.runs * (1 if random else 2)
        return self.runs * params.steps * passes + (candidates + 1) * choosing

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Ascend from random points and from the images; keep per image what scores best."""
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
        """The last iterate, and on a deterministic classifier the best; of noisy scores the best is a lucky one."""
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

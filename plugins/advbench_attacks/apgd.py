"""Auto-PGD."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import (
    SELECTION_DRAWS,
    Attack,
    Certain,
    Field,
    Goal,
    Kept,
    Objective,
    Paper,
    Threat,
    per_image,
)
from advbench.models import Classifier
from advbench_attacks.eot_pgd import OBJECTIVE

MOMENTUM = 0.75


class APGD(Attack):
    """Auto-PGD: projected gradient ascent with momentum and adaptive step sizes.

    Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", Algorithm 1. Each image starts with a step size of 2 eps; at checkpoints its step size is halved and it
    returns to its best point if the loss increased too rarely or the best point did not change. `loss="dlr_targeted"`
    runs once towards each of the `targets` most likely wrong classes. Expectation over transformation is included: each
    gradient and each loss is the mean over `samples` draws. Of several runs, each image keeps the example of largest
    mean margin over the attack's own draws; on a deterministic classifier, misclassified images are not attacked again.

    With early stopping, an image stops once it certainly fools the classifier: on a deterministic one at its first
    misclassified iterate, on a random one when a t test at level 0.01 finds the goal reached at two consecutive
    gradients, each with fresh draws; this needs at least 5 samples per gradient.
    """

    version = "2"
    paper = Paper(
        title="Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
        authors="Croce, Hein",
        year=2020,
        link="https://arxiv.org/abs/2003.01690",
    )

    class Params(attacks.Params):
        """Hyperparameters of Auto-PGD."""

        steps: int = Field(default=100, ge=2, description="number of gradient steps; Croce and Hein 2020: 100")
        loss: Literal["ce", "margin", "dlr", "dlr_targeted"] = Field(
            default="ce", description="loss to ascend: ce, margin, dlr or dlr_targeted; Croce and Hein: ce and dlr"
        )
        restarts: int = Field(default=1, ge=1, description="number of random restarts; Croce and Hein, standard: 1")
        targets: int = Field(default=9, ge=1, description="number of target classes of dlr_targeted; Croce and Hein: 9")
        samples: int = Field(
            default=10,
            ge=1,
            description="number of draws per gradient on a random classifier; Croce and Hein, rand: 20",
        )
        objective: Objective = Field(default="mean_loss", description=OBJECTIVE)
        rho: float = Field(
            default=0.75,
            gt=0,
            lt=1,
            description="fraction of improving steps below which the step size is halved; Croce and Hein: 0.75",
        )

    targeted = True
    stops_early = True
    effort = "steps"
    params: Params

    def cost(self, random: bool) -> int:
        """Steps times draws times restarts per target, plus passes for ranking targets and for selection."""
        params = self.params
        draws, candidates = (SELECTION_DRAWS, 2) if random else (1, 1)
        twice = params.objective == "loss_of_mean" and params.loss != "ce"
        samples = params.samples * (2 if twice else 1) if random else 1
        targets = params.targets if params.loss == "dlr_targeted" else 1
        ordering = (params.samples if random else 1) if params.loss == "dlr_targeted" else 0
        runs = params.restarts * targets
        return runs * (params.steps * samples + candidates * draws) + draws + ordering

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Run from each start towards each target; keep the example of largest margin of each image."""
        aims = [goal]
        if self.params.loss == "dlr_targeted":
            aims = attacks.likeliest(clf, x, goal, self.params.targets, self.params.samples)
        kept = Kept(clf, goal)
        kept.offer(x)
        stopped = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for _ in range(self.params.restarts):
            for aim in aims:
                start = attacks.random_start(x, threat, generator)
                rows = kept.remaining()
                rows = rows[~stopped[rows]]
                if len(rows) == 0:
                    return kept.images
                certain = Certain(clf, goal[rows]) if goal.stop_early else None
                for found, those in self._ascend(clf, x[rows], aim[rows], goal[rows], threat, start[rows], certain):
                    kept.offer(found, rows[those])
                if certain is not None:
                    stopped[rows] = certain.reached
        return kept.images

    def _ascend(
        self,
        clf: Classifier,
        x: Tensor,
        aim: Goal,
        goal: Goal,
        threat: Threat,
        start: Tensor,
        certain: Certain | None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One run of Algorithm 1: examples, and the indices of their images, `(count,)`.

        For a random classifier the last point is a candidate as well: the best of noisy losses is selected by chance.
        Images that certainly reached their goal leave the run.
        """
        params = self.params
        loss: attacks.LossName = "dlr" if params.loss == "dlr_targeted" else params.loss
        marks = set(_checkpoints(params.steps))
        rows, found = torch.arange(len(x), device=x.device), start.clone()
        run: _Run | None = None
        for k in range(params.steps):
            if run is not None:
                run.step(x[rows], threat, MOMENTUM if k > 1 else 1.0)
            current = start if run is None else run.current
            gradient, value, logits = attacks.loss_gradient(
                clf, current, aim[rows], loss, params.samples, params.objective
            )
            reached = goal[rows].mean_margin(logits)
            if run is None:
                run = _Run.begin(start, gradient, value, reached, 2 * threat.eps)
            else:
                run.look(gradient, value, reached)
            if certain is not None:
                stops = certain.look(logits, rows)
                order, going = stops.byte().argsort(stable=True), len(rows) - int(stops.sum())
                left, gone = order[:going], order[going:]
                if len(gone):
                    found[rows[gone]] = current[gone]
                    rows, run = rows[left], run[left]
                if len(left) == 0:
                    break
            if k in marks:
                run.check(params.rho)
        assert run is not None, "there is at least one step"
        if clf.stochastic:
            found[rows] = run.current
            yield found, torch.arange(len(x), device=x.device)
            if len(rows):
                yield run.best, rows
        else:
            found[rows] = torch.where(per_image(run.fooling_margin > 0, run.best), run.fooling, run.best)
            yield found, torch.arange(len(x), device=x.device)


@dataclass
class _Run:
    """State of a run; each value is `(batch, ...)`."""

    length: Tensor  # step size
    current: Tensor
    previous: Tensor
    gradient: Tensor  # gradient at the current point, and value there
    value: Tensor
    best: Tensor  # point of largest value
    best_gradient: Tensor
    best_value: Tensor
    fooling: Tensor  # point of largest margin
    fooling_margin: Tensor
    rises: Tensor  # number of steps since the last checkpoint that increased the value
    steps: Tensor  # number of steps since the last checkpoint
    at_last_check: Tensor  # best value at the last checkpoint
    halved: Tensor

    @classmethod
    def begin(cls, start: Tensor, gradient: Tensor, value: Tensor, margin: Tensor, length: float) -> _Run:
        """Create the state at the start of a run."""
        nothing, yes = torch.zeros_like(value), torch.ones_like(value, dtype=torch.bool)
        lengths = torch.full_like(margin, length, dtype=start.dtype)
        best = (start, gradient, value)
        return cls(lengths, start, start, gradient, value, *best, start, margin, nothing, nothing, value, yes)

    def __getitem__(self, rows: Tensor) -> _Run:
        return _Run(**{name: value[rows] for name, value in vars(self).items()})

    def step(self, x: Tensor, threat: Threat, share: float) -> None:
        """Take a step, with momentum from the second step on."""
        towards = per_image(self.length, x) * attacks.steepest(self.gradient, threat)
        aimed = attacks.project(self.current + towards, x, threat)
        moved = self.current + share * (aimed - self.current) + (1 - share) * (self.current - self.previous)
        self.previous, self.current = self.current, attacks.project(moved, x, threat)

    def look(self, gradient: Tensor, value: Tensor, margin: Tensor) -> None:
        """Update the state with gradient, value and margin at the current point."""
        self.rises = self.rises + (value > self.value).to(self.rises.dtype)
        self.gradient, self.value, self.steps = gradient, value, self.steps + 1
        self.fooling = torch.where(per_image(margin > self.fooling_margin, gradient), self.current, self.fooling)
        self.fooling_margin = torch.maximum(margin, self.fooling_margin)
        improved = value > self.best_value
        self.best = torch.where(per_image(improved, gradient), self.current, self.best)
        self.best_gradient = torch.where(per_image(improved, gradient), gradient, self.best_gradient)
        self.best_value = torch.maximum(value, self.best_value)

    def check(self, rho: float) -> None:
        """At a checkpoint, halve the step size of images that improve too rarely; return to their best point."""
        seldom = self.rises < rho * self.steps
        self.halved = seldom | (~self.halved & (self.at_last_check >= self.best_value))
        self.at_last_check = self.best_value
        self.length = torch.where(self.halved, self.length / 2, self.length)
        back = per_image(self.halved, self.current)
        self.current = torch.where(back, self.best, self.current)
        self.previous = torch.where(back, self.best, self.previous)
        self.gradient = torch.where(back, self.best_gradient, self.gradient)
        self.value = torch.where(self.halved, self.best_value, self.value)
        self.rises, self.steps = torch.zeros_like(self.rises), torch.zeros_like(self.steps)


def _checkpoints(steps: int) -> list[int]:
    """Checkpoints of the step size (Croce and Hein 2020, section 3.1)."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return [math.ceil(share * steps) for share in shares[1:] if share < 1]

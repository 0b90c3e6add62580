"""The augmented Lagrangian method for adversarial attacks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import SELECTION_DRAWS, SHORTENING, Attack, Field, Goal, Kept, Paper, Threat, per_image
from advbench.models import Classifier

FIRST_STEP = 0.1  # l2 length of the first step
CHECKS = 10  # steps between checks of the constraint
FINAL_RATE = 0.01  # final step size, relative to the first
TINY = 1e-12


class ALMA(Attack):
    """Augmented Lagrangian method: nearest adversarial example in l2, so one run serves every eps.

    Rony et al. 2021, "Augmented Lagrangian adversarial attacks", Algorithm 1: the distance is minimised subject to
    misclassification; the violation of that constraint (the margin divided by the difference of the first and the third
    logit) enters through the penalty P2. Each image has its own multiplier, which follows the derivative of the
    penalty, and its own penalty parameter, which grows while no example is found and the violation does not decrease.
    Steps are made by RMSProp with momentum, at a constant rate until the first example is found, then at a rate that
    decays to a hundredth. Settings are those of the authors' code for l2. On a random classifier the gradient is the
    mean over fresh draws, violation and success are those of the mean softmax over a fixed set of draws, and examples
    are extended along their direction to the surface of larger balls.

    Departures: the steps are shared among several runs, one untargeted and one towards each of the `targets` most
        likely wrong classes, because a single run stalls after some hundred steps and others end elsewhere; with two
        classes the violation is the margin divided by that of the image itself; a line search shortens the examples, in
        place of a tolerance of 1e-4 logits.
    """

    version = "2"
    paper = Paper(
        title="Augmented Lagrangian Adversarial Attacks",
        authors="Rony, Granger, Pedersoli, Ben Ayed",
        year=2021,
        link="https://arxiv.org/abs/2011.11857",
    )

    class Params(attacks.Params):
        """Hyperparameters of ALMA."""

        steps: int = Field(default=120, ge=2, description="number of gradient steps per run; ALMA: 100 and 1000")
        targets: int = Field(
            default=2,
            ge=0,
            description="number of most likely wrong classes with a targeted run, after the untargeted run; ALMA: 0",
        )
        smoothing: float | None = Field(
            default=None,
            gt=0,
            lt=1,
            description="smoothing factor alpha of multiplier, momentum and mean square; None for 0.5 up to "
            "100 steps, 0.9 from 1000 (as in ALMA), and linear in the logarithm of the steps in between",
        )
        samples: int = Field(
            default=10, ge=1, description="number of draws per step on a random classifier, for gradient and success"
        )
        early_stop: bool = Field(
            default=False,
            description="early stopping of an image on a deterministic classifier, if allowed, once the example of a "
            "run lies within eps; a run then serves one eps only",
        )

    norms = frozenset({"l2"})
    minimal_norm = True
    targeted = True
    effort = "steps"
    params: Params

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.params.early_stop:
            self.minimal_norm = False  # type: ignore[misc]  # what lies outside the ball is not looked for

    @property
    def stops_early(self) -> bool:
        """The hyperparameter `early_stop`."""
        return self.params.early_stop

    @property
    def smoothing(self) -> float:
        """Smoothing factor of multiplier, momentum and mean square."""
        by_steps = min(0.9, max(0.5, 0.5 + 0.4 * math.log10(self.params.steps / 100)))
        return self.params.smoothing or by_steps

    def cost(self, random: bool) -> int:
        """Steps and success checks of all runs, plus passes for ranking targets and shortening examples."""
        params = self.params
        draws = SELECTION_DRAWS if random else 1
        step = params.samples + draws if random else 1
        return (1 + params.targets) * params.steps * step + draws * (SHORTENING + (2 if params.targets else 0))

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Run untargeted, then towards each target; keep each image's nearest adversarial example."""
        params, kept = self.params, Kept(clf, goal)
        found, nearest = x.clone(), x.new_full((len(x),), torch.inf)
        aims = [goal]
        if params.targets and not goal.targeted:
            if not clf.stochastic:
                nearest[kept.margins_of(x) > 0] = 0.0  # misclassified images need no search
            likely = attacks.likeliest(clf, x, goal, max(2, params.targets))
            aims += (
                likely[: params.targets] if len(likely) > 1 else []
            )  # with two classes, the untargeted run is targeted already
        enough = threat.eps if self.stops_early and goal.stop_early and not clf.stochastic else 0.0
        for aim in aims:
            rows = (nearest > enough).nonzero().squeeze(1)
            if len(rows) == 0:
                break
            points, distances = self._search(clf, kept, rows, x[rows], aim[rows], generator)
            better = distances < nearest[rows]
            found[rows] = torch.where(per_image(better, points), points, found[rows])
            nearest[rows] = torch.where(better, distances, nearest[rows])
        found = attacks.shorten(kept, x, found)
        return found if self.minimal_norm else attacks.within(found, x, threat, outward=clf.stochastic)

    def _search(
        self, clf: Classifier, kept: Kept, rows: Tensor, x: Tensor, aim: Goal, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """One run of Algorithm 1: the nearest adversarial examples and their distances, infinite if none was found.

        Any misclassification counts, whatever the target.

        Args:
            clf: the classifier.
            kept: goal and draws that determine success.
            rows: indices of the images in `kept`, `(batch,)`.
            x: the images, `(batch, channels, height, width)`.
            aim: labels and, in a targeted run, targets.
            generator: random generator of the first step if the gradient is zero.
        """
        steps, past = self.params.steps, self.smoothing
        found, nearest = x.clone(), x.new_full((len(x),), torch.inf)
        first_found = torch.full_like(nearest, steps)  # step at which the first example of an image was found
        delta, momentum, square = torch.zeros_like(x), torch.zeros_like(x), torch.ones_like(x)
        multiplier, penalty = torch.ones_like(nearest), torch.ones_like(nearest)
        rate = checked = torch.zeros_like(nearest)
        scale = torch.ones_like(nearest)
        for step in range(steps):
            gradient, logits = clf.input_gradient(x + delta, aim.rows, _violation, self.params.samples)
            judging = kept.logits_of(x + delta) if clf.stochastic else logits
            reached = kept.margins_at(judging, rows) > 0
            violation = _violation(judging[0], aim.rows)
            if clf.stochastic:  # the mean softmax is misclassified later than single draws
                violation = _violation(judging.log_softmax(-1).logsumexp(0), aim.rows)
                if step == 0:
                    reached[:] = False  # clean images of a random classifier give no direction
            violation = violation.to(x)  # logits may have another precision
            length = delta.flatten(1).norm(dim=1)
            better = reached & (length < nearest)
            found = torch.where(per_image(better, x), x + delta, found)
            nearest = torch.where(better, length, nearest)
            first_found = torch.where(reached, first_found.clamp_max(step), first_found)
            if step == 0 and logits.shape[2] < 3:
                nearby = FIRST_STEP * gradient.flatten(1).norm(dim=1)
                scale = torch.maximum(violation.abs(), nearby).clamp_min(TINY)
            gradient, violation = gradient / per_image(scale, x), violation / scale
            if step == 0:
                checked = violation
                slope = _slope(violation, penalty, multiplier)
                descent = -per_image(slope, x) * gradient
                noise = attacks.steepest(torch.empty_like(x).normal_(generator=generator), Threat("l2", 1.0))
                descent = torch.where(per_image(descent.flatten(1).norm(dim=1) <= 1e-6, x), noise, descent)
            else:
                if (step + 1) % CHECKS == 0:
                    stuck = nearest.isinf() & (violation >= 0.95 * checked)
                    penalty = torch.where(stuck, 1.2 * penalty, penalty)
                    checked = violation
                slope = _slope(violation, penalty, multiplier)
                multiplier = (past * multiplier + (1 - past) * slope).clamp(1e-6, 1e12)
                slope = _slope(violation, penalty, multiplier)
                descent = -delta / per_image(length, x).clamp_min(TINY) - per_image(slope, x) * gradient
            square = past * square + (1 - past) * descent.square()
            momentum = past * momentum + descent / (square.sqrt() + 1e-8)
            if step == 0:
                rate = _first_rate(x, descent)
            decay = FINAL_RATE ** ((step - first_found).clamp_min(0) / (steps - first_found).clamp_min(1))
            delta = (x + delta + per_image(rate * decay, x) * momentum).clamp(0, 1) - x
        return found, nearest


def _violation(logits: Tensor, rows: Tensor) -> Tensor:
    """Violation of the constraint, `(batch,)`: minus the margin, divided by the spread of the largest logits."""
    ordered = logits.sort(dim=1, descending=True).values
    lack = -Goal(rows).margin(logits)
    if logits.shape[1] < 3:
        return lack
    spread = ordered[:, 0] - (ordered[:, 2] if rows.ndim == 1 else ordered[:, 2:4].mean(1))
    return lack / spread.clamp_min(max(TINY, torch.finfo(spread.dtype).tiny))


def _slope(violation: Tensor, penalty: Tensor, multiplier: Tensor) -> Tensor:
    """Derivative of P2 (eq. 8): mu y + mu rho y^2 + rho^2 y^3 / 6 for y >= 0, otherwise mu y / (1 - rho y)."""
    above = multiplier + 2 * multiplier * penalty * violation + (penalty * violation).square() / 2
    below = multiplier / (1 - penalty * violation.clamp_max(0)).square()
    chosen: Tensor = torch.where(violation >= 0, above, below)
    return chosen


def _first_rate(x: Tensor, step: Tensor) -> Tensor:
    """Factor `(batch,)` at which a step, clipped to the box, has length `FIRST_STEP`; by bisection."""

    def length(rate: Tensor) -> Tensor:
        found: Tensor = ((x + per_image(rate, x) * step).clamp(0, 1) - x).flatten(1).norm(dim=1)
        return found

    high: Tensor = FIRST_STEP / step.flatten(1).norm(dim=1).clamp_min(TINY)
    low = torch.zeros_like(high)
    for _ in range(20):
        short = length(high) < FIRST_STEP
        low, high = torch.where(short, high, low), torch.where(short, 2 * high, high)
    for _ in range(20):
        middle = (low + high) / 2
        short = length(middle) < FIRST_STEP
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return high

"""Auto-PGD."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import SELECTION_DRAWS, Attack, Field, Goal, Kept, Objective, Threat, per_image
from advbench.models import Classifier
from advbench_attacks.eot_pgd import OBJECTIVE

MOMENTUM = 0.75


class APGD(Attack):
    """Auto-PGD: projected gradient ascent with momentum that halves its steps by itself.

    Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", Algorithm 1. Each image starts with steps of 2 eps; at checkpoints its step is halved, and it goes
    back to its best point, if the loss rose too seldom or the best point did not change. `loss="dlr_targeted"`
    runs once towards each of the `targets` classes that the classifier finds likeliest. Expectation over
    transformation is inside: each gradient and each loss is the mean over `samples` draws. Of several runs each
    image keeps the one of largest mean margin over draws of the attack's own; on a deterministic classifier what is
    misclassified is not attacked again.
    """

    version = "1"

    class Params(attacks.Params):
        """Hyperparameters of Auto-PGD."""

        steps: int = Field(default=100, ge=2, description="gradient steps; Croce and Hein 2020: 100")
        loss: Literal["ce", "margin", "dlr", "dlr_targeted"] = Field(
            default="ce", description="loss to ascend: ce, margin, dlr or dlr_targeted; Croce and Hein: ce and dlr"
        )
        restarts: int = Field(default=1, ge=1, description="runs from different starts; Croce and Hein, standard: 1")
        targets: int = Field(default=9, ge=1, description="classes that dlr_targeted aims at; Croce and Hein: 9")
        samples: int = Field(
            default=10, ge=1, description="draws a gradient on a random classifier; Croce and Hein, rand: 20"
        )
        objective: Objective = Field(default="mean_loss", description=OBJECTIVE)
        rho: float = Field(
            default=0.75,
            gt=0,
            lt=1,
            description="share of rising steps below which a step is halved; Croce and Hein: 0.75",
        )

    targeted = True
    effort = "steps"
    params: Params

    def cost(self, random: bool) -> int:
        """Steps times draws times restarts, for each target; and the passes that order targets and choose."""
        params = self.params
        draws, candidates = (SELECTION_DRAWS, 2) if random else (1, 1)
        twice = params.objective == "loss_of_mean" and params.loss != "ce"
        samples = params.samples * (2 if twice else 1) if random else 1
        targets = params.targets if params.loss == "dlr_targeted" else 1
        ordering = (params.samples if random else 1) if params.loss == "dlr_targeted" else 0
        runs = params.restarts * targets
        return runs * (params.steps * samples + candidates * draws) + draws + ordering

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Run from each start towards each target; keep per image what fools best."""
        aims = [goal]
        if self.params.loss == "dlr_targeted":
            aims = attacks.likeliest(clf, x, goal, self.params.targets, self.params.samples)
        kept = Kept(clf, goal)
        kept.offer(x)
        for _ in range(self.params.restarts):
            for aim in aims:
                start = attacks.random_start(x, threat, generator)
                rows = kept.remaining()
                if len(rows) == 0:
                    return kept.images
                for found in self._ascend(clf, x[rows], aim[rows], goal[rows], threat, start[rows]):
                    kept.offer(found, rows)
        return kept.images

    def _ascend(
        self, clf: Classifier, x: Tensor, aim: Goal, goal: Goal, threat: Threat, start: Tensor
    ) -> Iterator[Tensor]:
        """One run, Algorithm 1. Of a random classifier the last point, too: the best of noisy losses is a lucky one."""
        params = self.params
        loss: attacks.LossName = "dlr" if params.loss == "dlr_targeted" else params.loss

        def look(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            gradient, value, logits = attacks.loss_gradient(clf, images, aim, loss, params.samples, params.objective)
            return gradient, value, goal.mean_margin(logits)

        step = x.new_full((len(x),), 2 * threat.eps)
        current = previous = best = start
        gradient, value, reached = look(current)
        best_value, best_gradient = value, gradient
        fooling, fooling_margin = start, reached
        rises = torch.zeros_like(value)
        at_last_check, halved = best_value, torch.ones_like(value, dtype=torch.bool)
        marks = set(_checkpoints(params.steps))
        since = 0
        for k in range(1, params.steps):
            towards = per_image(step, x) * attacks.steepest(gradient, threat)
            aimed = attacks.project(current + towards, x, threat)
            share = MOMENTUM if k > 1 else 1.0
            moved = current + share * (aimed - current) + (1 - share) * (current - previous)
            previous, current = current, attacks.project(moved, x, threat)
            gradient, after, reached = look(current)
            rises += (after > value).to(rises.dtype)
            value, since = after, since + 1
            fooling = torch.where(per_image(reached > fooling_margin, x), current, fooling)
            fooling_margin = torch.maximum(reached, fooling_margin)
            improved = value > best_value
            best = torch.where(per_image(improved, x), current, best)
            best_gradient = torch.where(per_image(improved, x), gradient, best_gradient)
            best_value = torch.maximum(value, best_value)
            if k not in marks:
                continue
            seldom = rises < params.rho * since
            halved = seldom | (~halved & (at_last_check >= best_value))
            at_last_check = best_value
            step = torch.where(halved, step / 2, step)
            back = per_image(halved, x)
            current = torch.where(back, best, current)
            previous = torch.where(back, best, previous)
            gradient = torch.where(back, best_gradient, gradient)
            value = torch.where(halved, best_value, value)
            rises, since = torch.zeros_like(rises), 0
        if clf.stochastic:
            yield current
            yield best
        else:
            yield torch.where(per_image(fooling_margin > 0, x), fooling, best)


def _checkpoints(steps: int) -> list[int]:
    """The steps at which step sizes are looked at (Croce and Hein 2020, section 3.1)."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return [math.ceil(share * steps) for share in shares[1:] if share < 1]

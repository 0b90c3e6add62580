"""The fast minimum-norm attack."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import (
    SELECTION_DRAWS,
    SHORTENING,
    Attack,
    Field,
    Goal,
    Kept,
    Norm,
    Paper,
    Threat,
    per_image,
)
from advbench.models import Classifier

LEAST = 1e-6  # radius to begin with where an image lies on a boundary


class FMN(Attack):
    """Fast minimum-norm attack: the nearest adversarial example in linf or l2, so one run serves every eps.

    Pintor et al. 2021, "Fast minimum-norm adversarial attacks through adaptive norm constraints", Algorithm 1:
    each image has a ball of its own, which shrinks while the image is misclassified and grows while it is not (at
    first to where a linear model's boundary would be); gradient steps on the margin are projected into it. In l2 they
    are scaled onto its surface, up as well as down, as in the authors' adversarial-library: inside the ball of the
    paper's projection an image whose gradients lead nowhere stays where it is. On a
    random classifier the gradient is that of several fresh draws, success is judged by a set of draws that stays
    the same, and what is found gives the direction in which a wider ball is used up.
    """

    version = "2"
    paper = Paper(
        title="Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints",
        authors="Pintor, Roli, Brendel, Biggio",
        year=2021,
        link="https://arxiv.org/abs/2102.12827",
    )

    class Params(attacks.Params):
        """Hyperparameters of FMN."""

        steps: int = Field(default=100, ge=1, description="gradient steps; FMN: 100 to 1000")
        step_size: float = Field(
            default=1.0,
            gt=0,
            description="length alpha of the first step in l2, in pixels; falls to a hundredth; FMN: 1",
        )
        shrinkage: float = Field(
            default=0.05, gt=0, lt=1, description="relative change gamma of the radius in the first step; FMN: 0.05"
        )
        final_shrinkage: float = Field(
            default=0.001, gt=0, lt=1, description="relative change of the radius in the last step; FMN: 0.001"
        )
        samples: int = Field(
            default=10, ge=1, description="draws a step on a random classifier, for gradient and success"
        )

    minimal_norm = True
    targeted = True
    params: Params

    effort = "steps"

    def cost(self, random: bool) -> int:
        """A step's gradient and the passes that show success, and the passes that shorten what was found."""
        draws = SELECTION_DRAWS if random else 1
        step = self.params.samples + draws if random else 1
        return self.params.steps * step + draws * SHORTENING

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Shrink and grow each image's ball; keep its nearest adversarial example."""
        params = self.params
        loss, kept = goal.loss("margin"), Kept(clf, goal)
        found, nearest = x.clone(), x.new_full((len(x),), torch.inf)
        delta, radius = torch.zeros_like(x), x.new_full((len(x),), torch.inf)
        for step in range(params.steps):
            cosine = (1 + math.cos(math.pi * step / params.steps)) / 2
            change = params.final_shrinkage + (params.shrinkage - params.final_shrinkage) * cosine
            length = params.step_size * (0.01 + 0.99 * cosine)
            gradient, logits = clf.input_gradient(x + delta, goal.rows, loss, params.samples)
            margins = kept.margins_of(x + delta) if clf.stochastic else goal.margin(logits[0])
            reached = margins > 0
            if clf.stochastic and step == 0:
                reached[:] = False  # a random classifier's own images give no direction, however it judges them
            norm = _norms(delta, threat.norm)
            better = reached & (norm < nearest)
            found = torch.where(per_image(better, x), x + delta, found)
            nearest = torch.where(better, norm, nearest)
            gap = torch.stack([loss(draw, goal.rows) for draw in logits]).mean(0).abs().to(x.dtype)
            slope = _norms(gradient, "l2" if threat.norm == "l2" else "l1").clamp_min(torch.finfo(x.dtype).tiny)
            # The first estimate may be exact, and rounding decides; or the box takes away what the ball gave: grow on.
            wider = torch.where(radius.isfinite(), radius * (1 + change), LEAST)
            first = torch.maximum(norm + gap / slope, wider)
            grown = torch.where(nearest.isfinite(), radius * (1 + change), first)
            radius = torch.where(reached, torch.minimum(radius * (1 - change), nearest), grown)
            delta = delta + length * attacks.steepest(gradient, Threat("l2", 1.0))
            delta = _at_radius(delta, radius, threat.norm)
            delta = (x + delta).clamp(0, 1) - x
        return attacks.shorten(kept, x, found)


def _norms(delta: Tensor, norm: Norm | str) -> Tensor:
    flat = delta.flatten(1)
    if norm == "l2":
        length: Tensor = flat.norm(dim=1)
        return length
    size = flat.abs()
    return size.amax(1) if norm == "linf" else size.sum(1)


def _at_radius(delta: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """Each change clipped to the cube of its own radius around 0 (linf), or scaled onto the sphere (l2)."""
    limit = per_image(radius, delta)
    if norm == "linf":
        return delta.clamp(-limit, limit)
    return delta * (limit / per_image(_norms(delta, "l2"), delta).clamp_min(torch.finfo(delta.dtype).tiny))

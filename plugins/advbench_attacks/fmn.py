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

LEAST = 1e-6  # initial radius if an image lies on the boundary


class FMN(Attack):
    """Fast minimum-norm attack: nearest adversarial example in linf or l2, so one run serves every eps.

    Pintor et al. 2021, "Fast minimum-norm adversarial attacks through adaptive norm constraints", Algorithm 1:
    each image has its own ball, which shrinks while the image is misclassified and grows otherwise (at first to the
    boundary of a linear model); gradient steps on the margin are projected onto it. In l2 they are rescaled to its
    surface, up as well as down, as in the authors' adversarial-library: with the projection of the paper, an image with
    uninformative gradients would not move. On a random classifier the gradient is the mean over several fresh draws,
    success is evaluated on a fixed set of draws, and examples are extended along their direction to the surface of
    larger balls.
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

        steps: int = Field(default=100, ge=1, description="number of gradient steps; FMN: 100 to 1000")
        step_size: float = Field(
            default=1.0,
            gt=0,
            description="initial step size alpha in l2, in pixels, which decays to a hundredth; FMN: 1",
        )
        shrinkage: float = Field(
            default=0.05, gt=0, lt=1, description="relative change gamma of the radius in the first step; FMN: 0.05"
        )
        final_shrinkage: float = Field(
            default=0.001, gt=0, lt=1, description="relative change of the radius in the last step; FMN: 0.001"
        )
        samples: int = Field(
            default=10, ge=1, description="number of draws per step on a random classifier, for gradient and success"
        )

    minimal_norm = True
    targeted = True
    params: Params

    effort = "steps"

    def cost(self, random: bool) -> int:
        """Gradient and success checks of all steps, plus passes for shortening examples."""
        draws = SELECTION_DRAWS if random else 1
        step = self.params.samples + draws if random else 1
        return self.params.steps * step + draws * SHORTENING

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Shrink and grow the ball of each image; keep its nearest adversarial example."""
        params = self.params
        loss, kept = goal.loss("margin"), Kept(clf, goal)
        found, nearest = x.clone(), x.new_full((len(x),), torch.inf)
        delta, radius = torch.zeros_like(x), x.new_full((len(x),), torch.inf)
        for step in range(params.steps):
            cosine = (1 + math.cos(math.pi * step / params.steps)) / 2
            change = params.final_shrinkage + (params.shrinkage - params.final_shrinkage) * cosine
            length = params.step_size * (0.01 + 0.99 * cosine)
            gradient, logits = clf.input_gradient(x + delta, goal.rows, loss, params.samples)
            margins = kept.margins_of(x + delta) if clf.stochastic else goal.mean_margin(logits)
            reached = margins > 0
            if clf.stochastic and step == 0:
                reached[:] = False  # clean images of a random classifier give no direction
            norm = _norms(delta, threat.norm)
            better = reached & (norm < nearest)
            found = torch.where(per_image(better, x), x + delta, found)
            nearest = torch.where(better, norm, nearest)
            gap = torch.stack([loss(draw, goal.rows) for draw in logits]).mean(0).abs().to(x.dtype)
            slope = _norms(gradient, "l2" if threat.norm == "l2" else "l1").clamp_min(torch.finfo(x.dtype).tiny)
            # The first estimate may be exact up to rounding, or clipping to the box may undo the step: keep growing.
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
    """Clip each perturbation to its radius (linf), or rescale it to the sphere (l2)."""
    limit = per_image(radius, delta)
    if norm == "linf":
        return delta.clamp(-limit, limit)
    scaled = delta * (limit / per_image(_norms(delta, "l2"), delta).clamp_min(torch.finfo(delta.dtype).tiny))
    return torch.where(delta == 0, delta, scaled)  # where the ratio overflows, too

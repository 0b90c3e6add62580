"""The attack of Carlini and Wagner."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import SELECTION_DRAWS, SHORTENING, Attack, Field, Goal, Kept, Paper, Threat, per_image
from advbench.models import Classifier

# Initial w of a pixel on a face of the box: small enough to cross the box in a hundred steps of 0.1.
INNER = 1 - 1e-3
CHECKS = 10
ADAM = (0.9, 0.999, 1e-8)


class CW(Attack):
    """Carlini and Wagner's L2 attack: nearest adversarial example, so one run serves every eps.

    Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks": Adam on |x' - x|^2 + c max(
    confidence - margin(x'), 0) over w, x' = (tanh w + 1) / 2, and a binary search over c. Each image has its own c, its
    own stopping time and its own best example. On a random classifier the gradient is the mean over several fresh
    draws, success is evaluated on a fixed set of draws, and examples are extended along their direction to the surface
    of larger balls.
    """

    version = "1"
    paper = Paper(
        title="Towards Evaluating the Robustness of Neural Networks",
        authors="Carlini, Wagner",
        year=2017,
        link="https://arxiv.org/abs/1608.04644",
    )

    class Params(attacks.Params):
        """Hyperparameters of CW."""

        steps: int = Field(
            default=100, ge=1, description="number of Adam steps per c; Carlini and Wagner: 10,000, released code 1,000"
        )
        search_steps: int = Field(default=9, ge=1, description="number of values of c per image; released code: 9")
        initial_c: float = Field(
            default=0.1,
            gt=0,
            description="initial weight c of the margin, in squared pixels per logit; released code: 0.001",
        )
        lr: float = Field(default=0.1, gt=0, description="learning rate of Adam in w; released code: 0.01")
        confidence: float = Field(default=0.0, ge=0, description="required margin kappa, in logits; CW: 0")
        samples: int = Field(
            default=10, ge=1, description="number of draws per step on a random classifier, for gradient and success"
        )
        abort_early: bool = Field(
            default=True,
            description="early abort of an image whose objective decreases by less than 1e-4 within a tenth "
            "of the steps",
        )

    norms = frozenset({"l2"})
    minimal_norm = True
    targeted = True
    params: Params

    effort = "steps"

    def cost(self, random: bool) -> int:
        """Gradient and success checks of all steps, plus passes for shortening examples."""
        params = self.params
        draws = SELECTION_DRAWS if random else 1
        step = params.samples + draws if random else 1
        return params.search_steps * params.steps * step + draws * (1 + SHORTENING)

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Search over c; keep each image's nearest adversarial example."""
        params = self.params
        kept = Kept(clf, goal)
        low, c = x.new_zeros(len(x)), x.new_full((len(x),), params.initial_c)
        high = x.new_full((len(x),), torch.inf)
        nearest = x.new_full((len(x),), torch.inf)
        found = x.clone()
        # Misclassified images need no search.
        wrong = (kept.margins_of(x) > params.confidence) & (not clf.stochastic)
        nearest = torch.where(wrong, 0.0, nearest)
        open_ = (~wrong).nonzero().squeeze(1)
        if len(open_) == 0:
            return found
        for _ in range(params.search_steps):
            images, distances = self._descend(clf, kept, open_, x[open_], goal[open_], c[open_])
            succeeded = distances.isfinite()
            better = distances < nearest[open_]
            found[open_] = torch.where(per_image(better, images), images, found[open_])
            nearest[open_] = torch.where(better, distances, nearest[open_])
            tried = c[open_]
            low[open_] = torch.where(succeeded, low[open_], tried)
            high[open_] = torch.where(succeeded, tried, high[open_])
            middle = (low[open_] + high[open_]) / 2
            c[open_] = torch.where(high[open_].isfinite(), middle, tried * 10).clamp_max(1e10)
        return attacks.shorten(kept, x, found, beyond=params.confidence)

    def _descend(
        self, clf: Classifier, kept: Kept, rows: Tensor, x: Tensor, goal: Goal, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run Adam at one c per image; nearest adversarial examples and their distances, infinite if none was found.

        `rows` are the indices of the images. tanh is shifted to pass through the image itself, which may lie on a face
        of the box, a value that tanh never reaches.
        """
        params = self.params
        middle = (2 * x - 1) * INNER
        centre = torch.atanh(middle)
        found, nearest = x.clone(), x.new_full((len(x),), torch.inf)
        w, first, second = centre.clone(), torch.zeros_like(x), torch.zeros_like(x)
        left = torch.arange(len(x), device=x.device)
        before = x.new_full((len(x),), torch.inf)

        def shortfall(logits: Tensor, rows: Tensor) -> Tensor:
            lack = params.confidence - Goal(rows).margin(logits)
            return torch.where(lack >= 0, lack, 0.0)  # with a gradient on the boundary, unlike clamp

        for step in range(params.steps):
            tanh = torch.tanh(w)
            images = (x[left] + (tanh - middle[left]) / 2).clamp(0, 1)
            moved = images - x[left]
            gradient, logits = clf.input_gradient(images, goal.rows[left], shortfall, params.samples)
            distance = moved.flatten(1).norm(dim=1)
            if clf.stochastic:  # clean images of a random classifier give no direction
                reached = (kept.margins_of(images, rows[left]) > params.confidence) & (step > 0)
            else:
                reached = goal[left].mean_margin(logits) > params.confidence
            better = reached & (distance < nearest[left])
            found[left] = torch.where(per_image(better, x), images, found[left])
            nearest[left] = torch.where(better, distance, nearest[left])
            slope = (2 * moved + per_image(c[left], x) * gradient) * (1 - tanh.square()) / 2
            first = ADAM[0] * first + (1 - ADAM[0]) * slope
            second = ADAM[1] * second + (1 - ADAM[1]) * slope.square()
            mean, square = first / (1 - ADAM[0] ** (step + 1)), second / (1 - ADAM[1] ** (step + 1))
            w = w - params.lr * mean / (square.sqrt() + ADAM[2])
            if params.abort_early and (step + 1) % max(1, params.steps // CHECKS) == 0:
                missing = torch.stack([shortfall(draw, goal.rows[left]) for draw in logits]).mean(0)
                objective = distance.square() + c[left] * missing
                falls = (objective < before * (1 - 1e-4)).nonzero().squeeze(1)
                before, left = objective[falls], left[falls]
                w, first, second = w[falls], first[falls], second[falls]
                if len(left) == 0:
                    break
        return found, nearest

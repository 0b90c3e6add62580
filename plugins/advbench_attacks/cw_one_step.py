"""One-step version of the attack of Carlini and Wagner, as in BAL."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import Attack, Field, Goal, Paper, Threat, project, steepest
from advbench.models import Classifier


class CWOneStep(Attack):
    """A single gradient step of length eps on the difference of probabilities, from the clean image.

    Ye and Zhu 2018, "Bayesian Adversarial Learning", section 5.1: gradient ascent on the largest other probability
    minus the label's, with a squared-norm penalty on the perturbation. The gradient of the penalty is zero at the clean
    image, so it does not affect a single step. The paper does not state the length of the step; here it is eps.

    `released` is the step of the released code: 1 / sqrt(2) times the gradient of the sum of all other logits minus the
    label's, averaged over all chains (enumerated if `samples` is at least their number). Its length does not depend on
    eps; in l2, an eps of at least the root of the number of pixels (28 on MNIST) never clips it. The clamp of the
    released code, which stops a whole batch of images once the sum of the others leads, is left out.
    """

    version = "1"
    paper = Paper(
        title="Bayesian Adversarial Learning",
        authors="Ye, Zhu",
        year=2018,
        link="https://nips.cc/Conferences/2018/Schedule?showEvent=11664",
    )

    class Params(attacks.Params):
        """Hyperparameters of the one-step attack."""

        released: bool = Field(default=False, description="variant of BAL's released code")
        samples: int = Field(
            default=1, ge=1, description="number of draws of the weights per gradient; BAL's released code: all chains"
        )

    targeted = True
    params: Params

    def cost(self, random: bool) -> int:
        """Return the number of draws: one pass each."""
        return self.params.samples if random else 1

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Take the step."""
        params = self.params
        loss = _others_lead if params.released else _margin
        gradient = clf.input_gradient(x, goal.rows, loss, params.samples).value
        step = gradient / math.sqrt(2) if params.released else threat.eps * steepest(gradient, threat)
        return project(x + step, x, threat)


def _margin(logits: Tensor, rows: Tensor) -> Tensor:
    return Goal(rows).margin(logits.softmax(1))


def _others_lead(logits: Tensor, rows: Tensor) -> Tensor:
    """The sum of all other logits minus the label's; of a target, its logit minus the sum of all others."""
    labels, sign = (rows, 1) if rows.ndim == 1 else (rows[:, 1], -1)
    return sign * (logits.sum(1) - 2 * logits.gather(1, labels[:, None])[:, 0])

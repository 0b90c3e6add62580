"""Projected gradient ascent inside a ball, for gradient attacks and adversarial training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from advbench.attacks.ball import per_image, project, steepest
from advbench.attacks.base import Goal, Threat
from advbench.attacks.losses import LossName
from advbench.attacks.selection import Certain
from advbench.models.classifier import Classifier

Objective = Literal["mean_loss", "loss_of_mean"]


class Slope(NamedTuple):
    """An objective, its gradient with respect to the images, and the logits.

    Attributes:
        gradient: gradient of the objective with respect to the images, `(batch, channels, height, width)`.
        value: objective of each image, `(batch,)`.
        logits: logits of each draw, `(draws, batch, classes)`.
    """

    gradient: Tensor
    value: Tensor
    logits: Tensor


def loss_gradient(
    clf: Classifier, x: Tensor, goal: Goal, loss: LossName, samples: int = 1, objective: Objective = "mean_loss"
) -> Slope:
    """Objective of an attack on a random classifier and its gradient, over the same fresh draws.

    `mean_loss` is the mean of the draws' losses (Athalye et al. 2018). `loss_of_mean` is the loss of the mean softmax,
    which an evaluation uses: draws that are already fooled have less weight. With cross-entropy both cost one pass per
    draw; with other losses, whose gradient depends on the runner-up of the mean, `loss_of_mean` costs a second one.

    Args:
        clf: the classifier under attack.
        x: images `(batch, channels, height, width)`.
        goal: labels and, in a targeted attack, targets.
        loss: name of the loss.
        samples: number of draws.
        objective: name of the objective.
    """
    gradient, logits = _gradient(clf, x, goal, loss, samples, objective)
    function = goal.loss(loss)
    if objective == "loss_of_mean" and loss != "ce" and len(logits) > 1:
        return Slope(gradient, function(logits.log_softmax(-1).logsumexp(0), goal.rows), logits)
    rows = goal.rows.repeat(len(logits), *[1] * (goal.rows.ndim - 1))
    losses = function(logits.flatten(0, 1), rows).view(len(logits), -1)
    if objective == "mean_loss" or len(logits) == 1:
        return Slope(gradient, losses.mean(0), logits)
    tilt = _tilt(goal)
    return Slope(gradient, ((tilt * losses).logsumexp(0) - math.log(len(losses))) / tilt, logits)


def _gradient(
    clf: Classifier, x: Tensor, goal: Goal, loss: LossName, samples: int, objective: Objective
) -> tuple[Tensor, Tensor]:
    """Gradient and logits of `loss_gradient`, without the value."""
    function = goal.loss(loss)
    if objective == "mean_loss" or samples == 1 or not clf.stochastic:
        return clf.input_gradient(x, goal.rows, function, samples)
    if loss == "ce":
        return clf.input_gradient(x, goal.rows, function, samples, tilt=_tilt(goal))
    return clf.mean_gradient(x, goal.rows, function, samples)


def _tilt(goal: Goal) -> float:
    """Tilt of `input_gradient` for cross-entropy: -1 for -log p at the label, 1 for log p at the target."""
    return 1.0 if goal.targeted else -1.0


def step_length(threat: Threat, steps: int, fraction: float | None) -> float:
    """Step size, as a fraction of eps: by default 2.5 / steps in linf (Madry et al. 2018) and 10 / steps in l2.

    In l2, a path of total length 2.5 eps does not correct the orthogonal part of a random start, whatever the number of
    steps: on a linear model it ends 2 % short of the optimum. Longer steps reach it.
    """
    return threat.eps * (fraction or {"linf": 2.5, "l2": 10.0}[threat.norm] / steps)


def ascend(
    clf: Classifier,
    x: Tensor,
    goal: Goal,
    threat: Threat,
    *,
    steps: int,
    step_size: float,
    start: Tensor,
    loss: LossName = "ce",
    samples: int = 1,
    objective: Objective = "mean_loss",
    keep_best: bool = False,
) -> Tensor:
    """Ascend the expected loss by projected steepest steps (Madry et al. 2018; Adv-BNN eq. 2, 3).

    Each step draws fresh weights, a stochastic ascent of the expectation over a random classifier; more `samples` per
    step reduce the variance (Athalye et al. 2018).

    Args:
        clf: the classifier under attack.
        x: images `(batch, channels, height, width)` in [0, 1].
        goal: labels and, in a targeted attack, targets.
        threat: norm and eps.
        steps: number of gradient steps.
        step_size: length of a step in the threat's norm, in units of pixels in [0, 1].
        start: starting point, within the ball and the box.
        loss: loss to ascend.
        samples: number of draws per gradient.
        objective: objective on a random classifier (`loss_gradient`).
        keep_best: for images that reached the goal on the way, return the iterate of largest margin; for others the
            last one. Only for deterministic classifiers: on a random one, the largest of many noisy margins says little
            about the iterate.

    Returns:
        Images shaped as `x`, within the ball and the box.
    """
    x_adv, climb = start, _Climb(x, threat)
    best, best_margin = start, x.new_zeros(len(x))
    for _ in range(steps):
        gradient, logits = _gradient(clf, x_adv, goal, loss, samples, objective)
        if keep_best:
            reached = goal.mean_margin(logits)
            improved = reached > best_margin
            best = torch.where(per_image(improved, x), x_adv, best)
            best_margin = torch.where(improved, reached, best_margin)
        x_adv = climb.step(x_adv, gradient, step_size)
    return torch.where(per_image(best_margin > 0, x), best, x_adv) if keep_best else x_adv


class _Climb:
    """Projected steps inside a ball around images, with bounds computed once."""

    def __init__(self, x: Tensor, threat: Threat) -> None:
        self._x = x
        self._threat = threat
        self._lower, self._upper = (x - threat.eps).clamp_(0, 1), (x + threat.eps).clamp_(0, 1)

    def step(self, x_adv: Tensor, gradient: Tensor, length: float) -> Tensor:
        """Take a steepest step of the given length, and project."""
        if self._threat.norm == "linf":
            return gradient.sign().mul_(length).add_(x_adv).clamp_(self._lower, self._upper)
        return project(x_adv + length * steepest(gradient, self._threat), self._x, self._threat)


def ascend_until_reached(
    clf: Classifier,
    x: Tensor,
    goal: Goal,
    threat: Threat,
    *,
    lengths: Sequence[float],
    start: Tensor,
    loss: LossName = "ce",
    samples: int = 1,
    objective: Objective = "mean_loss",
) -> tuple[Tensor, Tensor]:
    """Ascend until the goal of an image is certainly reached (`Certain`), then stop for that image.

    Args:
        clf: the classifier under attack.
        x: images `(batch, channels, height, width)` in [0, 1].
        goal: labels and, in a targeted attack, targets.
        threat: norm and eps.
        lengths: lengths of the steps in the threat's norm, in units of pixels in [0, 1].
        start: starting point, within the ball and the box.
        loss: loss to ascend.
        samples: number of draws per gradient; with fewer than `FEWEST`, images stop only if the draws are all members.
        objective: objective on a random classifier (`loss_gradient`).

    Returns:
        Images shaped as `x`, the last iterate of each; and a mask of those that stopped early, `(batch,)`, bool.
    """
    found = start.clone()
    certain = Certain(clf, goal)
    active = torch.arange(len(x), device=x.device)
    for length in lengths:
        gradient, _, logits = loss_gradient(clf, found[active], goal[active], loss, samples, objective)
        left = (~certain.look(logits, active)).nonzero().squeeze(1)
        active = active[left]
        if len(active) == 0:
            break
        found[active] = project(found[active] + length * steepest(gradient[left], threat), x[active], threat)
    return found, certain.reached

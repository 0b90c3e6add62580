"""Projected gradient ascent inside a ball: the engine of gradient attacks and of adversarial training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advbench.api import Threat
from advbench.models.classifier import Classifier, ExampleLoss

ROUNDING = 1e-5  # error of a pixel, and relative error of a length, that a library makes in float32

LossName = Literal["ce", "margin", "dlr"]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each image, `(batch,)`, in nats; its gradient holds for any confidence.

    The usual softmax - 1 at the label is rounded to 0 in float32 once the label leads by 17 nats, and what is left
    of the gradient no longer leads away from the label: a confident net looks robust. The softplus of how far the
    other classes together lag behind is the same number, without that difference.
    """
    others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return F.softplus(others - logits.gather(1, y[:, None]).squeeze(1))


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the label's, `(batch,)`: positive where the image is misclassified.

    Carlini and Wagner 2017, f6 with the sign turned.
    """
    label = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - label


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio of each image, `(batch,)` (Croce and Hein 2020, eq. 6).

    The margin divided by the distance of the largest logit to the third: invariant to shift and scale of the
    logits. Of two classes the ratio would be constant, so it is the margin itself.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    ordered = logits.sort(dim=1, descending=True).values
    spread = ordered[:, 0] - ordered[:, 2]
    return margin(logits, y) / spread.clamp_min(1e-12)


def targeted_cross_entropy(logits: Tensor, rows: Tensor) -> Tensor:
    """Negative cross-entropy of each image's target, `(batch,)`, in nats; `rows` holds labels and targets."""
    return -cross_entropy(logits, rows[:, 1])


def targeted_margin(logits: Tensor, rows: Tensor) -> Tensor:
    """The target's logit minus the largest other one, `(batch,)`: positive where the target is predicted."""
    return -margin(logits, rows[:, 1])


def targeted_dlr(logits: Tensor, rows: Tensor) -> Tensor:
    """Targeted difference of logits ratio of each image, `(batch,)` (Croce and Hein 2020, eq. 7).

    The target's logit minus the label's, divided by the distance of the largest logit to the mean of the third
    and the fourth. Of three classes the third stands for both; of two the ratio is left out.
    """
    pair = logits.gather(1, rows)
    difference = pair[:, 1] - pair[:, 0]
    if logits.shape[1] < 3:
        return difference
    ordered = logits.sort(dim=1, descending=True).values
    return difference / (ordered[:, 0] - ordered[:, 2:4].mean(1)).clamp_min(1e-12)


LOSSES: dict[LossName, ExampleLoss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
TARGETED_LOSSES: dict[LossName, ExampleLoss] = {
    "ce": targeted_cross_entropy,
    "margin": targeted_margin,
    "dlr": targeted_dlr,
}


@dataclass(frozen=True)
class Goal:
    """What an attack is after: any class but the label, or a target.

    Attributes:
        rows: labels `(batch,)`; or labels and targets, `(batch, 2)`. What losses are called with.
    """

    rows: Tensor

    @classmethod
    def of(cls, y: Tensor, targets: Tensor | None = None) -> Goal:
        """The goal for labels `(batch,)` and, in a targeted attack, targets `(batch,)`."""
        return cls(y if targets is None else torch.stack([y, targets], 1))

    @property
    def targeted(self) -> bool:
        """Whether there are targets."""
        return self.rows.ndim == 2

    def __getitem__(self, index: Tensor | slice) -> Goal:
        return Goal(self.rows[index])

    def loss(self, name: LossName) -> ExampleLoss:
        """What to ascend, of logits and `rows`."""
        return (TARGETED_LOSSES if self.targeted else LOSSES)[name]

    def margin(self, logits: Tensor) -> Tensor:
        """How far each image is beyond the goal, `(batch,)` in logits: positive where it is reached."""
        return self.loss("margin")(logits, self.rows)

    def success(self, logits: Tensor) -> Tensor:
        """Whether each image reaches the goal, `(batch,)`, bool; an equal largest logit counts by argmax."""
        predicted = logits.argmax(1)
        return predicted == self.rows[:, 1] if self.targeted else predicted != self.rows

    def mean_margin(self, logits: Tensor) -> Tensor:
        """Margin of the log of the mean softmax of draws `(draws, batch, classes)`: of one draw, that of its logits."""
        return self.margin(logits[0] if len(logits) == 1 else logits.log_softmax(-1).logsumexp(0))


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """`values` `(batch,)`, shaped to broadcast over `images` `(batch, ...)`."""
    return values.view(-1, *[1] * (images.ndim - 1))


def lengths(delta: Tensor) -> Tensor:
    """Euclidean length of each image's change, `(batch, 1, 1, 1)`; summed in float64, for large images."""
    return per_image(delta.flatten(1).norm(dim=1, dtype=torch.float64).to(delta.dtype), delta)


def project(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """The point of the ball around `x` nearest to `x_adv`, then clipped to the box [0, 1].

    Clipping moves each pixel towards `x`, which is in the box, and so never leaves the ball.
    """
    if threat.norm == "linf":
        return x_adv.clamp(x - threat.eps, x + threat.eps).clamp_(0, 1)
    delta = x_adv - x
    scale = threat.eps / lengths(delta).clamp_min(torch.finfo(x.dtype).tiny)
    inside = 1 - 4 * torch.finfo(x.dtype).eps  # what rounding the scale may add
    delta = delta * torch.where(scale < 1, scale * inside, 1.0)
    moved = x + delta
    # Rounded towards the image: up and down at will adds up to more than the tolerance over many alike pixels.
    longer = (moved - x).abs() > delta.abs()
    return torch.where(longer, torch.nextafter(moved, x), moved).clamp_(0, 1)


def distances(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Distance of each image from its original in the threat's norm, `(count,)`, float64."""
    delta = (x_adv.double() - x.double()).flatten(1)
    return delta.abs().amax(1) if threat.norm == "linf" else delta.norm(dim=1)


def within(x_adv: Tensor, x: Tensor, threat: Threat, *, outward: bool = False) -> Tensor:
    """Examples moved into the threat's ball around `x`: how those of a minimal-norm attack serve every eps.

    What lies outside goes to the ball's nearest point. What lies inside stays: it fools a deterministic classifier.

    Args:
        x_adv: examples.
        x: the images.
        threat: norm and eps.
        outward: move what lies inside on, in its direction, to the ball's surface (and into the box). On a random
            classifier the nearest example lies where it is wrong as often as right, and a wider ball allows more.
    """
    distance = distances(x_adv, x, threat)
    if outward:
        stretch = per_image((threat.eps / distance.clamp_min(1e-12)).clamp_min(1.0).to(x.dtype), x)
        return project(x + (x_adv - x) * stretch, x, threat)
    return torch.where(per_image(distance <= threat.eps, x), x_adv, project(x_adv, x, threat))


def settled_in_box(x_adv: Tensor) -> Tensor:
    """Examples of another library, of which pixels outside [0, 1] by float32 rounding alone are put onto its face."""
    clipped = x_adv.clamp(0, 1)
    return torch.where((x_adv - clipped).abs() <= ROUNDING, clipped, x_adv)


def settled(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Examples of another library, of which those outside the ball by float32 rounding alone are projected onto it.

    Such libraries sum in float32, which on large images goes wrong by more than the harness lets pass.
    """
    x_adv = settled_in_box(x_adv)
    excess = distances(x_adv, x, threat) / max(threat.eps, torch.finfo(x.dtype).tiny) - 1
    rounding = (excess > 0) & (excess <= ROUNDING)
    return torch.where(per_image(rounding, x), project(x_adv, x, threat), x_adv)


def steepest(gradient: Tensor, threat: Threat) -> Tensor:
    """The direction of norm 1 (in the threat's norm) along which a linear loss rises fastest; 0 stays 0."""
    if threat.norm == "linf":
        return gradient.sign()
    # Scaled first, so that the square of a tiny gradient does not underflow.
    largest = per_image(gradient.abs().flatten(1).amax(1), gradient)
    scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / lengths(scaled).clamp_min(torch.finfo(gradient.dtype).tiny)


def step_length(threat: Threat, steps: int, fraction: float | None) -> float:
    """Length of a step: `fraction` of eps, by default 2.5 / steps in linf (Madry 2018) and 10 / steps in l2.

    In l2 a path of 2.5 eps does not work off the sideways part of a random start, whatever the number of
    steps: on a linear model it ends 2 % short of the optimum. Longer steps reach it.
    """
    return threat.eps * (fraction or {"linf": 2.5, "l2": 10.0}[threat.norm] / steps)


def random_start(x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """A point drawn uniformly from the ball around each image, clipped to the box."""
    if threat.norm == "linf":
        noise = torch.empty_like(x).uniform_(-threat.eps, threat.eps, generator=generator)
        return project(x + noise, x, threat)
    noise = torch.empty_like(x).normal_(generator=generator)
    uniform = x.new_empty(len(x)).uniform_(generator=generator)
    radius = threat.eps * per_image(uniform ** (1 / x[0].numel()), x)
    return project(x + noise * (radius / lengths(noise)), x, threat)


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
    keep_best: bool = False,
) -> Tensor:
    """Ascend the expected loss by steepest steps, projecting after each (Madry et al. 2018; Adv-BNN eq. 2, 3).

    Each step draws fresh weights, which solves the expectation over a random classifier by stochastic
    ascent; `samples` draws a step lower the variance (Athalye et al. 2018).

    Args:
        clf: the classifier under attack.
        x: images `(batch, channels, height, width)` in [0, 1].
        goal: labels and perhaps targets.
        threat: norm and eps.
        steps: gradient steps.
        step_size: length of a step in the threat's norm, in pixels in [0, 1].
        start: where to start, within the ball and the box.
        loss: what to ascend.
        samples: draws per gradient.
        keep_best: return the iterate of largest margin of each image that reached the goal on the way, and the
            last of the others. Only for deterministic classifiers: on a random one the largest of many noisy
            margins says little of the iterate.

    Returns:
        Images shaped as `x`, within the ball and the box.
    """
    x_adv, climb = start, _Climb(x, threat)
    best, best_margin = start, x.new_zeros(len(x))
    for _ in range(steps):
        gradient, logits = clf.input_gradient(x_adv, goal.rows, goal.loss(loss), samples)
        if keep_best:
            reached = goal.margin(logits[0])
            improved = reached > best_margin
            best = torch.where(per_image(improved, x), x_adv, best)
            best_margin = torch.where(improved, reached, best_margin)
        x_adv = climb.step(x_adv, gradient, step_size)
    return torch.where(per_image(best_margin > 0, x), best, x_adv) if keep_best else x_adv


class _Climb:
    """Steps inside a ball around images, whose bounds are made once."""

    def __init__(self, x: Tensor, threat: Threat) -> None:
        self._x = x
        self._threat = threat
        self._lower, self._upper = (x - threat.eps).clamp_(0, 1), (x + threat.eps).clamp_(0, 1)

    def step(self, x_adv: Tensor, gradient: Tensor, length: float) -> Tensor:
        """The point that a steepest step of that length leads to, projected."""
        if self._threat.norm == "linf":
            return gradient.sign().mul_(length).add_(x_adv).clamp_(self._lower, self._upper)
        return project(x_adv + length * steepest(gradient, self._threat), self._x, self._threat)


SELECTION_DRAWS = 10


class Kept:
    """Per image the best of several candidates by draws of the attack's own, the same for all candidates.

    Attributes:
        images: the best so far.
        margins: their margins, `(batch,)`; of the mean softmax over the draws where there are several.
        random: whether the classifier is.
    """

    def __init__(self, clf: Classifier, goal: Goal, draws: int = SELECTION_DRAWS) -> None:
        self._clf = clf
        self.random = clf.stochastic
        self._goal = goal
        self._seeds = [clf.next_seed() for _ in range(draws if clf.stochastic else 1)]
        self.images: Tensor
        self.margins: Tensor | None = None

    @torch.no_grad()
    def margins_of(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Margin of each image `(batch,)` at those draws; `rows` says which images these are, by default all."""
        starts = range(0, len(images), self._clf.batch_size) or [0]
        draws = []
        for draw in map(self._clf.draw, self._seeds):
            parts = [self._clf.at(draw, images[s : s + self._clf.batch_size], offset=s) for s in starts]
            draws.append(torch.cat(parts))
        logits = torch.stack(draws)
        return (self._goal if rows is None else self._goal[rows]).mean_margin(logits)

    def offer(self, images: Tensor, rows: Tensor | None = None) -> None:
        """Keep each image that is better than what is kept; `rows` says which images these are, by default all."""
        margins = self.margins_of(images, rows)
        if self.margins is None:
            self.images, self.margins = images.clone(), margins
            return
        if rows is None:
            rows = torch.arange(len(images), device=images.device)
        improved = margins > self.margins[rows]
        self.images[rows] = torch.where(per_image(improved, images), images, self.images[rows])
        self.margins[rows] = torch.where(improved, margins, self.margins[rows])

    def unsettled(self) -> Tensor:
        """Indices of the images worth another run: on a deterministic classifier those that fool it not yet."""
        assert self.margins is not None, "an offer comes first"
        if self.random:
            return torch.arange(len(self.margins), device=self.margins.device)
        return (self.margins <= 0).nonzero().squeeze(1)


STRETCHES = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
BISECTIONS = 10
SHORTENING = 1 + len(STRETCHES) + BISECTIONS  # the most points of each image that `shorten` looks at


def shorten(kept: Kept, x: Tensor, found: Tensor, *, beyond: float = 0.0) -> Tensor:
    """The nearest point that fools on the way from each image to the example that was found for it.

    By bisection, at draws of the attack's own, the same for all points. What fooled the draws of a search may
    not fool these (on a random classifier the nearest of many finds is a lucky one); then the point is looked
    for beyond it, up to ten times as far, inside the box.

    Args:
        kept: holds the draws and the goal.
        x: images, `(batch, channels, height, width)`.
        found: examples; equal to the image where there is none, which then stays.
        beyond: margin above which a point counts as fooling.
    """
    delta = found - x
    low, high = x.new_zeros(len(x)), x.new_full((len(x),), torch.inf)

    def at(share: Tensor) -> Tensor:
        return (x + per_image(share, x) * delta).clamp(0, 1)

    if not kept.random:
        high[kept.margins_of(x) > beyond] = 0.0
    for stretch in STRETCHES:
        share = torch.full_like(low, stretch)
        fools = kept.margins_of(at(share)) > beyond
        high = torch.where(fools & high.isinf(), share, high)
        low = torch.where(high.isinf(), share, low)
        if bool(high.isfinite().all()):
            break
    lost = high.isinf()
    low, high = low.masked_fill(lost, 1.0), high.masked_fill(lost, 1.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fools = kept.margins_of(at(middle)) > beyond
        high = torch.where(fools & ~lost, middle, high)
        low = torch.where(fools, low, middle)
    return torch.where(per_image(high == 1.0, x), found, at(high))


def ascend_until_reached(
    clf: Classifier,
    x: Tensor,
    goal: Goal,
    threat: Threat,
    *,
    lengths: Sequence[float],
    start: Tensor,
    loss: LossName = "ce",
) -> Tensor:
    """Ascend from each start until it reaches the goal; its place in the batch then goes to the next image.

    For deterministic classifiers alone, where one pass settles whether an image reached the goal. What was wrong
    from the start costs one pass.

    Args:
        clf: the classifier under attack.
        x: all images, `(count, channels, height, width)` in [0, 1].
        goal: labels and perhaps targets.
        threat: norm and eps.
        lengths: of the steps, in the threat's norm, in pixels in [0, 1].
        start: where to start, within the ball and the box.
        loss: what to ascend.

    Returns:
        Images shaped as `x`: the first iterate of each that reached the goal, or its last.
    """
    found, schedule = start.clone(), x.new_tensor(lengths)
    age = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    active, waiting = age[:0], 0
    while len(active) or waiting < len(x):
        newcomers = torch.arange(waiting, min(waiting + clf.batch_size - len(active), len(x)), device=x.device)
        active, waiting = torch.cat([active, newcomers]), waiting + len(newcomers)
        gradient, logits = clf.input_gradient(found[active], goal.rows[active], goal.loss(loss))
        left = (goal[active].margin(logits[0]) <= 0).nonzero().squeeze(1)
        active = active[left]
        step = per_image(schedule[age[active]], x) * steepest(gradient[left], threat)
        found[active] = project(found[active] + step, x[active], threat)
        age[active] += 1
        active = active[age[active] < len(schedule)]
    return found

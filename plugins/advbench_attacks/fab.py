"""The fast adaptive boundary attack."""

from __future__ import annotations

from typing import Any

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

TINY = 1e-300
COMPARING = 50  # draws of a random classifier for comparing runs
LEAST = 1e-5  # distance of the planes beyond the boundary


class FAB(Attack):
    """Fast adaptive boundary attack, targeted (FAB-T): nearest adversarial example in linf or l2.

    Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", Algorithm 1.
    Each step linearises the difference of two logits and projects both the current point and the image onto the
    plane where it vanishes, inside the box; the next point lies slightly beyond, between the two projections. A
    misclassified point is kept if it is the nearest so far, and the search continues closer to the image. There is one
    run for each of the `targets` most likely wrong classes (FAB-T of AutoAttack), which needs one gradient per step
    whatever the number of classes. The attack uses the geometry of the boundary, not a loss, and so overcomes many
    forms of gradient masking.

    Departures: a step takes its plane from the point before the backward step, so that one pass shows both whether
    the point is misclassified and where the plane is (the authors' code makes two); the targets are ranked by the mean
    softmax; a line search shortens the examples. On a random classifier the gradient is the mean over fresh draws,
    difference and success are those of the mean softmax over a fixed set of draws, and the result of a run is the mean
    of its later points: the nearest point would be selected by chance.
    """

    version = "3"
    paper = Paper(
        title="Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
        authors="Croce, Hein",
        year=2020,
        link="https://arxiv.org/abs/1907.02044",
    )

    class Params(attacks.Params):
        """Hyperparameters of FAB."""

        steps: int = Field(default=100, ge=1, description="number of steps per target; Croce and Hein: 100")
        targets: int = Field(
            default=9, ge=1, description="number of most likely wrong classes with a run each; FAB-T: 9"
        )
        restarts: int = Field(
            default=1,
            ge=1,
            description="number of runs per target: the first from the image, the others from random points "
            "at half the distance of the best example so far; AutoAttack: 1",
        )
        share: float = Field(
            default=0.1,
            ge=0,
            le=1,
            description="maximum weight alpha_max of the image's projection in a step; Croce and Hein: 0.1",
        )
        overshoot: float = Field(
            default=1.05,
            ge=1,
            description="overshoot eta, step length relative to the distance of the plane; Croce and Hein: 1.05",
        )
        backward: float = Field(
            default=0.9,
            gt=0,
            lt=1,
            description="factor beta on the distance of a misclassified point; Croce and Hein: 0.9",
        )
        samples: int = Field(
            default=10, ge=1, description="number of draws per step on a random classifier, for plane and success"
        )
        early_stop: bool = Field(
            default=False,
            description="early stopping of an image on a deterministic classifier, if allowed, once its example lies "
            "within eps, as in AutoAttack between targets; a run then serves one eps only",
        )

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

    def cost(self, random: bool) -> int:
        """Steps and success checks of all runs, plus passes for ranking targets and shortening examples."""
        params = self.params
        runs = params.targets * params.restarts
        if not random:
            return runs * params.steps + SHORTENING + 2
        return runs * (params.steps * (params.samples + SELECTION_DRAWS) + SHORTENING * COMPARING) + SELECTION_DRAWS

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Search towards each target from each start; keep each image's nearest adversarial example."""
        params, kept = self.params, Kept(clf, goal)
        comparing = Kept(clf, goal, COMPARING) if clf.stochastic else kept
        found, nearest = x.clone(), x.new_full((len(x),), torch.inf)
        if not clf.stochastic:
            nearest[kept.margins_of(x) > 0] = 0.0  # misclassified images need no search
        aims = attacks.likeliest(clf, x, goal, params.targets, SELECTION_DRAWS)
        enough = threat.eps if self.stops_early and goal.stop_early and not clf.stochastic else 0.0
        for restart in range(params.restarts):
            for aim in aims:
                rows = (nearest > enough).nonzero().squeeze(1)
                if len(rows) == 0:
                    break
                start = self._random_start(x, nearest, threat.norm, generator) if restart else x
                points, distances = self._search(clf, kept, rows, x[rows], aim[rows], start[rows], threat.norm)
                if clf.stochastic:
                    points, fools = attacks.shortened(comparing, x[rows], points, rows=rows)
                    distances = torch.where(fools, _length(points - x[rows], threat.norm), torch.inf)
                better = distances < nearest[rows]
                found[rows] = torch.where(per_image(better, points), points, found[rows])
                nearest[rows] = torch.where(better, distances, nearest[rows])
        if not clf.stochastic:
            found = attacks.shorten(kept, x, found)
        return found if self.minimal_norm else attacks.within(found, x, threat, outward=clf.stochastic)

    def _search(
        self, clf: Classifier, kept: Kept, rows: Tensor, x: Tensor, aim: Goal, start: Tensor, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        """One run of Algorithm 1: the nearest adversarial examples and their distances, infinite if none was found.

        For a random classifier the result is the mean of the second half of the points, which averages over more draws.

        Args:
            clf: the classifier.
            kept: goal and draws that determine success.
            rows: indices of the images in `kept`, `(batch,)`.
            x: the images, `(batch, channels, height, width)`.
            aim: labels and targets.
            start: starting points, shaped as `x`.
            norm: norm of the projections.
        """
        params = self.params
        found, nearest, current = x.clone(), x.new_full((len(x),), torch.inf), start
        total, half = torch.zeros_like(x), params.steps // 2
        for step in range(params.steps):
            gradient, logits = clf.input_gradient(current, aim.rows, _difference, params.samples)
            judging = kept.logits_of(current) if clf.stochastic else logits
            reached = kept.margins_at(judging, rows) > 0
            value = _difference(judging[0], aim.rows)
            if clf.stochastic:  # the boundary is that of the mean softmax
                value = _difference(judging.log_softmax(-1).logsumexp(0), aim.rows)
                if step == 0:
                    reached[:] = False  # clean images of a random classifier give no direction
            distance = _length(current - x, norm)
            better = reached & (distance < nearest)
            found = torch.where(per_image(better, x), current, found)
            nearest = torch.where(better, distance, nearest)
            # The plane gradient . z = offset lies slightly beyond the boundary, on which an image may lie already.
            beyond = LEAST * gradient.flatten(1).norm(p=2 if norm == "l2" else 1, dim=1)
            offset = (gradient * current).flatten(1).sum(1) - value + beyond
            current = torch.where(per_image(reached, x), x + params.backward * (current - x), current)
            onward, aside = (onto_plane(point, gradient, offset, norm) for point in (current, x))
            far, near = _length(onward, norm), _length(aside, norm)
            share = per_image((far / (far + near).clamp_min(1e-12)).clamp_max(params.share), x)
            current = (1 - share) * (current + params.overshoot * onward) + share * (x + params.overshoot * aside)
            current = current.clamp(0, 1)
            if step >= half:
                total = total + current
        return (total / (params.steps - half) if clf.stochastic else found), nearest

    @staticmethod
    def _random_start(x: Tensor, nearest: Tensor, norm: Norm, generator: torch.Generator) -> Tensor:
        """Random points at half the distance of the best example, or of the farthest corner of the box."""
        noise = torch.empty_like(x)
        noise = noise.uniform_(-1, 1, generator=generator) if norm == "linf" else noise.normal_(generator=generator)
        radius = torch.minimum(nearest, _length(torch.maximum(x, 1 - x), norm)) / 2
        return (x + per_image(radius / _length(noise, norm), x) * noise).clamp(0, 1)


def _difference(logits: Tensor, rows: Tensor) -> Tensor:
    """The target's logit minus the label's, `(batch,)`; `rows` holds labels and targets."""
    pair = logits.gather(1, rows)
    return pair[:, 1] - pair[:, 0]


def _length(delta: Tensor, norm: Norm) -> Tensor:
    flat = delta.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def onto_plane(point: Tensor, normal: Tensor, offset: Tensor, norm: Norm) -> Tensor:
    """Shortest perturbation that moves each point onto a plane inside the box [0, 1], shaped as `point`.

    The smallest |change| with normal . (point + change) = offset and 0 <= point + change <= 1 (Croce and Hein 2020,
    section 2.2). A coordinate moves along the normal's sign, in linf by t and in l2 by t |normal_i|, until it meets
    the box; the progress along the normal is piecewise linear in t, so t follows exactly from one sort of the
    coordinates by the t at which they meet the box. If the plane does not intersect the box, the nearest corner is
    returned.

    Args:
        point: points of the box, `(batch, ...)`.
        normal: normals of the planes, shaped as `point`; a point with a zero normal is unchanged.
        offset: offsets of the planes, `(batch,)`.
        norm: norm of the perturbation.
    """
    flat, slope = point.flatten(1).double(), normal.flatten(1).double()
    climb = offset.double() - (flat * slope).sum(1)
    slope = torch.where(climb < 0, -1.0, 1.0)[:, None] * slope
    climb = climb.abs()[:, None]
    rate = slope.abs()
    speed = rate if norm == "l2" else torch.ones_like(rate)
    room = torch.where(slope > 0, 1 - flat, flat)
    ends, order = torch.where(rate > 0, room / speed.clamp_min(TINY), 0.0).sort(1)
    gains = (rate * room).gather(1, order)
    before = gains.cumsum(1) - gains  # progress of the coordinates that met the box before each breakpoint
    pace = (
        (rate * speed).gather(1, order).flip(1).cumsum(1).flip(1)
    )  # total rate of the other coordinates up to each breakpoint
    ends_passed = (before + pace * ends < climb).sum(1, keepdim=True)
    index = ends_passed.clamp_max(flat.shape[1] - 1)
    time = (climb - before.gather(1, index)) / pace.gather(1, index).clamp_min(TINY)
    time = torch.where(ends_passed > index, torch.inf, time)
    change = slope.sign() * torch.minimum(time * speed, room)
    return torch.where(rate > 0, change, 0.0).to(point.dtype).view_as(point)

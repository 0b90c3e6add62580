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
COMPARING = 50  # draws of a random classifier by which runs are compared
LEAST = 1e-5  # distance by which planes lie beyond the boundary


class FAB(Attack):
    """Fast adaptive boundary attack, targeted (FAB-T): the nearest adversarial example in linf or l2.

    Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", Algorithm 1.
    Each step linearises the difference of two logits and projects both the current point and the image onto the
    plane where it vanishes, inside the box; the next point lies a little beyond, between the two projections. A point
    that is misclassified is kept if it is the nearest, and the search goes on from nearer the image. One run aims at
    each of the `targets` classes that the classifier finds likeliest (FAB-T of AutoAttack), which needs one gradient
    a step whatever the number of classes. It goes by the geometry of the boundary, not by a loss, and so sees through
    many masked gradients.

    Departures: a step takes its plane from the point before the backward step, so that one pass shows both whether
    the point is misclassified and where the plane is (the authors' code makes two); the targets are ranked by the mean
    softmax; what is found is shortened along a line. On a random classifier the gradient is the mean over fresh draws,
    difference and success are those of the mean softmax over a set of draws that stays the same, and a run gives the
    mean of its later points: the nearest of them all would be a lucky one.
    """

    version = "2"
    paper = Paper(
        title="Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
        authors="Croce, Hein",
        year=2020,
        link="https://arxiv.org/abs/1907.02044",
    )

    class Params(attacks.Params):
        """Hyperparameters of FAB."""

        steps: int = Field(default=100, ge=1, description="steps towards each target; Croce and Hein: 100")
        targets: int = Field(default=9, ge=1, description="likeliest wrong classes aimed at, one run each; FAB-T: 9")
        restarts: int = Field(
            default=1,
            ge=1,
            description="runs for each target: the first from the image, the others from random points at half the "
            "distance of the best example so far; AutoAttack: 1",
        )
        share: float = Field(
            default=0.1,
            ge=0,
            le=1,
            description="largest share of the image's own projection in a step (alpha_max); Croce and Hein: 0.1",
        )
        overshoot: float = Field(
            default=1.05, ge=1, description="length of a step in distances to the plane (eta); Croce and Hein: 1.05"
        )
        backward: float = Field(
            default=0.9,
            gt=0,
            lt=1,
            description="share of its distance that a misclassified point keeps (beta); Croce and Hein: 0.9",
        )
        samples: int = Field(
            default=10, ge=1, description="draws a step on a random classifier, for the plane and for success"
        )
        early_stop: bool = Field(
            default=False,
            description="on a deterministic classifier, where examples may stop early, leave an image alone once its "
            "example lies within eps, as AutoAttack does between targets; one run then serves one eps",
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
        """With the hyperparameter `early_stop`."""
        return self.params.early_stop

    def cost(self, random: bool) -> int:
        """The steps of all runs, with the passes that show success; those that rank targets and shorten the find."""
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
            nearest[kept.margins_of(x) > 0] = 0.0  # what is wrong as it is needs no search
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
                    points = attacks.shorten(comparing, x, points)
                    distances = _length(points - x, threat.norm)
                better = distances < nearest[rows]
                found[rows] = torch.where(per_image(better, points), points, found[rows])
                nearest[rows] = torch.where(better, distances, nearest[rows])
        if not clf.stochastic:
            found = attacks.shorten(kept, x, found)
        return found if self.minimal_norm else attacks.within(found, x, threat, outward=clf.stochastic)

    def _search(
        self, clf: Classifier, kept: Kept, rows: Tensor, x: Tensor, aim: Goal, start: Tensor, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        """One run, Algorithm 1: the nearest adversarial examples and their distances, infinite where there is none.

        Of a random classifier the mean of the second half of the points, which averages more draws than any of them.

        Args:
            clf: the classifier.
            kept: judges success.
            rows: which of its images these are, `(batch,)`.
            x: the images, `(batch, channels, height, width)`.
            aim: labels and targets.
            start: where to start, shaped as `x`.
            norm: whose projections are taken.
        """
        params = self.params
        found, nearest, current = x.clone(), x.new_full((len(x),), torch.inf), start
        total, half = torch.zeros_like(x), params.steps // 2
        for step in range(params.steps):
            gradient, logits = clf.input_gradient(current, aim.rows, _difference, params.samples)
            judging = kept.logits_of(current) if clf.stochastic else logits
            reached = kept.margins_at(judging, rows) > 0
            value = _difference(judging[0], aim.rows)
            if clf.stochastic:  # the boundary that counts is the mean softmax's
                value = _difference(judging.log_softmax(-1).logsumexp(0), aim.rows)
                if step == 0:
                    reached[:] = False  # a random classifier's own images give no direction, however it judges them
            distance = _length(current - x, norm)
            better = reached & (distance < nearest)
            found = torch.where(per_image(better, x), current, found)
            nearest = torch.where(better, distance, nearest)
            # The plane: gradient . z = offset; a little beyond the boundary, on which an image may lie already.
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
        """Points in a random direction, half as far as the best examples (as the box's farthest corner without one)."""
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
    """The shortest change that takes each point onto a plane inside the box [0, 1], shaped as `point`.

    The smallest |change| with normal . (point + change) = offset and 0 <= point + change <= 1 (Croce and Hein 2020,
    section 2.2). A coordinate moves along the normal's sign, in linf by t and in l2 by t |normal_i|, until it meets
    the box; how far the normal is climbed is piecewise linear in t, so t is exact after one sort of the coordinates by
    where they meet it. Where no point of the box is on the plane, the corner nearest to it.

    Args:
        point: points of the box, `(batch, ...)`.
        normal: the planes' normals, shaped alike; where one is 0, nothing moves.
        offset: `(batch,)`.
        norm: the norm of the change.
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
    before = gains.cumsum(1) - gains  # climbed by the coordinates that met the box before each end
    pace = (rate * speed).gather(1, order).flip(1).cumsum(1).flip(1)  # of the others together, up to each end
    ends_passed = (before + pace * ends < climb).sum(1, keepdim=True)
    index = ends_passed.clamp_max(flat.shape[1] - 1)
    time = (climb - before.gather(1, index)) / pace.gather(1, index).clamp_min(TINY)
    time = torch.where(ends_passed > index, torch.inf, time)
    change = slope.sign() * torch.minimum(time * speed, room)
    return torch.where(rate > 0, change, 0.0).to(point.dtype).view_as(point)

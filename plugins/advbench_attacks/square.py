"""The Square attack."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import Attack, Field, Goal, Norm, Paper, Threat, per_image
from advbench.errors import InputError
from advbench.models import Classifier

# Queries, of 10,000, at which the fraction of pixels in a square is halved.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Square(Attack):
    """Random search with squares: a black-box attack that uses logits and no gradients.

    Andriushchenko et al. 2020, "Square Attack: a query-efficient black-box adversarial attack via random search",
    Algorithms 1 to 3. A change of a random square is kept if it increases the margin; in linf each channel of the
    square takes a value of +-eps, in l2 the square takes over the norm of another square. In linf the schedule of
    square sizes is stretched over all queries, as in the paper; in l2 it is that for 10,000 queries, as in AutoAttack:
    at 1,000 queries each is by far the stronger choice in its norm. Masked gradients do not affect it: an image that it
    breaks and a gradient attack does not was never robust. On a random classifier a point and its change are compared
    at the same draw, fresh for each query. On a deterministic one, an image is finished once it reaches its goal, if
    early stopping is allowed, as in the paper.
    """

    version = "3"
    paper = Paper(
        title="Square Attack: A Query-efficient Black-box Adversarial Attack via Random Search",
        authors="Andriushchenko, Croce, Flammarion, Hein",
        year=2020,
        link="https://arxiv.org/abs/1912.00049",
    )

    class Params(attacks.Params):
        """Hyperparameters of the Square attack."""

        queries: int = Field(
            default=1000,
            ge=1,
            description="number of queries per image, of one forward pass each, on a random classifier of two; "
            "Andriushchenko et al.: 5,000",
        )
        share: float = Field(
            default=0.8, gt=0, le=1, description="initial fraction of pixels in a square; AutoAttack: 0.8"
        )

    gradients = False
    targeted = True
    stops_early = True
    effort = "queries"
    params: Params

    def cost(self, random: bool) -> int:
        """One pass for the image and one per query; on a random classifier, two per query after the first."""
        return 2 + (self.params.queries - 1) * (2 if random else 1)

    @torch.no_grad()
    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Run the search."""
        if x.ndim != 4:
            expected = "shape (count, channels, height, width)"
            raise InputError("images given to Square", expected=expected, got=tuple(x.shape))
        random = _Random(x, generator)
        found = x.clone()
        margins = goal.mean_margin(clf(x)[None])
        left = torch.arange(len(x), device=x.device)
        stops = goal.stop_early and not clf.stochastic
        if stops:
            left = (margins <= 0).nonzero().squeeze(1)
        if len(left) == 0:
            return found
        best = _start(x, threat, random)[left]
        best_margin = goal[left].mean_margin(clf(best)[None])
        if not clf.stochastic and not stops:  # misclassified images may be better without the start
            best = torch.where(per_image(margins > best_margin.clamp_min(0), x), x, best)
            best_margin = torch.where(margins > best_margin.clamp_min(0), margins, best_margin)
        for query in range(1, self.params.queries):
            if stops:
                found[left] = best
                open_ = (best_margin <= 0).nonzero().squeeze(1)
                left, best, best_margin = left[open_], best[open_], best_margin[open_]
                if len(left) == 0:
                    return found
            side = self._side(query, x, threat.norm)
            change = _linf_change if threat.norm == "linf" else _l2_change
            candidate = change(best, x[left], threat, side, random)
            draw = clf.draw()
            margin = goal[left].mean_margin(clf.at(draw, candidate)[None])
            if clf.stochastic:
                best_margin = goal[left].mean_margin(clf.at(draw, best)[None])
            better = margin > best_margin
            best = torch.where(per_image(better, best), candidate, best)
            best_margin = torch.where(better, margin, best_margin)
        found[left] = best
        return found

    def _side(self, query: int, x: Tensor, norm: Norm) -> int:
        """Side of the square at a query, in pixels; odd and at least 3 in l2."""
        height, width = x.shape[2:]
        progress = query if norm == "l2" else query / self.params.queries * 10_000
        share = self.params.share / 2 ** sum(progress > mark for mark in HALVINGS)
        side = round(math.sqrt(share * height * width))
        if norm == "l2":
            side = max(side, 3) // 2 * 2 + 1
        return int(min(max(side, 1), height, width))


class _Random:
    """Random numbers for the remaining images, from the attack's generator."""

    def __init__(self, x: Tensor, generator: torch.Generator) -> None:
        self._x = x
        self._generator = generator

    def signs(self, *shape: int) -> Tensor:
        bits = torch.randint(0, 2, shape, generator=self._generator, device=self._x.device)
        return (2 * bits - 1).to(self._x.dtype)

    def corners(self, count: int, side: int) -> tuple[Tensor, Tensor]:
        """First rows and columns of squares, each `(count,)`."""
        height, width = self._x.shape[2:]
        rows = torch.randint(0, height - side + 1, (count,), generator=self._generator, device=self._x.device)
        columns = torch.randint(0, width - side + 1, (count,), generator=self._generator, device=self._x.device)
        return rows, columns


def _start(x: Tensor, threat: Threat, random: _Random) -> Tensor:
    """Initial perturbation: vertical stripes in linf; in l2 a centred grid of hills (sections 3.2 and 3.3)."""
    count, channels, height, width = x.shape
    if threat.norm == "linf":
        return attacks.project(x + threat.eps * random.signs(count, channels, 1, width), x, threat)
    side = max(1, height // 5)
    top, left = (height % side) // 2, (width % side) // 2
    down, across = height // side, width // side
    hill = _hill(side, x)
    tiles = random.signs(count, channels, down, across)
    upright = (random.signs(down, across) > 0)[..., None, None]
    grid = tiles[..., None, None] * torch.where(upright, hill, hill.T)
    delta = torch.zeros_like(x)
    delta[..., top : top + down * side, left : left + across * side] = grid.transpose(3, 4).reshape(
        count, channels, down * side, across * side
    )
    return attacks.project(x + threat.eps * attacks.steepest(delta, threat), x, threat)


def _windows(rows: Tensor, columns: Tensor, side: int, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index of one square in each of the images `(count, channels, height, width)`."""
    offset = torch.arange(side, device=rows.device)
    image = torch.arange(len(rows), device=rows.device)[:, None, None, None]
    channel = torch.arange(channels, device=rows.device)[None, :, None, None]
    row = (rows[:, None] + offset)[:, None, :, None]
    column = (columns[:, None] + offset)[:, None, None, :]
    return image, channel, row, column


def _linf_change(best: Tensor, x: Tensor, threat: Threat, side: int, random: _Random) -> Tensor:
    """Algorithm 2: a square of -2 eps or 2 eps per channel, projected."""
    count, channels = best.shape[:2]
    window = _windows(*random.corners(count, side), side, channels)
    changed = best.clone()
    changed[window] += 2 * threat.eps * random.signs(count, channels, 1, 1)
    return attacks.project(changed, x, threat)


def _l2_change(best: Tensor, x: Tensor, threat: Threat, side: int, random: _Random) -> Tensor:
    """Algorithm 3: move the norm of one square, and the unused part of eps, into a hill in another square."""
    count, channels = best.shape[:2]
    delta = best - x
    given = _windows(*random.corners(count, side), side, channels)
    taker = _windows(*random.corners(count, side), side, channels)
    unused = (threat.eps**2 - delta.flatten(1).square().sum(1)).clamp_min(0)
    both = torch.zeros_like(delta, dtype=torch.bool)
    both[given] = True
    both[taker] = True
    length = (delta.square() * both).sum((2, 3), keepdim=True) + per_image(unused, delta) / channels
    hill = _hill(side, x)
    upright = per_image(random.signs(count) > 0, x)
    hill = torch.where(upright, hill, hill.T) * random.signs(count, channels, 1, 1)
    hill = hill / hill.square().sum((2, 3), keepdim=True).sqrt()
    old = delta[taker]
    new = hill + old / old.square().sum((2, 3), keepdim=True).sqrt().clamp_min(torch.finfo(x.dtype).tiny)
    new = new / new.square().sum((2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    moved = delta.clone()
    moved[given] = 0.0
    moved[taker] = new * length.sqrt()
    return attacks.project(x + moved, x, threat)


def _hill(side: int, x: Tensor) -> Tensor:
    """The l2 attack's unit square `(side, side)`: one half a hill, the other a valley (eq. 2)."""
    upper = side // 2
    hill = x.new_zeros((side, side))
    hill[:upper] = _mound(upper, side, x)
    hill[upper:] = -_mound(side - upper, side, x)
    return attacks.steepest(hill[None], Threat("l2", 1.0))[0]


def _mound(height: int, width: int, x: Tensor) -> Tensor:
    """Sum of concentric squares around the centre, cropped to the rectangle; the k-th adds 1 / k^2."""
    row = (torch.arange(height, device=x.device) - height // 2).abs()[:, None]
    column = (torch.arange(width, device=x.device) - width // 2).abs()
    ring = torch.maximum(row, column)  # index of the first square that contains a pixel
    terms = 1 / torch.arange(1, max(height, width) // 2 + 2, device=x.device).to(x.dtype).square()
    return terms.flip(0).cumsum(0).flip(0)[ring]

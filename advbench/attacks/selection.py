"""Chooses among candidates by draws of the attack's own, never those that evaluate."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks.ball import per_image
from advbench.attacks.base import Goal
from advbench.models.classifier import Classifier

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
        self._seeds = clf.fresh_seeds(draws)
        self.images: Tensor
        self.margins: Tensor | None = None

    def __len__(self) -> int:
        """How many draws choose."""
        return len(self._seeds)

    @torch.no_grad()
    def logits_of(self, images: Tensor) -> Tensor:
        """Logits at those draws, `(draws, batch, classes)`."""
        return torch.stack([self._clf.at(draw, images) for draw in map(self._clf.draw, self._seeds)])

    def margins_of(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Margin of each image `(batch,)` at those draws; `rows` says which images these are, by default all."""
        return self.margins_at(self.logits_of(images), rows)

    def margins_at(self, logits: Tensor, rows: Tensor | None = None) -> Tensor:
        """Margins `(batch,)` at logits `(draws, batch, classes)` that are known already; `rows` as in `margins_of`."""
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

    def remaining(self) -> Tensor:
        """Indices of the images worth another run: on a deterministic classifier those that fool it not yet."""
        assert self.margins is not None, "an offer comes first"
        if self.random:
            return torch.arange(len(self.margins), device=self.margins.device)
        return (self.margins <= 0).nonzero().squeeze(1)


@torch.no_grad()
def likeliest(clf: Classifier, x: Tensor, goal: Goal, count: int, draws: int = SELECTION_DRAWS) -> list[Goal]:
    """Goals with targets: each image's likeliest wrong classes in their order; a targeted goal is the only one.

    Args:
        clf: the classifier under attack.
        x: images `(batch, channels, height, width)`.
        goal: their labels.
        count: the most goals.
        draws: of a random classifier, whose mean softmax ranks the classes.
    """
    if goal.targeted:
        return [goal]
    logits = torch.stack([clf.at(draw, x) for draw in map(clf.draw, clf.fresh_seeds(draws))])
    likely = logits.log_softmax(-1).logsumexp(0).scatter(1, goal.rows[:, None], -torch.inf)
    order = likely.argsort(dim=1, descending=True)
    return [Goal.of(goal.labels, order[:, k]) for k in range(min(count, order.shape[1] - 1))]

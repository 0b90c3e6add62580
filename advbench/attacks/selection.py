"""Selection among candidate examples by the attack's own draws, independent of those of the evaluation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy import special
from torch import Tensor

from advbench.attacks.ball import per_image
from advbench.attacks.base import Goal
from advbench.models.classifier import CYCLED, Classifier

SELECTION_DRAWS = 10
Score = Callable[[Goal, Tensor], Tensor]  # maps logits `(draws, batch, classes)` to `(batch,)`; larger is better
LEVEL = 1e-3  # significance level of a test that an image reaches its goal
LOOK = 1e-2  # level of each of the two consecutive tests before an image is stopped
FEWEST = 5  # smallest number of draws for the test


class Kept:
    """The best of several candidates per image, evaluated at the attack's own draws, the same for all candidates.

    Attributes:
        images: best candidates so far.
        margins: their margins, `(batch,)`, of the mean softmax over the draws if there are several; or another score,
            if the attack has another aim than a wrong class.
        random: True if the classifier is random.
    """

    def __init__(
        self, clf: Classifier, goal: Goal, draws: int = SELECTION_DRAWS, score: Score = Goal.mean_margin
    ) -> None:
        self._clf = clf
        self._score = score
        self.random = clf.stochastic
        self._goal = goal
        self._seeds = clf.fresh_seeds(draws)
        self.images: Tensor
        self.margins: Tensor | None = None

    def __len__(self) -> int:
        """Number of draws used for selection."""
        return len(self._seeds)

    @torch.no_grad()
    def logits_of(self, images: Tensor) -> Tensor:
        """Logits at those draws, `(draws, batch, classes)`."""
        return torch.stack([self._clf.at(draw, images) for draw in map(self._clf.draw, self._seeds)])

    def margins_of(self, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Margin of each image, `(batch,)`, at those draws; `rows` are the indices of the images, by default all."""
        return self.margins_at(self.logits_of(images), rows)

    def margins_at(self, logits: Tensor, rows: Tensor | None = None) -> Tensor:
        """Margins `(batch,)` from known logits `(draws, batch, classes)`; `rows` as in `margins_of`."""
        return self._score(self._goal if rows is None else self._goal[rows], logits)

    def offer(self, images: Tensor, rows: Tensor | None = None) -> None:
        """Keep each image that improves on the kept one; `rows` are the indices of the images, by default all."""
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
        """Indices of the images worth another restart: on a deterministic classifier, those that do not fool it yet."""
        assert self.margins is not None, "offer must be called first"
        if self.random:
            return torch.arange(len(self.margins), device=self.margins.device)
        return (self.margins <= 0).nonzero().squeeze(1)


@torch.no_grad()
def certainly_reached(
    clf: Classifier, goal: Goal, logits: Tensor, level: float = LEVEL, *, paired: bool = False
) -> Tensor:
    """Mask of the images that certainly reach the goal at fresh draws, `(batch,)`, bool.

    If the draws enumerate the classifier, as for a deterministic one: images whose mean softmax reaches it. Otherwise,
    images for which a one-sided t test over the draws finds that the probability of the most likely other class exceeds
    the label's (in a targeted attack, that the target's exceeds that of the most likely other class); the strict level
    also covers the choice of that class from the same draws. All False with fewer than 5 draws.

    Args:
        clf: the classifier under attack.
        goal: labels and, in a targeted attack, targets.
        logits: logits at draws that were not used to choose the images, `(draws, batch, classes)`.
        level: significance level of the test.
        paired: True if every second draw is the mirror image of the previous one; each pair is then one value of the
            test.
    """
    draws = len(logits)
    if exact(clf, draws):
        return goal.mean_margin(logits) > 0
    if draws < FEWEST:
        return torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    probs = logits.softmax(-1)
    aim = goal.rows[:, 1] if goal.targeted else goal.rows
    rival = probs.mean(0).scatter(1, aim[:, None], -torch.inf).argmax(1)
    both = probs.gather(2, torch.stack([aim, rival], 1).expand(draws, -1, -1)).double()
    lead = (both[..., 0] - both[..., 1]) if goal.targeted else (both[..., 1] - both[..., 0])
    if paired:
        lead = torch.stack([pair.mean(0) for pair in lead.split(2)])  # type: ignore[no-untyped-call]
    quantile = float(special.stdtrit(len(lead) - 1, 1 - level))
    broken: Tensor = lead.mean(0) > quantile * lead.std(0) / len(lead) ** 0.5
    return broken


def exact(clf: Classifier, draws: int) -> bool:
    """True if that many fresh draws are all members of the posterior, each once."""
    return clf.members is not None and clf.members <= min(draws, CYCLED)


class Certain:
    """Stopping rule of an ascent: finds images that certainly reached their goal.

    A look evaluates an iterate at fresh draws, independent of those of the step before. If the draws enumerate the
    classifier, one look is proof; otherwise two consecutive looks have to find, at level 0.01 each, that the goal is
    reached (`certainly_reached`): the first selects the image and the second confirms it with independent draws. The
    looks reuse the forward passes of the ascent's next steps, so they are free.

    Attributes:
        reached: mask of the images that reached their goal, `(batch,)`, bool.
    """

    def __init__(self, clf: Classifier, goal: Goal) -> None:
        self._clf = clf
        self._goal = goal
        self._before = torch.zeros(len(goal.rows), dtype=torch.bool, device=goal.rows.device)
        self.reached = self._before.clone()

    def look(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Mask of the images `rows` that are now certain, `(rows,)`, from their logits `(draws, rows, classes)`."""
        found = certainly_reached(self._clf, self._goal[rows], logits, LOOK, paired=self._clf.mirrored)
        certain = found if exact(self._clf, len(logits)) else found & self._before[rows]
        self._before[rows] = found
        self.reached[rows] = certain
        return certain


@torch.no_grad()
def likeliest(clf: Classifier, x: Tensor, goal: Goal, count: int, draws: int = SELECTION_DRAWS) -> list[Goal]:
    """Goals with each image's most likely wrong classes as targets, in order; a targeted goal is returned alone.

    Args:
        clf: the classifier under attack.
        x: images `(batch, channels, height, width)`.
        goal: labels of the images, or labels and targets.
        count: maximum number of goals.
        draws: number of draws of a random classifier, whose mean softmax ranks the classes.
    """
    if goal.targeted:
        return [goal]
    logits = torch.stack([clf.at(draw, x) for draw in map(clf.draw, clf.fresh_seeds(draws))])
    likely = logits.log_softmax(-1).logsumexp(0).scatter(1, goal.rows[:, None], -torch.inf)
    order = likely.argsort(dim=1, descending=True)[:, :-1]
    return [Goal.of(goal.labels, targets, stop_early=goal.stop_early) for targets in order.T[:count]]

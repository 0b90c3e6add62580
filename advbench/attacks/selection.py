"""Chooses among candidates by draws of the attack's own, never those that evaluate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy import special
from torch import Tensor

from advbench.attacks.ball import per_image
from advbench.attacks.base import Goal
from advbench.models.classifier import CYCLED, Classifier

SELECTION_DRAWS = 10
Score = Callable[[Goal, Tensor], Tensor]  # of logits `(draws, batch, classes)`, `(batch,)`, larger for better
LEVEL = 1e-3  # of a test that an image reaches its goal
LOOK = 1e-2  # of each of the two that a run needs to leave it alone
FEWEST = 5  # draws on which that is tested


class Kept:
    """Per image the best of several candidates by draws of the attack's own, the same for all candidates.

    Attributes:
        images: the best so far.
        margins: their margins, `(batch,)`; of the mean softmax over the draws where there are several. Or another
            score, where the attack is after something else than a wrong class.
        random: whether the classifier is.
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
        return self._score(self._goal if rows is None else self._goal[rows], logits)

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
def certainly_reached(
    clf: Classifier, goal: Goal, logits: Tensor, level: float = LEVEL, *, paired: bool = False
) -> Tensor:
    """Which images certainly reach the goal at fresh draws, `(batch,)`, bool.

    Where the draws are all that there are, as of a deterministic classifier: those whose mean softmax reaches it. Else
    those where, over the draws, the probability of the likeliest other class exceeds the label's (in a targeted attack
    the target's that of the likeliest other class) by a one-sided t test; which class that is takes a part of the
    doubt that the level leaves. None where there are fewer than 5 draws.

    Args:
        clf: the classifier under attack.
        goal: the images' labels and perhaps targets.
        logits: at draws that had no part in the choice of the images, `(draws, batch, classes)`.
        level: of the test.
        paired: whether every second draw is the mirror image of the one before; such a pair is one value of the test.
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
    """Whether so many fresh draws are all members of the posterior, each once."""
    return clf.members is not None and clf.members <= min(draws, CYCLED)


class Certain:
    """Follows an ascent and says which images may be left alone, as they certainly reached their goal.

    A look passes an iterate at fresh draws, which the step that led to it had no part in. Where these are all that
    there are, one look is proof; else two looks one after another have to find at level 0.01 each that the goal is
    reached (`certainly_reached`): the first finds the image, and the second confirms it by draws that did not find it.
    The looks are the passes of the ascent's own steps, so they cost nothing.

    Attributes:
        reached: which images did, `(batch,)`, bool.
    """

    def __init__(self, clf: Classifier, goal: Goal) -> None:
        self._clf = clf
        self._goal = goal
        self._before = torch.zeros(len(goal.rows), dtype=torch.bool, device=goal.rows.device)
        self.reached = self._before.clone()

    def look(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Which of the images `rows` are certain now, `(rows,)`, bool, by logits `(draws, rows, classes)`."""
        found = certainly_reached(self._clf, self._goal[rows], logits, LOOK, paired=self._clf.mirrored)
        certain = found if exact(self._clf, len(logits)) else found & self._before[rows]
        self._before[rows] = found
        self.reached[rows] = certain
        return certain


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
    order = likely.argsort(dim=1, descending=True)[:, :-1]
    return [Goal.of(goal.labels, targets, stop_early=goal.stop_early) for targets in order.T[:count]]

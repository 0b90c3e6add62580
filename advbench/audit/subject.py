"""What is audited: a classifier on labelled images under a threat, and what checks ask of it."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor, nn

from advbench.attacks.base import Attack, Threat
from advbench.attacks.craft import craft
from advbench.attacks.losses import margin
from advbench.errors import ModelWarning
from advbench.keys import derive
from advbench.models.classifier import Classifier, Draw
from advbench.models.guard import undisturbed
from advbench.registry import registry

DRAWS = 20  # that score what an attack found
LARGEST = 200  # images
LITTLE = 0.03  # accuracy so small that nothing is hidden behind it, and difference so small that it does not count
BROKEN = 0.2  # share of draws that are right on an image, up to which it counts as broken
MOST = 0.7  # share of images left, up to which attacks go on with these alone
MUCH = 0.1  # difference from which an attack that has not converged makes an evaluation worthless, not only inexact


class Sizes(NamedTuple):
    """How much the cheap checks ask."""

    images: int  # that are asked in several ways
    singles: int  # that are asked one by one
    queries: int  # of one image in a row
    test_draws: int  # of each way of asking, where a classifier draws noise of its own
    places: int  # images at which gradients are looked at, and as many random points
    slope_draws: int  # of one gradient
    steps: tuple[float, ...]  # along a gradient, in eps
    probes: tuple[float, ...]  # along random directions, in eps


WHOLE = Sizes(32, 8, 200, 24, 64, 10, (0.02, 0.1, 0.25, 1.0), (0.02, 0.1))
QUICK = Sizes(8, 4, 50, 12, 20, 4, (0.1, 1.0), (0.1,))
Table = NDArray[np.bool_]  # whether each draw is right on each image, `(draws, images)`


class Tried(NamedTuple):
    """What an attack found.

    Attributes:
        images: shaped as the clean ones.
        right: whether fresh draws, the same for all attacks, are right on each, `(draws, images)`.
    """

    images: Tensor
    right: Table


class Subject:
    """A classifier, images on which it is audited, and attacks on them, each of which is run once.

    Args:
        clf: the classifier.
        x: images `(count, channels, height, width)` in [0, 1].
        y: labels `(count,)`.
        threat: norm and eps, above 0.
        seed: of all the audit's random choices.
        other: images of the same distribution that neither trainings nor attacks have seen.
        plain: a plain net of which adversarial examples are tried on the classifier; None for none.
        surrogate: a differentiable stand-in for the classifier: images in, logits out.
        known: attacks of a run that the audit need not run again.
        quick: make the checks on fewer images and draws.
        part: of the images that are audited, those that are the subject's.
    """

    def __init__(
        self,
        clf: Classifier,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        seed: int = 0,
        other: tuple[Tensor, Tensor] | None = None,
        plain: nn.Module | None = None,
        surrogate: nn.Module | None = None,
        known: frozenset[str] = frozenset(),
        quick: bool = False,
        part: float = 1.0,
    ) -> None:
        self.clf, self.x, self.y, self.threat, self.seed = clf, x[:LARGEST], y[:LARGEST], threat, seed
        self.other, self.plain, self.surrogate, self.known = other, plain, surrogate, known
        self.sizes = QUICK if quick else WHOLE
        self.part = part
        self.accuracies: dict[str, float] = {}
        self._tried: dict[str, Tried] = {}

    def left(self, tried: Tried) -> Subject:
        """The images that an attack left, where it broke many: what is to be found is found there.

        The attack is to be run anew on them, as it chose them: compared with its first run, any other would gain.
        """
        kept = torch.from_numpy(tried.right.mean(0) > BROKEN).to(self.x.device)
        part = float(kept.float().mean())
        if part > MOST or int(kept.sum()) < 2:
            return self
        return Subject(
            self.clf,
            self.x[kept],
            self.y[kept],
            self.threat,
            seed=derive(self.seed, "audit", "left"),
            other=self.other,
            plain=self.plain,
            surrogate=self.surrogate,
            known=self.known,
            part=part,
        )

    def matters(self, difference: float, least: float = LITTLE) -> bool:
        """Whether a difference of accuracies on these images is that large on all that are audited."""
        return difference * self.part > least

    @contextmanager
    def asked(self) -> Iterator[None]:
        """A block in which checks pass images through foreign code."""
        with warnings.catch_warnings(), undisturbed(self.clf, self.seed, self.x.device):
            warnings.simplefilter("ignore", ModelWarning)
            yield

    def generator(self, *labels: object) -> torch.Generator:
        """Random numbers of a check."""
        return torch.Generator(self.x.device).manual_seed(derive(self.seed, "audit", *labels))

    def draws(self, count: int, label: str) -> list[Draw]:
        """Draws of that label; one of a classifier that is not random."""
        count = count if self.clf.stochastic else 1
        return [self.clf.draw(derive(self.seed, "audit", label, k)) for k in range(count)]

    @torch.no_grad()
    def right(self, images: Tensor, y: Tensor) -> Table:
        """Whether the draws that score are right, `(draws, images)`."""
        draws = self.draws(DRAWS, "score")
        return torch.stack([self.clf.at(draw, images).argmax(1) == y for draw in draws]).cpu().numpy()

    @functools.cached_property
    def clean(self) -> Table:
        """Whether the draws that score are right on the images."""
        found = self.right(self.x, self.y)
        self.accuracies["clean"] = float(found.mean())
        return found

    def tried(
        self,
        name: str,
        attack: Attack,
        *,
        model: Classifier | None = None,
        threat: Threat | None = None,
        targets: Tensor | None = None,
        rows: int = 0,
    ) -> Tried:
        """What an attack finds on the classifier, or on another model for it; run once under each name.

        Args:
            name: under which it is remembered and shown.
            attack: the attack.
            model: that is attacked in place of the classifier.
            threat: in place of the subject's.
            targets: classes that the images are to be taken for.
            rows: attack so many images only; 0 for all.

        Raises:
            AdvbenchError: the attack cannot be run.
        """
        if name not in self._tried:
            x, y = (self.x[:rows], self.y[:rows]) if rows else (self.x, self.y)
            seed = derive(self.seed, "audit", "attack", name)
            against = threat or self.threat
            here = model is None and threat is None  # else the examples are scored on another model, or none may resist
            early = here and not self.clf.stochastic
            found = craft(attack, model or self.clf, x, y, against, seed=seed, targets=targets, stop_early=early).images
            self._tried[name] = Tried(found, self.right(found, y))
            self.accuracies[name] = float(self._tried[name].right.mean())
        return self._tried[name]

    def gradient_attack(self, name: str = "pgd", **params: Any) -> Tried:
        """What PGD, with expectation over draws where there are any, finds in 20 steps."""
        return self.tried(name, ascent(self.clf, **params))


def ascent(clf: Classifier, **params: Any) -> Attack:
    """PGD of 20 steps in the form that suits the classifier, other hyperparameters given."""
    return get_attack("eot_pgd" if clf.stochastic else "pgd", **params)


def get_attack(name: str, **params: Any) -> Attack:
    """A registered attack."""
    attack: Attack = registry().load("attack", name)(**params)
    return attack


class Slopes:
    """Mean margin and its gradient, at fixed draws: a function that does not change from call to call.

    Args:
        subject: what is audited.
        draws: how many.
    """

    def __init__(self, subject: Subject, draws: int | None = None) -> None:
        self.clf = subject.clf
        self._draws = subject.draws(draws or subject.sizes.slope_draws, "slope")

    @torch.no_grad()
    def margins(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean over the draws of how far each image is misclassified, `(count,)`, float64."""
        return torch.stack([margin(self.clf.at(draw, x).double(), y) for draw in self._draws]).mean(0)

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Its gradient, shaped as `x`."""
        return self.clf.input_gradient(x, y, margin, draws=self._draws).value


def stronger(one: Table, other: Table) -> float:
    """p-value of the hypothesis that another attack does no more harm than one, on the same images and draws.

    Of one draw McNemar's exact test, one-sided. Of several Student's test of the mean difference over images and
    draws, of which each draw sees all images: its variance is that of a crossed design, (MS_draw + MS_image - MS_rest)
    / (K N), with Satterthwaite's degrees of freedom (as `advbench.evaluation.draw_interval`).

    Args:
        one: whether draws are right under one attack, `(draws, images)`.
        other: likewise under the other one.
    """
    if len(one) == 1:
        gained, lost = int((one & ~other).sum()), int((~one & other).sum())
        return float(special.bdtrc(gained - 1, gained + lost, 0.5)) if gained + lost else 1.0
    table = one.astype(np.float64) - other
    mean = float(table.mean())
    if mean <= 0:
        return 1.0
    draws, count = table.shape
    rows, columns = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    by_draw, by_image = float(rows.var(ddof=1)) / draws, float(columns.var(ddof=1)) / count
    freedom = (draws - 1) * (count - 1)
    rest = float(np.square(table - rows - columns + mean).sum()) / freedom / (draws * count)
    variance = max(by_draw + by_image - rest, float(np.square(table).mean()) / (draws * count))
    scatter = by_draw**2 / (draws - 1) + by_image**2 / (count - 1) + rest**2 / freedom
    return float(special.stdtr(variance**2 / scatter if scatter else 1e6, -mean / math.sqrt(variance)))


def too_few(hits: int, of: int, share: float) -> float:
    """p-value of the hypothesis that at least that share of all cases are hits."""
    return float(special.bdtr(hits, of, share)) if of else 1.0


def ignores_images(clf: Classifier, x: Tensor, draw: Draw) -> bool:
    """Whether a classifier answers without looking at the images, as a constant one or a guesser does.

    Then no image is any worse than another, and no gradient is missing.
    """
    with torch.no_grad():
        answer = clf.at(draw, x)
        others = (x.roll(1, 0), 1 - x, torch.full_like(x, 0.5))
        return all(torch.equal(answer, clf.at(draw, other)) for other in others)

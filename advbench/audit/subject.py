"""Subject of an audit: a classifier, labelled images and a threat, with cached attacks for the checks."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
from advbench.models.classifier import Classifier, Draw, ExampleLoss, Gradient
from advbench.models.guard import undisturbed
from advbench.registry import registry

DRAWS = 20  # draws that evaluate adversarial examples
LARGEST = 200  # maximum number of images
LITTLE = 0.03  # an accuracy, or a difference of accuracies, up to this is negligible
BROKEN = 0.2  # an image counts as broken up to this fraction of correct draws
MOST = 0.7  # up to this fraction of unbroken images, further attacks use only these
ROUNDING = 32  # smallest detectable change, in units in the last place of the largest logit
HEARD = (1, 9)  # calls of the gradient attack whose gradients are kept
MUCH = 0.1  # gain from more effort at which an evaluation is invalid rather than inexact


class Sizes(NamedTuple):
    """Sizes of the cheap checks."""

    images: int  # images in consistency checks
    singles: int  # images passed one at a time
    queries: int  # repeated calls with one image
    test_draws: int  # draws per way of calling, for classifiers with noise inside
    places: int  # images in gradient checks, and as many random points
    slope_draws: int  # draws per gradient
    steps: tuple[float, ...]  # step lengths along the gradient, in eps


WHOLE = Sizes(32, 8, 200, 24, 64, 10, (0.02, 0.1, 0.25, 1.0))
QUICK = Sizes(8, 4, 50, 12, 20, 4, (0.1, 1.0))
Table = NDArray[np.bool_]  # mask of correct predictions, `(draws, images)`


class Tried(NamedTuple):
    """Result of an attack.

    Attributes:
        images: adversarial examples, shaped as the clean images.
        right: mask of correct predictions of fresh draws, the same for all attacks, `(draws, images)`.
    """

    images: Tensor
    right: Table


class Received(NamedTuple):
    """A gradient that an attack asked for and received.

    Attributes:
        x: images of the call.
        rows: labels of the call, as the loss wants them.
        loss: loss of the call.
        seeds: seeds of its draws.
        tilt: as in `Classifier.input_gradient`.
        gradient: the gradient, shaped as `x`.
    """

    x: Tensor
    rows: Tensor
    loss: ExampleLoss
    seeds: list[int]
    tilt: float
    gradient: Tensor


class Subject:
    """A classifier with the images of its audit, and cached attacks on them.

    Args:
        clf: the classifier.
        x: images `(count, channels, height, width)` in [0, 1].
        y: labels `(count,)`.
        threat: norm and eps, above 0.
        seed: seed of all random choices of the audit.
        other: images of the same distribution, unseen in training and attacks.
        plain: a plain net, the source of transfer attacks; None for no transfer attacks.
        surrogate: differentiable approximation of the classifier, images to logits.
        known: results of attacks in a run that the audit need not repeat.
        quick: use fewer images and draws.
        part: fraction of the audited images that this subject contains.
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
        self.counts: dict[str, int] = {}  # number of images of each accuracy
        self.received: list[Received] = []
        self._tried: dict[str, Tried] = {}

    def left(self, tried: Tried) -> Subject:
        """A subject of the images that an attack did not break, if it broke many.

        The attack has to be repeated on them, because it selected them: compared with its first run, any other attack
        would gain.
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
        """True if a difference in accuracy on these images is at least `least` on all audited images."""
        return difference * self.part > least

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Context for passes through third-party code."""
        with warnings.catch_warnings(), undisturbed(self.clf, self.seed, self.x.device):
            warnings.simplefilter("ignore", ModelWarning)
            yield

    def generator(self, *labels: object) -> torch.Generator:
        """Random generator of a check."""
        return torch.Generator(self.x.device).manual_seed(derive(self.seed, "audit", *labels))

    def draws(self, count: int, label: str) -> list[Draw]:
        """Draws addressed by a label; one for a deterministic classifier."""
        count = count if self.clf.stochastic else 1
        return [self.clf.draw(derive(self.seed, "audit", label, k)) for k in range(count)]

    @torch.no_grad()
    def right(self, images: Tensor, y: Tensor) -> Table:
        """Mask of correct predictions of the evaluating draws, `(draws, images)`."""
        draws = self.draws(DRAWS, "score")
        return torch.stack([self.clf.at(draw, images).argmax(1) == y for draw in draws]).cpu().numpy()

    @functools.cached_property
    def clean(self) -> Table:
        """Mask of correct predictions on the clean images."""
        found = self.right(self.x, self.y)
        self.note("clean", found)
        return found

    def note(self, name: str, right: Table) -> None:
        """Keep the accuracy under an attack for the report."""
        self.accuracies[name], self.counts[name] = float(right.mean()), right.shape[1]

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
        """Result of an attack on the classifier, or of a transfer from another model; cached by name.

        Args:
            name: name of the result in the cache and in the report.
            attack: the attack.
            model: model to attack in place of the classifier.
            threat: threat in place of the subject's.
            targets: target classes; None for an untargeted attack.
            rows: number of images to attack; 0 for all.

        Raises:
            AdvbenchError: the attack cannot be run.
        """
        if name not in self._tried:
            x, y = (self.x[:rows], self.y[:rows]) if rows else (self.x, self.y)
            seed = derive(self.seed, "audit", "attack", name)
            against = threat or self.threat
            here = model is None and threat is None  # otherwise every image may be broken
            early = here and not self.clf.stochastic
            found = craft(attack, model or self.clf, x, y, against, seed=seed, targets=targets, stop_early=early).images
            self._tried[name] = Tried(found, self.right(found, y))
            self.note(name, self._tried[name].right)
        return self._tried[name]

    def gradient_attack(self, name: str = "pgd", **params: Any) -> Tried:
        """Result of PGD with 20 steps, with expectation over transformation if the classifier is random.

        Some of the gradients that the first such attack on all images receives are kept in `received`.
        """
        with nullcontext() if self.received or self.part < 1 else self._listening():
            return self.tried(name, ascent(self.clf, **params))

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Keep some of the gradients that an attack receives from the classifier."""
        clf, calls, original = self.clf, itertools.count(), self.clf.input_gradient

        def heard(x: Tensor, y: Tensor, loss: ExampleLoss, samples: int = 1, *more: Any, **options: Any) -> Gradient:
            if more or "draws" in options or next(calls) not in HEARD:
                return original(x, y, loss, samples, *more, **options)
            seeds, tilt = clf.fresh_seeds(samples), options.get("tilt", 0.0)
            found = original(x, y, loss, draws=DrawnLater(clf, seeds), tilt=tilt)
            self.received.append(Received(x.detach().clone(), y, loss, seeds, tilt, found.value.clone()))
            return found

        vars(clf)["input_gradient"] = heard
        try:
            yield
        finally:
            del vars(clf)["input_gradient"]


def ascent(clf: Classifier, **params: Any) -> Attack:
    """PGD with 20 steps, or EOT-PGD if the classifier is random, with the given hyperparameters."""
    return get_attack("eot_pgd" if clf.stochastic else "pgd", **params)


def get_attack(name: str, **params: Any) -> Attack:
    """A registered attack."""
    attack: Attack = registry().load("attack", name)(**params)
    return attack


class DrawnLater(Sequence[Draw]):
    """Draws of a classifier by their seeds, each made when it is asked for."""

    def __init__(self, clf: Classifier, seeds: Sequence[int]) -> None:
        self.clf, self.seeds = clf, seeds

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: Any) -> Any:
        return self.clf.draw(self.seeds[index])


class Slopes:
    """Mean margin and its gradient at fixed draws, a deterministic function.

    Args:
        subject: the audited classifier and images.
        draws: number of draws.
        apart: give each image one draw of these in turn, instead of the mean over all; the gradient of each draw must
            then be right, also where errors of single draws cancel in the mean.
    """

    def __init__(self, subject: Subject, draws: int | None = None, *, apart: bool = False) -> None:
        self.clf, self.apart = subject.clf, apart
        self._draws = subject.draws(draws or subject.sizes.slope_draws, "slope")

    @torch.no_grad()
    def margins(self, x: Tensor, y: Tensor) -> Tensor:
        """Margin of each image, averaged over its draws, `(count,)`, float64."""
        found = x.new_empty(len(x), dtype=torch.float64)
        for rows, draws in self._parts():
            each = [margin(self.clf.at(draw, x[rows]).double(), y[rows]) for draw in draws]
            found[rows] = torch.stack(each).mean(0)
        return found

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Gradient of the mean margin, shaped as `x`."""
        found = torch.empty_like(x)
        for rows, draws in self._parts():
            found[rows] = self.clf.input_gradient(x[rows], y[rows], margin, draws=draws).value
        return found

    def _parts(self) -> list[tuple[slice, list[Draw]]]:
        """Rows of images and the draws of which they take the mean."""
        if not self.apart:
            return [(slice(None), self._draws)]
        count = len(self._draws)
        return [(slice(start, None, count), [draw]) for start, draw in enumerate(self._draws)]


def stronger(one: Table, other: Table) -> float:
    """p-value of the hypothesis that attack `other` is not stronger than attack `one`, on the same images and draws.

    For one draw, McNemar's exact test, one-sided. For several, Student's t test of the mean difference over images and
    draws; every draw sees all images, so the variance is that of a crossed design, (MS_draw + MS_image - MS_rest) / (K
    N), with Satterthwaite's degrees of freedom (as in `advbench.evaluation.draw_interval`).

    Args:
        one: mask of correct predictions under one attack, `(draws, images)`.
        other: mask of correct predictions under the other attack.
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
    """p-value of the hypothesis that at least the given fraction of cases are hits."""
    return float(special.bdtr(hits, of, share)) if of else 1.0


def resolution(clf: Classifier, logits: Tensor) -> float:
    """Smallest change of a logit that is not rounding error, of a classifier that may compute in half precision."""
    dtypes = {logits.dtype, *(each.dtype for each in clf.parameters() if each.is_floating_point())}
    return ROUNDING * max(torch.finfo(each).eps for each in dtypes) * float(logits.abs().max())


def ignores_images(clf: Classifier, x: Tensor, draw: Draw) -> bool:
    """True if the output does not depend on the images, as for a constant or a guessing classifier.

    Zero gradients and plateaus are then correct.
    """
    with torch.no_grad():
        answer = clf.at(draw, x)
        others = (x.roll(1, 0), 1 - x, torch.full_like(x, 0.5))
        return all(torch.equal(answer, clf.at(draw, other)) for other in others)

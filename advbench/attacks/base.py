"""Threats, goals and attacks: what the author of an attack meets."""

from __future__ import annotations

import bisect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from advbench.attacks.losses import LOSSES, TARGETED_LOSSES, LossName
from advbench.errors import InputError
from advbench.models.classifier import Classifier, ExampleLoss
from advbench.registry.params import Configurable

Norm = Literal["linf", "l2"]


@dataclass(frozen=True, slots=True)
class Threat:
    """What the adversary may do: move an image by at most `eps` in `norm`, inside the box [0, 1].

    Attributes:
        norm: `"linf"` (largest change of a pixel) or `"l2"` (Euclidean length of the change of an image).
        eps: the radius, in units of pixels in [0, 1]; 0 allows no change. At most 1 for linf.
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise InputError("threat norm", expected="'linf' or 'l2'", got=repr(self.norm))
        number = isinstance(self.eps, int | float) and not isinstance(self.eps, bool)
        if not number or not math.isfinite(self.eps) or self.eps < 0:
            raise InputError("threat eps", expected="a finite number >= 0", got=repr(self.eps))
        if self.eps > 1e4:
            raise InputError("threat eps", expected="at most 10000, far beyond any image", got=self.eps)
        if self.norm == "linf" and self.eps > 1:
            raise InputError(
                "threat eps",
                expected="at most 1 for linf (images are in [0, 1])",
                got=self.eps,
                remedy=f"did you mean {self.eps:g}/255 = {self.eps / 255:.4g}?",
            )


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


class Attack(Configurable, ABC):
    """A search for adversarial examples. The author writes `run`; calling the attack checks its claim.

    Attributes:
        norms: the norms that `run` understands.
        minimal_norm: True where `run` looks for the nearest adversarial example and ignores `threat.eps`: one
            run serves every eps.
        targeted: True where `run` takes the keyword `targets`.
        gradients: False where `run` asks for logits alone (a black-box attack).
        effort: the whole-number hyperparameter that a budget cuts, as `"steps"`; empty where there is none.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})
    minimal_norm: ClassVar[bool] = False
    targeted: ClassVar[bool] = False
    gradients: ClassVar[bool] = True
    effort: ClassVar[str] = ""

    @property
    def pools(self) -> bool:
        """Whether `run` takes all images of a deterministic classifier at once, to keep its batches full.

        It then passes `clf.batch_size` of them at a time, and what becomes of one must not depend on the others.
        """
        return False

    @property
    def source(self) -> str | None:
        """The defense on which a run crafts the examples for all others; None for each on itself."""
        return None

    @property
    def parts(self) -> Mapping[str, Attack]:
        """The attacks that it is made of, by NAME or NAME@LABEL; results depend on their versions, too."""
        return {}

    @abstractmethod
    def run(self, clf: Classifier, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        """Craft adversarial examples.

        A class with `targeted` adds `targets: Tensor | None = None`, classes `(batch,)` that the images are to be
        taken for, none of them the label.

        Args:
            clf: the classifier under attack; each call of `clf` and of `clf.input_gradient` draws afresh.
            x: images `(batch, channels, height, width)`, float32 in [0, 1].
            y: labels `(batch,)`, int64.
            threat: norm and eps.
            generator: on the images' device; the only source of randomness that `run` may use.

        Returns:
            Images of the shape and dtype of `x`, in [0, 1] and within the threat's ball around `x`; the nearest
            adversarial examples, at whatever distance, where the attack is of minimal norm.
        """

    def search(
        self,
        clf: Classifier,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        generator: torch.Generator,
        targets: Tensor | None = None,
    ) -> Tensor:
        """`run`, with targets only where the attack takes them: how attacks that are made of attacks call these.

        Raises:
            InputError: the attack does not understand the threat's norm, or targets.
        """
        self.check(threat, targets)
        with clf.attacked(y, targets):
            if targets is None:
                return self.run(clf, x, y, threat, generator)
            return self.run(clf, x, y, threat, generator, targets=targets)  # type: ignore[call-arg]

    def widen(
        self,
        clf: Classifier,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        generator: torch.Generator,
        found: Tensor,
        before: Threat,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Attack images that resisted at a smaller eps, or at none: a step of a sweep over radii.

        Called on deterministic classifiers alone, with all the images at once. By default `search`, in batches; an
        attack that can go on from where it was saves most of its passes.

        Args:
            clf: as in `run`.
            x: likewise.
            y: likewise.
            threat: likewise.
            generator: likewise.
            targets: likewise.
            found: what was found at the smaller eps; `x` where there was none.
            before: the smaller eps; 0 where there was none.
        """
        parts = []
        for start in range(0, len(x), clf.batch_size):
            rows = slice(start, start + clf.batch_size)
            aims = None if targets is None else targets[rows]
            parts.append(self.search(clf, x[rows], y[rows], threat, generator, aims))
        return torch.cat(parts)

    def queries(self, *, random: bool) -> int | None:
        """The most forward passes that `run` or `widen` makes of an image; None where the author gives none.

        A pass for a gradient counts as one, however many draws the image passes at count each.

        Args:
            random: whether the classifier under attack is.
        """
        return None

    def within_budget(self, budget: int, *, random: bool) -> Self:
        """The same attack, cut so that it makes at most so many forward passes of an image.

        Args:
            budget: forward passes.
            random: whether the classifier under attack is.

        Raises:
            InputError: the attack does not say what it costs, or costs more at its least.
        """
        name = type(self).__name__
        needed = self.queries(random=random)
        if needed is None:
            raise InputError(f"budget for attack {name}", expected="an attack that says how many passes it makes")
        if needed <= budget:
            return self
        efforts = range(self._least_effort(), getattr(self.params, self.effort)) if self.effort else range(0)
        fitting = bisect.bisect_right(efforts, budget, key=lambda effort: self._cost(effort, random=random))
        if fitting:
            return self._cut(efforts[fitting - 1])
        raise InputError(
            f"budget for attack {name}",
            expected=f"at least {self.least_queries(random=random)} passes of an image",
            got=budget,
            remedy="raise it, or lower the attack's other hyperparameters",
        )

    def least_queries(self, *, random: bool) -> int | None:
        """`queries` of the least that `within_budget` can cut the attack to.

        Args:
            random: whether the classifier under attack is.
        """
        if self.effort and self.queries(random=random) is not None:
            return self._cost(min(self._least_effort(), getattr(self.params, self.effort)), random=random)
        return self.queries(random=random)

    def _cut(self, effort: int) -> Self:
        return type(self)(**{**self.params.model_dump(), self.effort: effort})

    def _cost(self, effort: int, *, random: bool) -> int:
        return self._cut(effort).queries(random=random) or 0

    def _least_effort(self) -> int:
        bounds = type(self).Params.model_fields[self.effort].metadata
        return int(next((bound.ge for bound in bounds if hasattr(bound, "ge")), 1))

    def check(self, threat: Threat, targets: Tensor | None = None) -> None:
        """Refuse what `run` does not understand.

        Raises:
            InputError: the threat's norm, or targets.
        """
        name = type(self).__name__
        if threat.norm not in self.norms:
            raise InputError(
                f"norm of attack {name}",
                expected=f"one of {', '.join(sorted(self.norms))}",
                got=repr(threat.norm),
                remedy="choose another norm or attack",
            )
        if targets is not None and not self.targeted:
            raise InputError(f"targets given to {name}", expected="none: it is untargeted", remedy="try 'pgd'")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0, targets: Tensor | None = None
    ) -> Tensor:
        """Attack any `nn.Module` on [0, 1] images and check what comes back.

        The same seed gives the same examples, whatever the global random state, which is left as it was. What a
        minimal-norm attack found is moved back into the threat's ball; `advbench.craft` can give it as it is.

        Args:
            model: a `Classifier` or any `nn.Module` on [0, 1] images.
            x: images `(batch, channels, height, width)`, float32 in [0, 1].
            y: labels `(batch,)`, int64.
            threat: norm and eps.
            seed: of the attack's draws and noise.
            targets: classes `(batch,)` that the images are to be taken for; any wrong class where None.

        Raises:
            InputError: images, labels, targets or threat that cannot be attacked.
            PluginError: the attack or the model broke its contract.
        """
        from advbench.attacks.craft import craft

        return craft(self, model, x, y, threat, seed=seed, targets=targets).images

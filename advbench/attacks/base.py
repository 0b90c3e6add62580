"""Threats, goals and attacks: what the author of an attack meets."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from advbench.attacks.losses import LOSSES, TARGETED_LOSSES, LossName
from advbench.errors import InputError
from advbench.models.classifier import Classifier, ExampleLoss
from advbench.registry.params import Configurable

Norm = Literal["linf", "l2"]
Aim = Literal["error", "certain_error", "doubt", "certainty"]
Knowledge = Literal["posterior", "a_draw", "the_draw"]


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
        if getattr(self.eps, "ndim", None) == 0 and hasattr(self.eps, "item"):  # numpy's and torch's numbers
            object.__setattr__(self, "eps", self.eps.item())
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
        stop_early: whether an image that certainly reached the goal may be left alone. Such examples lie near the
            boundary: they serve to measure robust accuracy, and neither transfer nor say how certain a classifier is.
    """

    rows: Tensor
    stop_early: bool = False

    @classmethod
    def of(cls, y: Tensor, targets: Tensor | None = None, *, stop_early: bool = False) -> Goal:
        """The goal for labels `(batch,)` and, in a targeted attack, targets `(batch,)`."""
        return cls(y if targets is None else torch.stack([y, targets], 1), stop_early)

    @property
    def targeted(self) -> bool:
        """Whether there are targets."""
        return self.rows.ndim == 2

    @property
    def labels(self) -> Tensor:
        """The labels, `(batch,)`."""
        return self.rows[:, 0] if self.targeted else self.rows

    @property
    def targets(self) -> Tensor | None:
        """The targets, `(batch,)`; None where any wrong class will do."""
        return self.rows[:, 1] if self.targeted else None

    def __getitem__(self, index: Tensor | slice) -> Goal:
        return replace(self, rows=self.rows[index])

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
        targeted: True where `run` understands goals with targets.
        gradients: False where `run` asks for logits alone (a black-box attack).
        effort: the whole-number hyperparameter that a budget cuts, as `"steps"`; empty where there is none.
        aim: what it makes of an image: `"error"`, what the `Goal` says; `"certain_error"`, that and low uncertainty;
            `"doubt"`, the predicted class and high uncertainty; `"certainty"`, low uncertainty of any class, which in a
            run it is to make of out-of-distribution images. Nothing but an error can be reached before the end.
        knows: what of a random classifier's weights: `"posterior"`, their distribution; `"a_draw"`, one draw of them,
            where other draws answer; `"the_draw"`, the one that answers.
    """

    norms: ClassVar[frozenset[Norm]] = frozenset({"linf", "l2"})
    minimal_norm: ClassVar[bool] = False
    targeted: ClassVar[bool] = False
    gradients: ClassVar[bool] = True
    effort: ClassVar[str] = ""
    aim: ClassVar[Aim] = "error"
    knows: ClassVar[Knowledge] = "posterior"

    @property
    def source(self) -> str | None:
        """The defense on which a run crafts the examples for all others; None for each on itself."""
        return None

    @property
    def parts(self) -> Mapping[str, Attack]:
        """The attacks that it is made of, by NAME or NAME@LABEL; results depend on their versions, too."""
        return {}

    @property
    def stops_early(self) -> bool:
        """Whether `run` leaves an image alone that certainly reached a goal with `stop_early`."""
        return any(part.stops_early for part in self.parts.values())

    def with_parts(self, parts: Mapping[str, Attack]) -> Self:
        """The same attack, made of these attacks in place of its own: of the same classes, with other efforts.

        Args:
            parts: named as in `parts`, all of them.
        """
        raise NotImplementedError(f"{type(self).__name__} has parts and no with_parts")

    @abstractmethod
    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Craft adversarial examples.

        Args:
            clf: the classifier under attack; each call of `clf` and of `clf.input_gradient` draws afresh.
            x: images `(batch, channels, height, width)`, float32 in [0, 1].
            goal: the images' labels, and where the class is `targeted` perhaps classes that they are to be taken for;
                with `stop_early` images may be left alone that certainly reached it.
            threat: norm and eps.
            generator: on the images' device; the only source of randomness that `run` may use.

        Returns:
            Images of the shape and dtype of `x`, in [0, 1] and within the threat's ball around `x`; the nearest
            adversarial examples, at whatever distance, where the attack is of minimal norm.
        """

    def search(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """`run`, once the attack is known to understand threat and goal: how attacks run their parts.

        Raises:
            InputError: the attack does not understand the threat's norm, or targets.
        """
        self.check(threat, targeted=goal.targeted)
        with clf.attacked(goal.rows):
            return self.run(clf, x, goal, threat, generator)

    def cost(self, random: bool) -> int | None:
        """The most forward passes of an image that `run` makes; None where the author gives no bound.

        A pass for a gradient counts as one, however many draws the image passes at count each.

        Args:
            random: whether the classifier under attack is.
        """
        return None

    def check(self, threat: Threat, *, targeted: bool = False) -> None:
        """Refuse what `run` does not understand.

        Args:
            threat: norm and eps.
            targeted: whether there are targets.

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
        if targeted and not self.targeted:
            raise InputError(f"targets given to {name}", expected="none: it is untargeted", remedy="try 'pgd'")

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        seed: int = 0,
        targets: Tensor | None = None,
        stop_early: bool = False,
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
            stop_early: leave an image alone once it certainly reached its goal, for robust accuracy alone; has no
                effect on attacks that cannot.

        Raises:
            InputError: images, labels, targets or threat that cannot be attacked.
            PluginError: the attack or the model broke its contract.
        """
        from advbench.attacks.craft import craft

        return craft(self, model, x, y, threat, seed=seed, targets=targets, stop_early=stop_early).images

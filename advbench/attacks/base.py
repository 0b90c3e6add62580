"""Threat, Goal and Attack: the interface of attacks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from advbench.attacks.losses import LOSSES, TARGETED_LOSSES, LossName
from advbench.errors import InputError, unknown_name
from advbench.models.classifier import Classifier, ExampleLoss
from advbench.registry import files
from advbench.registry.params import Configurable

TIE, NEAR = 1e-30, 1e-12  # scale of the margins of ties, and smallest margin at which they differ
Norm = Literal["linf", "l2"]
Aim = Literal["error", "certain_error", "doubt", "certainty"]
Knowledge = Literal["posterior", "a_draw", "the_draw"]


@dataclass(frozen=True, slots=True)
class Threat:
    """Threat model: perturbations of at most `eps` in `norm`, inside the box [0, 1].

    Attributes:
        norm: `"linf"` (largest change of a pixel) or `"l2"` (Euclidean norm of the change of an image).
        eps: radius of the ball, in units of pixels in [0, 1]; 0 allows no change. At most 1 for linf.
    """

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise InputError("threat norm", expected="'linf' or 'l2'", got=repr(self.norm))
        if getattr(self.eps, "ndim", None) == 0 and hasattr(self.eps, "item"):  # scalars of numpy and torch
            object.__setattr__(self, "eps", self.eps.item())
        number = isinstance(self.eps, int | float) and not isinstance(self.eps, bool)
        if not number or not math.isfinite(self.eps) or self.eps < 0:
            raise InputError("threat eps", expected="a finite number >= 0", got=repr(self.eps))
        if self.eps > 1e4:
            raise InputError("threat eps", expected="at most 10000", got=self.eps)
        if self.norm == "linf" and self.eps > 1:
            raise InputError(
                "threat eps",
                expected="at most 1 for linf (images are in [0, 1])",
                got=self.eps,
                remedy=f"did you mean {self.eps:g}/255 = {self.eps / 255:.4g}?",
            )


@dataclass(frozen=True)
class Goal:
    """Goal of an attack: any class other than the label, or a target class.

    Attributes:
        rows: labels `(batch,)`, or labels and targets `(batch, 2)`, as losses expect them.
        stop_early: True if an attack may stop for an image that certainly reached the goal. Such examples lie near the
            decision boundary: they are valid for robust accuracy, not for transfer or for measures of uncertainty.
    """

    rows: Tensor
    stop_early: bool = False

    @classmethod
    def of(cls, y: Tensor, targets: Tensor | None = None, *, stop_early: bool = False) -> Goal:
        """The goal for labels `(batch,)` and, in a targeted attack, targets `(batch,)`."""
        return cls(y if targets is None else torch.stack([y, targets], 1), stop_early)

    @property
    def targeted(self) -> bool:
        """True if there are targets."""
        return self.rows.ndim == 2

    @property
    def labels(self) -> Tensor:
        """The labels, `(batch,)`."""
        return self.rows[:, 0] if self.targeted else self.rows

    @property
    def targets(self) -> Tensor | None:
        """The targets, `(batch,)`; None in an untargeted attack."""
        return self.rows[:, 1] if self.targeted else None

    def __getitem__(self, index: Tensor | slice) -> Goal:
        return replace(self, rows=self.rows[index])

    def loss(self, name: LossName) -> ExampleLoss:
        """The named loss to ascend, a function of logits and `rows`.

        Raises:
            InputError: the name is unknown.
        """
        losses = TARGETED_LOSSES if self.targeted else LOSSES
        if name not in losses:
            raise InputError(f"{files.calling_place()}{unknown_name('loss', str(name), losses)}")
        return losses[name]

    def margin(self, logits: Tensor) -> Tensor:
        """Margin of each image beyond the goal, `(batch,)`, in units of logits; 0 at a tie."""
        return self.loss("margin")(logits, self.rows)

    def success(self, logits: Tensor) -> Tensor:
        """Mask of the images that reach the goal, `(batch,)`, bool, from logits `(batch, classes)`."""
        return self.mean_success(logits[None])

    def mean_success(self, logits: Tensor) -> Tensor:
        """Mask of the images that reach the goal at the mean softmax of draws `(draws, batch, classes)`.

        The prediction is that of an evaluation: the argmax of float32 probabilities, the first of those that tie.
        Logits tie where a net rounds, clips or saturates them; probabilities tie where confident draws disagree.
        """
        probs = logits.float().softmax(-1)
        predicted = (probs[0] if len(probs) == 1 else probs.double().mean(0).float()).argmax(1)
        return predicted == self.rows[:, 1] if self.targeted else predicted != self.rows

    @torch.no_grad()
    def mean_margin(self, logits: Tensor) -> Tensor:
        """Margin of the log mean softmax over draws `(draws, batch, classes)`; for one draw, of its logits.

        Positive exactly where `mean_success` holds, which decides ties; has no gradient. Where the goal is not reached
        though the margin is not negative, because float32 probabilities tie, it is a tiny negative number that rises
        with the margin: searches still find their way. At least float32.
        """
        margin = self.margin(logits[0] if len(logits) == 1 else logits.log_softmax(-1).logsumexp(0))
        margin = margin.to(torch.promote_types(margin.dtype, torch.float32))
        short = torch.where(margin < 0, margin, -TIE / (margin.clamp_min(0) + NEAR))
        return torch.where(self.mean_success(logits), margin.clamp_min(torch.finfo(margin.dtype).tiny), short)


class Attack(Configurable, ABC):
    """Base class of attacks. The author implements `run`; calling the attack verifies the examples.

    Attributes:
        norms: norms that `run` supports.
        minimal_norm: True if `run` searches for the nearest adversarial example and ignores `threat.eps`; one run then
            serves every eps.
        targeted: True if `run` supports goals with targets.
        gradients: False if `run` uses logits only (a black-box attack).
        effort: name of the integer hyperparameter that a budget reduces, such as `"steps"`; empty for none.
        aim: objective of the examples: `"error"`, the `Goal`; `"certain_error"`, the goal with low uncertainty;
            `"doubt"`, the predicted class with high uncertainty; `"certainty"`, low uncertainty for any class, in a run
            on out-of-distribution images. Only `"error"` allows early stopping.
        knows: adversary's knowledge of random weights: `"posterior"`, their distribution; `"a_draw"`, one draw, while
            other draws are evaluated; `"the_draw"`, the draw that is evaluated.
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
        """Name of the defense that a run crafts the examples on; None for each defense itself."""
        return None

    @property
    def parts(self) -> Mapping[str, Attack]:
        """Component attacks by NAME or NAME@LABEL; keys of results include their versions."""
        return {}

    @property
    def stops_early(self) -> bool:
        """True if `run` stops for images that certainly reached a goal with `stop_early`."""
        return any(part.stops_early for part in self.parts.values())

    def with_parts(self, parts: Mapping[str, Attack]) -> Self:
        """The same attack with other component attacks, of the same classes but with a different effort.

        Args:
            parts: all component attacks, by the names of `parts`.
        """
        raise NotImplementedError(f"{type(self).__name__} overrides parts but not with_parts")

    def attacked(self, clf: Classifier) -> Classifier:
        """The classifier that examples have to fool: `clf`, or that draw of it that the adversary knows."""
        return clf

    @abstractmethod
    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Craft adversarial examples.

        Args:
            clf: the classifier under attack; each call of `clf` and of `clf.input_gradient` takes a fresh draw.
            x: images `(batch, channels, height, width)`, float32 in [0, 1].
            goal: labels of the images and, if the attack is `targeted`, possibly target classes; with `stop_early`, the
                attack may stop for images that certainly reached it.
            threat: norm and eps.
            generator: random generator on the images' device, the only source of randomness that `run` may use.

        Returns:
            Images of the shape and dtype of `x`, in [0, 1] and within the threat's ball around `x`; from a minimal-norm
            attack, the nearest adversarial examples at any distance.
        """

    def search(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Check that the attack supports threat and goal, then `run`; for attacks that run component attacks.

        Raises:
            InputError: the attack does not support the threat's norm, or targets.
        """
        self.check(threat, targeted=goal.targeted)
        with clf.attacked(goal.rows):
            return self.run(clf, x, goal, threat, generator)

    def cost(self, random: bool) -> int | None:
        """Upper bound on the forward passes per image in `run`; None if the author gives none.

        A forward pass for a gradient counts as one; passes at several draws count each.

        Args:
            random: True if the classifier under attack is random.
        """
        return None

    def check(self, threat: Threat, *, targeted: bool = False) -> None:
        """Raise for a threat or goal that `run` does not support.

        Args:
            threat: norm and eps.
            targeted: True if there are targets.

        Raises:
            InputError: the norm, or a targeted goal, is not supported.
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
            raise InputError(f"targets given to {name}", expected="none for an untargeted attack", remedy="try 'pgd'")

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
        """Attack any `nn.Module` on [0, 1] images and verify the examples.

        The same seed gives the same examples, independently of the global random state, which is left unchanged.
        Examples of a minimal-norm attack are projected onto the threat's ball; `advbench.craft` can return them as
        found. Arguments and errors are those of `advbench.craft`; `stop_early` suits robust accuracy only, and is
        ignored by attacks that do not support it.
        """
        from advbench.attacks.craft import craft

        return craft(self, model, x, y, threat, seed=seed, targets=targets, stop_early=stop_early).images

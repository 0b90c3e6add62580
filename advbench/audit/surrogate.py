"""Differentiable approximation of a defense whose own gradient is misleading (BPDA, Athalye et al. 2018)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from advbench.audit.findings import Finding
from advbench.audit.subject import Subject, Tried, ascent, stronger
from advbench.models.classifier import Classifier


class Straight(nn.Module):
    """Module with the logits of one module and the gradient of another.

    Args:
        real: module that gives the logits, without gradient.
        soft: differentiable approximation of it, which gives the gradient.
    """

    def __init__(self, real: nn.Module, soft: nn.Module) -> None:
        super().__init__()
        self.real, self.soft = real, soft

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        with torch.no_grad():
            logits: Tensor = self.real(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return logits
        soft: Tensor = self.soft(x)
        return logits + (soft - soft.detach())


def bridged(clf: Classifier, surrogate: nn.Module | None) -> Classifier | None:
    """The classifier with the gradient of an approximation; None if there is none.

    A module may provide one as a method `surrogate`, images to logits, which may use its own weights; draws of the
    weights then apply to both passes. A `surrogate` argument takes precedence and has its own weights.
    """
    if surrogate is not None:
        found = Classifier(Straight(_Once(clf), surrogate), noise=clf.stochastic)
        return found.requires_grad_(False)
    if not callable(getattr(clf.module, "surrogate", None)):
        return None
    module = copy.copy(clf.module)  # shares the parameters
    real: Callable[[Tensor], Tensor] = clf.module.forward
    soft: Callable[[Tensor], Tensor] = module.surrogate  # type: ignore[assignment]

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            logits = real(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return logits
        other = soft(x)
        return logits + (other - other.detach())

    module.forward = forward
    found = Classifier(module, clf.posterior)
    found.noise = clf.noise
    return found


class _Once(nn.Module):
    """A classifier as a module: each pass takes a draw seeded by the global random state."""

    def __init__(self, clf: Classifier) -> None:
        super().__init__()
        self._clf = [clf]  # not registered as a submodule

    def forward(self, x: Tensor) -> Tensor:
        clf = self._clf[0]
        return clf.at(clf.draw(int(torch.randint(2**62, ()))), x)


def check_surrogate(subject: Subject, gradient: Tried | None) -> list[Finding]:
    """Attack with the gradient of the approximation, evaluated on the classifier itself."""
    clf = bridged(subject.clf, subject.surrogate)
    if clf is None:
        return [Finding.skipped("surrogate: stand-in", "the defense provides none, and none was given (--surrogate)")]
    before = subject.clf.passes.forward + clf.passes.forward
    found = subject.tried("surrogate", ascent(clf), model=clf)
    against = gradient.right if gradient else subject.clean
    one, other = float(against.mean()), float(found.right.mean())
    return [
        Finding(
            "surrogate: stand-in",
            "ok",
            f"The attack with the stand-in's gradient leaves an accuracy of {other:.3f}, "
            f"{'that with its own gradient' if gradient else 'no attack'} {one:.3f}.",
            "The defense's own gradient misses examples that the stand-in's finds: only the lower accuracy is valid.",
            "report the accuracy with the stand-in, and run it with more steps",
            passes=(subject.clf.passes.forward + clf.passes.forward - before) / len(subject.x),
            p=stronger(against, found.right),
            counts=subject.matters(one - other),
        )
    ]

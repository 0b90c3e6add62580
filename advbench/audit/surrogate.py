"""A differentiable stand-in for a defense whose own gradient misleads (BPDA, Athalye et al. 2018)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from advbench.audit.findings import Finding
from advbench.audit.subject import Subject, Tried, ascent, stronger
from advbench.models.classifier import Classifier


class Straight(nn.Module):
    """The logits of one module with the gradient of another.

    Args:
        real: images to logits, without gradient.
        soft: images to logits like these, with one.
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
    """The classifier with the gradient of a stand-in; None where there is none.

    A module brings one as a method `surrogate`, images to logits, which may use its own weights: then draws of these
    serve both passes. A stand-in that is given goes first, and has weights of its own.
    """
    if surrogate is not None:
        found = Classifier(Straight(_Once(clf), surrogate), noise=clf.stochastic)
        return found.requires_grad_(False)
    if not callable(getattr(clf.module, "surrogate", None)):
        return None
    module = copy.copy(clf.module)  # with the same parameters
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
    """A classifier as a module: each pass a draw that the global random state chooses, which a classifier seeds."""

    def __init__(self, clf: Classifier) -> None:
        super().__init__()
        self._clf = [clf]  # not registered: its weights are not this module's

    def forward(self, x: Tensor) -> Tensor:
        clf = self._clf[0]
        return clf.at(clf.draw(int(torch.randint(2**62, ()))), x)


def check_surrogate(subject: Subject, gradient: Tried | None) -> list[Finding]:
    """The gradient attack through the stand-in, scored on the classifier itself."""
    clf = bridged(subject.clf, subject.surrogate)
    if clf is None:
        return [Finding.skipped("surrogate: stand-in", "the defense brings none, and none was given (--surrogate)")]
    before = subject.clf.passes.forward + clf.passes.forward
    found = subject.tried("surrogate", ascent(clf), model=clf)
    against = gradient.right if gradient else subject.clean
    one, other = float(against.mean()), float(found.right.mean())
    return [
        Finding(
            "surrogate: stand-in",
            "ok",
            f"The attack through the stand-in leaves an accuracy of {other:.3f}, "
            f"{'that through its own gradient' if gradient else 'no attack'} {one:.3f}.",
            "The defense's own gradient hides what the stand-in's finds: only the lower number says anything.",
            "count the stand-in's number, and run it with more steps",
            passes=(subject.clf.passes.forward + clf.passes.forward - before) / len(subject.x),
            p=stronger(against, found.right),
            counts=subject.matters(one - other),
        )
    ]

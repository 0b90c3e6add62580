"""Pairs of attacks on the same images, of which one should be no stronger than the other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from advbench.attacks.base import Goal
from advbench.attacks.selection import likeliest
from advbench.audit.findings import About, Finding
from advbench.audit.subject import MUCH, Subject, Tried, ascent, get_attack, stronger
from advbench.models.classifier import Classifier

QUERIES = {False: 500, True: 120}  # of Square, by whether the classifier is random
TRANSFER_STEPS = 40
BOUND = "What gradient attacks say of this defense is an upper bound."
LOSSES = "Cross-entropy alone does not find the worst: the number is an upper bound."


class _Pair(NamedTuple):
    name: str
    other: Tried
    means: str
    next: str
    about: About
    passes: float


def check_pairs(subject: Subject, gradient: Tried | None) -> list[Finding]:
    """One step against many, other losses against cross-entropy, black boxes against the best gradient attack.

    Args:
        subject: what is audited.
        gradient: what a gradient attack found; None where there is no gradient.
    """
    if gradient is None:
        return [_compared(subject, pair, None) for pair in _black_boxes(subject)]
    clf, found, white = subject.clf, [], [gradient]
    before = clf.passes.forward
    step = subject.tried("fgsm", get_attack("fgsm"))
    pair = _Pair("one step", step, f"One step does more harm than many. {BOUND}", "run worst_case", "defense", 0.0)
    found.append(_compared(subject, pair._replace(passes=_since(subject, before)), gradient))
    for name, targets in (("margin loss", None), ("targeted attack", _runner_up(subject))):
        before = clf.passes.forward
        tried = subject.tried(name, ascent(clf, loss="margin"), targets=targets)
        white.append(tried)
        passes = _since(subject, before)
        found.append(
            _compared(
                subject, _Pair(name, tried, LOSSES, "run worst_case, which has them all", "attack", passes), gradient
            )
        )
    best = min(white, key=lambda each: float(each.right.mean()))
    found += [_compared(subject, pair, best) for pair in _black_boxes(subject)]
    if subject.plain is None:
        found.append(Finding.skipped("paired: transfer", "no training images were given to train a plain net on"))
    return found


def _compared(subject: Subject, pair: _Pair, one: Tried | None) -> Finding:
    low, name = float(pair.other.right.mean()), f"paired: {pair.name}"
    if one is None:
        said = f"Accuracy {low:.3f}; there is no gradient attack to compare with."
        return Finding(name, "ok", said, passes=pair.passes)
    high = float(one.right.mean())
    return Finding(
        name,
        "ok",
        f"Accuracy {low:.3f}, under the gradient attack {high:.3f}.",
        pair.means,
        pair.next,
        pair.about,
        pair.passes,
        stronger(one.right, pair.other.right),
        subject.matters(high - low),
        "warning" if pair.about == "attack" and not subject.matters(high - low, MUCH) else "failed",
    )


def _black_boxes(subject: Subject) -> list[_Pair]:
    """Attacks that see no gradient of the classifier."""
    means, found = f"An attack that sees no gradient does more harm. {BOUND}", []
    if subject.x.ndim == 4 and "square" not in subject.known:
        before = subject.clf.passes.forward
        square = subject.tried("square", get_attack("square", queries=QUERIES[subject.clf.stochastic]))
        passes = _since(subject, before)
        found.append(_Pair("square", square, means, "run square with more queries, and worst_case", "defense", passes))
    if subject.plain is not None:
        before = subject.clf.passes.forward
        moved = transferred(subject)
        passes = _since(subject, before) + TRANSFER_STEPS
        found.append(_Pair("transfer", moved, means, "run transfer, and gray_box", "defense", passes))
    return found


def transferred(subject: Subject) -> Tried:
    """Examples crafted on the plain net."""
    assert subject.plain is not None, "transfers have a source"
    attack = get_attack("pgd", steps=TRANSFER_STEPS, loss="margin")
    return subject.tried("transfer", attack, model=Classifier(subject.plain))


def _since(subject: Subject, before: int) -> float:
    return (subject.clf.passes.forward - before) / len(subject.x)


@torch.no_grad()
def _runner_up(subject: Subject) -> Tensor:
    """The likeliest wrong class of each image."""
    targets = likeliest(subject.clf, subject.x, Goal.of(subject.y), 1)[0].targets
    assert targets is not None, "these goals have targets"
    return targets

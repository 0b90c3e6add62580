"""Paired comparisons of attacks on the same images, of which one should not be stronger than the other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from advbench.attacks.ball import project, random_start, steepest
from advbench.attacks.base import Attack, Goal, Threat
from advbench.attacks.selection import likeliest
from advbench.audit.findings import About, Finding
from advbench.audit.subject import MUCH, Subject, Tried, ascent, get_attack, stronger
from advbench.models.classifier import Classifier

QUERIES = {False: 500, True: 120}  # queries of Square, by whether the classifier is random
TRANSFER_STEPS = 40
SMOOTH_STEPS, NOISES = 20, 5  # steps, and noisy copies of an image at each
ATTACKS = {
    "one step": "one step (fgsm)",
    "margin loss": "the gradient attack with the margin loss",
    "targeted attack": "the gradient attack, targeted at the runner-up",
    "smoothed gradient": "the gradient attack with gradients averaged over noise around the image",
    "square": "square",
    "transfer": "transfer from a plain net",
}
BOUND = "Accuracy under gradient attacks is an upper bound for this defense."
AVERAGED = "run attacks without gradients (square, transfer), or average the gradient over noise"
LOSSES = "Cross-entropy alone is not the strongest loss: the accuracy is an upper bound."


class Smoothed(Attack):
    """Ascent of the margin along its gradient averaged over random points of a ball around the image.

    Plateaus, small waves and clipped pixels hide the trend from the gradient at a point, but not from this average.
    """

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Move from the images; the last point is the example."""
        loss, found, step = goal.loss("margin"), x, 2.5 * threat.eps / SMOOTH_STEPS
        for _ in range(SMOOTH_STEPS):
            around = [random_start(found, threat, generator) for _ in range(NOISES)]
            total = torch.stack([clf.input_gradient(each, goal.rows, loss).value for each in around]).mean(0)
            found = project(found + step * steepest(total, threat), x, threat)
        return found


class _Pair(NamedTuple):
    name: str
    other: Tried
    means: str
    next: str
    about: About
    passes: float


def check_pairs(subject: Subject, gradient: Tried | None) -> list[Finding]:
    """Compare one step with many, other losses with cross-entropy, and black-box with gradient attacks.

    Args:
        subject: the audited classifier and images.
        gradient: result of a gradient attack; None if there is no gradient.
    """
    if gradient is None:
        return [_compared(subject, pair, None) for pair in _black_boxes(subject)]
    clf, found, white = subject.clf, [], {"the gradient attack": gradient}
    before = clf.passes.forward
    step = subject.tried("fgsm", get_attack("fgsm"))
    pair = _Pair("one step", step, f"One step is stronger than many. {BOUND}", "run worst_case", "defense", 0.0)
    found.append(_compared(subject, pair._replace(passes=_since(subject, before)), gradient))
    for name, targets in (("margin loss", None), ("targeted attack", _runner_up(subject))):
        before = clf.passes.forward
        tried = subject.tried(name, ascent(clf, loss="margin"), targets=targets)
        white[ATTACKS[name]] = tried
        passes = _since(subject, before)
        found.append(
            _compared(
                subject,
                _Pair(name, tried, LOSSES, "run worst_case, which runs them all", "attack", passes),
                gradient,
            )
        )
    before = clf.passes.forward
    smooth = subject.tried("smoothed gradient", Smoothed())
    best = min(white, key=lambda each: float(white[each].right.mean()))
    hidden = "The gradient at a point hides the trend around it. " + BOUND
    pair = _Pair("smoothed gradient", smooth, hidden, AVERAGED, "defense", _since(subject, before))
    found.append(_compared(subject, pair, white[best], best))
    found += [_compared(subject, pair, white[best], best) for pair in _black_boxes(subject)]
    if subject.plain is None:
        found.append(Finding.skipped("paired: transfer", "no training images were given for a source net"))
    return found


def _compared(subject: Subject, pair: _Pair, one: Tried | None, named: str = "the gradient attack") -> Finding:
    """Compare an attack with `one`, a gradient attack with the given name; None if there is none."""
    attack = ATTACKS[pair.name]
    low, name = float(pair.other.right.mean()), f"paired: {pair.name}"
    if one is None:
        said = f"{attack[0].upper()}{attack[1:]} leaves an accuracy of {low:.3f}; no gradient attack to compare with."
        return Finding(name, "ok", said, passes=pair.passes)
    high = float(one.right.mean())
    return Finding(
        name,
        "ok",
        f"{attack[0].upper()}{attack[1:]} leaves an accuracy of {low:.3f}, {named} {high:.3f}.",
        pair.means,
        pair.next,
        pair.about,
        pair.passes,
        stronger(one.right, pair.other.right),
        subject.matters(high - low),
        "warning" if pair.about == "attack" and not subject.matters(high - low, MUCH) else "failed",
    )


def _black_boxes(subject: Subject) -> list[_Pair]:
    """Attacks without access to gradients of the classifier."""
    means, found = f"An attack without gradients is stronger. {BOUND}", []
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
    """Transfer attack with examples crafted on the plain net."""
    assert subject.plain is not None, "a transfer needs a source net"
    attack = get_attack("pgd", steps=TRANSFER_STEPS, loss="margin")
    return subject.tried("transfer", attack, model=Classifier(subject.plain))


def _since(subject: Subject, before: int) -> float:
    return (subject.clf.passes.forward - before) / len(subject.x)


@torch.no_grad()
def _runner_up(subject: Subject) -> Tensor:
    """Most likely wrong class of each image."""
    targets = likeliest(subject.clf, subject.x, Goal.of(subject.y), 1)[0].targets
    assert targets is not None, "the goals are targeted"
    return targets

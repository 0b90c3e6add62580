"""Audit of one classifier: runs all checks, cheapest first."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from advbench.attacks.ball import random_start
from advbench.attacks.base import Threat
from advbench.audit.cells import Cell, check_cells
from advbench.audit.consistency import Consistency
from advbench.audit.convergence import check_convergence
from advbench.audit.findings import LEFT, Audit, Finding, guarded, with_verdicts
from advbench.audit.gradients import check_gradients
from advbench.audit.outputs import check_outputs
from advbench.audit.paired import check_pairs
from advbench.audit.search import check_far, check_search
from advbench.audit.subject import LARGEST, LITTLE, Subject, Tried
from advbench.audit.surrogate import check_surrogate
from advbench.audit.unseen import check_unseen
from advbench.data.base import Data, check_floating, check_labels
from advbench.errors import InputError, ModelWarning, NoGradientError
from advbench.keys import derive
from advbench.models.classifier import Classifier
from advbench.models.guard import ODDITIES, PROBE_IMAGES, opened
from advbench.models.nets import SMALLEST, build
from advbench.registry import registry
from advbench.training.base import TrainContext

FINE = {"unseeded": "All randomness follows the seed.", "train_mode": "No layer behaves as in training."}
PLAIN_EPOCHS = (15,)  # training epochs of the source net of transfer attacks


def audit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int = 0,
    name: str = "",
    train: Data | None = None,
    other: Data | None = None,
    surrogate: nn.Module | None = None,
    cells: Sequence[Cell] = (),
    quick: bool = False,
) -> Audit:
    """Check whether an evaluation of a classifier under attack is credible.

    Args:
        model: a `Classifier` or any `nn.Module` on [0, 1] images.
        x: images `(count, channels, height, width)`, float32 in [0, 1]; the first 200 are used.
        y: labels `(count,)`, int64.
        threat: norm and eps, above 0.
        seed: seed of all random choices.
        name: name of the classifier in the report.
        train: training images for the source net of transfer attacks; None for no transfer attacks.
        other: images of the same distribution, unseen in training and attacks; None to skip that check.
        surrogate: differentiable approximation of the classifier, images to logits, whose gradient attacks may use.
        cells: results of other attacks in a run; the audit does not repeat those that it would run itself.
        quick: run only the checks without attacks, which cost a few dozen passes.

    Raises:
        InputError: images, labels or threat are invalid.
        PluginError: the model's output is invalid.
    """
    check_floating(x, "images to audit")
    if len(x) < 2 or threat.eps == 0:
        what, got = ("images to audit", len(x)) if len(x) < 2 else ("eps of an audit", threat.eps)
        raise InputError(what, expected="at least 2" if len(x) < 2 else "a radius above 0", got=got)
    x, y = x[:LARGEST].detach(), y[:LARGEST]
    clf, oddities = _opened(model, x, threat, seed)
    check_labels(y, len(x), None, "labels to audit")
    plain = None if quick or train is None else _plain_net(train, seed).to(x.device)
    held_out = None if other is None else other.batch(slice(LARGEST))
    known = {cell.attack for cell in cells}
    subject = Subject(
        clf,
        x,
        y,
        threat,
        seed=seed,
        other=held_out,
        plain=plain,
        surrogate=surrogate,
        known=frozenset(known),
        quick=quick,
    )
    with clf.isolated(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        findings = [*oddities, *(_quick(subject) if quick else _all(subject)), *check_cells(cells)]
    return Audit(
        name or type(model).__name__,
        f"{threat.norm} {threat.eps:.4g}",
        len(x),
        with_verdicts(findings),
        subject.accuracies,
        subject.counts,
    )


def _opened(model: nn.Module, x: Tensor, threat: Threat, seed: int) -> tuple[Classifier, list[Finding]]:
    """Wrap the model after probing it on clean and on perturbed images: it may be random on some only."""
    generator = torch.Generator(x.device).manual_seed(derive(seed, "audit", "opened"))
    few = x[: PROBE_IMAGES // 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        clf, _, oddities = opened(model, torch.cat([few, random_start(few, threat, generator)]), probe=True)
    found = []
    for oddity in ("unseeded", "train_mode"):
        said, _, remedy = ODDITIES[oddity].partition(": ")
        odd = oddity in oddities
        found.append(
            Finding(
                f"outputs: {oddity.replace('_', ' ')}",
                "failed" if odd else "ok",
                f"{said[0].upper()}{said[1:]}." if odd else FINE[oddity],
                "Results are not reproducible, and attacks see a different classifier than evaluations.",
                remedy,
            )
        )
    return clf, found


def _quick(subject: Subject) -> Iterator[Finding]:
    with subject.asked():
        consistency = Consistency(subject)
        yield from consistency.begin()
        yield from guarded("outputs", partial(check_outputs, subject))
        yield from guarded("gradient", partial(check_gradients, subject))
        yield from consistency.end()


def _all(subject: Subject) -> Iterator[Finding]:
    with subject.asked():
        consistency = Consistency(subject)
        yield from consistency.begin()
        yield from guarded("outputs", partial(check_outputs, subject))
        clean = float(subject.clean.mean())
        gradient: Tried | None
        try:
            gradient = subject.gradient_attack()
        except NoGradientError:
            gradient = None
        left = clean if gradient is None else float(gradient.right.mean())
        if left <= LITTLE:
            reason = f"the gradient attack leaves an accuracy of only {left:.3f}"
            for name in ("gradient", "search", "paired", "convergence", "surrogate", "unseen"):
                yield Finding.skipped(name, reason)
        else:
            attacked = None if gradient is None else gradient.images
            yield from guarded("gradient", partial(check_gradients, subject, attacked))
            yield from _on_what_is_left(subject, gradient)
            yield check_unseen(subject, gradient)
        yield from consistency.end()


def _on_what_is_left(subject: Subject, gradient: Tried | None) -> Iterator[Finding]:
    """Further attacks on the images that the first attack did not break; costs are per image of the audit."""
    rest = subject if gradient is None else subject.left(gradient)
    if rest is subject:
        yield from _attacks(subject, gradient)
        return
    before = subject.clf.passes.forward
    anew = rest.gradient_attack()
    extra = (subject.clf.passes.forward - before) / len(subject.x)
    for each in _attacks(rest, anew):
        where = f" (Of the {len(rest.x)} images that the gradient attack left unbroken.)"
        where = "" if each.verdict == "not checked" else where
        yield replace(each, sentence=f"{each.sentence}{where}", passes=each.passes * rest.part + extra)
        extra = 0.0
    subject.accuracies |= {f"{name}{LEFT}": value for name, value in rest.accuracies.items()}
    subject.counts |= {f"{name}{LEFT}": count for name, count in rest.counts.items()}


def _attacks(subject: Subject, gradient: Tried | None) -> Iterator[Finding]:
    if gradient is None:
        reason = "the classifier has no gradient with respect to the images"
        for name in ("search: radius at chance", "convergence"):
            yield Finding.skipped(name, reason)
        gradient_or_clean = Tried(subject.x, subject.clean)
        yield check_search(subject, gradient_or_clean)
    else:
        yield check_search(subject, gradient)
        yield check_far(subject)
    yield from check_pairs(subject, gradient)
    if gradient is not None:
        yield from check_convergence(subject, gradient)
    yield from check_surrogate(subject, gradient)


def _plain_net(train: Data, seed: int) -> nn.Module:
    """Train a small plain net, the source of transfer attacks."""
    defense = registry().load("defense", "erm")(stages=PLAIN_EPOCHS, batch_size=64)
    name = "small_cnn" if min(train.shape[1:]) >= SMALLEST else "fcnn1"
    clf: Classifier = defense.fit(build(name, train, seed), train, TrainContext(seed=derive(seed, "plain")))
    return clf.module

"""Consistency: a classifier must give the same logits for the same image and draw, however it is called.

Attacks call a classifier differently from evaluations: with gradients enabled, in other batches, repeatedly. A defense
that distinguishes the two presents attacks with a classifier other than the evaluated one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from torch import Tensor

from advbench.attacks.ball import random_start
from advbench.attacks.base import Attack, Goal, Threat
from advbench.attacks.craft import craft
from advbench.audit.findings import Finding, guarded
from advbench.audit.subject import LARGEST, DrawnLater, Received, Subject
from advbench.models.classifier import Classifier, Draw

COPIED = 2**28  # bytes; larger classifiers are not copied
PERMUTATIONS = 20_000
ANOTHER = 0.1  # gradients are different beyond this difference, relative to the larger one, in l1
OFTEN = 0.05  # fraction of images whose gradients may differ: rounding may pass a kink
MEANS = "Attacks see a different classifier than evaluations: accuracy under attack is meaningless for this defense."
NEXT = "find the part of the forward pass that depends on more than the image, and remove it"

Ask = Callable[[Classifier, Draw, Tensor], Tensor]


def _plain(clf: Classifier, draw: Draw, x: Tensor) -> Tensor:
    return clf.at(draw, x)


def _recorded(clf: Classifier, draw: Draw, x: Tensor) -> Tensor:
    with torch.enable_grad():
        return clf.at(draw, x.clone().requires_grad_()).detach()


def _enabled(clf: Classifier, draw: Draw, x: Tensor) -> Tensor:
    with torch.enable_grad():
        return clf.at(draw, x.clone()).detach()


def _trainable(clf: Classifier, draw: Draw, x: Tensor) -> Tensor:
    """Logits while the parameters require gradients, as in a user's own evaluation."""
    before = [(each, each.requires_grad) for each in clf.parameters() if not each.is_inference()]
    try:
        for each, _ in before:
            each.requires_grad_(each.is_floating_point())
        return clf.at(draw, x).detach()
    finally:
        for each, needs in before:
            each.requires_grad_(needs)


def _differentiated(clf: Classifier, draw: Draw, x: Tensor) -> Tensor:
    """Logits of a pass that computes the gradient."""
    y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return clf.input_gradient(x, y, lambda logits, _: logits.sum(1), draws=[draw]).logits[0]


def _shuffled(clf: Classifier, draw: Draw, x: Tensor) -> Tensor:
    order = torch.arange(len(x), device=x.device).flip(0).roll(len(x) // 3)
    return clf.at(draw, x[order])[order.argsort()]


def _among_others(clf: Classifier, draw: Draw, x: Tensor) -> Tensor:
    others = (1 - x).roll(1, 0)
    return clf.at(draw, torch.cat([others, x, others[: len(x) // 2]]))[len(x) : 2 * len(x)]


def _one_by_one(clf: Classifier, draw: Draw, x: Tensor) -> Tensor:
    return torch.cat([clf.at(draw, x[k : k + 1], k) for k in range(len(x))])


class _Listener(Attack):
    """An attack that records the classifier's logits while the harness runs it."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw, self.heard = draw, torch.empty(0)

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Record the logits."""
        with torch.no_grad():
            self.heard = clf.at(self.draw, x)
        return x


def _under_attack(clf: Classifier, draw: Draw, x: Tensor) -> Tensor:
    listener = _Listener(draw)
    y = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    craft(listener, clf, x, y, Threat("linf", 0.5))
    return listener.heard


# Calls with the same batch, whose randomness is that of the draw; and calls with other batches, in which noise inside a
# module differs per image.
SAME_BATCH: dict[str, tuple[str, Ask]] = {
    "again": ("called a second time", _plain),
    "gradients": ("called with gradients recorded", _recorded),
    "grad mode": ("called in grad mode", _enabled),
    "trainable": ("called while its parameters require gradients", _trainable),
    "differentiated": ("called for a gradient", _differentiated),
    "under attack": ("called by an attack", _under_attack),
}
OTHER_BATCH: dict[str, tuple[str, Ask]] = {
    "shuffled": ("called with the images in another order", _shuffled),
    "other batch": ("called with other images in the batch", _among_others),
    "one by one": ("called with one image at a time", _one_by_one),
}


GradientOf = Callable[[Tensor, Tensor], Tensor]
AskGradient = Callable[[GradientOf, Tensor, Tensor, Tensor], Tensor]


def _alone(gradient: GradientOf, x: Tensor, rows: Tensor, _: Tensor) -> Tensor:
    return torch.cat([gradient(x[k : k + 1], rows[k : k + 1]) for k in range(len(x))])


def _among_clean(gradient: GradientOf, x: Tensor, rows: Tensor, clean: Tensor) -> Tensor:
    others = clean[: len(x)]
    return gradient(torch.cat([x, others]), torch.cat([rows, rows[: len(others)]]))[: len(x)]


# Ways of asking for a gradient again, and the number of images.
SAME_GRADIENT: dict[str, tuple[int, AskGradient]] = {
    "in the same batch": (LARGEST, lambda gradient, x, rows, _: gradient(x, rows))
}
OTHER_GRADIENT: dict[str, tuple[int, AskGradient]] = {
    "one image at a time": (8, _alone),
    "among clean images": (32, _among_clean),
}


class Consistency:
    """Consistency checks at the beginning of an audit, repeated at its end."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        clean = subject.x[: subject.sizes.images]
        perturbed = random_start(clean, subject.threat, subject.generator("consistency"))
        unseen = perturbed.roll(1, 0).lerp(perturbed, 0.5)  # images that cannot be known to the classifier
        self.sets = {"clean": clean, "perturbed": perturbed, "unseen": unseen}
        self.draws = subject.draws(2, "consistency")
        self._fresh: Classifier | None = None
        tensors = (*subject.clf.parameters(), *subject.clf.buffers())
        if sum(tensor.nbytes for tensor in tensors) <= COPIED:
            with suppress(Exception):  # some modules cannot be copied
                self._fresh = copy.deepcopy(subject.clf)
        self._first: dict[tuple[str, int], Tensor] = {}

    @torch.no_grad()
    def begin(self) -> Iterator[Finding]:
        """Run the checks at the beginning of an audit."""
        clf = self.subject.clf
        yield from guarded("consistency: fresh copy", self._order)
        for name, x in self.sets.items():
            for k, draw in enumerate(self.draws):
                self._first[name, k] = clf.at(draw, x)
        for name, (how, ask) in SAME_BATCH.items():
            yield from guarded(f"consistency: {name}", partial(self._compared, name, how, ask))
        yield from guarded("consistency: many queries", self._queried)
        for name, (how, ask) in OTHER_BATCH.items():
            make = self._tested if clf.noise else self._compared
            yield from guarded(f"consistency: {name}", partial(make, name, how, ask))
        yield from guarded("consistency: noise off the data", self._wakes)

    @torch.no_grad()
    def end(self) -> Iterator[Finding]:
        """Check that outputs and the attack's gradients are unchanged at the end of an audit."""
        yield self._compared("later", "called again after all attacks of the audit", _plain)
        if self.subject.received:
            yield from guarded("consistency: attack's gradients", self._replayed)

    def _replayed(self) -> Finding:
        """Ask again for gradients that an attack received: the same batch, and its images one by one and among others.

        Noise inside a module differs between batches, so only the same batch is asked again then.
        """
        clf, before = self.subject.clf, self.subject.clf.passes.forward
        said, wrong = [], False
        for how, (count, ask) in (SAME_GRADIENT if clf.noise else {**SAME_GRADIENT, **OTHER_GRADIENT}).items():
            differs = torch.cat([_other_gradient(self.subject, each, count, ask) for each in self.subject.received])
            wrong = wrong or bool(differs.float().mean() > OFTEN)
            said.append(f"for {int(differs.sum())} of {len(differs)} images {how}")
        return Finding(
            "consistency: attack's gradients",
            "failed" if wrong else "ok",
            f"Gradients that the attack received differ from later ones at the same draws {', '.join(said)}.",
            MEANS,
            NEXT,
            passes=(clf.passes.forward - before) / len(self.subject.x),
        )

    def _compared(self, name: str, how: str, ask: Ask) -> Finding:
        clf, count = self.subject.clf, self.subject.sizes.singles if name == "one by one" else LARGEST
        wrong, total, before = 0, 0, clf.passes.forward
        for (what, k), first in self._first.items():
            differs = _differ(first[:count], ask(clf, self.draws[k], self.sets[what][:count]))
            wrong += int(differs.sum())
            total += len(differs)
        said = "gives different logits" if wrong else "gives the same logits"
        return Finding(
            f"consistency: {name}",
            "failed" if wrong else "ok",
            f"At the same draw, {how}, the classifier {said} ({wrong} of {total} images differ, clean and perturbed).",
            MEANS,
            NEXT,
            passes=(clf.passes.forward - before) / len(self.subject.x),
        )

    def _order(self) -> Finding:
        """Perturbed images before (on a copy) and after the classifier has seen the clean images."""
        name = "consistency: fresh copy"
        if self._fresh is None:
            return Finding.skipped(name, "the classifier cannot be copied, or is too large")
        clf, fresh, passes = self.subject.clf, self._fresh, 0
        wrong = total = 0
        for draw in self.draws:
            for what in ("perturbed", "unseen", "clean"):
                early = fresh.at(draw, self.sets[what])
                late = clf.at(draw, self.sets["clean"]) if what == "perturbed" else None
                late = clf.at(draw, self.sets[what])
                differs = _differ(early, late)
                wrong, total, passes = wrong + int(differs.sum()), total + len(differs), passes + 3 * len(differs)
        said = "gives different logits" if wrong else "gives the same logits"
        return Finding(
            name,
            "failed" if wrong else "ok",
            f"A fresh copy, called with perturbed images first, {said} ({wrong} of {total} images differ): the "
            f"classifier {'keeps' if wrong else 'shows no'} memory of previous images.",
            MEANS,
            "clear the memory before each pass; a defense against queries needs another threat model",
            passes=passes / len(self.subject.x),
        )

    def _queried(self) -> Finding:
        """Query one image many times in a row, as attacks do."""
        clf, before = self.subject.clf, self.subject.clf.passes.forward
        x, draw, queries = self.sets["perturbed"][:1], self.draws[0], self.subject.sizes.queries
        first = clf.at(draw, x)
        wrong = sum(bool(_differ(first, clf.at(draw, x)).any()) for _ in range(queries))
        return Finding(
            "consistency: many queries",
            "failed" if wrong else "ok",
            f"In {queries} repeated calls with one image at the same draw, the logits differ from the first call in "
            f"{wrong} cases."
            if wrong
            else f"{queries} repeated calls with one image at the same draw give the same logits.",
            MEANS,
            NEXT,
            passes=(clf.passes.forward - before) / len(self.subject.x),
        )

    def _tested(self, name: str, how: str, ask: Ask) -> Finding:
        """For noise inside a module, test over draws whether two ways of calling give the same distribution."""
        clf, x = self.subject.clf, self.sets["perturbed"][: self.subject.sizes.singles]
        before, count = clf.passes.forward, self.subject.sizes.test_draws
        draws = self.subject.draws(2 * count, f"consistency {name}")
        usual = torch.stack([clf.at(draw, x) for draw in draws[:count]])
        other = torch.stack([ask(clf, draw, x) for draw in draws[count:]])
        outputs = torch.cat([usual, other]).softmax(-1).double()
        # Randomness that the images of a batch share is independent between single images, in each of which its
        # distribution is the same.
        apart = [outputs[:, k : k + 1] for k in range(len(x))] if name == "one by one" else [outputs]
        seed = self.subject.generator(name).initial_seed()
        p = min(1.0, len(apart) * min(two_samples(each.cpu(), count, seed) for each in apart))
        distance = float((outputs[:count].mean(0) - outputs[count:].mean(0)).abs().sum(-1).mean()) / 2
        spreads = [float(each.std(0).mean()) for each in (outputs[:count], outputs[count:])]
        return Finding(
            f"consistency: {name}",
            "ok",
            f"Over {count} draws, {how}, the mean softmax changes by {distance:.3f} (total variation) and its "
            f"standard deviation from {spreads[0]:.3f} to {spreads[1]:.3f}.",
            MEANS,
            NEXT,
            passes=(clf.passes.forward - before) / len(self.subject.x),
            p=p,
        )

    def _wakes(self) -> Finding:
        """Check for randomness on perturbed images only."""
        clf, name = self.subject.clf, "consistency: noise off the data"
        if not clf.stochastic:
            return Finding.skipped(name, "the classifier is not random")
        before = clf.passes.forward
        draws = self.subject.draws(8, "consistency wakes")
        spread = {
            what: torch.stack([clf.at(draw, self.sets[what]) for draw in draws]).softmax(-1).std(0).amax(-1)
            for what in ("clean", "perturbed")
        }
        quiet, loud = float((spread["clean"] < 1e-7).float().mean()), float((spread["perturbed"] > 1e-3).float().mean())
        wakes = quiet > 0.5 and loud > 0.5
        return Finding(
            name,
            "failed" if wakes else "ok",
            f"Draws agree on {quiet:.0%} of the clean images and differ visibly on {loud:.0%} of the perturbed ones."
            if wakes
            else "The classifier is not random on perturbed images alone: draws differ on "
            f"{1 - quiet:.0%} of the clean and on {loud:.0%} of the perturbed images.",
            "Randomness off the data only disturbs the steps of attacks without lowering clean accuracy: "
            "accuracy under attack is an upper bound.",
            "attack the classifier without its noise, and with more samples (eot_pgd.samples), and evaluate both",
            passes=(clf.passes.forward - before) / len(self.subject.x),
        )


def _other_gradient(subject: Subject, one: Received, count: int, ask: AskGradient) -> Tensor:
    """Mask of the first images whose gradient is another one when it is asked for in another way, `(images,)`."""

    def gradient(x: Tensor, rows: Tensor) -> Tensor:
        draws = DrawnLater(subject.clf, one.seeds)
        return subject.clf.input_gradient(x, rows, one.loss, draws=draws, tilt=one.tilt).value

    found = ask(gradient, one.x[:count], one.rows[:count], subject.x).flatten(1).double()
    received = one.gradient[:count].flatten(1).double()
    size = torch.maximum(received.abs().sum(1), found.abs().sum(1))
    return (received - found).abs().sum(1) > ANOTHER * size


def _differ(one: Tensor, other: Tensor) -> Tensor:
    """Mask of the images whose logits differ by more than rounding, `(count,)`."""
    slack = 1e-4 * one.abs().amax().clamp_min(1e-6) + 1e-3 * one.abs()
    return ~((one - other).abs() <= slack).all(1)


def two_samples(outputs: Tensor, first: int, seed: int) -> float:
    """p-value of the hypothesis that the first draws and the others have the same distribution.

    A permutation test of the energy distance (Szekely and Rizzo 2004) between draws. A draw is represented by its
    outputs on all images, because only draws are exchangeable: the images of a draw share its weights.

    Args:
        outputs: softmax of each draw, `(draws, images, classes)`.
        first: number of draws in the first sample.
        seed: seed of the permutations.
    """
    flat = outputs.flatten(1)
    distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    if not distance.any():
        return 1.0
    count = len(distance)
    rng = np.random.default_rng(seed % 2**32)
    chosen = rng.random((PERMUTATIONS + 1, count)).argsort(1)[:, :first]
    chosen[0] = np.arange(first)
    signs = np.full((PERMUTATIONS + 1, count), -1.0 / (count - first))
    np.put_along_axis(signs, chosen, 1.0 / first, 1)
    statistic = -((signs @ distance) * signs).sum(1)  # twice the mean distance between samples, minus the means within
    return float((1 + (statistic[1:] >= statistic[0] * (1 - 1e-9)).sum()) / (PERMUTATIONS + 1))

"""Images that neither training nor attack has seen, against a defense that remembers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from advbench.attacks.craft import craft
from advbench.audit.findings import Finding
from advbench.audit.paired import TRANSFER_STEPS, transferred
from advbench.audit.subject import LITTLE, Subject, Table, Tried, ascent, get_attack
from advbench.keys import derive
from advbench.models.classifier import Classifier

IMAGES = 64
PERMUTATIONS = 10_000


def check_unseen(subject: Subject, gradient: Tried | None) -> Finding:
    """The same attack on held-out training images: a defense that knows the test images withstands it there alone."""
    name = "unseen: other images"
    if subject.other is None:
        return Finding.skipped(name, "no held-out images were given")
    x, y = (each[:IMAGES] for each in subject.other)
    before, seed = subject.clf.passes.forward, derive(subject.seed, "audit", "unseen")
    clean = subject.right(x, y)
    pairs = []
    if gradient is not None:
        early = not subject.clf.stochastic
        found = craft(ascent(subject.clf), subject.clf, x, y, subject.threat, seed=seed, stop_early=early).images
        pairs.append((gradient.right, subject.right(found, y)))
    if subject.plain is not None:
        attack = get_attack("pgd", steps=TRANSFER_STEPS, loss="margin")
        found = craft(attack, Classifier(subject.plain), x, y, subject.threat, seed=seed).images
        pairs.append((transferred(subject).right, subject.right(found, y)))
    if not pairs:
        return Finding.skipped(name, "there is no gradient to attack by, and no plain net to transfer from")
    results = [_kept(subject.clean, known, clean, other) for known, other in pairs]
    p, here, there = min(results)
    return Finding(
        name,
        "ok",
        f"Of what was right, the attack leaves {here:.3f} on the audited images and {there:.3f} on {len(x)} held-out "
        "training images.",
        "The defense knows the images on which it is evaluated: on others it is less robust.",
        "evaluate on images that were not at hand when the defense was made",
        passes=(subject.clf.passes.forward - before) / len(subject.x),
        p=min(1.0, len(results) * p),
        counts=here - there > LITTLE,
    )


def _kept(clean: Table, known: Table, other_clean: Table, other: Table) -> tuple[float, float, float]:
    """p-value that what the attack leaves of right answers is no more here than there; and the two shares."""
    here, there = _rates(clean, known), _rates(other_clean, other)
    if not len(here) or not len(there):
        return 1.0, 0.0, 0.0
    pooled, rng = np.concatenate([here, there]), np.random.default_rng(0)
    order = np.argsort(rng.random((PERMUTATIONS, len(pooled))), axis=1)[:, : len(here)]
    means, total = pooled[order].mean(1), pooled.sum()
    gaps = means - (total - means * len(here)) / len(there)
    gap = here.mean() - there.mean()
    p = (1 + int((gaps >= gap - 1e-12).sum())) / (PERMUTATIONS + 1)
    return p, float(here.mean()), float(there.mean())


def _rates(clean: Table, attacked: Table) -> NDArray[np.float64]:
    """How often each image that is right by most draws is right under attack."""
    usual = clean.mean(0) > 0.5
    rates: NDArray[np.float64] = attacked.mean(0)[usual]
    return rates

"""Check on images unseen in training and attacks, for defenses that memorise the test images."""

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
    """Compare an attack on the test images with the same attack on held-out images."""
    name = "unseen: other images"
    if subject.other is None:
        return Finding.skipped(name, "no held-out images were given")
    x, y = (each[:IMAGES] for each in subject.other)
    before, seed = subject.clf.passes.forward, derive(subject.seed, "audit", "unseen")
    clean = subject.right(x, y)
    pairs: list[tuple[Table, Table]] = []
    names: list[str] = []
    if gradient is not None:
        early = not subject.clf.stochastic
        found = craft(ascent(subject.clf), subject.clf, x, y, subject.threat, seed=seed, stop_early=early).images
        names.append("the gradient attack")
        pairs.append((gradient.right, subject.right(found, y)))
    if subject.plain is not None:
        attack = get_attack("pgd", steps=TRANSFER_STEPS, loss="margin")
        found = craft(attack, Classifier(subject.plain), x, y, subject.threat, seed=seed).images
        names.append("transfer from a plain net")
        pairs.append((transferred(subject).right, subject.right(found, y)))
    if not pairs:
        return Finding.skipped(name, "there is no gradient for an attack, and no source net for a transfer")
    results = [_kept(subject.clean, known, clean, other) for known, other in pairs]
    p, here, there = min(results)
    strongest = names[results.index((p, here, there))]
    return Finding(
        name,
        "ok",
        f"Of the correct predictions, {here:.3f} survive {strongest} on the audited images and {there:.3f} on {len(x)} "
        "held-out images.",
        "The defense knows the evaluated images: it is less robust on others.",
        "evaluate on images that were not available when the defense was built",
        passes=(subject.clf.passes.forward - before) / len(subject.x),
        p=min(1.0, len(results) * p),
        counts=here - there > LITTLE,
    )


def _kept(clean: Table, known: Table, other_clean: Table, other: Table) -> tuple[float, float, float]:
    """p-value of the hypothesis that no more correct predictions survive here than there, and the two fractions."""
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
    """Fraction of draws that stay correct under attack, for each image that most draws classify correctly."""
    usual = clean.mean(0) > 0.5
    rates: NDArray[np.float64] = attacked.mean(0)[usual]
    return rates

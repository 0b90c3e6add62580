"""Convergence: an attack that gains from five times the effort has not converged."""

from __future__ import annotations

from advbench.audit.findings import Finding
from advbench.audit.subject import MUCH, Subject, Tried, ascent, stronger

FACTOR = 5
IMAGES = {False: 100, True: 24}  # by whether the classifier is random, when each pass counts ten times
STEPS, SAMPLES = 20, 10  # hyperparameters of the reference attack


def check_convergence(subject: Subject, gradient: Tried) -> list[Finding]:
    """Multiply steps, samples and restarts by five, one at a time, on at most 100 images."""
    efforts = {"steps": {"steps": FACTOR * STEPS}, "restarts": {"restarts": FACTOR}}
    if subject.clf.stochastic:
        efforts["samples"] = {"samples": FACTOR * SAMPLES}
    found, rows = [], IMAGES[subject.clf.stochastic]
    for name, params in efforts.items():
        before = subject.clf.passes.forward
        more = subject.tried(f"{FACTOR} x {name}", ascent(subject.clf, **params), rows=rows)
        base = gradient.right[:, :rows]
        one, other = float(base.mean()), float(more.right.mean())
        found.append(
            Finding(
                f"convergence: {name}",
                "ok",
                f"With {FACTOR} times the {name}, the gradient attack leaves an accuracy of {other:.3f}, without "
                f"{one:.3f}, on the first {base.shape[1]} images.",
                "The attack has not converged: the accuracy is an upper bound.",
                f"raise {name}, or use --converge or worst_case",
                "attack",
                (subject.clf.passes.forward - before) / len(subject.x),
                stronger(base, more.right),
                subject.matters(one - other),
                "failed" if subject.matters(one - other, MUCH) else "warning",
            )
        )
    return found

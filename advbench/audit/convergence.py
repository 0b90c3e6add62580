"""Five times the effort: an attack that still gains has not converged, which is no fault of the defense."""

from __future__ import annotations

from advbench.audit.findings import Finding
from advbench.audit.subject import MUCH, Subject, Tried, ascent, stronger

FACTOR = 5
IMAGES = {False: 100, True: 24}  # by whether the classifier is random, of which a pass counts ten times
STEPS, SAMPLES = 20, 10  # of the attack that is compared


def check_convergence(subject: Subject, gradient: Tried) -> list[Finding]:
    """Steps, samples and restarts times five, each by itself, on at most 100 images."""
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
                f"{FACTOR} times the {name}: accuracy {other:.3f} after {one:.3f}, on {base.shape[1]} images.",
                "The attack has not converged: the number is an upper bound.",
                f"raise {name}, or run with --converge, or worst_case",
                "attack",
                (subject.clf.passes.forward - before) / len(subject.x),
                stronger(base, more.right),
                subject.matters(one - other),
                "failed" if subject.matters(one - other, MUCH) else "warning",
            )
        )
    return found

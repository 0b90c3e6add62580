"""What the outputs are like: logits or probabilities, saturated, tied, constant around images."""

from __future__ import annotations

import torch

from advbench.attacks.ball import random_start, steepest
from advbench.audit.findings import Finding
from advbench.audit.subject import Subject, ignores_images
from advbench.models.guard import looks_like_probabilities

SATURATED = 100.0  # nats by which the largest logit leads, median over images
TIED = 0.01  # share of images whose two largest logits are equal
FLAT = 0.05  # share of images around which the logits do not change
NUDGE = 0.05  # a small change, in eps
HIDES = "Where outputs do not change there is no gradient, and attacks that follow one stand still."
AROUND = "run attacks that need no gradient (square, transfer), or a differentiable stand-in (--surrogate)"


@torch.no_grad()
def check_outputs(subject: Subject) -> list[Finding]:
    """The four checks, by five passes of a few images."""
    x, draw = subject.x[: subject.sizes.places], subject.draws(1, "outputs")[0]
    clf, cost = subject.clf, len(subject.x[: subject.sizes.places]) / len(subject.x)
    logits = clf.at(draw, x)
    plain = looks_like_probabilities(logits)
    found = [
        Finding(
            "outputs: probabilities",
            "failed" if plain else "ok",
            f"The outputs look like {'probabilities' if plain else 'logits'}.",
            "A softmax in the model hides gradients from losses that take another one.",
            "return what goes into the last softmax",
            passes=cost,
        )
    ]
    if ignores_images(clf, x, draw):
        reason = "the classifier answers without looking at the image"
        return [*found, *(Finding.skipped(f"outputs: {name}", reason) for name in ("saturation", "ties", "plateaus"))]
    top = logits.double().topk(2, 1).values
    lead = float((top[:, 0] - top[:, 1]).median())
    found.append(
        Finding(
            "outputs: saturation",
            "warning" if lead > SATURATED else "ok",
            f"The largest logit leads the next by {lead:.3g} nats (median).",
            "Cross-entropy as libraries compute it is rounded to zero there, and its gradient with it; advbench's is "
            "not.",
            "compare losses: margin and dlr beside ce (worst_case runs all three)",
            passes=3 * cost,
        )
    )
    tied = float((top[:, 0] == top[:, 1]).float().mean())
    found.append(
        Finding(
            "outputs: ties",
            "warning" if tied > TIED else "ok",
            f"The two largest logits are equal on {tied:.0%} of {len(x)} images.",
            "The order of the classes decides there, not the model.",
            "find what rounds or clips the logits",
        )
    )
    generator = subject.generator("plateaus")
    far = random_start(x, subject.threat, generator)
    nudge = steepest(torch.empty_like(x).normal_(generator=generator), subject.threat) * (NUDGE * subject.threat.eps)
    same = [float((clf.at(draw, z) == logits).all(1).float().mean()) for z in (far, (x + nudge).clamp(0, 1))]
    verdict = "failed" if same[0] > FLAT else "warning" if same[1] > FLAT else "ok"
    found.append(
        Finding(
            "outputs: plateaus",
            verdict,  # type: ignore[arg-type]
            f"No logit changes on {same[0]:.0%} of {len(x)} images at a random point of the ball, and on "
            f"{same[1]:.0%} {NUDGE:g} eps away.",
            f"The classifier rounds, or answers from memory. {HIDES}",
            AROUND,
            passes=2 * cost,
        )
    )
    return found

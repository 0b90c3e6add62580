"""Output checks: probabilities in place of logits, saturation, ties, plateaus."""

from __future__ import annotations

import torch

from advbench.attacks.ball import random_start, steepest
from advbench.audit.findings import Finding
from advbench.audit.subject import Subject, ignores_images, resolution
from advbench.models.guard import TIED, looks_like_probabilities

SATURATED = 100.0  # nats; lead of the largest logit, median over images
FLAT = 0.05  # fraction of images around which the logits are constant
NUDGE = 0.05  # size of a small perturbation, in eps
TINY = 0.001  # size of a perturbation under which a continuous function hardly changes, in eps
JUMP = 0.3  # change under it that is not continuous, as a fraction of that at a random point of the ball
JUMPS = 0.2  # fraction of images with such a change
NAMES = ("probabilities", "saturation", "ties", "plateaus", "jumps")
HIDES = "Where outputs are constant the gradient is zero, and gradient attacks stall."
AROUND = "run attacks without gradients (square, transfer), or use a differentiable stand-in (--surrogate)"


@torch.no_grad()
def check_outputs(subject: Subject) -> list[Finding]:
    """Run the five checks, with six passes of a few images."""
    x, draw = subject.x[: subject.sizes.places], subject.draws(1, "outputs")[0]
    clf, cost = subject.clf, len(subject.x[: subject.sizes.places]) / len(subject.x)
    logits = clf.at(draw, x)
    plain = looks_like_probabilities(logits)
    found = [
        Finding(
            "outputs: probabilities",
            "failed" if plain else "ok",
            f"The outputs look like {'probabilities' if plain else 'logits'}.",
            "A softmax in the model masks the gradients of losses that apply another one.",
            "return the input of the last softmax",
            passes=cost,
        )
    ]
    if ignores_images(clf, x, draw):
        reason = "the output of the classifier does not depend on the image"
        return [*found, *(Finding.skipped(f"outputs: {name}", reason) for name in NAMES[1:])]
    top = logits.double().topk(2, 1).values
    lead = float((top[:, 0] - top[:, 1]).median())
    found.append(
        Finding(
            "outputs: saturation",
            "warning" if lead > SATURATED else "ok",
            f"The largest logit exceeds the next by {lead:.3g} nats (median).",
            "Usual implementations of cross-entropy round to zero there, and so does their gradient; advbench's does "
            "not.",
            "compare the losses margin and dlr with ce (worst_case runs all three)",
            passes=3 * cost,
        )
    )
    tied = float((top[:, 0] == top[:, 1]).float().mean())
    found.append(
        Finding(
            "outputs: ties",
            "warning" if tied > TIED else "ok",
            f"The two largest logits are equal on {tied:.0%} of {len(x)} images.",
            "The prediction there depends on the order of the classes, not on the model.",
            "find the part of the model that rounds or clips the logits",
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
            f"Logits change for {1 - same[0]:.0%} of {len(x)} images at a random point of the ball, and for "
            f"{1 - same[1]:.0%} at a distance of {NUDGE:g} eps."
            if verdict == "ok"
            else f"All logits are unchanged for {same[0]:.0%} of {len(x)} images at a random point of the ball, and "
            f"for {same[1]:.0%} at a distance of {NUDGE:g} eps.",
            f"The classifier quantises its input, or looks up stored images. {HIDES}",
            AROUND,
            passes=2 * cost,
        )
    )
    away = steepest(torch.empty_like(x).normal_(generator=generator), subject.threat) * (TINY * subject.threat.eps)
    tiny, large = ((clf.at(draw, z) - logits).abs().amax(1).double() for z in ((x + away).clamp(0, 1), far))
    jumps = float(((tiny > JUMP * large) & (tiny > resolution(clf, logits))).float().mean())
    found.append(
        Finding(
            "outputs: jumps",
            "failed" if jumps > JUMPS else "ok",
            f"For {jumps:.0%} of {len(x)} images, a distance of {TINY:g} eps changes the logits by over {JUMP:.0%} of "
            "their change at a random point of the ball.",
            "The classifier is not continuous at the images: attacks see another classifier than evaluations of clean "
            "images.",
            "round adversarial examples to the grid of the data and evaluate them; attack the parts of the classifier "
            "one by one",
            passes=cost,
        )
    )
    return found

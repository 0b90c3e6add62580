"""Losses that attacks ascend, functions of logits and labels, or of logits and pairs of label and target."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advbench.models.classifier import ExampleLoss, SlopedLoss

LossName = Literal["ce", "margin", "dlr"]
Measure = Literal["total", "epistemic"]


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy as softplus of the log-odds against the label, whose gradient autograd computes accurately."""
    others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return F.softplus(others - logits.gather(1, y[:, None]).squeeze(1))


def _cross_entropy_slope(logits: Tensor, y: Tensor) -> Tensor:
    """Gradient of the cross-entropy: the softmax of the other classes, and minus their sum at the label."""
    label = y[:, None]
    probs = logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32)).scatter_(1, label, 0.0)
    return probs.scatter_(1, label, -probs.sum(1, keepdim=True)).to(logits.dtype)


cross_entropy = SlopedLoss(_cross_entropy, _cross_entropy_slope)
"""Cross-entropy of each image, `(batch,)`, in nats, with a gradient that is accurate at high confidence.

The usual gradient at the label, softmax - 1, rounds to 0 in float32 once the label leads by 17 nats, and the rest of
the gradient no longer points away from the label: a confident net looks robust. Here the gradient at the label is minus
the sum of the others. It vanishes once their probabilities underflow, at a lead of about 100 nats in float32; the
losses `margin` and `dlr` have no such limit.
"""


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the label's, `(batch,)`; positive if the image is misclassified.

    Carlini and Wagner 2017, f6 with the sign reversed.
    """
    label = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - label


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio of each image, `(batch,)` (Croce and Hein 2020, eq. 6).

    The margin divided by the difference of the largest and the third largest logit; invariant to shift and scale of the
    logits. With two classes the ratio would be constant, so it is the margin itself.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    ordered = logits.sort(dim=1, descending=True).values
    spread = ordered[:, 0] - ordered[:, 2]
    return margin(logits, y) / spread.clamp_min(_least(spread))


targeted_cross_entropy = SlopedLoss(
    lambda logits, rows: -_cross_entropy(logits, rows[:, 1]),
    lambda logits, rows: -_cross_entropy_slope(logits, rows[:, 1]),
)
"""Negative cross-entropy of each image's target, `(batch,)`, in nats; `rows` holds labels and targets."""


def targeted_margin(logits: Tensor, rows: Tensor) -> Tensor:
    """The target's logit minus the largest other one, `(batch,)`; positive if the target is predicted."""
    return -margin(logits, rows[:, 1])


def targeted_dlr(logits: Tensor, rows: Tensor) -> Tensor:
    """Targeted difference of logits ratio of each image, `(batch,)` (Croce and Hein 2020, eq. 7).

    The target's logit minus the label's, divided by the difference of the largest logit and the mean of the third and
    the fourth. With three classes the third is used for both; with two there is no denominator.
    """
    pair = logits.gather(1, rows)
    difference = pair[:, 1] - pair[:, 0]
    if logits.shape[1] < 3:
        return difference
    ordered = logits.sort(dim=1, descending=True).values
    spread = ordered[:, 0] - ordered[:, 2:4].mean(1)
    return difference / spread.clamp_min(_least(spread))


def _least(spread: Tensor) -> float:
    """Smallest denominator of a ratio of logits, above 0 in any dtype."""
    return max(1e-12, torch.finfo(spread.dtype).tiny)


LOSSES: dict[LossName, ExampleLoss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
TARGETED_LOSSES: dict[LossName, ExampleLoss] = {
    "ce": targeted_cross_entropy,
    "margin": targeted_margin,
    "dlr": targeted_dlr,
}


def entropy(log_probs: Tensor) -> Tensor:
    """Entropy over the last dimension of log-probabilities `(..., classes)`, in nats.

    The gradient omits a multiple of the gradient of sum p, which is constant: the remaining terms stay accurate when
    one probability rounds to 1, where they would otherwise cancel.
    """
    return -(log_probs.exp() * log_probs.detach()).sum(-1)


def predictive_uncertainty(log_probs: Tensor, measure: Measure) -> Tensor:
    """Uncertainty of each image, `(batch,)`, in nats, from the log-softmax of draws `(draws, batch, classes)`.

    Args:
        log_probs: log-softmax of a classifier's draws.
        measure: `"total"`, the entropy of the mean softmax, or `"epistemic"`, the same minus the mean entropy of the
            draws (BALD), which is 0 for a single draw.
    """
    total = entropy(log_probs.logsumexp(0) - math.log(len(log_probs)))
    return total if measure == "total" else total - entropy(log_probs).mean(0)

"""Moves what a minimal-norm attack found as near to the image as it still fools."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks.ball import per_image
from advbench.attacks.selection import Kept

STRETCHES = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
BISECTIONS = 10
SHORTENING = 1 + len(STRETCHES) + BISECTIONS  # the most points of each image that `shorten` looks at


def shorten(kept: Kept, x: Tensor, found: Tensor, *, beyond: float = 0.0) -> Tensor:
    """The nearest point that fools on the way from each image to the example that was found for it.

    By bisection, at draws of the attack's own, the same for all points. What fooled the draws of a search may
    not fool these (on a random classifier the nearest of many finds is a lucky one); then the point is looked
    for beyond it, up to ten times as far, inside the box.

    Args:
        kept: holds the draws and the goal.
        x: images, `(batch, channels, height, width)`.
        found: examples; equal to the image where there is none, which then stays.
        beyond: margin above which a point counts as fooling.
    """
    delta = found - x
    low, high = x.new_zeros(len(x)), x.new_full((len(x),), torch.inf)

    def at(share: Tensor) -> Tensor:
        return (x + per_image(share, x) * delta).clamp(0, 1)

    if not kept.random:
        high[kept.margins_of(x) > beyond] = 0.0
    for stretch in STRETCHES:
        share = torch.full_like(low, stretch)
        fools = kept.margins_of(at(share)) > beyond
        high = torch.where(fools & high.isinf(), share, high)
        low = torch.where(high.isinf(), share, low)
        if bool(high.isfinite().all()):
            break
    lost = high.isinf()
    low, high = low.masked_fill(lost, 1.0), high.masked_fill(lost, 1.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fools = kept.margins_of(at(middle)) > beyond
        high = torch.where(fools & ~lost, middle, high)
        low = torch.where(fools, low, middle)
    return torch.where(per_image(high == 1.0, x), found, at(high))

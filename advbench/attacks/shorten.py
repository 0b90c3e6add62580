"""Line search that moves examples of a minimal-norm attack as close to the image as they stay adversarial."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks.ball import per_image
from advbench.attacks.selection import Kept

STRETCHES = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
BISECTIONS = 10
SHORTENING = 1 + len(STRETCHES) + BISECTIONS  # maximum number of points per image in `shorten`


def shorten(kept: Kept, x: Tensor, found: Tensor, *, beyond: float = 0.0) -> Tensor:
    """The result of `shortened`, without the mask."""
    return shortened(kept, x, found, beyond=beyond)[0]


def shortened(
    kept: Kept, x: Tensor, found: Tensor, *, rows: Tensor | None = None, beyond: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The nearest adversarial point on the line from each image to the example found for it.

    Found by bisection, with the attack's own draws, the same for all points. An example that fooled the draws of the
    search may not fool these (on a random classifier, the nearest of many candidates is selected by chance); then the
    search continues beyond it, up to ten times as far, inside the box.

    Args:
        kept: draws and goal.
        x: images, `(batch, channels, height, width)`.
        found: examples; equal to the image if none was found, and then returned unchanged.
        rows: indices of the images in `kept`, `(batch,)`; by default all.
        beyond: margin above which a point counts as adversarial.

    Returns:
        The points, and a mask of those that are adversarial, `(batch,)`, bool; the others are unchanged.
    """
    delta = found - x
    low, high = x.new_zeros(len(x)), x.new_full((len(x),), torch.inf)

    def at(share: Tensor) -> Tensor:
        return (x + per_image(share, x) * delta).clamp(0, 1)

    if not kept.random:
        high[kept.margins_of(x, rows) > beyond] = 0.0
    for stretch in STRETCHES:
        share = torch.full_like(low, stretch)
        fools = kept.margins_of(at(share), rows) > beyond
        high = torch.where(fools & high.isinf(), share, high)
        low = torch.where(high.isinf(), share, low)
        if bool(high.isfinite().all()):
            break
    lost = high.isinf()
    low, high = low.masked_fill(lost, 1.0), high.masked_fill(lost, 1.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fools = kept.margins_of(at(middle), rows) > beyond
        high = torch.where(fools & ~lost, middle, high)
        low = torch.where(fools, low, middle)
    return torch.where(per_image(high == 1.0, x), found, at(high)), ~lost

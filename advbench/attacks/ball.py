"""Geometry of the ball around an image: projection, distances, steepest directions, random points."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks.base import Threat

ROUNDING = 1e-5  # tolerance for the float32 rounding of libraries: absolute per pixel, relative for lengths


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """Reshape `values` `(batch,)` to broadcast over `images` `(batch, ...)`."""
    return values.view(-1, *[1] * (images.ndim - 1))


def lengths(delta: Tensor) -> Tensor:
    """Euclidean length of the change of each image, `(batch, 1, 1, 1)`, summed in float64."""
    return per_image(delta.flatten(1).norm(dim=1, dtype=torch.float64).to(delta.dtype), delta)


def project(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Project `x_adv` onto the ball around `x`, then clip to the box [0, 1].

    Clipping moves each pixel towards `x`, which lies in the box, so the result stays in the ball.
    """
    if threat.norm == "linf":
        return x_adv.clamp(x - threat.eps, x + threat.eps).clamp_(0, 1)
    delta = x_adv - x
    scale = threat.eps / lengths(delta).clamp_min(torch.finfo(x.dtype).tiny)
    inside = 1 - 4 * torch.finfo(x.dtype).eps  # margin for rounding of the scale
    delta = delta * torch.where(scale < 1, scale * inside, 1.0)
    moved = x + delta
    # Rounded towards the image: over many equal pixels, rounding errors could sum to more than the tolerance.
    longer = (moved - x).abs() > delta.abs()
    return torch.where(longer, torch.nextafter(moved, x), moved).clamp_(0, 1)


def distances(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Distance of each example from its image in the threat's norm, `(count,)`, float64."""
    delta = (x_adv.double() - x.double()).flatten(1)
    return delta.abs().amax(1) if threat.norm == "linf" else delta.norm(dim=1)


def within(x_adv: Tensor, x: Tensor, threat: Threat, *, outward: bool = False) -> Tensor:
    """Move examples of a minimal-norm attack into the threat's ball around `x`, so that one run serves every eps.

    Examples outside are projected onto the ball. Examples inside stay: they fool a deterministic classifier.

    Args:
        x_adv: adversarial examples.
        x: the images.
        threat: norm and eps.
        outward: move examples inside the ball outward, to its surface (and into the box). On a random classifier the
            nearest example lies where it is wrong in half of the draws, and a larger ball allows more.
    """
    distance = distances(x_adv, x, threat)
    if outward:
        stretch = per_image((threat.eps / distance.clamp_min(1e-12)).clamp_min(1.0).to(x.dtype), x)
        return project(x + (x_adv - x) * stretch, x, threat)
    return torch.where(per_image(distance <= threat.eps, x), x_adv, project(x_adv, x, threat))


def snapped_to_box(x_adv: Tensor) -> Tensor:
    """Clip examples of another library that leave [0, 1] by float32 rounding only."""
    clipped = x_adv.clamp(0, 1)
    return torch.where((x_adv - clipped).abs() <= ROUNDING, clipped, x_adv)


def snapped(x_adv: Tensor, x: Tensor, threat: Threat) -> Tensor:
    """Project examples of another library that leave the ball by float32 rounding only.

    Such libraries sum in float32, whose rounding error on large images exceeds the harness's tolerance.
    """
    x_adv = snapped_to_box(x_adv)
    excess = distances(x_adv, x, threat) / max(threat.eps, torch.finfo(x.dtype).tiny) - 1
    rounding = (excess > 0) & (excess <= ROUNDING)
    return torch.where(per_image(rounding, x), project(x_adv, x, threat), x_adv)


def steepest(gradient: Tensor, threat: Threat) -> Tensor:
    """Direction of steepest ascent of a linear loss, with norm 1 in the threat's norm; 0 for a zero gradient."""
    if threat.norm == "linf":
        return gradient.sign()
    # Scaled first, so that the square of a tiny gradient does not underflow.
    largest = per_image(gradient.abs().flatten(1).amax(1), gradient)
    scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    return scaled / lengths(scaled).clamp_min(torch.finfo(gradient.dtype).tiny)


def random_start(x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """Draw a uniform random point of the ball around each image, clipped to the box."""
    if threat.norm == "linf":
        noise = torch.empty_like(x).uniform_(-threat.eps, threat.eps, generator=generator)
        return project(x + noise, x, threat)
    noise = torch.empty_like(x).normal_(generator=generator)
    uniform = x.new_empty(len(x)).uniform_(generator=generator)
    radius = threat.eps * per_image(uniform ** (1 / x[0].numel()), x)
    return project(x + noise * (radius / lengths(noise)), x, threat)

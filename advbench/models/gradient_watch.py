"""Counts passes, and watches whether logits and gradients are finite and whether gradients vanish."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advbench.errors import PluginError


@dataclass
class Passes:
    """What an attack cost, and whether it had something to go by.

    Attributes:
        forward: images that passed a net.
        backward: images that passed it backward, for a gradient.
        gradients: images' gradients that were asked for, each over all its draws.
        vanished: how many of them were exactly zero; a tensor, so that no pass waits for the device.
        finite: whether all logits and gradients were finite; likewise.
    """

    forward: int = 0
    backward: int = 0
    gradients: int = 0
    vanished: int | Tensor = 0
    finite: bool | Tensor = True

    def add(self, other: Passes) -> None:
        """Count what another counted as well."""
        self.forward += other.forward
        self.backward += other.backward
        self.gradients += other.gradients
        self.vanished = self.vanished + other.vanished
        self.finite = other.finite & self.finite

    def check_finite(self) -> None:
        """Refuse a model that gave NaN or infinity.

        Raises:
            PluginError: it did.
        """
        if not self.finite:
            raise PluginError("the model's output", expected="finite logits and gradients", got="NaN or infinity")


def asked(slope: Tensor, logits: Tensor, rows: Tensor | None) -> Tensor:
    """Of which images an attack asked a gradient, `(batch,)`: only such a gradient can vanish.

    It may ask nothing of an image, as where that fools already: then its loss does not depend on the logits. Nor
    does cross-entropy where the softmax is rounded to 1, but that is what is looked for.

    Args:
        slope: gradient with respect to the logits, `(batch, classes)`.
        logits: likewise.
        rows: labels, or labels and targets, `(batch, 2)`; None where they are not known, and doubt prevails.
    """
    rounded = logits.softmax(1).amax(1) == 1
    if rows is not None:
        predicted = logits.argmax(1)
        rounded &= predicted == rows if rows.ndim == 1 else predicted != rows[:, 1]
    return (slope != 0).any(1) | rounded


def _is_batched(gradient: Tensor) -> bool:
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(gradient) or functorch.is_legacy_batchedtensor(gradient)


class BackwardWatch:
    """Counts the backward passes of logits that others differentiate, and looks at what reaches the images.

    A gradient that torch.func takes for several vectors at once cannot be looked at, and is counted once.

    Args:
        passes: where it counts.
        x: the images that passed, which need a gradient.
        logits: their logits, `(batch, classes)`.
        rows: their labels, or labels and targets, `(batch, 2)`; None where they are not known.
    """

    def __init__(self, passes: Passes, x: Tensor, logits: Tensor, rows: Tensor | None) -> None:
        self._passes = passes
        self._logits = logits.detach()
        self._rows = rows if rows is not None and len(rows) == len(logits) else None
        self._slope: Tensor | None = None
        logits.register_hook(self._at_logits)  # type: ignore[no-untyped-call]
        x.register_hook(self._at_images)  # type: ignore[no-untyped-call]

    def _at_logits(self, gradient: Tensor) -> None:
        self._passes.backward += len(self._logits)
        self._slope = None if _is_batched(gradient) else gradient.detach()

    def _at_images(self, gradient: Tensor) -> None:
        if self._slope is None or _is_batched(gradient):
            return
        largest = gradient.detach().abs().flatten(1).amax(1)
        passes = self._passes
        passes.gradients += len(gradient)
        passes.vanished = passes.vanished + ((largest == 0) & asked(self._slope, self._logits, self._rows)).sum()
        counted = ~self._logits.isfinite().all()  # by the pass forward
        passes.finite = (largest.isfinite().all() | counted) & passes.finite

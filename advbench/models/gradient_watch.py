"""Counts passes and detects non-finite logits and gradients, and gradients that vanish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from advbench.errors import PluginError

_PENDING = 64  # gradients that are checked together, in one reduction
_ELEMENTS = 2**22  # bound on the elements of the logits kept until then


class _Seen(NamedTuple):
    """A gradient to check: its largest absolute value per image, and the logits of each draw with their gradients."""

    largest: Tensor
    logits: Sequence[Tensor]
    slopes: Sequence[Tensor]
    rows: Tensor | None

    @property
    def kind(self) -> tuple[object, ...]:
        """Shapes, dtype and device; gradients of equal kind are checked together."""
        rows = None if self.rows is None else self.rows.ndim
        return len(self.logits), self.logits[0].shape[1], self.logits[0].dtype, rows


class Passes:
    """Number of passes of an attack, and the state of the gradients that it received.

    Gradients are checked in groups, when a result is read or enough have accumulated: on a GPU, a check of each one
    costs more kernels than a pass of a small net.

    Attributes:
        forward: number of images passed forward through a net.
        backward: number of images passed backward, for a gradient.
        gradients: number of image gradients requested, each over all its draws.
        watch: callback with the number of images of each forward pass, for progress reports; None for no reports.
    """

    def __init__(self, watch: Callable[[int], None] | None = None) -> None:
        self.watch = watch
        self.forward = 0
        self.backward = 0
        self.gradients = 0
        self._vanished: int | Tensor = 0
        self._finite: list[Tensor] = []
        self._pending: list[_Seen] = []
        self._elements = 0

    def note(self, forward: int, backward: int = 0) -> None:
        """Record numbers of images passed forward and backward."""
        self.forward += forward
        self.backward += backward
        if self.watch is not None:
            self.watch(forward)

    def note_finite(self, finite: Tensor) -> None:
        """Record whether logits or gradients were finite, `()`, bool."""
        self._finite.append(finite)
        if len(self._finite) >= _PENDING:
            self._finite = [torch.stack(self._finite).all()]

    def note_gradient(
        self, largest: Tensor, logits: Sequence[Tensor], slopes: Sequence[Tensor], rows: Tensor | None
    ) -> None:
        """Record a gradient with respect to images.

        Args:
            largest: its largest absolute value for each image, `(batch,)`.
            logits: logits of each draw that it averages over, `(batch, classes)`.
            slopes: gradient with respect to the logits of each draw.
            rows: labels, or labels and targets, `(batch, 2)`; None if unknown.
        """
        self.gradients += len(largest)
        self._pending.append(_Seen(largest, logits, slopes, rows))
        self._elements += sum(each.numel() for each in logits)
        if len(self._pending) >= _PENDING or self._elements >= _ELEMENTS:
            self._check()

    def note_cut(self, images: int) -> None:
        """Record images whose gradient was requested although the model does not propagate it."""
        self.gradients += images
        self._vanished = self._vanished + images

    @property
    def vanished(self) -> int:
        """Number of gradients that were exactly zero."""
        self._check()
        return int(self._vanished)

    @property
    def finite(self) -> bool:
        """True if all logits and gradients were finite."""
        self._check()
        return not self._finite or bool(torch.stack(self._finite).all())

    def _check(self) -> None:
        kinds: dict[tuple[object, ...], list[_Seen]] = {}
        for seen in self._pending:
            kinds.setdefault(seen.kind, []).append(seen)
        self._pending, self._elements = [], 0
        for alike in kinds.values():
            largest = torch.cat([seen.largest for seen in alike])
            logits = torch.stack([torch.cat(parts) for parts in zip(*(seen.logits for seen in alike), strict=True)])
            slopes = torch.stack([torch.cat(parts) for parts in zip(*(seen.slopes for seen in alike), strict=True)])
            known = [seen.rows for seen in alike if seen.rows is not None]
            wanted = _asked(slopes, logits, torch.cat(known) if known else None)
            self._vanished = self._vanished + ((largest == 0) & wanted).sum()
            self.note_finite(logits.isfinite().all() & largest.isfinite().all())

    def add(self, other: Passes) -> None:
        """Add the counts of another instance."""
        other._check()
        self.forward += other.forward
        self.backward += other.backward
        self.gradients += other.gradients
        self._vanished = self._vanished + other._vanished
        for finite in other._finite:
            self.note_finite(finite)

    def check_finite(self) -> None:
        """Raise if the model gave NaN or infinity.

        Raises:
            PluginError: some logits or gradients were not finite.
        """
        if not self.finite:
            raise PluginError("the model's output", expected="finite logits and gradients", got="NaN or infinity")


def _asked(slopes: Tensor, logits: Tensor, rows: Tensor | None) -> Tensor:
    """Mask of the images whose gradient an attack needed, `(batch,)`: only such a gradient can vanish.

    The loss of an image that is already misclassified may not depend on the logits at all. Neither does the
    cross-entropy where the softmax rounds to 1, but that is the case to detect.

    Args:
        slopes: gradient with respect to the logits, `(draws, batch, classes)`.
        logits: logits of the same shape.
        rows: labels, or labels and targets, `(batch, 2)`; None if unknown, when every image counts as needed.
    """
    rounded = logits.softmax(-1).amax(-1) == 1
    if rows is not None:
        predicted = logits.argmax(-1)
        rounded &= predicted == rows if rows.ndim == 1 else predicted != rows[:, 1]
    return ((slopes != 0).any(-1) | rounded).any(0)


def _is_batched(gradient: Tensor) -> bool:
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(gradient) or functorch.is_legacy_batchedtensor(gradient)


class BackwardWatch:
    """Counts backward passes through logits that other code differentiates, and records the gradients at the images.

    A gradient that torch.func computes for several vectors at once cannot be inspected and counts once.

    Args:
        passes: the counter.
        x: the images, which require a gradient.
        logits: their logits, `(batch, classes)`.
        rows: their labels, or labels and targets, `(batch, 2)`; None if unknown.
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
        # Non-finite logits were recorded by the forward pass, which knows whether the images were finite.
        finite = self._logits.isfinite().all(1)
        largest = torch.where(finite, largest, 1.0)
        logits = torch.where(finite[:, None], self._logits, 0.0)
        self._passes.note_gradient(largest, [logits], [self._slope], self._rows)
